// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// What leaves by the interface itself, or by the one with the virtual MAC above it,
// has the VIP as its source: to the segment and beyond it, over IPv4 and IPv6,
// with reverse-path filters that are strict or loose, which keepalived leaves out
// on its own interfaces. The source MAC is that of the interface that it left by.
func TestVMACEitherInterface(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		keepalived lab.Keepalived
		filter     string
		noBTF      bool
	}{
		"strict, deprecated VIP":                      {lab.Keepalived{}, "1", false},
		"loose, VIP with a prefix, adverts from base": {lab.Keepalived{VIP6Bits: 64, VMACXmitBase: true}, "2", false},
		"no filter, without BTF":                      {lab.Keepalived{VIP6Bits: 64}, "0", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setScene(t, "vmacway"+c.filter, lab.Options{Hosts: 1, SingleRouter: true, NoBTF: c.noBTF})
			s.must(s.RA.Sysctl("net/ipv4/conf/all/rp_filter", c.filter))
			s.lendMACs(c.keepalived)
			s.masqueradeAbove(s.RA)
			s.start(s.RA, onWAN)
			s.awaitRole(s.RA, policy.RoleMaster)
			for _, ifname := range []string{"lan0", "wan0"} { // of which keepalived may have forgotten one
				s.must(s.RA.Sysctl("net/ipv4/conf/"+ifname+"/rp_filter", c.filter))
			}
			for _, ifname := range []string{"all", "vrrp4.10", "vrrp4.20"} {
				if got := s.setting(s.RA, "net/ipv4/conf/"+ifname+"/rp_filter"); got != "0" {
					t.Errorf("keepalived left the filter of %s at %s", ifname, got)
				}
			}
			for _, above := range []bool{false, true} {
				s.run(fmt.Sprintf("above=%t", above), func(s *scene) {
					s.leadBy(s.RA, above, c.keepalived.VIP6Bits != 0)
					if above && c.keepalived.VIP6Bits == 0 {
						s.chooseVIP6()
					}
					s.eachFamily(func(s *scene, to, vip, _ netip.Addr) { s.leavesBy(to, vip, above) }, lab.ServerWAN)
					s.eachFamily(func(s *scene, to, vip, _ netip.Addr) { s.leavesBy(to, vip, above) }, lab.ServerFar)
					s.wantHealthy(s.RA)
				})
			}
		})
	}
}

// chooseVIP6 does what doctor says, so that masquerade chooses a deprecated VIP.
// Without that it takes another interface's address, which nobody knows out there.
func (s *scene) chooseVIP6() {
	s.t.Helper()
	if source, err := traffic.Ask(s.ctx, s.Hosts[0].Do, "udp", netip.AddrPort{}, lab.Port(lab.ServerFar.V6, serverPort), time.Second/2); err == nil && source.Addr() == vip.V6 {
		s.t.Errorf("masquerade chose the deprecated VIP by itself")
	}
	f := s.wantFound(s.RA, sick{"masquerade", doctor.Error, "passes the VIP 2001:db8:100::2 over", ""})
	_, err := s.RA.Run(s.ctx, "sh", "-c", f.Remedy)
	s.must(err)
	s.wantHealthy(s.RA)
}

// setting reads one of a router's settings.
func (s *scene) setting(r *lab.Router, name string) string {
	s.t.Helper()
	out, err := r.Run(s.ctx, "cat", "/proc/sys/"+name)
	s.must(err)
	return strings.TrimSpace(out)
}

// leavesBy sends flows to the server and looks at the frames on its cable.
func (s *scene) leavesBy(to, vip netip.Addr, above bool) {
	s.t.Helper()
	wire, err := traffic.StartCapture(s.Server.Do, "eth0")
	s.must(err)
	defer wire.Close()
	s.wantPinned(s.count(s.RA, 2, func() { s.sees1(s.Hosts[0], to, vip) }))
	frames := wire.Frames(func(f traffic.Frame) bool {
		from, dest := ipEnds(f)
		return !f.Outgoing && from == vip && dest == to && f.Packet.Layer(layers.LayerTypeICMPv6NeighborAdvertisement) == nil &&
			f.Packet.Layer(layers.LayerTypeICMPv6NeighborSolicitation) == nil
	})
	want := s.ownMAC(s.RA.Node, lab.WAN.Name)
	if above && (vip.Is4() || s.connects6(to)) {
		want = virtualMAC(lab.WAN, vip)
	}
	macs := sourceMACs(frames)
	if len(macs) != 1 || macs[want] == 0 {
		s.t.Errorf("packets to %s left from the MACs %v, want %s alone", to, macs, want)
	}
}

// connects6 says whether the way to an address is by the virtual MAC in IPv6, too.
func (s *scene) connects6(to netip.Addr) bool {
	s.t.Helper()
	out, err := s.RA.Run(s.ctx, "ip", "-6", "route", "get", to.String())
	s.must(err)
	return strings.Contains(out, "dev vrrp6.20")
}

// ipEnds are a frame's addresses, the zero ones without IP.
func ipEnds(f traffic.Frame) (from, to netip.Addr) {
	switch ip := f.Packet.NetworkLayer().(type) {
	case *layers.IPv4:
		from, _ = netip.AddrFromSlice(ip.SrcIP)
		to, _ = netip.AddrFromSlice(ip.DstIP)
	case *layers.IPv6:
		from, _ = netip.AddrFromSlice(ip.SrcIP)
		to, _ = netip.AddrFromSlice(ip.DstIP)
	}
	return from.Unmap(), to.Unmap()
}

// A filter that is made strict for everything afterwards drops what comes to the
// virtual MAC, unless the way back is by its own interface. Doctor names it in the
// first case, and what it says mends it.
func TestVMACStrictFilterAfterwards(t *testing.T) {
	t.Parallel()
	s := setScene(t, "vmacstrict", lab.Options{Hosts: 1, SingleRouter: true})
	s.lendMACs(lab.Keepalived{VIP6Bits: 64})
	s.masqueradeAbove(s.RA)
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.must(s.RA.Sysctl("net/ipv4/conf/all/rp_filter", "1"))
	s.leadBy(s.RA, true, true)
	s.sees1(s.Hosts[0], lab.ServerFar.V4, vip.V4)
	s.wantHealthy(s.RA)

	s.leadBy(s.RA, false, true)
	if _, err := traffic.Ask(s.ctx, s.Hosts[0].Do, "udp", netip.AddrPort{}, lab.Port(lab.ServerFar.V4, serverPort), time.Second); err == nil {
		t.Error("the strict filter let packets in")
	}
	s.wantFound(s.RA, sick{"rp_filter", doctor.Error, "virtual MAC interface vrrp4.20 is strict", ""})
	for _, f := range s.doctor(s.RA) {
		if f.Check == "rp_filter" {
			_, err := s.RA.Run(s.ctx, "sh", "-c", f.Remedy)
			s.must(err)
		}
	}
	s.wantHealthy(s.RA)
	s.sees1(s.Hosts[0], lab.ServerFar.V4, vip.V4)
}

// Where routes lead by the virtual MAC's interface, and the rule masquerades to the
// one below alone, inside addresses leave. Doctor names the rule that is missing.
func TestVMACWithoutMasquerade(t *testing.T) {
	t.Parallel()
	s := setScene(t, "vmacmasq", lab.Options{Hosts: 1, SingleRouter: true})
	s.lendMACs(lab.Keepalived{VIP6Bits: 64})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.wantHealthy(s.RA)
	wire, err := traffic.StartCapture(s.Server.Do, "eth0")
	s.must(err)
	defer wire.Close()
	s.leadBy(s.RA, true, true)
	_, _ = s.Hosts[0].Run(s.ctx, "ping", "-c", "1", "-W", "1", lab.ServerFar.V4.String())
	inside := func(f traffic.Frame) bool {
		from, _ := ipEnds(f)
		return !f.Outgoing && from == lab.HostEnds(0).V4
	}
	_, err = wire.Await(s.ctx, 1, inside)
	s.must(err)
	for _, above := range []string{"vrrp4.20", "vrrp6.20"} {
		s.wantFound(s.RA, sick{"masquerade", doctor.Error, "none to " + above + " above it", ""})
	}
	for _, f := range s.doctor(s.RA) {
		if f.Check == "masquerade" {
			_, err := s.RA.Run(s.ctx, "sh", "-c", f.Remedy)
			s.must(err) // it can be pasted
		}
	}
	s.awaitHealthy(s.RA)
	s.sees(s.Hosts[0], lab.ServerFar, vip)
}
