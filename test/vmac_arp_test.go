// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"testing"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// As the kernel has it, and keepalived leaves it, IPv4 hosts hear other things than the
// virtual MAC: the IPv6 instance's interface answers for every address of its router,
// also on the BACKUP, and the router asks in the VIP's name from its own MAC. Doctor
// names both on both routers, and what it says mends it.
func TestVMACSpoiltARP(t *testing.T) {
	t.Parallel()
	s := setScene(t, "vmacarp", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{VMAC: true, PlainARP: true}))
	for _, r := range s.Routers() {
		s.start(r, onWAN)
	}
	s.awaitPeace()
	host := s.Hosts[0]
	wire, err := traffic.StartCapture(host.Do, "eth0")
	s.must(err)
	defer wire.Close()
	s.ip(host, "neigh flush dev eth0")
	for _, addr := range []netip.Addr{lab.LAN.VIP4, lab.LAN.RB.V4} {
		_, _ = host.Run(s.ctx, "ping", "-c", "1", "-W", "1", addr.String())
	}
	foreign := virtualMAC(lab.LAN, lab.LAN.VIP6)
	for addr, mac := range map[netip.Addr]string{
		lab.LAN.VIP4: foreign, lab.LAN.RB.V4: foreign, // two who answer with the virtual MAC of IPv6
	} {
		_, err := wire.Await(s.ctx, 1, func(f traffic.Frame) bool { return claimedMAC(f, addr) == mac })
		s.must(err)
	}
	s.ip(s.RA.Node, "neigh flush dev lan0") // so that it asks, before it answers from the VIP
	_, _ = host.Run(s.ctx, "ping", "-c", "1", "-W", "1", lab.LAN.VIP4.String())
	ownMAC := s.ownMAC(s.RA.Node, lab.LAN.Name)
	_, err = wire.Await(s.ctx, 1, func(f traffic.Frame) bool { return claimedMAC(f, lab.LAN.VIP4) == ownMAC })
	s.must(err)

	for _, r := range s.Routers() {
		s.wantFound(r, sick{"arp", doctor.Warning, "the virtual MACs of vrrp6.10, vrrp6.20 answer ARP", ""})
		s.wantFound(r, sick{"arp", doctor.Warning, "asks for MACs in the VIP's name on lan0, wan0", ""})
		s.must(r.Sysctl("net/ipv4/conf/all/arp_ignore", "1"))
		s.must(r.Sysctl("net/ipv4/conf/all/arp_announce", "2"))
		s.wantHealthy(r)
	}
	mended, err := traffic.StartCapture(host.Do, "eth0")
	s.must(err)
	defer mended.Close()
	s.ip(s.RA.Node, "neigh flush dev lan0")
	s.wantAnswersFrom(mended, host, lab.LAN)
}

// Connections that were taken over leave from the VIP by the interface below. Unless
// arp_announce is 2 the new MASTER asks for the next router's MAC in the VIP's name, from
// its own MAC, and the next router believes it.
func TestVMACTakenOverAsksInItsOwnName(t *testing.T) {
	t.Parallel()
	for name, plain := range map[string]bool{"plain": true, "set": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := setVMAC(t, "vmacask"+name, lab.Options{Hosts: 1}, lab.Keepalived{PlainARP: plain})
			flow := p.flow(p.Hosts[0], "udp", netip.AddrPort{}, lab.Port(lab.ServerFar.V4, serverPort))
			p.awaitAgreement(1)
			p.must(p.HardKill(p.RA))
			p.awaitRole(p.RB, policy.RoleMaster)
			wire, err := traffic.StartCapture(p.Server.Do, "eth0")
			p.must(err)
			defer wire.Close()
			p.ip(p.RB.Node, "neigh flush dev wan0")
			p.goesOn(flow.Report)
			own := p.ownMAC(p.RB.Node, lab.WAN.Name)
			_, err = wire.Await(p.ctx, 1, func(f traffic.Frame) bool { // rb asks, in whose name ever
				return claimedMAC(f, lab.WAN.VIP4) == own || claimedMAC(f, lab.WAN.RB.V4) == own
			})
			p.must(err)
			asked := len(wire.Frames(func(f traffic.Frame) bool { return claimedMAC(f, lab.WAN.VIP4) == own }))
			if (asked > 0) != plain {
				t.Errorf("rb asked %d times in the VIP's name from its own MAC", asked)
			}
			if at := p.neighbourMAC(p.Server, lab.WAN.VIP4); (at == own) != plain {
				t.Errorf("the server knows the VIP at %s; rb's own MAC is %s", at, own)
			}
			flow.Stop()
		})
	}
}
