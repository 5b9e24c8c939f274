// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"vippin/test/lab"
	"vippin/test/traffic"
)

// Virtual MACs on the VLANs of a trunk: adverts, answers to who asks for a VIP, and
// flows from it leave by it with their VLAN's tag, and with the MAC that RFC 9568 asks
// for (sections 7.2, 7.3, 8.1.2 and 8.2.2).
func TestTrunkVMAC(t *testing.T) {
	for name, xmitBase := range map[string]bool{"virtual": false, "base": true} {
		t.Run("adverts from "+name, func(t *testing.T) {
			p := setVMAC(t, "vmactrunk"+name[:1], lab.Options{Hosts: 1, Trunk: lab.TrunkTagged}, lab.Keepalived{VMACXmitBase: xmitBase})
			wire, err := traffic.StartCapture(p.WANSwitch.Do, p.RA.TrunkPort())
			p.must(err)
			defer wire.Close()
			_, from := p.onTrunk(p.RA, lab.TrunkTagged, func() { p.sees(p.Hosts[0], lab.ServerFar, vip) })
			p.wantOnly("outgoing", from, lab.WAN, vip)
			for _, at := range []struct {
				segment lab.Segment
				node    *lab.Node
			}{{lab.LAN, p.Hosts[0]}, {lab.WAN, p.Server}} {
				p.wantTaggedAdverts(wire, at.segment, xmitBase)
				for _, addr := range []netip.Addr{at.segment.VIP4, at.segment.VIP6} {
					p.wantTaggedAnswer(wire, at.node, at.segment, addr)
				}
			}
			for _, f := range wire.Frames(nil) {
				if !f.Outgoing && segmentOf(lab.TrunkTagged, tagsIn(f.Packet)) == "" {
					t.Errorf("left the router with the tags %v: %s", tagsIn(f.Packet), f.Packet)
				}
			}
		})
	}
}

// wantTaggedAdverts wants ra's adverts of both families on a segment's VLAN, from one
// MAC each.
func (s *scene) wantTaggedAdverts(wire *traffic.Capture, segment lab.Segment, xmitBase bool) {
	s.t.Helper()
	for _, like := range []netip.Addr{segment.VIP4, segment.VIP6} {
		frames, err := wire.Await(s.ctx, 3, func(f traffic.Frame) bool {
			return !f.Outgoing && isVRRP(f, like.Is4()) && segmentOf(lab.TrunkTagged, tagsIn(f.Packet)) == segment.Name
		})
		s.must(err)
		want := virtualMAC(segment, like)
		if xmitBase {
			want = s.ownMAC(s.RA.Node, s.RA.Ifname(segment))
		}
		if macs := sourceMACs(frames); len(macs) != 1 || macs[want] == 0 {
			s.t.Errorf("adverts like %s on %s come from %v, want %s alone", like, segment.Name, macs, want)
		}
	}
}

// wantTaggedAnswer asks for a VIP: the answer is on its VLAN, and both it and the frame
// that carries it name the virtual MAC.
func (s *scene) wantTaggedAnswer(wire *traffic.Capture, asks *lab.Node, segment lab.Segment, addr netip.Addr) {
	s.t.Helper()
	s.ip(asks, "neigh flush dev eth0")
	if _, err := asks.Run(s.ctx, "ping", "-c", "1", "-W", "5", addr.String()); err != nil {
		s.t.Errorf("%s does not answer: %v", addr, err)
	}
	answers, err := wire.Await(s.ctx, 1, func(f traffic.Frame) bool { return !f.Outgoing && claimedMAC(f, addr) != "" })
	s.must(err)
	want := virtualMAC(segment, addr)
	for _, f := range answers {
		ether, _ := f.Packet.LinkLayer().(*layers.Ethernet)
		on := segmentOf(lab.TrunkTagged, tagsIn(f.Packet))
		if on != segment.Name || claimedMAC(f, addr) != want || ether == nil || ether.SrcMAC.String() != want {
			s.t.Errorf("%s is said to be at %s on %q, want %s on %s: %s", addr, claimedMAC(f, addr), on, want, segment.Name, f.Packet)
		}
	}
}
