// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Learning is tried on a kernel's own conntrack, NAT and routing. Thread
// discipline: a test that calls newLearnLab runs on a thread of its own, which is in
// the router's network namespace until the test ends; what is to happen elsewhere is
// done by inside.

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// Device numbers.
const (
	lanNumber = 1
	wanNumber = 2
)

var (
	host4   = netip.MustParseAddr("198.18.1.10")
	host6   = netip.MustParseAddr("2001:db8:18::10")
	server4 = netip.MustParseAddr("198.51.100.9")
	server6 = netip.MustParseAddr("2001:db8:1::9")
)

const masquerade = `table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "wan*" masquerade; }; }
	table ip6 nat { chain post { type nat hook postrouting priority srcnat; oifname "wan*" masquerade; }; }`

// learnLab is a router that masquerades a host to a server and pins what it
// masquerades to the VIP; both its devices take the fast path.
type learnLab struct {
	*dataplane
	fast             *FastpathObjects
	router, lan, wan netns.NsHandle
	lan0, wan0       int // ifindex
	in, out          int // ifindex of what packets are routed by: lan0 and wan0, or VLANs on them
	lanTags, wanTags []tag
	virtual          map[int]netlink.Link // macvlans with virtual MACs, by ifindex
	asks             *ringbuf.Reader
}

var sharedLearning *FastpathObjects

// loadLearning loads the fast path's programs with the dataplane's maps.
func loadLearning(t *testing.T, d *dataplane) *FastpathObjects {
	t.Helper()
	spec, err := LoadFastpath()
	if err != nil {
		t.Fatal(err)
	}
	shared := make(map[string]*ebpf.Map)
	for name, m := range map[string]*ebpf.Map{
		FastpathMapIfaces: d.Ifaces, FastpathMapNearIfaces: d.NearIfaces, FastpathMapByLocal: d.ByLocal,
		FastpathMapByPublic: d.ByPublic, FastpathMapHold: d.Hold, FastpathMapHeartbeat: d.Heartbeat,
		FastpathMapPinCounters: d.PinCounters,
	} {
		if _, used := spec.Maps[name]; used {
			shared[name] = m
		}
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		if replacement, ok := shared[m.Name]; ok {
			m.MaxEntries = replacement.MaxEntries()
		}
	}
	spec.Maps[FastpathMapFast4].MaxEntries = fastBuckets
	spec.Maps[FastpathMapFast6].MaxEntries = fastBuckets
	var tick unix.Timespec
	mustDo(t, unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick),
		spec.Variables[FastpathVarTickNs].Set(uint32(tick.Nano())))
	f := &FastpathObjects{}
	if err := spec.LoadAndAssign(f, &ebpf.CollectionOptions{MapReplacements: shared}); err != nil {
		t.Fatalf("load programs: %+v", err)
	}
	return f
}

func newLearnLab(t *testing.T) *learnLab {
	t.Helper()
	return newTaggedLab(t, nil, nil)
}

// newTaggedLab has its hosts in VLANs.
func newTaggedLab(t *testing.T, lanTags, wanTags []tag) *learnLab {
	t.Helper()
	l := &learnLab{dataplane: newDataplane(t), lanTags: lanTags, wanTags: wanTags}
	if sharedLearning == nil {
		sharedLearning = loadLearning(t, l.dataplane)
	}
	l.fast = sharedLearning
	router := enterNamespace(t)
	l.router = router
	l.lan, l.lan0, l.in = side(t, router, "lan0", lanTags, "198.18.1.1/24", "2001:db8:18::1/64", host4.String()+"/24", host6.String()+"/64")
	l.wan, l.wan0, l.out = side(t, router, "wan0", wanTags, unique4.String()+"/24", unique6.String()+"/64", server4.String()+"/24", server6.String()+"/64")
	out, err := netlink.LinkByIndex(l.out)
	mustDo(t, err, addAddr(out, vip4.String()+"/32"), addAddr(out, vip6.String()+"/128"))
	mustDo(t, inside(l.lan, func() error {
		return errors.Join(addRoute("0.0.0.0/0", "198.18.1.1"), addRoute("::/0", "2001:db8:18::1"))
	}))
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/netfilter/nf_conntrack_acct"} {
		sysctl(t, name, "1")
	}
	nft(t, masquerade)
	l.configure(t)
	l.attach(t)
	return l
}

// configure pins what leaves by l.out, and opens the fast path.
func (l *learnLab) configure(t *testing.T) {
	t.Helper()
	iface := DataplaneIface{Slot: slot, HasL2: 1, Known: 1}
	put(t, l.Ifaces, uint32(l.out), iface)
	put(t, l.NearIfaces, uint32(l.out), iface)
	source := DataplaneSourceKey{PrefixLen: 32, Slot: slot}
	put(t, l.Sources, source, uint32(pinNumber))
	for i := range uint32(fastBuckets) {
		put(t, l.fast.Fast4, i, FastpathFast4Bucket{})
		put(t, l.fast.Fast6, i, FastpathFast6Bucket{})
	}
	l.clearEager(t)
	clearMap[uint32](t, l.fast.FastPlaces)
	clearMap[FastpathFastVirtual](t, l.fast.FastVirtual)
	clearMap[FastpathFastHop](t, l.fast.FastHopNumbers)
	put(t, l.fast.FastHopLast, uint32(0), uint64(0))
	for number, ifindex := range map[uint8]int{lanNumber: l.lan0, wanNumber: l.wan0} {
		device, err := netlink.LinkByIndex(ifindex)
		mustDo(t, err)
		put(t, l.fast.FastDevices, uint32(ifindex), FastpathFastDevice{Number: number, Mac: [6]uint8(device.Attrs().HardwareAddr)})
		put(t, l.fast.FastOut, uint32(number), uint32(ifindex))
		t.Cleanup(func() { put(t, l.fast.FastDevices, uint32(ifindex), FastpathFastDevice{}) })
	}
	l.place(t, l.in, placeIn(lanNumber, l.lanTags), l.in)
	l.place(t, l.out, placeIn(wanNumber, l.wanTags), l.out)
	for above := range l.virtual {
		l.placeVirtual(t, above)
	}
	l.setState(t, func(*FastpathFastState) {})
	put(t, l.Heartbeat, uint32(0), coarseNow(t))
	l.exits(t)
	l.refusals(t)
	t.Cleanup(func() {
		put(t, l.NearIfaces, uint32(l.out), DataplaneIface{})
		put(t, l.fast.FastState, uint32(0), FastpathFastState{})
		clearMap[DataplaneSourceKey](t, l.Sources)
	})
}

// place says where packets of an interface come in.
func (l *learnLab) place(t *testing.T, ifindex int, number uint32, below int) {
	t.Helper()
	put(t, l.fast.FastPlaces, uint32(ifindex), FastpathFastPlace{Number: number, Below: uint32(below)})
}

// setState opens the fast path; change has the last word on how.
func (l *learnLab) setState(t *testing.T, change func(*FastpathFastState)) {
	t.Helper()
	state := FastpathFastState{
		Generation: fastGeneration, Keys: fastKeys, PaceNs: 4e9, LeaseNs: 3600e9, Mask4: fastBuckets - 1, Mask6: fastBuckets - 1,
	}
	change(&state)
	put(t, l.fast.FastState, uint32(0), state)
}

// attach attaches what the loader would, in its order.
func (l *learnLab) attach(t *testing.T) {
	t.Helper()
	var err error
	if l.asks, err = ringbuf.NewReader(l.fast.FastAsks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.asks.Close() })
	l.asked(t)
	attachTC(t, l.out, l.VippinIngress, ebpf.AttachTCXIngress, 1)
	attachTC(t, l.out, l.VippinEgress, ebpf.AttachTCXEgress, 1)
	for _, ifindex := range []int{l.lan0, l.wan0} {
		attachTC(t, ifindex, l.fast.VippinLearn, ebpf.AttachTCXEgress, 2)
		lnk, err := link.AttachXDP(link.XDPOptions{Program: l.fast.VippinFastpath, Interface: ifindex, Flags: link.XDPDriverMode})
		if err != nil {
			t.Fatalf("attach XDP to interface %d: %v", ifindex, err)
		}
		t.Cleanup(func() { _ = lnk.Close() })
	}
}

// attachTC attaches behind what is there; before Linux 6.6 by a clsact filter of this
// priority.
func attachTC(t *testing.T, ifindex int, program *ebpf.Program, at ebpf.AttachType, priority uint16) {
	t.Helper()
	lnk, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: program, Attach: at})
	if err == nil {
		t.Cleanup(func() { _ = lnk.Close() })
		return
	}
	if !errors.Is(err, ebpf.ErrNotSupported) {
		t.Fatalf("attach to interface %d: %v", ifindex, err)
	}
	attrs := netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	mustDo(t, netlink.QdiscReplace(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "clsact"}))
	parent := uint32(netlink.HANDLE_MIN_EGRESS)
	if at == ebpf.AttachTCXIngress {
		parent = netlink.HANDLE_MIN_INGRESS
	}
	mustDo(t, netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority},
		Fd:          program.FD(), Name: "vippin_test", DirectAction: true,
	}))
}

func enterNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	before, err := netns.Get()
	mustDo(t, err)
	ns, err := netns.New()
	mustDo(t, err)
	t.Cleanup(func() {
		if err := netns.Set(before); err != nil {
			t.Errorf("return from network namespace: %v", err)
			return // and let the thread die with the test
		}
		_ = before.Close()
		_ = ns.Close()
		runtime.UnlockOSThread()
	})
	return ns
}

// inside runs do in a namespace, on a thread that ends with it.
func inside(ns netns.NsHandle, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- do()
	}()
	return <-done
}

// placeIn is where packets with these tags come in.
func placeIn(number uint32, tags []tag) uint32 {
	place := number << 24
	if len(tags) > 0 {
		place |= uint32(tags[0].id) << 12
		if tags[0].ethertype == unix.ETH_P_8021AD {
			place |= fast8021AD
		}
	}
	if len(tags) > 1 {
		place |= uint32(tags[1].id)
	}
	return place
}

// side makes a namespace and a cable to it that carries XDP's frames. The first two
// addresses are the router's. It returns the interfaces without and with VLANs.
func side(t *testing.T, router netns.NsHandle, name string, tags []tag, addrs ...string) (ns netns.NsHandle, device, top int) {
	t.Helper()
	ns, err := netns.New() // and enters it
	mustDo(t, err, netns.Set(router))
	t.Cleanup(func() { _ = ns.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	mustDo(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}))
	ours, err := netlink.LinkByName(name)
	mustDo(t, err)
	peer, err := netlink.LinkByName("peer")
	mustDo(t, err, netlink.LinkSetNsFd(peer, int(ns)))
	above, err := upWith(ours, tags, addrs[:2]...)
	if len(tags) > 0 && errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no VLANs (8021q)")
	}
	mustDo(t, err, inside(ns, func() error {
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		if _, err := upWith(peer, tags, addrs[2:]...); err != nil {
			return err
		}
		// A program redirects what is in memory: checksums and tags have to be there. A
		// veth takes its frames if GRO was switched on at the other end while it was up.
		said, err := exec.Command("ethtool", "-K", "peer", "tx", "off", "txvlan", "off",
			"tx-vlan-stag-hw-insert", "off", "gro", "on").CombinedOutput()
		if err != nil {
			return fmt.Errorf("ethtool: %w: %s", err, said)
		}
		return nil
	}))
	// The kernel notices the cable by and by, and drops what is sent before.
	await(t, above.Attrs().Name+" is up", func() bool {
		now, err := netlink.LinkByIndex(above.Attrs().Index)
		return err == nil && now.Attrs().OperState == netlink.OperUp
	})
	return ns, ours.Attrs().Index, above.Attrs().Index
}

// upWith returns the interface that has got the addresses: the device, or VLANs on it.
func upWith(l netlink.Link, tags []tag, addrs ...string) (netlink.Link, error) {
	if err := netlink.LinkSetUp(l); err != nil {
		return nil, err
	}
	for _, tag := range tags {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = fmt.Sprintf("%s.%d", l.Attrs().Name, tag.id), l.Attrs().Index
		vlan := &netlink.Vlan{LinkAttrs: attrs, VlanId: int(tag.id), VlanProtocol: netlink.VlanProtocol(tag.ethertype)}
		if err := netlink.LinkAdd(vlan); err != nil {
			return nil, fmt.Errorf("add %s: %w", attrs.Name, err)
		}
		if err := netlink.LinkSetUp(vlan); err != nil {
			return nil, err
		}
		l = vlan
	}
	for _, addr := range addrs {
		if err := addAddr(l, addr); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func addAddr(l netlink.Link, text string) error {
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD
	if addr.IP.Equal(vip6.AsSlice()) {
		addr.ValidLft = 1e6 // deprecated: no source that the kernel chooses
	}
	return netlink.AddrAdd(l, addr)
}

func addRoute(to, gateway string) error {
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)})
}

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	mustDo(t, os.WriteFile("/proc/sys/"+name, []byte(value), 0o644))
}

func nft(t *testing.T, rules string) {
	t.Helper()
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(rules)
	if said, err := command.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, said)
	}
}

// exits and refusals return and clear what was counted.
func (l *learnLab) exits(t *testing.T) map[FastpathFastExit]uint64 {
	t.Helper()
	got := map[FastpathFastExit]uint64{}
	for c := range FastpathFastExitFAST_EXITS {
		if n := takePerCPU(t, l.fast.FastCounters, uint32(c)); n > 0 {
			got[c] = n
		}
	}
	return got
}

func (l *learnLab) refusals(t *testing.T) map[FastpathFastRefusal]uint64 {
	t.Helper()
	got := map[FastpathFastRefusal]uint64{}
	for c := range FastpathFastRefusalREFUSALS {
		if n := takePerCPU(t, l.fast.FastRefusals, uint32(c)); n > 0 {
			got[c] = n
		}
	}
	return got
}

// asked drains the ring of asks.
func (l *learnLab) asked(t *testing.T) (all []FastpathFastAsk) {
	t.Helper()
	l.asks.SetDeadline(time.Now().Add(-time.Second))
	for {
		raw, err := l.asks.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		mustDo(t, err)
		all = append(all, decodeAsk(t, raw.RawSample))
	}
}
