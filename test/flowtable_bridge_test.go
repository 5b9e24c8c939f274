// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
)

// On a pinned bridge it counts which devices a flow table has. With the bridge alone
// packets pass the programs. With a port of it the kernel gives them to the port, and
// nothing on the bridge sees them, no rule of nf_tables either: doctor says so.
func TestFlowtableBridge(t *testing.T) {
	needFlowtable(t)
	for _, c := range []struct {
		device string
		source lab.Ends // that the server sees in the end
		says   doctor.State
		found  string
	}{
		{"wan0", vip, doctor.OK, "works in software"},
		{"port0", own, doctor.Error, "port0, a port of the bridge wan0"},
	} {
		t.Run(c.device, func(t *testing.T) {
			s := setScene(t, "ftbridge", lab.Options{Hosts: 1, SingleRouter: true})
			s.ip(s.RA.Node, "link set wan0 down", "link set wan0 name port0", "addr flush dev port0",
				"link add wan0 type bridge", "link set port0 master wan0", "link set port0 up", "link set wan0 up")
			for _, call := range []string{"iptables", "ip6tables"} { // else conntrack is before the programs
				if err := s.RA.Sysctl("net/bridge/bridge-nf-call-"+call, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
			}
			s.configure("wan0")
			s.must(s.RA.NFT(s.ctx, fmt.Sprintf(flowtableRules, "lan0, "+c.device)+`
				table netdev seen { chain out { type filter hook egress device wan0 priority 0; udp dport `+fmt.Sprint(serverPort)+` counter; }; }`))
			s.start(s.RA, onWAN)
			s.awaitRole(s.RA, policy.RoleMaster)
			drives := s.drives(4000)
			s.answers(50, drives...)
			before := s.packetsIn(s.RA.Node, "netdev", "seen", "out")[0]
			const more = 100
			s.answers(more, drives...)
			onBridge := s.packetsIn(s.RA.Node, "netdev", "seen", "out")[0] - before
			t.Logf("the bridge saw %d of some %d packets leave", onBridge, more*len(drives))
			if passes := onBridge > more; passes != (c.device == "wan0") {
				t.Errorf("packets pass the bridge: %t", passes)
			}
			for i, d := range drives {
				seen, want := d.Report().Sources, families[i%len(families)].of(c.source)
				if seen[len(seen)-1].Addr() != want || c.source == vip && len(seen) != 1 {
					t.Errorf("datagrams arrive from %v, in the end from %s", seen, want)
				}
			}
			findings := s.doctor(s.RA)
			if !slices.ContainsFunc(findings, func(f doctor.Finding) bool {
				return f.Check == "flow_offload" && f.State == c.says && strings.Contains(f.Found, c.found)
			}) {
				t.Errorf("doctor does not say %s, but %+v", c.found, findings)
			}
		})
	}
}
