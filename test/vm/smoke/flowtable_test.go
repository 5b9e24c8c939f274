// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
)

// TestKernelFlowtable: a flow table of nf_tables in software takes over forwarding
// established flows, at the trunk or at the VLANs' interfaces. The flows keep the
// source that they have, pinned or not, whatever is toggled; the server never sees
// the other one; and they live on without vippin.
func TestKernelFlowtable(t *testing.T) {
	for _, c := range []struct {
		name, devices string
		noBTF         bool
	}{
		{"trunk", "eth0", false},
		{"VLANs", wan + ", " + lan, false},
		{"VLANs without BTF", wan + ", " + lan, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.noBTF = c.noBTF
			l.tryFlowtable(t, c.devices)
		})
	}
}

func (l *lab) tryFlowtable(t *testing.T, devices string) {
	l.serveSources(t)
	l.start(t, `pins: [{vlan: 2, vips: [198.51.100.2, "2001:db8:2::2"], enabled: false}]`)
	l.awaitPin(t, "MASTER", func(p pinRow) bool { return p.Role == "MASTER" })
	l.router.must(t, func() error {
		return run("nft", `table inet ft {
			flowtable fast { hook ingress priority 0; devices = { `+devices+` }; }
			counter out {}
			counter back {}
			chain forward {
				type filter hook forward priority 0;
				oifname "`+wan+`" th dport `+port+` counter name out
				iifname "`+wan+`" th sport `+port+` counter name back
				meta l4proto { tcp, udp } ct state established flow add @fast
			}
		}`)
	})

	before := l.openAll(t, uniqueOf)
	l.wantOffloaded(t, before)
	l.wantOnly(t, "before", before)
	l.verb(t, "pin", "on", "2")
	before.unmoved(t, "after the pin was switched on")
	during := l.openAll(t, vipOf)
	l.wantOffloaded(t, during)
	l.wantOnly(t, "during", during)
	all := maps.Clone(before)
	maps.Copy(all, during)
	for _, to := range []string{"off", "on", "off"} {
		l.verb(t, "pin", to, "2")
		for range 3 {
			all.unmoved(t, "after the pin was switched "+to)
		}
	}
	all.burst(t, 500)
	l.wantOffloaded(t, all)

	l.wantFinding(t, "flow_offload", "ok", "fast of table inet ft works in software")
	if said := l.unload(t); !strings.Contains(said, "living connections keep the VIP") {
		t.Errorf("unload says %q", said)
	}
	for range 3 {
		all.unmoved(t, "after vippin was unloaded")
	}
	l.wantNoneMoved(t)
}

// wantOffloaded wants the flows' own packets to have left the forward hook, after
// some exchanges.
func (l *lab) wantOffloaded(t *testing.T, flows sources) {
	t.Helper()
	const exchanges = 10
	flows.unmoved(t, "on their way into the flow table")
	outBefore, backBefore := l.packets(t, "out"), l.packets(t, "back")
	for range exchanges {
		flows.unmoved(t, "in the flow table")
	}
	out, back := l.packets(t, "out")-outBefore, l.packets(t, "back")-backBefore
	t.Logf("%d flows, %d exchanges each: the forward hook saw %d packets out, %d back", len(flows), exchanges, out, back)
	if out >= exchanges {
		t.Errorf("the forward hook saw %d packets out: they do not take the flow table", out)
	}
}

// packets reads a counter of table ft in the router.
func (l *lab) packets(t *testing.T, counter string) (packets int) {
	t.Helper()
	said := l.nft(t, "-j", "list", "counter", "inet", "ft", counter)
	return counted(t, said)
}

// counted adds up the packets of the counters that nft lists.
func counted(t *testing.T, said string) (packets int) {
	t.Helper()
	var listed struct {
		Objects []struct {
			Counter *struct{ Packets int } `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(said), &listed); err != nil {
		t.Fatalf("read %s: %v", said, err)
	}
	found := false
	for _, object := range listed.Objects {
		if object.Counter != nil {
			packets, found = packets+object.Counter.Packets, true
		}
	}
	if !found {
		t.Fatalf("no counter in %s", said)
	}
	return packets
}

// wantOnly has the server count, from now on, what comes from a flow's port with
// another source than the flow has.
func (l *lab) wantOnly(t *testing.T, name string, flows sources) {
	t.Helper()
	var rules strings.Builder
	for flow, source := range flows {
		family := "ip"
		if source.Addr().Is6() {
			family = "ip6"
		}
		fmt.Fprintf(&rules, "%s saddr != %s %s sport %d %s dport %s counter name moved\n",
			family, source.Addr(), flow.network(), source.Port(), flow.network(), port)
	}
	l.server.must(t, func() error {
		return run("nft", fmt.Sprintf(`table inet %s {
			counter moved {}
			chain in { type filter hook input priority 0; %s
			}
		}`, name, rules.String()))
	})
}

// wantNoneMoved reads what wantOnly counted.
func (l *lab) wantNoneMoved(t *testing.T) {
	t.Helper()
	var said string
	l.server.must(t, func() (err error) { said, err = output("nft", "-j", "list", "counters"); return err })
	if moved := counted(t, said); moved != 0 {
		t.Errorf("the server got %d packets of living flows with another source", moved)
	}
}

func (f *flow) network() string { return f.conn.LocalAddr().Network() }

// burst sends many lines at once over the TCP flows, so that segments are joined,
// and wants every answer to have the old source.
func (s sources) burst(t *testing.T, lines int) {
	t.Helper()
	for flow, old := range s {
		if flow.network() != "tcp" {
			continue
		}
		if _, err := flow.conn.Write([]byte(strings.Repeat("who am I? "+strings.Repeat(".", 100)+"\n", lines))); err != nil {
			t.Fatalf("%s: %v", flow.what, err)
		}
		for range lines {
			if seen, err := flow.answer(); err != nil || seen != old {
				t.Fatalf("%s moved from %v to %v in a burst (%v)", flow.what, old, seen, err)
			}
		}
	}
}
