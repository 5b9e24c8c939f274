// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// macvlan is the interface with the virtual MAC: its name is covered by the
// lab's masquerade rule.
const macvlan = "wan0v"

// Where masquerade itself chooses the VIP, because the default route leads
// through the interface with the virtual MAC, nothing is rewritten, and the flows
// have mappings like others.
func TestVMACEgress(t *testing.T) {
	t.Parallel()
	s := setScene(t, "vmac", lab.Options{SingleRouter: true})
	s.vmac()
	s.ip(s.RA.Node,
		"route replace default via 198.51.100.10 dev "+macvlan,
		"route replace default via 2001:db8:100::10 dev "+macvlan)
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.eachFamily((*scene).lone, lab.ServerFar)
	s.run("ESP", func(s *scene) { s.eachFamily((*scene).loneTunnel, lab.ServerFar) })
	s.run("fragments", func(s *scene) {
		s.eachFamily(func(s *scene, to, vip, _ netip.Addr) { s.wantLarge(s.Hosts[0], netip.AddrPort{}, to, vip) }, lab.ServerFar)
	})
	s.run("unloaded", func(s *scene) { // nothing needs to be handed over
		flows := traffic.Flows{
			s.flow(s.Hosts[0], "tcp", netip.AddrPort{}, lab.Port(lab.ServerFar.V4, serverPort)),
			s.flow(s.Hosts[0], "udp", netip.AddrPort{}, lab.Port(lab.ServerFar.V4, serverPort)),
		}
		s.allGoOn(flows, vip.V4)
		s.must(daemon.Stop())
		s.vippin(s.RA, "unload")
		s.nothingLeft(s.RA)
		s.allGoOn(flows, vip.V4)
		flows.Stop()
	})
}

// The same with keepalived's own interface. IPv4 alone: its IPv6 VIP is a
// deprecated /128, and masquerade would take the address of any other interface
// before that.
func TestKeepalivedVMACEgress(t *testing.T) {
	t.Parallel()
	s := setScene(t, "kavmac", lab.Options{SingleRouter: true})
	s.must(s.RA.RemoveVIPs())
	_, err := s.StartKeepalived(s.RA, lab.Keepalived{VMAC: true})
	s.must(err)
	s.must(s.RA.AwaitMaster(s.ctx))
	s.ip(s.RA.Node, "route replace default via 198.51.100.10 dev vrrp4.20")
	s.must(s.RA.NFT(s.ctx, fmt.Sprintf(`
table inet vmac {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "vrrp4.20" ip saddr %s masquerade
	}
}
`, lab.LAN.Prefix4())))
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.lone(lab.ServerFar.V4, vip.V4, own.V4)
}

// vmac puts an interface with the virtual MAC of RFC 9568 section 7.3 upon the
// WAN's and moves the VIPs there. The IPv6 one is not deprecated there, as
// keepalived's /128 is, or masquerade would not choose it.
func (s *scene) vmac() {
	s.t.Helper()
	s.ip(s.RA.Node,
		"addr del 198.51.100.2/24 dev wan0",
		"addr del 2001:db8:100::2/128 dev wan0",
		"link add "+macvlan+" link wan0 address 00:00:5e:00:01:14 type macvlan mode private",
		"link set "+macvlan+" up",
		"addr add 198.51.100.2/24 dev "+macvlan,
		"addr add 2001:db8:100::2/64 dev "+macvlan+" nodad")
}

// The same where the VIP is the router's only address in the next hop's subnet.
func TestLoneVIP(t *testing.T) {
	t.Parallel()
	s := setScene(t, "lonevip", lab.Options{SingleRouter: true})
	s.ip(s.RA.Node,
		"addr flush dev wan0 scope global",
		"addr add 203.0.113.3/24 dev wan0",
		"addr add 2001:db8:113::3/64 dev wan0 nodad",
		"addr add 198.51.100.2/24 dev wan0",
		"addr add 2001:db8:100::2/64 dev wan0 nodad",
		"route replace default via 198.51.100.10 dev wan0")
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	// IPv6 looks for a source that is like the destination, not the next hop.
	s.eachFamily((*scene).lone, lab.ServerWAN)
	s.run("ESP", func(s *scene) { s.eachFamily((*scene).loneTunnel, lab.ServerWAN) })
	s.run("daemon restarted", func(s *scene) { s.loneOverRestart(daemon) })
}

// loneOverRestart: a mapping that has been silent, with a daemon that knows
// nothing of it, stays while conntrack knows its flow, and goes when it does not.
func (s *scene) loneOverRestart(daemon *lab.Proc) {
	tunnel := s.tunnel(gre, s.Hosts[0], lab.HostEnds(0).V4, s.farEnd(gre, lab.ServerWAN.V4), lab.ServerWAN.V4)
	tunnel.goesOn(vip.V4)
	shown := func() bool {
		return slices.ContainsFunc(s.flows(s.RA), func(f policy.FlowStatus) bool { return f.Proto == "gre" })
	}
	time.Sleep(2500 * time.Millisecond)
	s.must(daemon.Restart())
	s.must(s.AwaitVippin(s.ctx, s.RA))
	time.Sleep(1500 * time.Millisecond)
	if !shown() {
		s.t.Error("the mapping went while its flow lived")
	}
	tunnel.goesOn(vip.V4)
	s.must(daemon.Stop())
	s.forgetProto("gre", vip.V4)
	s.must(daemon.Restart())
	s.must(s.AwaitVippin(s.ctx, s.RA))
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	s.must(lab.Await(ctx, "the mapping to go", func() (bool, error) { return !shown(), nil }))
}

// lone checks TCP, UDP and pings of which masquerade makes the VIP's.
func (s *scene) lone(to, vip, _ netip.Addr) {
	s.wantPinned(s.count(s.RA, 2, func() { s.loneFlows(to, vip) }))
	before := s.flowsLike(to)
	if before == 0 {
		s.t.Error("no mapping is left")
	}
	for _, proto := range []string{"tcp", "udp", "icmp"} {
		s.forgetProto(proto, to)
	}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	s.must(lab.Await(ctx, "the mappings to go", func() (bool, error) { return s.flowsLike(to) == 0, nil }))
}

func (s *scene) loneFlows(to, vip netip.Addr) {
	const port = 5700
	s.sees1(s.Hosts[0], to, vip)
	// Two hosts on one port: masquerade tells them apart.
	for _, proto := range []string{"tcp", "udp"} {
		flows := traffic.Flows{}
		for _, host := range s.Hosts {
			flows = append(flows, s.flow(host, proto, netip.AddrPortFrom(netip.Addr{}, port), lab.Port(to, serverPort)))
		}
		sources := s.goesOn(flows[0].Report, flows[1].Report)
		for i, f := range flows {
			s.wantNative(proto, f.Report().Local, f.Report().Remote, sources[i], vip)
		}
		flows.Stop()
	}
	proto := "icmp"
	if to.Is6() {
		proto = "icmpv6"
	}
	ping := s.ping(s.Hosts[0], port, to)
	source := s.goesOn(func() traffic.FlowReport { return s.report(ping) })[0]
	s.wantNative(proto, lab.Port(hostAddr(0, to), port), lab.Port(to, 0), source, vip)
	ping.Stop(nil)
}

// flowsLike counts the mappings of a family.
func (s *scene) flowsLike(like netip.Addr) (n int) {
	s.t.Helper()
	for _, f := range s.flows(s.RA) {
		if netip.MustParseAddrPort(f.Public).Addr().Is4() == like.Is4() {
			n++
		}
	}
	return n
}

// forgetProto removes the conntrack entries of a protocol and family.
func (s *scene) forgetProto(proto string, like netip.Addr) {
	s.t.Helper()
	family := "ipv4"
	if like.Is6() {
		family = "ipv6"
		if proto == "icmp" {
			proto = "icmpv6"
		}
	}
	_, err := s.RA.Run(s.ctx, "conntrack", "-D", "-f", family, "-p", proto, "-n")
	s.must(err)
}

// livesOn waits for some more answers to a flow, which may be among strangers',
// and checks that its source stays.
func (s *scene) livesOn(report func() traffic.FlowReport, want netip.AddrPort) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	before := report()
	s.must(lab.Await(ctx, "more answers to "+before.ID, func() (bool, error) { return report().Answered >= before.Answered+5, nil }))
	if now := report(); !slices.Contains(now.Sources, want) {
		s.t.Errorf("%s arrives from %s, want %s", now.ID, now.Sources, want)
	}
}

// wantNative checks that an inside host's flow is shown with its public end as
// the local one, and is what the server saw.
func (s *scene) wantNative(proto string, client, remote, source netip.AddrPort, vip netip.Addr) {
	s.t.Helper()
	if source.Addr() != vip {
		s.t.Errorf("%s of %s arrives from %s, want %s", proto, client, source, vip)
	}
	for _, f := range s.flows(s.RA) {
		if f.Proto == proto && f.Client == client.String() && f.Remote == remote.String() {
			if f.Public != source.String() || f.Local != f.Public {
				s.t.Errorf("%s of %s is shown as %s by %s, want both %s", proto, client, f.Public, f.Local, source)
			}
			return
		}
	}
	s.t.Errorf("%s of %s to %s is not shown: %+v", proto, client, remote, s.flows(s.RA))
}

func (s *scene) loneTunnel(to, vip, _ netip.Addr) {
	tunnel := s.tunnel(esp, s.Hosts[0], hostAddr(0, to), s.farEnd(esp, to), to)
	s.wantPinned(s.count(s.RA, 2, func() { tunnel.goesOn(vip) }))
	s.wantShown("esp", hostAddr(0, to), to, vip, vip)
}

// One host's flows are masqueraded to the router's own address and pinned,
// another one's to the VIP itself: they never share a public end, whoever comes
// first.
func TestLoneBesidePinned(t *testing.T) {
	t.Parallel()
	s := setScene(t, "lonebeside", lab.Options{SingleRouter: true})
	s.vmac()
	h2 := lab.HostEnds(1)
	s.ip(s.RA.Node,
		"route add 198.51.100.0/24 dev wan0 metric 1", // the host that is pinned, and the router itself
		"route replace default via 198.51.100.10 dev wan0",
		"route replace default via 2001:db8:100::10 dev wan0",
		"route add default via 198.51.100.10 dev "+macvlan+" table 100",
		"route add default via 2001:db8:100::10 dev "+macvlan+" table 100",
		fmt.Sprintf("rule add from %s lookup 100", h2.V4))
	_, err := s.RA.Run(s.ctx, "ip", "-6", "rule", "add", "from", h2.V6.String(), "lookup", "100")
	s.must(err)
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	pinned, lone := s.Hosts[0], s.Hosts[1]
	s.run("lone first", func(s *scene) {
		s.eachFamily(func(s *scene, to, vip, own netip.Addr) { s.rivalEnds(lone, pinned, 5800, to, vip) }, lab.ServerFar)
	})
	s.run("pinned first", func(s *scene) {
		s.eachFamily(func(s *scene, to, vip, own netip.Addr) { s.rivalEnds(pinned, lone, 5900, to, vip) }, lab.ServerFar)
	})
}

// rivalEnds has two hosts want one public end. The first one's flow lives on;
// the later one gets another end.
func (s *scene) rivalEnds(first, second *lab.Node, port uint16, to, vip netip.Addr) {
	s.t.Helper()
	remote := lab.Port(to, serverPort)
	for _, proto := range []string{"tcp", "udp"} {
		holder := s.flow(first, proto, netip.AddrPortFrom(netip.Addr{}, port), remote)
		if got := s.goesOn(holder.Report)[0]; got != lab.Port(vip, port) {
			s.t.Errorf("%s of %s arrives from %s, want %s", proto, first.Name, got, lab.Port(vip, port))
		}
		later := s.flow(second, proto, netip.AddrPortFrom(netip.Addr{}, port), remote)
		s.wantOtherPort(proto, s.goesOn(later.Report)[0], lab.Port(vip, port))
		later.Stop()
		s.livesOn(holder.Report, lab.Port(vip, port))
		holder.Stop()
	}
}

// Later flows that take a mapped public end without being known to the mappings
// are counted, and shown by "vippin pin ls"; the mapped flow lives on.
func TestForeignFlows(t *testing.T) {
	t.Parallel()
	s := setScene(t, "foreign", lab.Options{SingleRouter: true})
	s.snatSecond(s.RA, vip)
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.run("explicit SNAT", func(s *scene) {
		s.eachFamily(func(s *scene, to, vip, _ netip.Addr) {
			for _, proto := range []string{"tcp", "udp"} {
				s.foreign(proto, s.Hosts[1], netip.AddrPortFrom(netip.Addr{}, 5310), to, vip)
			}
			s.foreignPing(to, vip)
			s.foreignTunnel(s.Hosts[1], hostAddr(1, to), to, vip)
		}, lab.ServerFar)
	})
	s.run("the router itself", func(s *scene) {
		s.eachFamily(func(s *scene, to, vip, _ netip.Addr) {
			for _, proto := range []string{"tcp", "udp"} {
				s.foreign(proto, s.RA.Node, lab.Port(vip, 5320), to, vip)
			}
			s.foreignTunnel(s.RA.Node, vip, to, vip)
		}, lab.ServerWAN)
	})
}

// foreign lets a node take the public end of the first host's flow.
func (s *scene) foreign(proto string, node *lab.Node, local netip.AddrPort, to, vip netip.Addr) {
	s.t.Helper()
	remote := lab.Port(to, serverPort)
	mapped := s.flow(s.Hosts[0], proto, netip.AddrPortFrom(netip.Addr{}, local.Port()), remote)
	defer mapped.Stop()
	if got := s.goesOn(mapped.Report)[0]; got != lab.Port(vip, local.Port()) {
		s.t.Errorf("%s arrives from %s, want %s", proto, got, lab.Port(vip, local.Port()))
	}
	s.wantForeign(proto, func() {
		f, err := traffic.StartFlow(s.ctx, node.Do, traffic.FlowOptions{Proto: proto, Local: local, Remote: remote, Timeout: patience / 100})
		if err == nil {
			s.t.Errorf("two flows on one pair of ends: %+v", f.Stop())
		}
	})
	s.livesOn(mapped.Report, lab.Port(vip, local.Port()))
}

func (s *scene) foreignPing(to, vip netip.Addr) {
	s.t.Helper()
	const id = 5330
	mapped := s.ping(s.Hosts[0], id, to)
	defer mapped.Stop(nil)
	report := func() traffic.FlowReport { return s.report(mapped) }
	if got := s.goesOn(report)[0]; got != lab.Port(vip, id) {
		s.t.Errorf("ping arrives from %s, want %s", got, lab.Port(vip, id))
	}
	s.wantForeign("ping", func() {
		_, err := s.Hosts[1].Run(s.ctx, "ping", "-c", "3", "-i", "0.05", "-W", "0.2", "-e", fmt.Sprint(id), to.String())
		if err == nil {
			s.t.Error("both pings are answered")
		}
	})
	s.livesOn(report, lab.Port(vip, id))
}

func (s *scene) foreignTunnel(node *lab.Node, local, to, vip netip.Addr) {
	s.t.Helper()
	far := s.farEnd(esp, to)
	mapped := s.tunnel(esp, s.Hosts[0], hostAddr(0, to), far, to)
	mapped.goesOn(vip)
	s.wantForeign("ESP", func() { s.tunnel(esp, node, local, far, to).send() })
	mapped.raw.Close() // the answer to the other one came here: there is only one public end
}

// wantForeign checks that a step is counted and shown.
func (s *scene) wantForeign(what string, step func()) {
	s.t.Helper()
	before := s.pin(s.RA, 2).PacketsForeign
	step()
	if after := s.pin(s.RA, 2).PacketsForeign; after == before {
		s.t.Errorf("%s: no packet is counted as foreign", what)
	}
}
