// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

const (
	servicePort   = 9000 // of the router
	forwardedPort = 8080 // forwarded to the first inside host
)

// snatTo are the addresses to which the tests' own SNAT rule translates h2.
var snatTo = lab.Ends{V4: netip.MustParseAddr("198.51.100.77"), V6: netip.MustParseAddr("2001:db8:100::77")}

// What is not a masqueraded flow passes as if vippin were not there: neither
// rewritten nor counted.
func TestUntouched(t *testing.T) {
	t.Parallel()
	s := setScene(t, "untouched", lab.Options{Hosts: 2, SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.serveOnRouter()
	s.run("the router's own flows", func(s *scene) {
		s.wantNothing(s.count(s.RA, 2, func() {
			s.sees(s.RA.Node, lab.ServerFar, own)
			for _, from := range []lab.Ends{own, vip} {
				s.boundTo(from.V4, lab.ServerFar.V4)
				s.boundTo(from.V6, lab.ServerFar.V6)
			}
		}))
	})
	s.run("services of the router", func(s *scene) {
		s.wantNothing(s.count(s.RA, 2, func() {
			for _, at := range []lab.Ends{vip, own} {
				s.serves(s.Server, at.V4, servicePort, lab.ServerWAN.V4)
				s.serves(s.Server, at.V6, servicePort, lab.ServerWAN.V6)
			}
		}))
	})
	s.run("from the LAN to the router", func(s *scene) {
		host := lab.HostEnds(0)
		s.wantNothing(s.count(s.RA, 2, func() {
			for _, at := range []lab.Ends{vip, own, lab.LAN.RA, {V4: lab.LAN.VIP4, V6: lab.LAN.VIP6}} {
				s.serves(s.Hosts[0], at.V4, servicePort, host.V4)
				s.serves(s.Hosts[0], at.V6, servicePort, host.V6)
			}
		}))
	})
	s.run("port forwards", func(s *scene) {
		s.forwardPorts()
		s.wantNothing(s.count(s.RA, 2, func() {
			for _, at := range []lab.Ends{vip, own} {
				s.serves(s.Server, at.V4, forwardedPort, lab.ServerWAN.V4)
				s.serves(s.Server, at.V6, forwardedPort, lab.ServerWAN.V6)
			}
		}))
		s.wantPinned(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, vip) })) // the other way
	})
	s.run("explicit SNAT", func(s *scene) { s.explicitSNAT() })
}

// boundTo checks that the router's own flow from an address keeps it.
func (s *scene) boundTo(from, to netip.Addr) {
	s.t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		if got := s.source(s.RA.Node, proto, lab.Port(from, 0), to); got.Addr() != from {
			s.t.Errorf("%s of the router bound to %s arrived from %s", proto, from, got)
		}
	}
}

// serves checks that a service is reached at an address, sees whom it should,
// and answers from where it was asked: the client's sockets are connected.
func (s *scene) serves(client *lab.Node, at netip.Addr, port uint16, want netip.Addr) {
	s.t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		got, err := traffic.Ask(s.ctx, client.Do, proto, netip.AddrPort{}, lab.Port(at, port), patience)
		s.must(err)
		if got.Addr() != want {
			s.t.Errorf("%s at %s saw %s, want %s", proto, at, got, want)
		}
	}
}

// serveOnRouter runs a service of the router on each of its addresses.
func (s *scene) serveOnRouter() {
	s.t.Helper()
	var listen traffic.ServerOptions
	for _, e := range []lab.Ends{vip, own, lab.LAN.RA, {V4: lab.LAN.VIP4, V6: lab.LAN.VIP6}} {
		for _, addr := range []netip.Addr{e.V4, e.V6} {
			listen.TCP = append(listen.TCP, lab.Port(addr, servicePort))
			listen.UDP = append(listen.UDP, lab.Port(addr, servicePort))
		}
	}
	s.serve(s.RA.Node, listen)
}

// serve runs a server that goes with the test.
func (s *scene) serve(on *lab.Node, listen traffic.ServerOptions) {
	s.t.Helper()
	server, err := traffic.Serve(on.Do, listen)
	s.must(err)
	s.t.Cleanup(func() {
		if err := server.Close(); err != nil {
			s.t.Error(err)
		}
	})
}

// forwardPorts makes a service of the first inside host known under the VIPs
// and under the router's own addresses.
func (s *scene) forwardPorts() {
	s.t.Helper()
	host := lab.HostEnds(0)
	at := []netip.AddrPort{lab.Port(host.V4, forwardedPort), lab.Port(host.V6, forwardedPort)}
	s.serve(s.Hosts[0], traffic.ServerOptions{TCP: at, UDP: at})
	s.must(s.RA.NFT(s.ctx, fmt.Sprintf(`
table inet forwards {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "wan0" ip daddr { %s, %s } meta l4proto { tcp, udp } th dport %d dnat ip to %s
		iifname "wan0" ip6 daddr { %s, %s } meta l4proto { tcp, udp } th dport %d dnat ip6 to %s
	}
}
`, vip.V4, own.V4, forwardedPort, host.V4, vip.V6, own.V6, forwardedPort, host.V6)))
}

// explicitSNAT translates h2 to other addresses: first to ones that the router
// does not hold, then to the same as further addresses of its interface.
func (s *scene) explicitSNAT() {
	s.snatSecond(s.RA, snatTo)
	s.t.Cleanup(func() {
		if err := s.RA.NFT(s.t.Context(), "delete table inet explicit"); err != nil && s.t.Context().Err() == nil {
			s.t.Error(err)
		}
	})
	for addr, via := range map[netip.Addr]netip.Addr{snatTo.V4: own.V4, snatTo.V6: own.V6} {
		_, err := s.Server.Run(s.ctx, "ip", "route", "add", addr.String(), "via", via.String())
		s.must(err)
	}
	check := func(s *scene) {
		s.wantNothing(s.count(s.RA, 2, func() { s.sees(s.Hosts[1], lab.ServerFar, snatTo) }))
		s.wantPinned(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, vip) }))
	}
	s.run("routed to the router", check)
	// Masquerade might choose some of these, too.
	for name, how := range map[string][2][]string{
		"further addresses of the interface":   {{"/24"}, {"/64", "nodad", "preferred_lft", "0"}},
		"preferred addresses of the interface": {{"/32"}, {"/64", "nodad"}},
	} {
		s.run(name, func(s *scene) {
			if s.Options.NoBTF && strings.HasPrefix(name, "preferred") {
				s.t.Skip("without BTF nothing tells explicit SNAT to an address that masquerade may choose from masquerade (docs/ARCHITECTURE.md)")
			}
			for i, addr := range []netip.Addr{snatTo.V4, snatTo.V6} {
				with := append([]string{addr.String() + how[i][0], "dev", "wan0"}, how[i][1:]...)
				_, err := s.RA.Run(s.ctx, "ip", append([]string{"addr", "add"}, with...)...)
				s.must(err)
				defer func() {
					_, err := s.RA.Run(s.ctx, "ip", "addr", "del", addr.String()+how[i][0], "dev", "wan0")
					s.must(err)
				}()
			}
			s.vippin(s.RA, "reload") // the addresses are known when it answers
			check(s)
		})
	}
}

// snatSecond translates the second host explicitly, before masquerade would.
func (s *scene) snatSecond(r *lab.Router, to lab.Ends) {
	s.t.Helper()
	host := lab.HostEnds(1)
	s.must(r.NFT(s.ctx, fmt.Sprintf(`
table inet explicit {
	chain postrouting {
		type nat hook postrouting priority srcnat - 1; policy accept;
		oifname "wan0" ip saddr %s snat ip to %s
		oifname "wan0" ip6 saddr %s snat ip6 to %s
	}
}
`, host.V4, to.V4, host.V6, to.V6)))
}

// Where nothing is masqueraded, the server sees the inside host.
func TestNotMasqueraded(t *testing.T) {
	t.Parallel()
	s := setScene(t, "routed", lab.Options{Hosts: 1, SingleRouter: true, Masquerade: lab.MasqueradeNone})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.wantNothing(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, lab.HostEnds(0)) }))
}

// onBoth is two pins; the arguments are lines of each.
const onBoth = `
groups:
  - {name: RouterCore, vrids: [20]}
pins:
  - {vlan: 2, interface: wan0, vips: [198.51.100.2, "2001:db8:100::2"], group: RouterCore%s}
  - {vlan: 3, interface: wan1, vips: [203.0.113.2, "2001:db8:113::2"]%s}
`

// Masqueraded flows that keep the router's own address, each counted under its
// reason and no other; and the next flow is pinned when the reason is gone.
func TestUnpinned(t *testing.T) {
	t.Parallel()
	s := setScene(t, "unpinned", lab.Options{Hosts: 2, SingleRouter: true, WAN1: true})
	older := s.flow(s.Hosts[0], "udp", netip.AddrPort{}, lab.Port(lab.ServerFar.V4, serverPort))
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	pinned := func(s *scene) {
		s.t.Helper()
		s.wantPinned(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, vip) }))
	}
	s.run("born before", func(s *scene) {
		s.wantReason(s.count(s.RA, 2, func() {
			if from := s.goesOn(older.Report); from[0].Addr() != own.V4 {
				s.t.Errorf("arrives from %s", from)
			}
		}), "born_before")
		older.Stop()
		pinned(s)
	})
	s.run("a pin switched off", func(s *scene) {
		s.vippin(s.RA, "pin", "off", "2")
		s.wantReason(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, own) }), "off")
		s.vippin(s.RA, "pin", "on", "2")
		pinned(s)
	})
	s.run("a host that is not among the sources", func(s *scene) {
		in := lab.HostEnds(0)
		s.reload(s.RA, fmt.Sprintf(strings.Replace(onBoth, "  - {vlan: 3", "#", 1),
			fmt.Sprintf(`, sources: [%s/32, "%s/128"]`, in.V4, in.V6), ""))
		before := s.nobodysPackets(s.RA)
		s.wantNothing(s.count(s.RA, 2, func() { s.sees(s.Hosts[1], lab.ServerFar, own) }))
		if after := s.nobodysPackets(s.RA); after == before {
			s.t.Errorf("%d packets without a pin counted", after)
		}
		pinned(s)
	})
	s.run("a VLAN without a pin", func(s *scene) { s.otherVLAN() })
	s.run("no VIP of the family", func(s *scene) {
		only := func(vip string) string {
			return "pins:\n  - {vlan: 2, interface: wan0, vips: [\"" + vip + "\"]}\n"
		}
		s.reload(s.RA, only(vip.V4.String()))
		s.wantReason(s.count(s.RA, 2, func() { s.sees1(s.Hosts[0], lab.ServerFar.V6, own.V6) }), "no_vip")
		s.wantPinned(s.count(s.RA, 2, func() { s.sees1(s.Hosts[0], lab.ServerFar.V4, vip.V4) }))
		s.reload(s.RA, only(vip.V6.String()))
		s.wantReason(s.count(s.RA, 2, func() { s.sees1(s.Hosts[0], lab.ServerFar.V4, own.V4) }), "no_vip")
		s.wantPinned(s.count(s.RA, 2, func() { s.sees1(s.Hosts[0], lab.ServerFar.V6, vip.V6) }))
	})
}

// otherVLAN: only the VLANs with a pin that is on are pinned.
func (s *scene) otherVLAN() {
	vip1 := lab.Ends{V4: lab.WAN1.VIP4, V6: lab.WAN1.VIP6}
	s.reload(s.RA, onWAN)
	s.wantNothing(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerWAN1, lab.WAN1.RA) }))
	s.reload(s.RA, fmt.Sprintf(onBoth, "", ", enabled: false"))
	s.wantReason(s.count(s.RA, 3, func() { s.sees(s.Hosts[0], lab.ServerWAN1, lab.WAN1.RA) }), "off")
	s.vippin(s.RA, "pin", "on", "3")
	s.wantPinned(s.count(s.RA, 3, func() { s.sees(s.Hosts[0], lab.ServerWAN1, vip1) }))
	s.wantPinned(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, vip) }))
}

// A router that is not MASTER leaves its own address on what is routed through
// it all the same.
func TestBackupStaysUnpinned(t *testing.T) {
	t.Parallel()
	s := setScene(t, "backup", lab.Options{Hosts: 2})
	s.must(s.RA.AddVIPs())
	for _, via := range []netip.Addr{lab.LAN.RB.V4, lab.LAN.RB.V6} {
		_, err := s.Hosts[1].Run(s.ctx, "ip", "route", "replace", "default", "via", via.String())
		s.must(err)
	}
	s.start(s.RA, onWAN)
	s.start(s.RB, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.awaitRole(s.RB, policy.RoleBackup)
	s.wantReason(s.count(s.RB, 2, func() { s.sees(s.Hosts[1], lab.ServerFar, lab.WAN.RB) }), "backup")
	s.wantPinned(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, vip) }))
	if n := s.pin(s.RB, 2).PacketsVIPWhileBackup; n != 0 {
		s.t.Errorf("%d packets left with the VIP", n)
	}
}
