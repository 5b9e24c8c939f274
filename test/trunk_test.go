// SPDX-License-Identifier: Apache-2.0

package test

import (
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// A router on a stick: inside and outside are VLANs of one cable. The pin is found
// by its tag, and switched by it; what leaves by the outside VLAN comes from the
// VIP and has that VLAN's tags, and what leaves by the inside one is untouched.
func TestTrunk(t *testing.T) {
	for _, kind := range trunks {
		t.Run(string(kind), func(t *testing.T) {
			s := setTrunk(t, "trunk", lab.Options{Hosts: 1, Trunk: kind})
			outer := outerTag(kind)
			if pin := s.pin(s.RA, outer); pin.Interface != s.RA.Ifname(lab.WAN) || pin.VLAN.String() != s.RA.VLAN(lab.WAN) {
				t.Errorf("the pin is on %s, VLAN %s; want %s, %s", pin.Interface, pin.VLAN, s.RA.Ifname(lab.WAN), s.RA.VLAN(lab.WAN))
			}
			s.passes("pinned", kind, vip)
			s.vippin(s.RA, "pin", "off", s.RA.VLAN(lab.WAN))
			s.passes("off", kind, own)
			s.vippin(s.RA, "pin", "on", s.RA.VLAN(lab.WAN))
			s.wantPinned(s.count(s.RA, outer, func() { s.passes("on again", kind, vip) }))
		})
	}
}

// passes checks from where the server sees an inside host, and how its packets and
// their answers pass the trunk.
func (s *scene) passes(what string, kind lab.Trunk, want lab.Ends) {
	s.t.Helper()
	to, from := s.onTrunk(s.RA, kind, func() { s.sees(s.Hosts[0], lab.ServerFar, want) })
	s.wantOnly(what+", outgoing", from, lab.WAN, want)
	s.wantOnly(what+", answers to the host", from, lab.LAN, lab.ServerFar)
	s.wantOnly(what+", from the host", to, lab.LAN, lab.HostEnds(0))
	s.wantOnly(what+", answers", to, lab.WAN, lab.ServerFar)
}

// drivePace is how often a drive sends on a machine that is not slow.
const drivePace = time.Millisecond

// The fast path turns packets round on the trunk: the device is the same, the tag is
// another one. They leave with the right tags, from the VIP.
func TestTrunkFastpath(t *testing.T) {
	for _, kind := range trunks {
		t.Run(string(kind), func(t *testing.T) {
			s := setTrunk(t, "fasttrunk", lab.Options{Hosts: 1, Trunk: kind, Fastpath: true})
			s.watchLeaks(s.RA)
			s.awaitOn(s.RA, "an open fast path", func(state policy.FastpathState) bool {
				return state.Open && len(state.Interfaces) == 1 && state.Interfaces[0].Mode == "native"
			})
			var drives []*traffic.Drive
			for _, f := range families {
				local := lab.Port(f.of(lab.HostEnds(0)), 4000)
				drives = append(drives, s.drive(s.Hosts[0], traffic.FlowOptions{
					ID: f.name, Local: local, Remote: lab.Port(f.of(lab.ServerFar), serverPort), Interval: lab.Slowly(drivePace),
				}))
			}
			line, err := traffic.OpenLine(s.ctx, s.Hosts[0].Do, lab.Port(lab.HostEnds(0).V6, 4001), lab.Port(lab.ServerFar.V6, serverPort))
			s.must(err)
			defer line.Close()
			for _, transfer := range []func(int64) (traffic.Bulk, error){line.Put, line.Get} {
				_, err := transfer(1 << 20)
				s.must(err)
			}
			directions := 2 * (len(drives) + 1)
			s.awaitOn(s.RA, "all flows on the fast path", func(state policy.FastpathState) bool { return state.Flows >= directions })
			s.settle(s.RA, drives...)
			var carried ways
			to, from := s.onTrunk(s.RA, kind, func() {
				carried = s.fastWays(s.RA, func() {
					s.answers(200, drives...)
					_, err := line.Put(1 << 18)
					s.must(err)
				})
			})
			s.wantFast(s.RA, carried, 2*200*uint64(len(drives)), 4)
			s.wantOnly("outgoing", from, lab.WAN, vip)
			s.wantOnly("answers to the host", from, lab.LAN, lab.ServerFar)
			s.wantOnly("from the host", to, lab.LAN, lab.HostEnds(0))
			for i, d := range drives {
				report, seen := d.Stop(), s.server.Stream(families[i].name)
				if len(report.Sources) != 1 || seen.Missing != 0 || report.Answered+20 < report.Sent { // these may be under way
					t.Errorf("%d of %d datagrams were answered, the server missed %d, sources %v", report.Answered, report.Sent, seen.Missing, report.Sources)
				}
			}
		})
	}
}
