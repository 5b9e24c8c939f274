// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// watchPatience is how long an event may take before the test gives up.
const watchPatience = 5 * time.Second

// startWatch runs Watch in a namespace and returns a function that stops it
// and waits for its end.
func startWatch(t *testing.T, ns netns.NsHandle, events chan<- LinkEvent) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() {
		result <- inNamespace(ns, func() error { return Watch(ctx, events) })
	}()
	return func() {
		t.Helper()
		cancel()
		if err := <-result; err != nil {
			t.Errorf("watch: %v", err)
		}
	}
}

func macvlanOnVeth(t *testing.T) (veth, macvlan netlink.Link) {
	t.Helper()
	veth = &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan"}, PeerName: "peer"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	veth, err := netlink.LinkByName("wan")
	if err != nil {
		t.Fatal(err)
	}
	macvlan = &netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{Name: "vrrp.10", ParentIndex: veth.Attrs().Index}, Mode: netlink.MACVLAN_MODE_PRIVATE,
	}
	if err := netlink.LinkAdd(macvlan); err != nil {
		t.Fatal(err)
	}
	if macvlan, err = netlink.LinkByName("vrrp.10"); err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName("peer")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range []netlink.Link{veth, peer, macvlan} {
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	return veth, macvlan
}

func observeLink(t *testing.T, name string) policy.Link {
	t.Helper()
	seen, err := Observe()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range seen.Links {
		if link.Name == name {
			return link
		}
	}
	t.Fatalf("%s was not observed", name)
	return policy.Link{}
}

// awaitUp waits for a carrier, which the kernel hands on to a macvlan in the
// background.
func awaitUp(t *testing.T, here netns.NsHandle, name string) {
	t.Helper()
	events := make(chan LinkEvent)
	stop := startWatch(t, here, events)
	defer stop()
	for timeout := time.After(watchPatience); !observeLink(t, name).Up; {
		select {
		case <-events:
		case <-timeout:
			t.Fatalf("%s did not come up", name)
		}
	}
}

func hasAddr(link policy.Link, text string, deprecated bool) bool {
	want := policy.Addr{Prefix: netip.MustParsePrefix(text), Deprecated: deprecated}
	for _, addr := range link.Addrs {
		if addr == want {
			return true
		}
	}
	return false
}

func TestObserveRealLinks(t *testing.T) {
	here := enterNamespace(t)
	veth, macvlan := macvlanOnVeth(t)
	awaitUp(t, here, "vrrp.10")
	plain := &netlink.Addr{IPNet: parseNet(t, "198.51.100.3/24")}
	virtual := &netlink.Addr{IPNet: parseNet(t, "2001:db8::2/128"), ValidLft: 1<<32 - 1, Flags: unix.IFA_F_NODAD}
	for link, addr := range map[netlink.Link]*netlink.Addr{veth: plain, macvlan: virtual} {
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
	secondary := &netlink.Addr{IPNet: parseNet(t, "198.51.100.77/24")}
	if err := netlink.AddrAdd(veth, secondary); err != nil {
		t.Fatal(err)
	}
	wan, vmac, lo := observeLink(t, "wan"), observeLink(t, "vrrp.10"), observeLink(t, "lo")
	if wan.Kind != "veth" || wan.Parent != 0 || !wan.Up || !wan.HasL2 || !hasAddr(wan, "198.51.100.3/24", false) ||
		!hasAddr(wan, "198.51.100.77/24", true) {
		t.Errorf("wan: %+v", wan)
	}
	if vmac.Kind != "macvlan" || vmac.Parent != wan.Index || !vmac.Up || !hasAddr(vmac, "2001:db8::2/128", true) {
		t.Errorf("vrrp.10: %+v", vmac)
	}
	if !lo.Up || !lo.HasL2 || !hasAddr(lo, "127.0.0.1/8", false) {
		t.Errorf("lo: %+v", lo)
	}
	peer, err := netlink.LinkByName("peer")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(peer); err != nil {
		t.Fatal(err)
	}
	if wan = observeLink(t, "wan"); wan.Up {
		t.Errorf("wan, without a carrier: %+v", wan)
	}
}

func parseNet(t *testing.T, text string) *net.IPNet {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return addr.IPNet
}

// awaitLink reads events until one of this kind and link comes. Others may come
// at any time: adding an address changes the link's state, too.
func awaitLink(t *testing.T, events <-chan LinkEvent, kind LinkEventKind, index int) LinkEvent {
	t.Helper()
	timeout := time.After(watchPatience)
	for {
		select {
		case event := <-events:
			if event.Kind == kind && event.Ifindex == index {
				return event
			}
		case <-timeout:
			t.Fatalf("no %v event of link %d came", kind, index)
		}
	}
}

func TestWatchSeesAddressesComeAndGo(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	here := enterNamespace(t)
	_, macvlan := macvlanOnVeth(t)
	events := make(chan LinkEvent)
	stop := startWatch(t, here, events)
	defer stop()
	if first := <-events; first.Kind != Resync || first.Ifindex != 0 {
		t.Fatalf("first event is %+v", first)
	}
	index := macvlan.Attrs().Index
	for _, text := range []string{"198.51.100.2/32", "2001:db8::2/128"} {
		addr := &netlink.Addr{IPNet: parseNet(t, text), Flags: unix.IFA_F_NODAD}
		for _, change := range []struct {
			make func(netlink.Link, *netlink.Addr) error
			here bool
		}{{netlink.AddrAdd, true}, {netlink.AddrDel, false}} {
			before := Monotonic()
			if err := change.make(macvlan, addr); err != nil {
				t.Fatal(err)
			}
			event := awaitLink(t, events, AddrChanged, index)
			if event.Time < before || event.Time > Monotonic() {
				t.Errorf("%s: event at %v, change not before %v", text, event.Time, before)
			}
			if got := hasAddr(observeLink(t, "vrrp.10"), text, false); got != change.here {
				t.Errorf("%s observed: %v, want %v", text, got, change.here)
			}
		}
	}
	if err := netlink.LinkDel(macvlan); err != nil {
		t.Fatal(err)
	}
	awaitLink(t, events, LinkChanged, index)
}

// TestWatchOutlivesASlowReader makes many more changes than anybody reads and
// then one that must still be told of.
func TestWatchOutlivesASlowReader(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	here := enterNamespace(t)
	veth, macvlan := macvlanOnVeth(t)
	events := make(chan LinkEvent)
	stop := startWatch(t, here, events)
	defer stop()
	<-events // the subscription stands
	addr := &netlink.Addr{IPNet: parseNet(t, "198.51.100.2/32")}
	for range 200 {
		if err := errors.Join(netlink.AddrAdd(veth, addr), netlink.AddrDel(veth, addr)); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.AddrAdd(macvlan, addr); err != nil {
		t.Fatal(err)
	}
	read := 0
	for awaited := macvlan.Attrs().Index; ; read++ {
		select {
		case event := <-events:
			if event.Kind != AddrChanged || event.Ifindex != awaited {
				continue
			}
		case <-time.After(watchPatience):
			t.Fatal("the last change was not told")
		}
		break
	}
	if read > 200 { // of 400 changes; some are told while they are read
		t.Errorf("%d events before the last one: equal ones were not merged", read)
	}
}

// TestWatchEndsWhileNobodyReads: the Resync is never taken.
func TestWatchEndsWhileNobodyReads(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	startWatch(t, enterNamespace(t), make(chan LinkEvent))()
}

// TestReadLinksReportsOverrun fills a small buffer before anybody reads; and
// a new subscription takes over.
func TestReadLinksReportsOverrun(t *testing.T) {
	enterNamespace(t)
	veth, _ := macvlanOnVeth(t)
	socket, err := subscribeLinks()
	if err != nil {
		t.Fatal(err)
	}
	if err := socket.SetReceiveBufferSize(4096, true); err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: parseNet(t, "198.51.100.2/32")}
	for range 100 {
		if err := errors.Join(netlink.AddrAdd(veth, addr), netlink.AddrDel(veth, addr)); err != nil {
			t.Fatal(err)
		}
	}
	if err := readLinks(t.Context(), socket, newPendingLinks()); !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("reading a socket that ran over: %v", err)
	}
	if socket = resubscribeLinks(t.Context(), unix.ENOBUFS); socket == nil {
		t.Fatal("no new subscription")
	}
	if err := netlink.AddrAdd(veth, addr); err != nil {
		t.Fatal(err)
	}
	messages, _, err := socket.Receive()
	if err != nil || len(messages) == 0 {
		t.Fatalf("new subscription: %d messages, %v", len(messages), err)
	}
	if event, ok := linkEvent(messages[0]); !ok || event.Kind != AddrChanged || event.Ifindex != veth.Attrs().Index {
		t.Errorf("new subscription told %+v", event)
	}
	socket.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if resubscribeLinks(ended, errors.New("broken")) != nil {
		t.Error("subscribed although the context had ended")
	}
}
