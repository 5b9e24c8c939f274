// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"vippin/policy"
)

// TestRehearsalFlows provokes what flows may fail for, one after the other. Each
// time the other flows fit.
func TestRehearsalFlows(t *testing.T) {
	l := rehearsed{newReplicaLab(t, `table inet nat { chain post { type nat hook postrouting priority srcnat;
		ip saddr 198.51.100.2 accept; udp sport 4002 oifname "wan0" snat ip to 198.51.100.2; oifname "wan0" masquerade; }; }`), t}
	healthy := tableOf(10)
	server := socket(t, l.wan, server7)
	// A socket that has said nothing yet, and one that has.
	for port, says := range map[string]bool{"4000": false, "4001": true} {
		own, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(vip+":"+port)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(server7)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = own.Close() }()
		if says {
			if _, err := own.Write([]byte("ask")); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The user's own translation to the VIP, and a pinned flow.
	exchangeAny(t, socket(t, l.lan, "192.168.1.10:4002"), server, server7, vip+":4002")
	exchangeAny(t, socket(t, l.lan, "192.168.1.10:4003"), server, server7, vip+":4003")
	l.mustHaveMappings(t, 1)
	l.fits("healthy", l.try(context.Background(), healthy), len(healthy))
	l.fits("born here", l.try(context.Background(), append(healthy, udpFlow("192.168.1.10:4003", vip+":4003", server7))), len(healthy)+1)

	flow := func(public string, change func(*policy.Flow)) policy.Flow {
		f := udpFlow("192.168.1.11:5000", public, server7)
		if change != nil {
			change(&f)
		}
		return f
	}
	for _, c := range []struct {
		name, kind, why string
		flow            policy.Flow
		change          func(*Rehearsing)
	}{
		{"two of the table", "clash", "another flow of the peer's table", flow(vip+":20000", nil), nil},
		{"a socket", "clash", "a socket of this router", flow(vip+":4000", nil), nil},
		{"a connection", "clash", "a connection in this router's conntrack", flow(vip+":4001", nil), nil},
		{"the user's rule", "clash", "a connection in this router's conntrack", flow(vip+":4002", nil), nil},
		{"a mapping", "clash", "a mapping of this router", flow(vip+":4003", nil), nil},
		{"another end, not believed", "clash", "with another end on the wire", udpFlow("192.168.1.10:4002", vip+":4999", server7),
			func(what *Rehearsing) { what.Believed = nil }},
		{"no pin", "no_pin", "VLAN 3", flow(vip+":5000", func(f *policy.Flow) { f.Pin.VLAN.Outer = 3 }), nil},
		{"not the pin's VIP", "no_pin", "198.51.100.77", flow("198.51.100.77:5000", nil), nil},
		{"impossible", "invalid", "", flow(vip+":5000", func(f *policy.Flow) { f.From.Addr = end("[2001:db8::1]:1").Addr }), nil},
		{"impossible to conntrack", "invalid", "at most", flow(vip+":5000", func(f *policy.Flow) { f.Proto, f.TCPScale[0] = 6, 15 }), nil},
	} {
		change := c.change
		if change == nil {
			change = func(*Rehearsing) {}
		}
		result := l.try(context.Background(), append(healthy[:len(healthy):len(healthy)], c.flow), change)
		l.fails(c.name, result.Failures, c.kind, c.why, flowText(&c.flow), 1)
		if result.Fit != uint64(len(healthy)) || len(result.Missing) != 0 {
			t.Errorf("%s: %d of %d flows fit, missing %+v", c.name, result.Fit, result.Flows, result.Missing)
		}
	}
	l.fits("another end", l.try(context.Background(), []policy.Flow{udpFlow("192.168.1.10:4002", vip+":4999", server7)}), 1)
	l.mustHaveMappings(t, 1)
}

// TestRehearsalRoom: what does not fit into a table is counted, though some of it
// would be here already.
func TestRehearsalRoom(t *testing.T) {
	l := rehearsed{newReplicaLab(t, masqueradeWAN), t}
	flows := tableOf(600) // 4,802, the maps take 4,096
	result := l.try(context.Background(), flows)
	l.fails("a table for the maps", result.Failures, "full", "dataplane.max_flows", "192.168.1.11", uint64(len(flows))-result.Fit)
	if result.Fit < 3000 || result.Fit > 4096*roomPercent/100 {
		t.Errorf("%d flows fit into maps of 4,096", result.Fit)
	}
	flows = tableOf(10)
	mustInstall(t, l.replica, installations(flows[:40]), Installed)
	l.replica.installer.room.usage = func() (uint32, uint32, error) { return 940, 1000, nil }
	result = l.try(context.Background(), flows)
	fault := policy.RehearsalFault{What: "full", Why: "conntrack's table here holds 940 of 1000 entries (net.netfilter.nf_conntrack_max)", Flows: 32}
	if len(result.Failures) != 1 || result.Failures[0].Why != fault.Why || result.Failures[0].Flows != fault.Flows || result.Fit != 50 {
		t.Errorf("%+v, want %+v", result, fault)
	}
}

// TestRehearsalSurroundings provokes what routers may lack, one thing after the
// other.
func TestRehearsalSurroundings(t *testing.T) {
	l := rehearsed{newReplicaLab(t, masqueradeWAN), t}
	healthy := tableOf(5)
	far, stranger := udpFlow("192.168.1.10:4000", vip+":4000", "203.0.113.9:53"), udpFlow("192.168.77.1:4000", vip+":4000", server7)
	helped := udpFlow("192.168.1.10:4000", vip+":4000", server7)
	helped.Extra = &policy.FlowExtra{Helper: "nosuch"}
	with := func(flow policy.Flow) []policy.Flow { return append(healthy[:len(healthy):len(healthy)], flow) }
	l.fits("healthy", l.try(context.Background(), healthy), len(healthy))

	missing := func(name, kind, why, example string, count int, flows []policy.Flow, change ...func(*Rehearsing)) {
		t.Helper()
		result := l.try(context.Background(), flows, change...)
		l.fails(name, result.Missing, kind, why, example, uint64(count))
		if result.Fit != uint64(len(flows)) {
			t.Errorf("%s: %d of %d flows fit: %+v", name, result.Fit, len(flows), result.Failures)
		}
	}
	missing("no route out", "route", "leaves by wan0 (VLAN 2)", "203.0.113.9: ", 1, with(far))
	wrong := netlink.Route{Dst: network("203.0.113.0/24"), Gw: net.ParseIP("192.168.1.11")}
	must(t, netlink.RouteAdd(&wrong))
	missing("a route elsewhere", "route", "leaves by wan0 (VLAN 2)", "203.0.113.9: leaves by lan0", 1, with(far))
	must(t, netlink.RouteDel(&wrong))
	right := netlink.Route{Dst: network("203.0.113.0/24"), Gw: net.ParseIP("198.51.100.9")}
	must(t, netlink.RouteAdd(&right))
	l.fits("a route", l.try(context.Background(), with(far)), len(healthy)+1)
	must(t, netlink.RouteDel(&right))

	// A route that only packets with the connection's mark find.
	rule := netlink.NewRule()
	rule.Mark, rule.Table, rule.Family = 7, 77, netlink.FAMILY_V4
	right.Table = 77
	must(t, netlink.RuleAdd(rule))
	must(t, netlink.RouteAdd(&right))
	missing("no mark", "route", "leaves by wan0", "203.0.113.9", 1, with(far))
	marked := far
	marked.Mark = 7
	l.fits("a mark", l.try(context.Background(), with(marked)), len(healthy)+1)

	missing("no way back", "route", "no way back", "192.168.77.1: ", 1, with(stranger))
	wrong = netlink.Route{Dst: network("192.168.0.0/16"), Gw: net.ParseIP("198.51.100.9")}
	must(t, netlink.RouteAdd(&wrong))
	missing("the way back leads out", "route", "no way back", "192.168.77.1: leads to 198.51.100.9 by wan0", 1, with(stranger))
	must(t, netlink.RouteDel(&wrong))

	// The routes by a VIP that is alone in its subnet come with it.
	lone := l.try(context.Background(), with(far), func(what *Rehearsing) {
		for i := range what.Seen.Links {
			what.Seen.Links[i].Addrs = nil
		}
	})
	if len(lone.Missing) != 0 || lone.Note != "routes by the VIP of VLAN 2 are there only while it is: they were not looked for" {
		t.Errorf("a lone VIP: %+v", lone)
	}

	missing("no helper", "helper", `"nosuch"`, "192.168.1.10:4000", 1, with(helped))
	missing("no VIP", "vip", "198.51.100.66", "198.51.100.66 on VLAN 2", 0, healthy, func(what *Rehearsing) {
		what.Pins = append(what.Pins, policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: netip.MustParseAddr("198.51.100.66")})
	})
	nft(t, "flush ruleset\n"+`table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }; }`)
	missing("no rule for IPv6", "rule", "masquerades IPv6 to wan0", "2001:db8:1::10", 1, healthy)
	nft(t, "flush ruleset\n"+`table inet nat { chain post { type nat hook postrouting priority srcnat; oifname "wan9" masquerade; }; }`)
	if result := l.try(context.Background(), healthy[:4]); len(result.Missing) != 1 || result.Missing[0].What != "rule" || result.Missing[0].Flows != 4 {
		t.Errorf("no rule at all: %+v", result)
	}
	nft(t, "flush ruleset\n"+masqueradeWAN)
	missing("the interface is not there", "interface", "(wan0) is not there", "192.168.1.1", len(healthy), healthy, func(what *Rehearsing) { what.Seen.Links = nil })
	must(t, netlink.LinkSetDown(up(t, "wan0")))
	missing("the interface is down", "interface", "wan0 (VLAN 2) is down", "192.168.1.1", len(healthy), healthy)
}

// TestRehearsalRunsOut: a rehearsal that may take no longer says how far it came.
func TestRehearsalRunsOut(t *testing.T) {
	l := rehearsed{newReplicaLab(t, masqueradeWAN), t}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	result := l.try(ctx, tableOf(5))
	if result.Complete || result.Fit != 0 || result.Flows != 42 {
		t.Errorf("%+v", result)
	}
	contains(t, result.Note, "time ran out: the first 0 of 42 flows were tried")
}

func network(text string) *net.IPNet {
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
