// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// finding is what the tests read of "doctor -j".
type finding struct {
	Check, State, Found, Remedy string
}

// doctor asks "doctor -j": exit 1 is an answer too.
func (l *lab) doctor(t *testing.T) []finding {
	t.Helper()
	said, code := l.call("doctor", "-j", "-c", l.config)
	var findings []finding
	if err := json.Unmarshal([]byte(said), &findings); err != nil || code != 0 && code != 1 {
		t.Fatalf("vippin doctor -j: exit %d, %v: %s", code, err, said)
	}
	return findings
}

// wantFinding waits for one of a check and state, and wants nothing else to be
// wrong.
func (l *lab) wantFinding(t *testing.T, check, state, found string) {
	t.Helper()
	var last []finding
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(time.Second) {
		last = l.doctor(t)
		hit := false
		for _, f := range last {
			hit = hit || f.Check == check && f.State == state && strings.Contains(f.Found, found)
		}
		if hit {
			for _, f := range last {
				if f.State != "ok" && f.Check != check {
					t.Errorf("doctor also says %+v", f)
				}
			}
			return
		}
	}
	t.Errorf("no %s of %s with %q: %+v", state, check, found, last)
}

// TestDoctor: on this kernel, with real VLANs, a healthy router has no finding; a
// flow table is read, and a VLAN that the trunk does not carry is named.
func TestDoctor(t *testing.T) {
	l := newLab(t)
	l.start(t, `
pins:
  - {vlan: 2, vips: [198.51.100.2, "2001:db8:2::2"]}
  - {vlan: 20, vips: [192.168.20.1], enabled: false}
`)
	l.awaitDaemon(t)
	for _, f := range l.doctor(t) {
		if f.State != "ok" {
			t.Errorf("healthy, and doctor says %+v", f)
		}
		if f.Check == "tier" {
			t.Log(f.Found)
		}
	}
	l.router.must(t, func() error {
		return run("nft", `table inet ft { flowtable fast { hook ingress priority 0; devices = { eth0 }; }; }`)
	})
	l.wantFinding(t, "flow_offload", "ok", "fast of table inet ft works in software")
	l.router.must(t, func() error { return run("nft", `delete table inet ft`) })

	// The trunk loses VLAN 20: the other end is down before this one is made anew.
	if err := l.host.LinkSetDown(l.host.link(t, "trunk.20")); err != nil {
		t.Fatal(err)
	}
	if err := l.router.LinkDel(l.router.link(t, lan)); err != nil {
		t.Fatal(err)
	}
	l.router.vlanOn(t, "eth0", lanTag, nil)
	l.router.addr(t, lan, "192.168.20.1/24")
	l.router.must(t, func() error {
		_ = run("ping", "-c", "12", "-i", "0.2", "-W", "1", "-I", lan, "224.0.0.1") // nobody answers
		return nil
	})
	l.wantFinding(t, "adverts", "warning", "VLAN 20 is missing from the trunk")
}
