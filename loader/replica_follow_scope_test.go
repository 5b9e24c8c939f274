// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// everyNAT has port forwards on the VIP and on the router's own address, explicit
// source NAT, both at once, a zone, a mark, and what is not translated.
const everyNAT = `
table inet nat {
	chain raw {
		type filter hook prerouting priority raw
		iifname "lan0" udp sport 4200 ct zone set 7
		iifname "wan0" udp dport 4200 ct zone set 7
	}
	chain forward {
		type filter hook forward priority filter
		udp sport 4201 ct mark set 0x1234
	}
	chain pre {
		type nat hook prerouting priority dstnat
		ip daddr 198.51.100.2 udp dport 80 dnat ip to 192.168.1.10:8080
		ip daddr 198.51.100.2 udp dport 81 dnat ip to 198.51.100.9:8081
		ip daddr 198.51.100.2 udp dport 83 dnat ip to 198.51.100.9:8083
		ip daddr 198.51.100.3 udp dport 82 dnat ip to 192.168.1.10:8082
	}
	chain post {
		type nat hook postrouting priority srcnat
		oifname "wan0" udp sport { 4100, 4101 } snat ip to 198.51.100.2:9100-9101
		oifname "wan0" udp dport 8081 snat ip to 198.51.100.2
		oifname "wan0" icmp type echo-request snat ip to 198.51.100.2
		oifname "wan0" udp sport 4400 accept
		oifname "wan0" masquerade
	}
}`

// TestFollowTranslated: every kind of translation is told as the wire sees it,
// and nothing that no peer can go on with.
func TestFollowTranslated(t *testing.T) {
	l := newReplicaLab(t, everyNAT)
	l.setPlan(t, func(plan *policy.Plan) { // .11 is in no pin
		plan.Interfaces[0].Sources = []policy.PlanSource{{Prefix: netip.MustParsePrefix("192.168.1.10/32"), Pin: 1}}
	})
	err := inNamespace(l.wan, func() error {
		_, inside, _ := net.ParseCIDR("192.168.1.0/24")
		return netlink.RouteAdd(&netlink.Route{Dst: inside, Gw: net.IPv4(198, 51, 100, 3)})
	})
	if err != nil {
		t.Fatal(err)
	}
	l.follow(t)
	told := map[string]policy.Flow{}
	for _, f := range []struct {
		name           string
		from, to, real string // the client, the address it asks, the server
		saw            string // the source that the server sees
		fromOutside    bool
		pin            policy.PinName
		group          string
	}{
		{name: "explicit SNAT", from: "192.168.1.10:4100", to: "198.51.100.9:7777", real: "198.51.100.9:7777", saw: "", group: "core"},
		{name: "port forward", from: "198.51.100.9:6000", to: vip + ":80", real: "192.168.1.10:8080", saw: "198.51.100.9:6000", fromOutside: true, group: "core"},
		{name: "both", from: "192.168.1.11:4300", to: vip + ":81", real: "198.51.100.9:8081", saw: vip + ":4300", group: "core"},
		{name: "both, pinned", from: "192.168.1.10:4301", to: vip + ":83", real: "198.51.100.9:8083", saw: vip + ":4301", pin: pin4, group: "core"},
		{name: "zone", from: "192.168.1.10:4200", to: "198.51.100.9:7778", real: "198.51.100.9:7778", saw: vip + ":4200", pin: pin4, group: "core"},
		{name: "mark", from: "192.168.1.10:4201", to: "198.51.100.9:7779", real: "198.51.100.9:7779", saw: vip + ":4201", pin: pin4, group: "core"},
	} {
		client, server := l.lan, l.wan
		if f.fromOutside {
			client, server = l.wan, l.lan
		}
		saw := exchange(t, socket(t, client, f.from), socket(t, server, f.real), f.to)
		h := l.await(t, f.name, seenFrom(unix.IPPROTO_UDP, f.from))
		if f.saw == "" && saw.Addr().String() != vip || f.saw != "" && saw.String() != f.saw {
			t.Errorf("%s: the server saw %v", f.name, saw)
		}
		got := h.flow
		if got.Dst != end(f.to) || got.From != end(f.real) || got.To.AddrPort() != saw || got.Pin != f.pin || got.Group != f.group {
			t.Errorf("%s: told of %+v, the server saw %v", f.name, got, saw)
		}
		told[f.name] = got
	}
	if told["zone"].Zone != 7 || told["mark"].Zone != 0 {
		t.Errorf("zones %d and %d, want 7 and 0", told["zone"].Zone, told["mark"].Zone)
	}
	if told["mark"].Mark != 0x1234 || told["zone"].Mark != 0 {
		t.Errorf("marks %#x and %#x, want 0x1234 and 0", told["mark"].Mark, told["zone"].Mark)
	}
	l.testTranslatedPings(t)
	l.testLeftOut(t)
	l.testScopes(t)
}

// testTranslatedPings: two hosts with one identifier, of which NAT changes one.
func (l *replicaLab) testTranslatedPings(t *testing.T) {
	t.Helper()
	public := map[netip.AddrPort]bool{}
	for _, host := range []string{"192.168.1.10", "192.168.1.11"} {
		saw := l.echoFrom(t, host, "198.51.100.9", 77)
		h := l.await(t, "ping", seenFrom(unix.IPPROTO_ICMP, host+":77"))
		if h.flow.To.AddrPort() != saw || h.flow.Dst != end("198.51.100.9:0") || h.flow.From != end("198.51.100.9:0") {
			t.Errorf("told of %+v, the server saw %v", h.flow, saw)
		}
		public[saw] = true
	}
	if len(public) != 2 {
		t.Errorf("both pings came from %v", public)
	}
}

// testLeftOut: what is of no use to a peer is counted.
func (l *replicaLab) testLeftOut(t *testing.T) {
	t.Helper()
	before := l.replica.Skipped()
	// The router's own address, unpinned: no pin takes the inside host.
	if saw := exchange(t, socket(t, l.lan, "192.168.1.11:4500"), socket(t, l.wan, "198.51.100.9:7780"), "198.51.100.9:7780"); saw.Addr().String() != unique {
		t.Errorf("the server saw %v", saw)
	}
	l.awaitSkipped(t, "no_mapping", before["no_mapping"]+1)
	exchange(t, socket(t, l.wan, "198.51.100.9:6001"), socket(t, l.lan, "192.168.1.10:8082"), unique+":82")
	l.awaitSkipped(t, "unique", before["unique"]+1)
	exchange(t, socket(t, l.lan, "192.168.1.10:4400"), socket(t, l.wan, "198.51.100.9:7781"), "198.51.100.9:7781")
	l.awaitSkipped(t, "scope", before["scope"]+1)
	router, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(vip+":4600")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = router.Close() }()
	exchange(t, router, socket(t, l.wan, "198.51.100.9:7782"), "198.51.100.9:7782") // from the router itself
	exchange(t, socket(t, l.lan, "192.168.1.11:4601"), router, vip+":4600")         // to it
	exchange(t, socket(t, l.wan, "198.51.100.9:4602"), router, "198.51.100.2:4600") // and from outside
	l.awaitSkipped(t, "own", before["own"]+3)
	for _, src := range []string{"192.168.1.11:4500", "198.51.100.9:6001", "192.168.1.10:4400", vip + ":4600", "192.168.1.11:4601", "198.51.100.9:4602"} {
		l.notTold(t, src)
	}
}

// testScopes: what each scope dumps of all this.
func (l *replicaLab) testScopes(t *testing.T) {
	t.Helper()
	pinned := []string{"192.168.1.10:4200", "192.168.1.10:4201", "192.168.1.10:4301"}
	nat := append([]string{"192.168.1.10:4100", "192.168.1.11:4300", "198.51.100.9:6000"}, pinned...)
	for scope, want := range map[policy.SyncScope][]string{
		policy.ScopePinned: pinned, policy.ScopeNAT: nat, policy.ScopeAll: append([]string{"192.168.1.10:4400"}, nat...),
	} {
		l.setSync(func(s *policy.SyncConfig) { s.Scope = scope })
		got := map[string]bool{}
		err := l.replica.Dump(context.Background(), func(f *policy.Flow) error {
			if f.Proto == unix.IPPROTO_UDP {
				got[f.Src.String()] = true
			}
			return nil
		})
		if list := slices.Sorted(maps.Keys(got)); err != nil || !slices.Equal(list, slices.Sorted(slices.Values(want))) {
			t.Errorf("scope %s: dumped %v, %v, want %v", scope, list, err, want)
		}
	}
	// An explicit SNAT to the VIP may be a pin's, which shows a moment later.
	l.setSync(func(s *policy.SyncConfig) { s.Scope = policy.ScopePinned })
	before := l.replica.Skipped()["scope"]
	exchange(t, socket(t, l.lan, "192.168.1.10:4101"), socket(t, l.wan, "198.51.100.9:7783"), "198.51.100.9:7783")
	l.awaitSkipped(t, "scope", before+1)
	l.notTold(t, "192.168.1.10:4101")
}

// TestFollowOptions: prefixes and protocols that are not replicated, from the
// next flow on.
func TestFollowOptions(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	l.follow(t)
	server := socket(t, l.wan, "198.51.100.9:7777")
	for i, c := range []struct {
		change func(*policy.SyncConfig)
		reason string
	}{
		{func(s *policy.SyncConfig) { s.Ignore = []netip.Prefix{netip.MustParsePrefix("192.168.1.10/32")} }, "ignored"},
		{func(s *policy.SyncConfig) { s.Ignore = []netip.Prefix{netip.MustParsePrefix("198.51.100.8/30")} }, "ignored"},
		{func(s *policy.SyncConfig) { s.Protocols = []string{"tcp", "icmp", "icmpv6", "other"} }, "protocol"},
	} {
		l.setSync(c.change)
		before := l.replica.Skipped()[c.reason]
		src := netip.AddrPortFrom(netip.MustParseAddr("192.168.1.10"), uint16(4000+i)).String()
		exchange(t, socket(t, l.lan, src), server, "198.51.100.9:7777")
		l.awaitSkipped(t, c.reason, before+1)
		l.notTold(t, src)
	}
	l.setSync(func(s *policy.SyncConfig) { s.Ignore = []netip.Prefix{netip.MustParsePrefix("192.168.1.11/32")} })
	exchange(t, socket(t, l.lan, "192.168.1.10:4010"), server, "198.51.100.9:7777")
	l.await(t, "a flow that is not ignored", seenFrom(unix.IPPROTO_UDP, "192.168.1.10:4010"))
}

// TestFollowPortless: protocols without ports are told by their addresses.
func TestFollowPortless(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	l.follow(t)
	for name, proto := range map[string]uint8{"ip4:47": unix.IPPROTO_GRE, "ip4:50": unix.IPPROTO_ESP, "ip4:253": 253} {
		var inside, outside net.PacketConn
		err := inNamespace(l.lan, func() (err error) { inside, err = net.ListenPacket(name, "192.168.1.10"); return err })
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = inside.Close() }()
		err = inNamespace(l.wan, func() (err error) { outside, err = net.ListenPacket(name, "198.51.100.9"); return err })
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = outside.Close() }()
		// RFC 2784: version 0, IPv4; RFC 4303: SPI, number.
		if _, err := inside.WriteTo([]byte("\x00\x00\x08\x00there"), &net.IPAddr{IP: net.IPv4(198, 51, 100, 9)}); err != nil {
			t.Fatal(err)
		}
		_, from, err := outside.ReadFrom(make([]byte, 64))
		if err != nil || from.String() != vip {
			t.Errorf("protocol %d: came from %v, %v", proto, from, err)
		}
		h := l.await(t, name, seenFrom(proto, "192.168.1.10:0"))
		if h.flow.To != end(vip+":0") || h.flow.Dst != end("198.51.100.9:0") || h.flow.From != end("198.51.100.9:0") || h.flow.Pin != pin4 {
			t.Errorf("protocol %d: told of %+v", proto, h.flow)
		}
	}
}

// TestFollowMark: the event of a mark that changed has no TCP state; what is told
// has.
func TestFollowMark(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN+`
table inet marks { chain forward { type filter hook forward priority filter; iifname "lan0" tcp dport 7778 meta length > 200 ct mark set 0x77; }; }`)
	l.follow(t)
	client, server := connect(t, l.lan, l.wan, "192.168.1.10:5000", "198.51.100.9:7778", "198.51.100.9:7778")
	established := l.await(t, "connection", func(h *heard) bool {
		return seenFrom(unix.IPPROTO_TCP, "192.168.1.10:5000")(h) && h.flow.Bits&policy.FlowAssured != 0
	})
	if _, err := client.Write(make([]byte, 400)); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 400)); err != nil {
		t.Fatal(err)
	}
	marked := l.await(t, "its mark", func(h *heard) bool { return h.flow.FlowKey == established.flow.FlowKey && h.flow.Mark == 0x77 })
	marked.flow.Mark, marked.flow.Timeout = 0, established.flow.Timeout
	if marked.flow != established.flow {
		t.Errorf("marked it is %+v, before %+v", marked.flow, established.flow)
	}
}

// TestFollowNative: a flow that conntrack itself gave the VIP is a pin's if there
// is a mapping that says so, also where only pinned flows are told.
func TestFollowNative(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	l.setSync(func(s *policy.SyncConfig) { s.Scope = policy.ScopePinned })
	l.follow(t)
	public, remote := netip.MustParseAddrPort(vip+":4000"), netip.MustParseAddrPort("198.51.100.9:53")
	key := newFlowKey(1, unix.IPPROTO_UDP, public, remote)
	mapping := publicEnd{Port: swapPort(4000), Pin: 1, Flags: mappingNative}
	mapping.Addr.Word = addrWords(public.Addr())
	if err := l.d.maps.ByLocal.Put(key, mapping); err != nil {
		t.Fatal(err)
	}
	tracked(t, l.admin, key)
	src := netip.AddrPortFrom(netip.MustParseAddr("192.168.1.10"), 4000).String()
	h := l.await(t, "native flow", seenFrom(unix.IPPROTO_UDP, src))
	if h.flow.To.AddrPort() != public || h.flow.Pin != pin4 || h.flow.Group != "core" {
		t.Errorf("told of %+v", h.flow)
	}
}
