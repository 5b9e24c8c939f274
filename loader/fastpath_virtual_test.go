// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"context"
	"encoding/binary"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"

	wire "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Virtual routers 10 inside and 20 outside.
var (
	insideMAC  = mac{0, 0, 0x5e, 0, 1, 10}
	outsideMAC = mac{0, 0, 0x5e, 0, 1, 20}
)

// raise puts an interface with another MAC on one, as keepalived's use_vmac does.
func raise(t *testing.T, name, below string, address mac) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = name, up(t, below).Attrs().Index, address[:]
	if err := netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PRIVATE}); err != nil {
		t.Fatalf("add %s: %v", name, err)
	}
	return up(t, name)
}

func delAddr(t *testing.T, l netlink.Link, text string) {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	if err == nil {
		err = netlink.AddrDel(l, addr)
	}
	if err != nil {
		t.Fatalf("remove %s: %v", text, err)
	}
}

// knows has a host send to the router's address by a MAC.
func (l *lab) knows(t *testing.T, host netns.NsHandle, addr string, address mac) {
	t.Helper()
	err := inNamespace(host, func() error {
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: peer.Attrs().Index, IP: net.ParseIP(addr), HardwareAddr: address[:], State: netlink.NUD_PERMANENT,
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// virtualLab is a lab whose hosts send to virtual MACs, with Run at work, and a flow.
type virtualLab struct {
	*lab
	fastLab
	lan0, wan0 netlink.Link // those with the virtual MACs
	client     *client
}

func newVirtualLab(t *testing.T) *virtualLab {
	t.Helper()
	l := newForwardingLab(t)
	router, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = router.Close() })
	v := &virtualLab{lab: l, lan0: raise(t, "vrrp.10", "lan0", insideMAC), wan0: raise(t, "vrrp.20", "wan0", outsideMAC)}
	addAddr(t, v.lan0, "192.168.1.254/32")
	delAddr(t, up(t, "wan0"), vip+"/32")
	addAddr(t, v.wan0, vip+"/32")
	l.knows(t, l.lan, "192.168.1.1", insideMAC)
	l.knows(t, l.wan, vip, outsideMAC)
	_, f := l.open(t, testBPFFS(t), FastpathOptions{})
	v.fastLab = fastLab{Fastpath: f, t: t, wan: up(t, "wan0")}
	v.run(router)
	v.client = l.dial(t, "flow", "udp4", "192.168.1.10:43000")
	return v
}

// taken are the interfaces whose MACs the programs take frames to.
func (v *virtualLab) taken() map[int]bool {
	v.t.Helper()
	content, err := readMap[virtualKey, uint32](v.maps.Virtual)
	if err != nil {
		v.t.Fatal(err)
	}
	found := make(map[int]bool)
	for _, ifindex := range content {
		found[int(ifindex)] = true
	}
	return found
}

// awaitVirtual waits until the programs take frames to these alone.
func (v *virtualLab) awaitVirtual(what string, links ...netlink.Link) {
	v.t.Helper()
	want := make(map[int]bool)
	for _, link := range links {
		want[link.Attrs().Index] = true
	}
	await(v.t, what, func() bool { return maps.Equal(v.taken(), want) })
}

// wantWays asks often, until so many packets of each question and answer take the fast
// path, and so many come to a MAC that is not taken: but for a few that are looked at
// anew, and what hosts send to multicast of their own accord.
func (v *virtualLab) wantWays(what string, forwarded, other uint64) {
	v.t.Helper()
	const times, few = 50, 10
	var f, o uint64
	defer func() {
		if v.t.Failed() {
			v.t.Logf("%s: of the last %d questions and their answers %d were forwarded, %d came to another MAC; want %d, %d",
				what, times, f, o, times*forwarded, times*other)
		}
	}()
	await(v.t, what+": the flow to go its way", func() bool {
		before := packetsOf(v.t, v.Fastpath)
		for range times {
			mustAsk(v.t, v.client)
		}
		after := packetsOf(v.t, v.Fastpath)
		f, o = after["forwarded"]-before["forwarded"], after["other_host"]-before["other_host"]
		return f <= times*forwarded && f+few >= times*forwarded && o >= times*other && o <= times*other+few
	})
}

// A flow whose packets come to virtual MACs takes the fast path while this router
// holds them. When it hands an address over, the next frame takes the stack; when it
// has it again, its flow is fast again. From outside and inside it always comes from
// the VIP.
func TestFastpathVirtual(t *testing.T) {
	v := newVirtualLab(t)
	v.awaitVirtual("both virtual MACs", v.lan0, v.wan0)
	v.wantWays("held", 2, 0)
	if on, err := v.State(); err != nil || !slices.Equal(on.Interfaces[0].Virtual, []string{"vrrp.10"}) || !slices.Equal(on.Interfaces[1].Virtual, []string{"vrrp.20"}) {
		t.Errorf("devices %+v, %v", on.Interfaces, err)
	}
	for _, step := range []struct {
		name       string
		lose, gain func()
	}{
		{"the address", func() { delAddr(t, v.lan0, "192.168.1.254/32") }, func() { addAddr(t, v.lan0, "192.168.1.254/32") }},
		{"all but a link-local address", func() {
			addAddr(t, up(t, "lan0"), "fe80::5/64")
			addAddr(t, v.lan0, "fe80::5/64")
			addAddr(t, v.lan0, "169.254.0.1/32")
			delAddr(t, v.lan0, "192.168.1.254/32")
		}, func() { addAddr(t, v.lan0, "fe80::254/128") }},
	} {
		step.lose()
		v.awaitVirtual(step.name+" went", v.wan0)
		v.wantNext("without " + step.name)
		v.wantWays("without "+step.name, 1, 1) // answers are forwarded
		step.gain()
		v.awaitVirtual(step.name+" came", v.lan0, v.wan0)
		v.wantWays("with "+step.name, 2, 0)
	}
	if source := v.source(t, "flow"); source.Addr().String() != vip {
		t.Errorf("the flow comes from %v, want %s", source, vip)
	}
}

// wantNext wants the next frame of the flow to have come to a MAC that is not taken.
func (v *virtualLab) wantNext(what string) {
	v.t.Helper()
	before := packetsOf(v.t, v.Fastpath)["other_host"]
	mustAsk(v.t, v.client)
	if after := packetsOf(v.t, v.Fastpath)["other_host"]; after == before {
		v.t.Errorf("%s: the next frame was taken", what)
	}
}

// What ends an interface with a virtual MAC, or makes it another one, ends that.
func TestFastpathVirtualEnds(t *testing.T) {
	v := newVirtualLab(t)
	v.awaitVirtual("both virtual MACs", v.lan0, v.wan0)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netlink.LinkSetDown(v.lan0))
	v.awaitVirtual("one is down", v.wan0)
	must(netlink.LinkSetUp(v.lan0))
	v.awaitVirtual("it is up", v.lan0, v.wan0)
	v.wantWays("it is up", 2, 0)

	must(netlink.LinkSetHardwareAddr(v.lan0, []byte{2, 0, 0x5e, 0, 1, 10}))
	v.awaitVirtual("it has an ordinary MAC", v.wan0)
	must(netlink.LinkSetHardwareAddr(v.lan0, []byte{0, 0, 0x5e, 0, 1, 11}))
	v.awaitVirtual("it has another virtual one", v.lan0, v.wan0)
	before := packetsOf(t, v.Fastpath)["other_host"]
	_, _ = v.client.conn.Write([]byte("to the earlier one"))
	await(t, "the earlier MAC is not taken", func() bool { return packetsOf(t, v.Fastpath)["other_host"] > before })
	must(netlink.LinkSetHardwareAddr(v.lan0, insideMAC[:]))
	v.wantWays("it has its own again", 2, 0)

	must(netlink.LinkDel(v.lan0))
	v.awaitVirtual("it is deleted", v.wan0)
	v.lan0 = raise(t, "vrrp.10", "lan0", insideMAC)
	addAddr(t, v.lan0, "192.168.1.254/32")
	v.awaitOwn()
	v.awaitVirtual("it was made anew", v.lan0, v.wan0)
	v.wantWays("it was made anew", 2, 0)

	mustAttach(t, v.Fastpath, "wan0")
	v.awaitVirtual("its device takes no part", v.wan0)
	mustAttach(t, v.Fastpath)
	v.awaitVirtual("none takes part")
}

// awaitOwn attaches again, as the daemon does when links change, and wants an
// interface that was made to be of no use until then.
func (v *virtualLab) awaitOwn() {
	v.t.Helper()
	await(v.t, "the new interface is known", func() bool {
		v.Fastpath.virtual.mu.Lock()
		defer v.Fastpath.virtual.mu.Unlock()
		_, held := v.Fastpath.virtual.held[uint32(v.lan0.Attrs().Index)]
		return held
	})
	if v.taken()[v.lan0.Attrs().Index] {
		v.t.Error("frames are taken to an interface before it is known where they come in")
	}
	mustAttach(v.t, v.Fastpath, "lan0", "wan0")
}

// Both sides have to say the same of an interface.
func TestVirtualMACsSettle(t *testing.T) {
	enterNamespace(t)
	_, f := newFastpath(t, FastpathOptions{})
	place := func(below, number uint32) virtualPlace { return virtualPlace{below: below, number: number} }
	key := func(place uint32, vrid uint8) virtualKey { return virtualKey{Place: place, Family: 1, Vrid: vrid} }
	for i, step := range []struct {
		places map[uint32]virtualPlace
		held   map[uint32]heldMAC
		want   map[virtualKey]uint32
	}{
		{map[uint32]virtualPlace{7: place(2, 1<<24)}, nil, nil},
		{map[uint32]virtualPlace{7: place(2, 1<<24)}, map[uint32]heldMAC{7: {2, insideMAC}}, map[virtualKey]uint32{key(1<<24, 10): 7}},
		{map[uint32]virtualPlace{7: place(2, 1<<24)}, map[uint32]heldMAC{7: {3, insideMAC}}, nil},
		{nil, map[uint32]heldMAC{7: {2, insideMAC}}, nil},
		{map[uint32]virtualPlace{7: place(2, 2<<24), 8: place(2, 2<<24)}, map[uint32]heldMAC{7: {2, insideMAC}, 8: {2, outsideMAC}},
			map[virtualKey]uint32{key(2<<24, 10): 7, key(2<<24, 20): 8}},
		{map[uint32]virtualPlace{7: place(2, 2<<24), 8: place(2, 2<<24)}, map[uint32]heldMAC{8: {2, insideMAC}},
			map[virtualKey]uint32{key(2<<24, 10): 8}},
	} {
		for _, order := range []bool{false, true} {
			if order {
				f.holdVirtual(nil)
			}
			if err := f.placeVirtual(step.places); err != nil {
				t.Fatal(err)
			}
			f.holdVirtual(step.held)
			content, err := readMap[virtualKey, uint32](f.maps.Virtual)
			if err != nil || !maps.Equal(content, step.want) {
				t.Errorf("step %d: %v, %v, want %v", i, content, err, step.want)
			}
		}
	}
	if most := f.maps.Out.MaxEntries() - 1; most<<placeDevice&fastVirtual != 0 {
		t.Errorf("device %d has the number of a virtual MAC's place", most)
	}
}

// Which addresses are a MASTER's, as rtnetlink tells of them.
func TestVirtualMACsHeld(t *testing.T) {
	const below, above = 2, 7
	inet6 := func(ifindex uint32, prefix uint8, text string) addrKey {
		return addrKey{ifindex: ifindex, family: unix.AF_INET6, prefix: prefix, address: netip.MustParseAddr(text).As16()}
	}
	inet := func(ifindex uint32, octets ...byte) addrKey {
		key := addrKey{ifindex: ifindex, family: unix.AF_INET, prefix: 24}
		copy(key.local[:], octets)
		return key
	}
	for name, c := range map[string]struct {
		link linkFacts
		addr addrKey
		flag uint32
		want bool
	}{
		"an address":                {linkFacts{}, inet(above, 198, 51, 100, 2), 0, true},
		"an IPv6 address":           {linkFacts{}, inet6(above, 128, "2001:db8::2"), unix.IFA_F_DEPRECATED, true},
		"a link-local VIP":          {linkFacts{}, inet6(above, 64, "fe80::2"), 0, true},
		"its own by the MAC":        {linkFacts{}, inet6(above, 64, "fe80::200:5eff:fe00:10a"), 0, false},
		"its own by a secret":       {linkFacts{}, inet6(above, 64, "fe80::2"), unix.IFA_F_STABLE_PRIVACY, false},
		"that of the one below":     {linkFacts{}, inet6(above, 128, "fe80::1"), 0, false},
		"a link-local IPv4 address": {linkFacts{}, inet(above, 169, 254, 0, 1), 0, false},
		"none":                      {linkFacts{}, inet(below, 198, 51, 100, 2), 0, false},
		"down":                      {linkFacts{flags: unix.IFF_MULTICAST}, inet(above, 198, 51, 100, 2), 0, false},
		"an ordinary MAC":           {linkFacts{address: "\x02\x00\x5e\x00\x01\x0a"}, inet(above, 198, 51, 100, 2), 0, false},
		"neither family's":          {linkFacts{address: "\x00\x00\x5e\x00\x03\x0a"}, inet(above, 198, 51, 100, 2), 0, false},
		"no MAC":                    {linkFacts{address: "\x00\x00\x5e\x00"}, inet(above, 198, 51, 100, 2), 0, false},
	} {
		c.link.flags = cmp.Or(c.link.flags, unix.IFF_UP)
		c.link.address, c.link.parent = cmp.Or(c.link.address, string(insideMAC[:])), below
		view := newRouteView()
		view.links[linkKey{ifindex: above}] = c.link
		view.addrs[inet6(below, 64, "fe80::1")] = 0
		view.addrs[c.addr] = c.flag
		held := view.held()
		if at, ok := held[above]; ok != c.want || ok && at != (heldMAC{below, insideMAC}) {
			t.Errorf("%s: held %v, want %v", name, held, c.want)
		}
	}
}

// Where events were lost, no virtual MAC is held until all has been read anew.
func TestVirtualMACsLost(t *testing.T) {
	enterNamespace(t)
	cable(t, "lan0", "lan1")
	above := raise(t, "vrrp.10", "lan0", insideMAC)
	addAddr(t, above, "192.168.1.254/32")
	_, f := newFastpath(t, FastpathOptions{})
	if err := f.placeVirtual(map[uint32]virtualPlace{
		uint32(above.Attrs().Index): {below: uint32(above.Attrs().ParentIndex), number: 1 << 24},
	}); err != nil {
		t.Fatal(err)
	}
	w := &fastWatch{fastpath: f}
	defer w.close()
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	if len(f.virtual.table) != 1 {
		t.Errorf("at the start: %v", f.virtual.table)
	}
	w.feeds[0].lost()
	if len(f.virtual.table) != 0 {
		t.Errorf("events were lost: %v", f.virtual.table)
	}
	if err := w.feeds[0].seed(); err != nil || len(f.virtual.table) != 1 {
		t.Errorf("all was read anew: %v, %v", f.virtual.table, err)
	}
}

// whenLogged is a log that looks at something at every line.
type whenLogged func()

func (whenLogged) Enabled(context.Context, slog.Level) bool       { return true }
func (look whenLogged) Handle(context.Context, slog.Record) error { look(); return nil }
func (look whenLogged) WithAttrs([]slog.Attr) slog.Handler        { return look }
func (look whenLogged) WithGroup(string) slog.Handler             { return look }

// A MAC that is handed over is taken away before the flows are judged anew: no packet
// to it can teach in the new generation. It shows where taking it away fails.
func TestVirtualMACGoesFirst(t *testing.T) {
	enterNamespace(t)
	_, f := newFastpath(t, FastpathOptions{})
	if err := f.SetOpen(true); err != nil {
		t.Fatal(err)
	}
	const index = 7
	view := newRouteView()
	view.links[linkKey{ifindex: index}] = linkFacts{flags: unix.IFF_UP, address: string(insideMAC[:])}
	addr := addrKey{ifindex: index, family: unix.AF_INET, prefix: 32, local: [16]byte{192, 168, 1, 254}}
	view.addrs[addr] = 0
	if err := f.placeVirtual(map[uint32]virtualPlace{index: {number: 1 << 24}}); err != nil {
		t.Fatal(err)
	}
	f.holdVirtual(view.held())
	if len(f.virtual.table) != 1 {
		t.Fatalf("held: %v", f.virtual.table)
	}
	before, told := f.tables.generation(), uint32(0)
	f.log = slog.New(whenLogged(func() { told = f.tables.generation() }))
	if err := f.maps.Virtual.Freeze(); err != nil {
		t.Fatal(err)
	}
	f.routesChanged(view, addrGone(index, 32, 192, 168, 1, 254))
	if after := f.tables.generation(); told != before || after == before {
		t.Errorf("the generation was %d, %d when the MAC had to go, and is %d", before, told, after)
	}
}

// addrGone is the kernel's word that an interface has lost an address.
func addrGone(ifindex uint32, prefix uint8, local ...byte) []wire.Message {
	data := []byte{unix.AF_INET, prefix, 0, 0}
	data = binary.NativeEndian.AppendUint32(data, ifindex)
	data = binary.NativeEndian.AppendUint16(data, uint16(unix.SizeofRtAttr+len(local)))
	data = binary.NativeEndian.AppendUint16(data, unix.IFA_LOCAL)
	return []wire.Message{{Header: wire.Header{Type: unix.RTM_DELADDR}, Data: append(data, local...)}}
}
