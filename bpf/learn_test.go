// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func decodeAsk(t *testing.T, raw []byte) (ask FastpathFastAsk) {
	t.Helper()
	if _, err := binary.Decode(raw, binary.NativeEndian, &ask); err != nil {
		t.Fatal(err)
	}
	return ask
}

// scene is a way for a flow to be translated.
type scene struct {
	name    string
	rules   string // of nftables, instead of masquerading
	all     bool   // what is not pinned is learnt too
	pinOff  bool
	native  bool // a mapping that conntrack itself makes true
	inward  bool // the flow begins outside
	refused bool
	pin     uint16
	sees    func(ipv6 bool) netip.Addr // the source that the server sees
}

const forwardPort = 8000

func unique(ipv6 bool) netip.Addr {
	if ipv6 {
		return unique6
	}
	return unique4
}

func vip(ipv6 bool) netip.Addr {
	if ipv6 {
		return vip6
	}
	return vip4
}

func host(ipv6 bool) netip.Addr {
	addr, _ := ends(ipv6)
	return addr
}

func server(ipv6 bool) netip.Addr {
	_, addr := ends(ipv6)
	return addr
}

const (
	snatToVIP = `table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "wan*" snat to 198.51.100.2; }; }
		table ip6 nat { chain post { type nat hook postrouting priority srcnat; oifname "wan*" snat to 2001:db8:1::2; }; }`
	portForward = `table ip nat { chain pre { type nat hook prerouting priority dstnat; udp dport 8000 dnat to 198.18.1.10:5555; }; }
		table ip6 nat { chain pre { type nat hook prerouting priority dstnat; udp dport 8000 dnat to [2001:db8:18::10]:5555; }; }`
	noNAT = `table inet filter { chain forward { type filter hook forward priority filter; ct state invalid drop; }; }`
)

var scenes = []scene{
	{name: "pinned", pin: pinNumber, sees: vip},
	{name: "native", rules: snatToVIP, native: true, pin: pinNumber, sees: vip},
	{name: "masqueraded, all", pinOff: true, all: true, sees: unique},
	{name: "masqueraded", pinOff: true, refused: true, sees: unique},
	{name: "snat to the VIP, all", rules: snatToVIP, all: true, sees: vip},
	{name: "port forward, all", rules: portForward, all: true, inward: true, sees: server},
	{name: "port forward", rules: portForward, inward: true, refused: true, sees: server},
	{name: "not translated, all", rules: noNAT, all: true, sees: host},
	{name: "not translated", rules: noNAT, refused: true, sees: host},
}

// Whatever conntrack makes of a flow, XDP makes the same of it, once packets have
// shown it: with all, or where it is pinned.
func TestLearns(t *testing.T) {
	l := newLearnLab(t)
	mustDo(t, inside(l.wan, func() error { return addRoute("198.18.1.0/24", unique4.String()) }),
		inside(l.wan, func() error { return addRoute("2001:db8:18::/64", unique6.String()) }))
	for _, s := range scenes {
		for _, ipv6 := range []bool{false, true} {
			l.play(t, fmt.Sprintf("%s, %v", s.name, host(ipv6)), s, ipv6)
		}
	}
}

// set makes the scene, with nothing left of the one before.
func (l *learnLab) set(t *testing.T, s scene, ipv6 bool) *talk {
	t.Helper()
	nft(t, "flush ruleset")
	mustDo(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
	l.unmapFlows(t)
	clearMap[DataplaneFlowKey](t, l.Unpinned)
	l.configure(t)
	pin := DataplanePin{Slot: slot, Group: groupNumber, Ifindex: uint32(l.out), Flags: DataplanePinFlagsPIN_USED}
	l.setSwitch(t, !s.pinOff)
	pin.Vip4.Word, pin.Vip6.Word = words(vip4), words(vip6)
	pin.Unique4.Word, pin.Unique6.Word = words(unique4), words(unique6)
	put(t, l.Pins, uint32(pinNumber), pin)
	if s.all {
		l.setState(t, func(state *FastpathFastState) { state.All = 1 })
	}
	if s.rules == "" {
		nft(t, masquerade)
	} else {
		nft(t, s.rules)
	}
	if s.native {
		end := netip.AddrPortFrom(vip(ipv6), 5555)
		l.mapFlow(t, flow{
			proto: layers.IPProtocolUDP, local: end, public: end, remote: netip.AddrPortFrom(server(ipv6), 5556),
			flags: DataplaneMappingFlagsMAPPING_NATIVE,
		})
	}
	l.dataplane.pinCounts(t, pinNumber)
	if s.inward {
		return newTalk(t, l.wan, l.lan, netip.AddrPortFrom(server(ipv6), 5556), netip.AddrPortFrom(unique(ipv6), forwardPort),
			netip.AddrPortFrom(host(ipv6), 5555))
	}
	return l.talk(t, ipv6, 5555)
}

func (l *learnLab) play(t *testing.T, name string, s scene, ipv6 bool) {
	t.Helper()
	k := l.set(t, s, ipv6)
	defer func() { _, _ = k.client.Close(), k.server.Close() }()
	sees := netip.AddrPortFrom(s.sees(ipv6), 5555)
	first, sport := refused(FastpathFastRefusalREFUSED_NOT_ESTABLISHED), uint16(5555)
	if s.inward {
		sees, sport = netip.AddrPortFrom(s.sees(ipv6), 5556), 5556
	}
	taught, then := learntOne, forwardedOne
	if s.refused {
		taught = refused(FastpathFastRefusalREFUSED_NOT_PINNED)
		then = taught
	}
	out := func() {
		if from := k.out(t); from != sees {
			t.Errorf("%s: the server sees %v, want %v", name, from, sees)
		}
	}
	l.expect(t, name+", first out", first, out)
	l.expect(t, name+", first back", taught, func() { k.back(t) })
	l.expect(t, name+", second out", taught, out)
	const more = 3
	for range more {
		l.expect(t, name+", back", then, func() { k.back(t) })
		l.expect(t, name+", out", then, out)
	}
	original, reply := l.counted(t, ipv6, sport)
	if want := [2]uint64{2, 1}; !s.refused && [2]uint64{original, reply} != want {
		t.Errorf("%s: conntrack has seen %d and %d packets, want %v", name, original, reply, want)
	}
	if s.refused {
		if found := l.entries(t); len(found) > 0 {
			t.Errorf("%s: entries %+v", name, found)
		}
		return
	}
	l.sameEntries(t, name, s, ipv6, more)
	want := counts{}
	if s.pin != 0 {
		want = counts{DataplanePinCounterPIN_PINNED: 2 + more, DataplanePinCounterPIN_RETURNED: 1 + more}
	}
	got := l.dataplane.pinCounts(t, pinNumber)
	for _, c := range []DataplanePinCounter{DataplanePinCounterPIN_PINNED, DataplanePinCounterPIN_RETURNED} {
		if got[c] != want[c] {
			t.Errorf("%s: counted %v on the pin, want %v", name, got, want)
		}
	}
}

// sameEntries compares both directions' entries with what the scene is about.
func (l *learnLab) sameEntries(t *testing.T, name string, s scene, ipv6 bool, packets uint64) {
	t.Helper()
	found := l.entries(t)
	if len(found) != 2 {
		t.Errorf("%s: %d entries, want 2: %+v", name, len(found), found)
		return
	}
	inside, outside := netip.AddrPortFrom(host(ipv6), 5555), netip.AddrPortFrom(server(ipv6), 5556)
	wire := netip.AddrPortFrom(s.sees(ipv6), 5555) // the host's end, outside
	if s.inward {
		wire = netip.AddrPortFrom(unique(ipv6), forwardPort)
	}
	headers := uint64(28)
	if ipv6 {
		headers = 48
	}
	want := [2]entry{
		{src: inside, dst: outside, newSrc: wire, newDst: outside, place: placeIn(lanNumber, l.lanTags)},
		{src: outside, dst: wire, newSrc: outside, newDst: inside, place: placeIn(wanNumber, l.wanTags)},
	}
	lengths := [2]uint64{headers + 3, headers + 4}
	if s.inward {
		lengths = [2]uint64{headers + 4, headers + 3}
	}
	pins := [2]uint16{s.pin, s.pin}
	if s.pin != 0 {
		pins[1] |= fastReturns
	}
	for i, e := range found {
		w := want[i]
		if e.src != w.src || e.dst != w.dst || e.newSrc != w.newSrc || e.newDst != w.newDst || e.place != w.place {
			t.Errorf("%s: entry %v > %v becomes %v > %v at %#x; want %v > %v, %v > %v, %#x", name,
				e.src, e.dst, e.newSrc, e.newDst, e.place, w.src, w.dst, w.newSrc, w.newDst, w.place)
		}
		if e.fate.Generation != fastGeneration || e.fate.Pin != pins[i] {
			t.Errorf("%s: generation %d, pin %#x, want %d, %#x", name, e.fate.Generation, e.fate.Pin, fastGeneration, pins[i])
		}
		if e.fate.PacketsSeen>>16 != packets || e.fate.Bytes != packets*lengths[i] {
			t.Errorf("%s: entry counts %d packets, %d octets; want %d, %d", name, e.fate.PacketsSeen>>16, e.fate.Bytes,
				packets, packets*lengths[i])
		}
		hop := l.hop(t, e.fate.Hop)
		hop.Macs = [12]uint8{}
		if want := l.hopOut(t, i == 0); hop != want {
			t.Errorf("%s: hop %+v, want %+v", name, hop, want)
		}
	}
}

// hopOut is the hop to the server or to the host, but for MAC addresses.
func (l *learnLab) hopOut(t *testing.T, outward bool) FastpathFastHop {
	t.Helper()
	tags, ifindex := l.lanTags, l.in
	hop := FastpathFastHop{Device: lanNumber, Alive: 1}
	if outward {
		hop.Device, tags, ifindex = wanNumber, l.wanTags, l.out
	}
	above, err := netlink.LinkByIndex(ifindex)
	mustDo(t, err)
	hop.Mtu, hop.Tags = uint16(above.Attrs().MTU), uint8(len(tags))
	if len(tags) > 0 {
		hop.OuterProto, hop.OuterTci = be16(tags[0].ethertype), be16(tags[0].id)
	}
	if len(tags) > 1 {
		hop.InnerProto, hop.InnerTci = be16(tags[1].ethertype), be16(tags[1].id)
	}
	return hop
}

// Tags are of the place where packets come in and of the hop that they take. The
// emulated machines have VLANs (make test-vm).
func TestLearnsTagged(t *testing.T) {
	vlan := func(id uint16) tag { return tag{unix.ETH_P_8021Q, id} }
	service := func(id uint16) tag { return tag{unix.ETH_P_8021AD, id} }
	for _, c := range []struct{ lan, wan []tag }{
		{nil, []tag{vlan(2)}},
		{[]tag{vlan(3)}, nil},
		{[]tag{vlan(3)}, []tag{vlan(2)}},
		{[]tag{vlan(3)}, []tag{service(100), vlan(20)}},
		{[]tag{vlan(100), vlan(20)}, []tag{service(4000)}},
	} {
		l := newTaggedLab(t, c.lan, c.wan)
		in, err := netlink.LinkByIndex(l.in)
		mustDo(t, err, netlink.LinkSetMTU(in, 1480))
		out, err := netlink.LinkByIndex(l.out)
		mustDo(t, err, netlink.LinkSetMTU(out, 1490))
		for _, ipv6 := range []bool{false, true} { // shows which VLANs there are
			k := l.talk(t, ipv6, 4000)
			k.out(t)
			k.back(t)
			k.out(t)
			k.back(t)
		}
		for _, ipv6 := range []bool{false, true} {
			l.play(t, fmt.Sprintf("%v to %v, %v", c.lan, c.wan, host(ipv6)), scenes[0], ipv6)
		}
	}
}
