// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"testing"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// The server's sockets see the VIP, whatever masquerades and whatever the
// protocol; the IPv6 VIP is a deprecated /128.
func TestServerSeesTheVIP(t *testing.T) {
	for i, how := range []lab.Masquerade{lab.MasqueradeNFT, lab.MasqueradeRandom, lab.MasqueradeIPTables} {
		t.Run(string(how), func(t *testing.T) {
			s := setScene(t, fmt.Sprintf("vip%d", i), lab.Options{Hosts: 1, SingleRouter: true, Masquerade: how})
			s.start(s.RA, onWAN)
			s.awaitRole(s.RA, policy.RoleMaster)
			for _, to := range []lab.Ends{lab.ServerWAN, lab.ServerFar} {
				for _, ends := range [][2]netip.Addr{{to.V4, lab.WAN.VIP4}, {to.V6, lab.WAN.VIP6}} {
					for _, proto := range []string{"tcp", "udp"} {
						if got := s.source(s.Hosts[0], proto, netip.AddrPort{}, ends[0]); got.Addr() != ends[1] {
							t.Errorf("%s to %s arrived from %s, want %s", proto, ends[0], got, ends[1])
						}
					}
					if got := s.pingSource(s.Hosts[0], 77, ends[0]); got.Addr() != ends[1] {
						t.Errorf("ping to %s arrived from %s, want %s", ends[0], got, ends[1])
					}
				}
			}
			pin := s.pin(s.RA, 2)
			if pin.PacketsPinned == 0 || pin.PacketsUnpinned != 0 {
				t.Errorf("counted %d pinned and %d unpinned packets (%v)", pin.PacketsPinned, pin.PacketsUnpinned, pin.UnpinnedBy)
			}
		})
	}
}

// Two inside hosts with the same source port, or echo identifier, to the same
// server: two public ends, both on the VIP, and each host gets its own answers.
func TestSamePort(t *testing.T) {
	t.Parallel()
	s := setScene(t, "sameport", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	const port = 5000
	for _, ends := range [][2]netip.Addr{{lab.ServerFar.V4, vip.V4}, {lab.ServerFar.V6, vip.V6}} {
		remote := lab.Port(ends[0], serverPort)
		for _, proto := range []string{"tcp", "udp"} {
			var flows [2]*traffic.Flow
			for i, host := range s.Hosts {
				flows[i] = s.flow(host, proto, netip.AddrPortFrom(netip.Addr{}, port), remote)
			}
			s.twoEnds(proto, ends[1], remote, s.goesOn(flows[0].Report, flows[1].Report))
			flows[0].Stop()
			flows[1].Stop()
		}
		first, second := s.ping(s.Hosts[0], port, ends[0]), s.ping(s.Hosts[1], port, ends[0])
		sources := s.goesOn(
			func() traffic.FlowReport { return s.report(first) },
			func() traffic.FlowReport { return s.report(second) })
		proto := "icmp"
		if ends[0].Is6() {
			proto = "icmpv6"
		}
		s.twoEnds(proto, ends[1], lab.Port(ends[0], 0), sources)
		first.Stop(nil)
		second.Stop(nil)
	}
}

// twoEnds checks the public ends of the first and the second host's flow, as
// the server saw them and as "vippin flows" shows them.
func (s *scene) twoEnds(proto string, vip netip.Addr, remote netip.AddrPort, sources []netip.AddrPort) {
	s.t.Helper()
	if sources[0] == sources[1] || sources[0].Addr() != vip || sources[1].Addr() != vip {
		s.t.Errorf("%s to %s: %v, want two ends of %s", proto, remote, sources, vip)
	}
	shown := make(map[string]string)
	for _, f := range s.flows(s.RA) {
		if f.Proto == proto && f.Remote == remote.String() {
			shown[f.Client] = f.Public
		}
	}
	for i, source := range sources {
		client := lab.HostEnds(i).V4
		if vip.Is6() {
			client = lab.HostEnds(i).V6
		}
		if got := shown[lab.Port(client, 5000).String()]; got != source.String() {
			s.t.Errorf("%s of %s to %s is shown as %q, the server saw %s (all: %v)", proto, client, remote, got, source, shown)
		}
	}
}
