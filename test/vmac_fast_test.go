// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// fastDrives sends a datagram every few milliseconds in both families, and answers come
// back.
func (s *scene) fastDrives() (drives []*traffic.Drive) {
	s.t.Helper()
	for _, f := range families {
		drives = append(drives, s.drive(s.Hosts[0], traffic.FlowOptions{
			ID: f.name, Local: lab.Port(f.of(lab.HostEnds(0)), 4000), Remote: lab.Port(f.of(lab.ServerFar), serverPort),
			Interval: lab.Slowly(drivePace),
		}))
	}
	return drives
}

// awaitVirtual waits until a router's fast path takes frames to the virtual MACs of
// both families on both segments, or to none.
func (s *scene) awaitVirtual(r *lab.Router, held bool) {
	s.t.Helper()
	s.awaitOn(r, fmt.Sprintf("virtual MACs taken by %s: %v", r.Name, held), func(state policy.FastpathState) bool {
		var names []string
		for _, device := range state.Interfaces {
			names = append(names, device.Virtual...)
		}
		slices.Sort(names)
		return !held && len(names) == 0 || slices.Equal(names, []string{"vrrp4.10", "vrrp4.20", "vrrp6.10", "vrrp6.20"})
	})
}

// linkEnds are who a frame is from and to, by MAC and by IP, and its tags.
type linkEnds struct {
	fromMAC, toMAC, tags string
	from, to             netip.Addr
}

// sentBy is how frames of the drives come out of a router while a step is taken.
func (s *scene) sentBy(r *lab.Router, step func()) map[linkEnds]bool {
	s.t.Helper()
	seen := make(map[linkEnds]bool)
	ports := map[*lab.Node]string{s.LANSwitch: r.Name, s.WANSwitch: r.Name}
	if s.Options.Trunk != "" {
		ports = map[*lab.Node]string{s.WANSwitch: r.TrunkPort()}
	}
	var captures []*traffic.Capture
	for at, port := range ports {
		capture, err := traffic.StartCapture(at.Do, port)
		s.must(err)
		captures = append(captures, capture)
	}
	step()
	for _, capture := range captures {
		s.must(capture.Close())
		for _, f := range capture.Frames(ours) {
			ether := f.Packet.LinkLayer().(*layers.Ethernet)
			from, to := ipEnds(f)
			seen[linkEnds{ether.SrcMAC.String(), ether.DstMAC.String(), fmt.Sprint(tagsIn(f.Packet)), from, to}] = true
		}
	}
	return seen
}

// Where hosts and the next router send to virtual MACs, flows take the fast path like
// others, whichever interface they leave by: all of their packets, and with the same
// MACs and addresses as from the stack.
func TestVMACFastpath(t *testing.T) {
	t.Parallel()
	for name, keepalived := range map[string]lab.Keepalived{
		"adverts from the virtual MAC": {VIP6Bits: 64}, "adverts from base": {VIP6Bits: 64, VMACXmitBase: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setScene(t, "vmacfast"+name[13:14], lab.Options{Hosts: 1, SingleRouter: true, Fastpath: true})
			s.lendMACs(keepalived)
			s.masqueradeAbove(s.RA)
			s.start(s.RA, onWAN)
			s.awaitRole(s.RA, policy.RoleMaster)
			s.awaitFast(s.RA)
			s.awaitVirtual(s.RA, true)
			s.watchLeaks(s.RA)
			for _, above := range []bool{false, true} {
				s.run(fmt.Sprintf("above=%t", above), func(s *scene) { s.fastAbove(above, 1000, 20) })
			}
		})
	}
}

// The same on a trunk, where the interfaces with virtual MACs are on VLANs.
func TestTrunkVMACFastpath(t *testing.T) {
	for _, kind := range []lab.Trunk{lab.TrunkTagged, lab.TrunkQinQ} {
		t.Run(string(kind), func(t *testing.T) {
			s := setScene(t, "vmactrunk"+string(kind), lab.Options{Hosts: 1, SingleRouter: true, Fastpath: true, Trunk: kind})
			s.lendMACs(lab.Keepalived{VIP6Bits: 64})
			s.masqueradeAbove(s.RA)
			s.start(s.RA, onWAN)
			s.awaitRole(s.RA, policy.RoleMaster)
			s.awaitVirtual(s.RA, true)
			s.watchLeaks(s.RA)
			for _, above := range []bool{false, true} {
				s.run(fmt.Sprintf("above=%t", above), func(s *scene) { s.fastAbove(above, 200, 4) })
			}
		})
	}
}

// fastAbove sends flows that leave by the interfaces with the virtual MACs, or by those
// below, first through the stack; it waits for some answers, and wants so many times as
// many packets on the fast path as on the stack.
func (s *scene) fastAbove(above bool, more, times uint64) {
	s.t.Helper()
	s.leadBy(s.RA, above, true)
	s.vippin(s.RA, "fastpath", "off")
	drives := s.fastDrives()
	stack := s.sentBy(s.RA, func() { s.answers(50, drives...) })
	s.wantMACs(stack, above)
	_, _, _ = s.Vippin(s.RA, "fastpath", "on") // fails where it is not open within 15 s
	s.awaitOn(s.RA, "an open fast path", func(state policy.FastpathState) bool { return state.Open })
	s.settle(s.RA, drives...)
	fast := s.sentBy(s.RA, func() {
		s.wantFast(s.RA, s.fastWays(s.RA, func() { s.answers(more, drives...) }), 2*more*uint64(len(drives)), times)
	})
	if !maps.Equal(stack, fast) {
		s.t.Errorf("frames of the fast path are %v, of the stack %v", fast, stack)
	}
	for i, d := range drives {
		report := d.Stop()
		if want := families[i].of(vip); len(report.Sources) != 1 || report.Sources[0].Addr() != want {
			s.t.Errorf("the server saw %v, want %v", report.Sources, want)
		}
	}
}

// wantMACs checks from where packets to the server come.
func (s *scene) wantMACs(seen map[linkEnds]bool, above bool) {
	s.t.Helper()
	for _, f := range families {
		want, outgoing := s.ownMAC(s.RA.Node, lab.WAN.Name), 0
		if above {
			want = virtualMAC(lab.WAN, f.of(vip))
		}
		for ends := range seen {
			if ends.to != f.of(lab.ServerFar) {
				continue
			}
			outgoing++
			if ends.fromMAC != want || ends.from != f.of(vip) {
				s.t.Errorf("packets to %v left from %s, %v; want %s, %v", ends.to, ends.fromMAC, ends.from, want, f.of(vip))
			}
		}
		if outgoing != 1 {
			s.t.Errorf("of %s: %v", f.name, seen)
		}
	}
}

// What is said of the interfaces with virtual MACs counts for what the fast path has
// learnt there, at once: rules that name them, and their reverse-path filter.
func TestVMACFastpathFollowsChanges(t *testing.T) {
	s := setScene(t, "vmacrules", lab.Options{Hosts: 1, SingleRouter: true, Fastpath: true})
	s.lendMACs(lab.Keepalived{})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.awaitFast(s.RA)
	s.awaitVirtual(s.RA, true)
	c := s.carry()
	c.ready()
	outgoing4 := func(f traffic.Frame) bool {
		_, to := ipEnds(f)
		return ours(f) && to == lab.ServerFar.V4
	}
	for _, cut := range []struct {
		name, change, undo string
		match              func(traffic.Frame) bool
	}{
		{"rule", `nft 'table inet cut { chain forward { type filter hook forward priority filter; iifname { "vrrp4.*", "vrrp6.*" } drop; }; }'`,
			`nft delete table inet cut`, ours},
		{"reverse-path filter", `echo 1 > /proc/sys/net/ipv4/conf/vrrp4.10/rp_filter`,
			`echo 0 > /proc/sys/net/ipv4/conf/vrrp4.10/rp_filter`, outgoing4},
	} {
		c.in(cut.name, func(c *carried) {
			c.ready()
			c.within(withEvent, cut.match, func() { c.must(c.shell(c.RA.Node, cut.change)) })
			c.must(c.shell(c.RA.Node, cut.undo))
			c.goOn()
		})
	}
}

// A router that hands the virtual MACs over takes none of their frames any more; the
// other one's fast path carries the flows then, and back. Nothing leaks, and every flow
// comes from where it came.
func TestVMACFastpathFailover(t *testing.T) {
	t.Parallel()
	for name, keepalived := range map[string]lab.Keepalived{
		"adverts from the virtual MAC": {}, "adverts from base": {VMACXmitBase: true, Instance: "\tgarp_master_refresh 1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := setVMAC(t, "vmacfo"+name[13:14], lab.Options{Hosts: 1, Fastpath: true}, keepalived)
			p.watchLeaks(p.RA, p.RB)
			p.awaitFast(p.RA)
			p.awaitFast(p.RB)
			p.awaitVirtual(p.RA, true)
			p.awaitVirtual(p.RB, false)
			drives := p.fastDrives()
			troops := []*troop{p.muster(2, 21000, false), p.muster(2, 22000, true)}
			p.awaitAgreement(14)
			p.fastOn(p.RA, drives)

			p.must(p.RA.Keepalived().Stop())
			p.takesOver(p.RB, drives, troops)

			keepalived.VMAC = true
			_, err := p.StartKeepalived(p.RA, keepalived)
			p.must(err)
			p.takesOver(p.RA, drives, troops)

			p.must(p.HardKill(p.RA))
			p.awaitRole(p.RB, policy.RoleMaster)
			p.awaitVirtual(p.RB, true)
			p.settle(p.RB, drives...)
			p.fastOn(p.RB, drives)
			for i, d := range drives {
				if report, want := d.Stop(), families[i].of(vip); len(report.Sources) != 1 || report.Sources[0].Addr() != want {
					t.Errorf("the server saw %v, want one source of %v", report.Sources, want)
				}
			}
		})
	}
}

// takesOver has a router carry the flows, and the other one take nothing.
func (p *pair) takesOver(r *lab.Router, drives []*traffic.Drive, troops []*troop) {
	p.t.Helper()
	p.awaitRole(r, policy.RoleMaster)
	p.awaitVirtual(r, true)
	p.awaitVirtual(p.other(r), false)
	p.awaitPorts(r)
	p.settle(r, drives...)
	before := p.fastpath(p.other(r)).Packets["forwarded"]
	p.fastOn(r, drives)
	if after := p.fastpath(p.other(r)).Packets["forwarded"]; after != before {
		p.t.Errorf("%s forwarded %d packets after it had handed the virtual MACs over", p.other(r).Name, after-before)
	}
	for _, tr := range troops {
		tr.allAnswered()
	}
}

// fastOn wants the drives' packets to take a router's fast path.
func (p *pair) fastOn(r *lab.Router, drives []*traffic.Drive) {
	p.t.Helper()
	const more = 500
	p.settle(r, drives...)
	p.wantFast(r, p.fastWays(r, func() { p.answers(more, drives...) }), 2*more*uint64(len(drives)), 10)
}

// A BACKUP has its interfaces with virtual MACs, up and without an address but a
// link's: what comes to them takes the stack, unharmed.
func TestVMACTakesTheStack(t *testing.T) {
	t.Parallel()
	s := setScene(t, "vmacstack", lab.Options{Hosts: 1, SingleRouter: true, Fastpath: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.awaitFast(s.RA)
	for _, like := range []netip.Addr{lab.LAN.VIP4, lab.LAN.VIP6} {
		above := aboveOf(lab.LAN, like)
		s.ip(s.RA.Node, fmt.Sprintf("link add %s link lan0 address %s type macvlan mode private", above, virtualMAC(lab.LAN, like)),
			fmt.Sprintf("link set %s up", above))
	}
	s.knowForever(s.Hosts[0])
	s.awaitFast(s.RA)
	s.awaitVirtual(s.RA, false)
	s.eachFamily(func(s *scene, to, vip, _ netip.Addr) {
		before := s.fastpath(s.RA).Packets
		flow := s.flow(s.Hosts[0], "udp", netip.AddrPort{}, lab.Port(to, serverPort))
		s.must(s.await("100 answers", func() (bool, error) { return flow.Report().Answered >= 100, nil }))
		report := flow.Stop()
		if report.Broken() || report.Moved() || report.Sources[0].Addr() != vip {
			s.t.Errorf("errors %q, sources %v", report.Errors, report.Sources)
		}
		after := s.fastpath(s.RA).Packets
		forwarded, other := after["forwarded"]-before["forwarded"], after["other_host"]-before["other_host"]
		s.t.Logf("of %d requests %d came to another MAC than the device's; %d answers took the fast path", report.Answered, other, forwarded)
		if forwarded > report.Answered || other < report.Answered {
			s.t.Errorf("packets went from %v to %v, want all requests at other_host", before, after)
		}
	}, lab.ServerFar)
}
