// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"vippin/policy"
	"vippin/policy/vrrp"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// On the wire adverts come from the virtual MAC (RFC 9568 section 7.2; from the
// interface's own with vmac_xmit_base), whoever asks for a VIP gets the virtual MAC
// (section 8.1.2, 8.2.2), and whoever asks for a router's own address gets that
// one's. The tracker sees the virtual MAC on both routers in either way.
func TestVMACOnTheWire(t *testing.T) {
	t.Parallel()
	for name, xmitBase := range map[string]bool{"adverts from the virtual MAC": false, "adverts from base": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := setVMAC(t, "vmacwire"+name[13:14], lab.Options{Hosts: 1}, lab.Keepalived{VMACXmitBase: xmitBase})
			for _, at := range []struct {
				segment lab.Segment
				node    *lab.Node
			}{{lab.LAN, p.Hosts[0]}, {lab.WAN, p.Server}} {
				p.run(at.segment.Name, func(s *scene) {
					wire, err := traffic.StartCapture(at.node.Do, "eth0")
					s.must(err)
					defer wire.Close()
					s.wantAdvertsFrom(wire, at.segment, xmitBase)
					s.wantAnswersFrom(wire, at.node, at.segment)
				})
			}
			for _, r := range p.Routers() {
				for _, family := range []string{vrrp.FamilyIPv4, vrrp.FamilyIPv6} {
					if vr := p.virtualRouter(r, family); !vr.VirtualMAC {
						t.Errorf("%s: no virtual MAC is shown: %+v", r.Name, vr)
					}
				}
			}
			p.wantEvidence("198.51.100.2 and 2001:db8:100::2 are on wan0 (MAC 00:00:5e:00:01:14 by vrrp4.20, 00:00:5e:00:02:14 by vrrp6.20)")
			p.wantHealthy(p.RA, p.RB)
			p.wantRemembered(!xmitBase)
		})
	}
}

// wantRemembered looks whether a switch that forgets a MAC after a second of silence
// still knows where the virtual one is: adverts from it keep it in mind.
func (s *scene) wantRemembered(want bool) {
	s.t.Helper()
	s.ip(s.WANSwitch, "link set br0 type bridge ageing_time 100")
	wire, err := traffic.StartCapture(s.Server.Do, "eth0")
	s.must(err)
	defer wire.Close()
	mac := virtualMAC(lab.WAN, lab.WAN.VIP4)
	if !want {
		s.must(s.await("a switch that forgets "+mac, func() (bool, error) { return s.switchPort(s.WANSwitch, mac) == "", nil }))
		return
	}
	_, err = wire.Await(s.ctx, 30, func(f traffic.Frame) bool { return isVRRP(f, true) }) // 3 s
	s.must(err)
	if port := s.switchPort(s.WANSwitch, mac); port != s.RA.Name {
		s.t.Errorf("the switch has %s at %q, want %s", mac, port, s.RA.Name)
	}
}

// wantEvidence wants a line in ra's status.
func (s *scene) wantEvidence(line string) {
	s.t.Helper()
	var last []string
	if err := s.await("evidence", func() (bool, error) {
		last = s.status(s.RA).Groups[0].Evidence
		for _, have := range last {
			if have == line {
				return true, nil
			}
		}
		return false, nil
	}); err != nil {
		s.t.Errorf("no evidence %q in %q", line, last)
	}
}

// wantAdvertsFrom wants the adverts of both families from one MAC each.
func (s *scene) wantAdvertsFrom(wire *traffic.Capture, segment lab.Segment, xmitBase bool) {
	s.t.Helper()
	for _, like := range []netip.Addr{segment.VIP4, segment.VIP6} {
		frames, err := wire.Await(s.ctx, 3, func(f traffic.Frame) bool { return isVRRP(f, like.Is4()) })
		s.must(err)
		want := virtualMAC(segment, like)
		if xmitBase {
			want = s.ownMAC(s.RA.Node, segment.Name)
		}
		if macs := sourceMACs(frames); len(macs) != 1 || macs[want] == 0 {
			s.t.Errorf("adverts like %s come from %v, want %s alone", like, macs, want)
		}
	}
}

func isVRRP(f traffic.Frame, v4 bool) bool {
	switch ip := f.Packet.NetworkLayer().(type) {
	case *layers.IPv4:
		return v4 && ip.Protocol == layers.IPProtocolVRRP
	case *layers.IPv6:
		return !v4 && ip.NextHeader == layers.IPProtocolVRRP
	}
	return false
}

// wantAnswersFrom asks for every address on a segment: VIPs are at the virtual MAC,
// the routers' own addresses at their own, and nobody says anything else.
func (s *scene) wantAnswersFrom(wire *traffic.Capture, asks *lab.Node, segment lab.Segment) {
	s.t.Helper()
	s.ip(asks, "neigh flush dev eth0")
	for addr, want := range map[netip.Addr]string{
		segment.VIP4: virtualMAC(segment, segment.VIP4), segment.VIP6: virtualMAC(segment, segment.VIP6),
		segment.RA.V4: s.ownMAC(s.RA.Node, segment.Name), segment.RA.V6: s.ownMAC(s.RA.Node, segment.Name),
		segment.RB.V4: s.ownMAC(s.RB.Node, segment.Name), segment.RB.V6: s.ownMAC(s.RB.Node, segment.Name),
	} {
		if _, err := asks.Run(s.ctx, "ping", "-c", "1", "-W", "5", addr.String()); err != nil {
			s.t.Errorf("%s does not answer: %v", addr, err)
			continue
		}
		if got := s.neighbourMAC(asks, addr); got != want {
			s.t.Errorf("%s knows %s at %s, want %s", asks.Name, addr, got, want)
		}
		for _, f := range wire.Frames(nil) {
			if got := claimedMAC(f, addr); got != "" && got != want {
				s.t.Errorf("somebody says that %s is at %s, want %s: %s", addr, got, want, f.Packet)
			}
		}
	}
}

// When the peer takes over, hosts have the right MAC already: their entries for the
// VIP stay what they were, also those that nothing could change (a gratuitous ARP is
// not needed for them). It is the switches that must learn another port, from
// the first frame of the new MASTER. Flows keep their source, there and back.
func TestVMACFailover(t *testing.T) {
	t.Parallel()
	for name, keepalived := range map[string]lab.Keepalived{
		"adverts from the virtual MAC": {}, "adverts from base": {VMACXmitBase: true, Instance: "\tgarp_master_refresh 1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := setVMAC(t, "vmacfail"+name[13:14], lab.Options{}, keepalived)
			p.knowForever(p.Hosts[0])
			watchers := []*watcher{p.watch(p.RA), p.watch(p.RB)}
			troops := []*troop{p.muster(6, 21000, false), p.muster(6, 22000, true)}
			p.awaitAgreement(36)
			p.awaitPorts(p.RA)
			if name == "adverts from base" {
				p.must(p.RA.Keepalived().Stop())
			} else {
				p.must(p.HardKill(p.RA))
			}
			p.must(p.RB.AwaitMaster(p.ctx))
			p.awaitPorts(p.RB)
			for _, tr := range troops {
				tr.allAnswered()
			}
			p.sameMAC(p.Hosts...)
			if name != "adverts from base" {
				p.wantNoConflict(watchers[1])
				return
			}
			keepalived.VMAC = true
			_, err := p.StartKeepalived(p.RA, keepalived)
			p.must(err)
			p.awaitRole(p.RA, policy.RoleMaster)
			p.awaitPorts(p.RA)
			for _, tr := range troops {
				tr.allAnswered()
			}
			p.sameMAC(p.Hosts...)
			p.wantNoConflict(watchers...)
		})
	}
}

// wantNoConflict looks through what monitors have shown. A deposed MASTER answers the
// other one's gratuitous ARP from the virtual MAC while it still has the VIP, which is
// no second MASTER.
func (s *scene) wantNoConflict(watchers ...*watcher) {
	s.t.Helper()
	for _, w := range watchers {
		for _, event := range w.events() {
			if isConflict(event) {
				s.t.Errorf("%s: %s", w.r.Name, event.Detail)
			}
		}
	}
}

// knowForever makes a host's entries for the VIPs such that nothing changes them.
func (s *scene) knowForever(host *lab.Node) {
	s.t.Helper()
	for _, addr := range []netip.Addr{lab.LAN.VIP4, lab.LAN.VIP6} {
		s.ip(host, "neigh replace "+addr.String()+" lladdr "+virtualMAC(lab.LAN, addr)+" dev eth0 nud permanent")
	}
}

// sameMAC wants the hosts to know the VIPs at the virtual MAC.
func (s *scene) sameMAC(hosts ...*lab.Node) {
	s.t.Helper()
	for _, host := range hosts {
		for _, addr := range []netip.Addr{lab.LAN.VIP4, lab.LAN.VIP6} {
			if got, want := s.neighbourMAC(host, addr), virtualMAC(lab.LAN, addr); got != want {
				s.t.Errorf("%s knows %s at %q, want %s", host.Name, addr, got, want)
			}
		}
	}
}
