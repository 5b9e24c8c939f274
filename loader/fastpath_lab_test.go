// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vippin/loader/ethtool"
)

// newForwardingLab is a lab whose cables take redirected frames, and whose hosts write
// their checksums themselves: a redirect loses what hardware is to do.
func newForwardingLab(t *testing.T) *lab {
	t.Helper()
	return newForwardingLabAt(t, 0, 0)
}

func newForwardingLabAt(t *testing.T, lan, wan int) *lab {
	t.Helper()
	l := newLabAt(t, lan, wan)
	for _, feature := range []string{groFeature, checksums} {
		for _, ns := range []netns.NsHandle{l.lan, l.wan} {
			err := inNamespace(ns, func() error { return ethtool.Switch("peer", feature, feature == groFeature) })
			if err != nil {
				t.Fatalf("set up the cables: %v", err)
			}
		}
	}
	l.serve(t)
	return l
}

// newStickLab has a router on a stick: inside and outside are on one cable, whose other
// end is a switch's, with GRO and no XDP program.
func newStickLab(t *testing.T) *lab {
	t.Helper()
	router := enterNamespace(t)
	l := emptyLab()
	trunk := l.side(t, router, "wan0", "198.51.100.3/24")
	addAddr(t, up(t, "wan0"), "192.168.1.1/24")
	const redirects = "/proc/sys/net/ipv4/conf/%s/send_redirects" // hosts would talk to each other
	for _, name := range []string{"all", "wan0"} {
		if err := os.WriteFile(fmt.Sprintf(redirects, name), []byte("0"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := netns.Set(trunk)
	if err == nil {
		err = ethtool.Switch("peer", groFeature, true)
	}
	if err != nil {
		t.Fatalf("set up the switch: %v", err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = "br0"
	peer := up(t, "peer")
	if err := errors.Join(netlink.LinkSetDown(peer), netlink.LinkSetName(peer, "port"), netlink.LinkAdd(bridge)); err != nil {
		t.Fatalf("set up the switch: %v", err)
	}
	l.lan = l.side(t, trunk, "lan0", "", "192.168.1.10/24", "192.168.1.11/24")
	l.wan = l.side(t, trunk, "far0", "", "198.51.100.9/24")
	for _, port := range []string{"port", "lan0", "far0", "br0"} {
		link := up(t, port)
		if port != "br0" {
			if err := netlink.LinkSetMaster(link, bridge); err != nil {
				t.Fatalf("plug %s into the switch: %v", port, err)
			}
		}
	}
	for _, ns := range []netns.NsHandle{l.lan, l.wan} {
		if err := inNamespace(ns, func() error { return ethtool.Switch("peer", checksums, false) }); err != nil {
			t.Fatalf("set up the hosts: %v", err)
		}
	}
	if err := netns.Set(router); err != nil {
		t.Fatal(err)
	}
	l.translate(t)
	l.serve(t)
	return l
}

// A router on a stick over a veth: frames leave by the device that they came by, and
// reach an end that has no XDP program, which XDP_TX would not wake.
func TestFastpathOnAStick(t *testing.T) {
	l := newStickLab(t)
	_, f := l.openOn(t, testBPFFS(t), FastpathOptions{}, "wan0")
	c := l.dial(t, "flow", "udp4", "192.168.1.10:43000")
	l.awaitForwarding(t, f, c)
	before, forwarded := l.arrived("flow"), packetsOf(t, f)["forwarded"]
	stop := l.stream(t, c)
	await(t, "more packets are forwarded than a veth's ring has room for", func() bool { return packetsOf(t, f)["forwarded"] > forwarded+2000 })
	sent := stop()
	await(t, "all datagrams arrive", func() bool { return l.arrived("flow") >= before+sent })
	if source := l.source(t, "flow"); source.Addr().String() != vip {
		t.Errorf("the flow comes from %v, want %s", source, vip)
	}
}

// open loads dataplane and fast path on lan0 and wan0, with a daemon that lives
// for an hour.
func (l *lab) open(t *testing.T, dir string, opts FastpathOptions) (*Dataplane, *Fastpath) {
	t.Helper()
	return l.openOn(t, dir, opts, "lan0", "wan0")
}

func (l *lab) openOn(t *testing.T, dir string, opts FastpathOptions, names ...string) (*Dataplane, *Fastpath) {
	t.Helper()
	d := mustLoad(t, Options{BPFFS: dir})
	if err := errors.Join(d.SetSettings(Settings{Lease: time.Hour}), d.Heartbeat(Monotonic())); err != nil {
		t.Fatal(err)
	}
	l.plan(t, d, true)
	f := mustFastpath(t, d, opts)
	for _, device := range mustAttach(t, f, names...) {
		if device.Mode != "native" {
			t.Fatalf("device %+v", device)
		}
	}
	if err := f.SetOpen(true); err != nil {
		t.Fatal(err)
	}
	return d, f
}

func packetsOf(t *testing.T, f *Fastpath) map[string]uint64 {
	t.Helper()
	sums, err := sumCounters(f.maps.Counters, exitNames[:])
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// streamMost is how many datagrams of a stream are under way at most. The server's
// socket has room for some 50: each has a page of its own when it has passed a veth's XDP.
const streamMost = 32

// stream sends datagrams of one flow until stop, which tells how many.
func (l *lab) stream(t *testing.T, c *client) (stop func() int) {
	t.Helper()
	var sender sync.WaitGroup
	done := make(chan struct{})
	sent, before := 0, l.arrived(c.name)
	sender.Go(func() {
		line := fmt.Appendf(nil, "%-*s", lineLen, c.name)
		pace := time.NewTicker(500 * time.Microsecond)
		defer pace.Stop()
		for {
			select {
			case <-done:
				return
			case <-pace.C:
			}
			if before+sent-l.arrived(c.name) >= streamMost {
				continue
			}
			if _, err := c.conn.Write(line); err != nil {
				t.Errorf("send: %v", err)
				return
			}
			sent++
		}
	})
	return func() int {
		close(done)
		sender.Wait()
		return sent
	}
}

func (l *lab) arrived(name string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, count := range l.seen[name] {
		n += count
	}
	return n
}

// TestFastpathTraffic: a pinned flow takes the fast path with the VIP as its
// source. Nothing of it is lost while devices leave the fast path and come back,
// and while the daemon is replaced.
func TestFastpathTraffic(t *testing.T) {
	l := newForwardingLab(t)
	dir := testBPFFS(t)
	d, f := l.open(t, dir, FastpathOptions{})
	c := l.dial(t, "flow", "udp4", "192.168.1.10:43000")
	await(t, "the flow takes the fast path", func() bool {
		mustAsk(t, c)
		return packetsOf(t, f)["forwarded"] > 10
	})
	if source := l.source(t, "flow"); source.Addr().String() != vip {
		t.Errorf("the flow comes from %v, want %s", source, vip)
	}
	before := l.arrived("flow")
	stop := l.stream(t, c)
	for range 5 {
		forwarded := packetsOf(t, f)["forwarded"]
		await(t, "the fast path forwards", func() bool { return packetsOf(t, f)["forwarded"] > forwarded+20 })
		mustAttach(t, f, "lan0")
		stale := packetsOf(t, f)["stale"]
		await(t, "packets take the stack", func() bool { return packetsOf(t, f)["stale"] > stale+20 })
		mustAttach(t, f, "wan0", "lan0")
	}
	for range 2 {
		if err := errors.Join(f.Close(), d.Close()); err != nil {
			t.Fatal(err)
		}
		d, f = l.open(t, dir, FastpathOptions{})
		forwarded := packetsOf(t, f)["forwarded"]
		await(t, "the fast path forwards again", func() bool { return packetsOf(t, f)["forwarded"] > forwarded+20 })
	}
	sent := stop()
	t.Logf("%d datagrams sent", sent)
	await(t, "all datagrams arrive", func() bool { return l.arrived("flow") >= before+sent })
	l.source(t, "flow")
}

// atPeer runs do in the server's namespace, with the other end of wan0.
func (l *lab) atPeer(t *testing.T, do func(peer netlink.Link) error) {
	t.Helper()
	err := inNamespace(l.wan, func() error {
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		return do(peer)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFastpathRefused: frames that a device refuses are lost. It is noticed, all
// takes the stack, and the device comes back to the fast path when it can.
func TestFastpathRefused(t *testing.T) {
	for _, test := range []struct {
		name         string
		opts         FastpathOptions
		spoil, mend  func(peer netlink.Link) error
		why          string
		untilItsDown bool
	}{
		{"asked", FastpathOptions{noFeatures: true}, netlink.LinkSetDown, netlink.LinkSetUp, "frames that XDP sent there (no such device or address)", true},
		{"not asked", FastpathOptions{}, gro(false), gro(true), "its driver sends no frames that XDP redirects", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newForwardingLab(t)
			_, f := l.open(t, testBPFFS(t), test.opts)
			if _, known, err := f.features(loopback); f.tracer == nil || !known && !test.opts.noFeatures {
				t.Skipf("this kernel does not tell (%v)", err)
			}
			c := l.dial(t, "flow", "udp4", "192.168.1.10:43000")
			l.awaitForwarding(t, f, c)
			l.atPeer(t, test.spoil)
			l.wantTakenOff(t, f, c)
			if test.untilItsDown {
				l.atPeer(t, test.mend)
				await(t, "wan0 is up", func() bool { return isUp(up(t, "wan0").Attrs().RawFlags) })
			}
			devices := mustAttach(t, f, "lan0", "wan0")
			if devices[0].Mode != "native" || devices[1].Mode != "" {
				t.Errorf("devices %+v, want lan0 alone", devices)
			}
			contains(t, devices[1].Refused, test.why)
			forwarded := packetsOf(t, f)["forwarded"]
			mustAsk(t, c, c, c)
			if now := packetsOf(t, f)["forwarded"]; now != forwarded {
				t.Errorf("%d packets took the fast path", now-forwarded)
			}
			if test.untilItsDown {
				l.atPeer(t, test.spoil)
				await(t, "wan0 is down", func() bool { return !isUp(up(t, "wan0").Attrs().RawFlags) })
				mustAttach(t, f, "lan0", "wan0")
			}
			l.atPeer(t, test.mend)
			mustAttach(t, f, "lan0", "wan0")
			l.awaitForwarding(t, f, c)
		})
	}
}

// TestFastpathRefusedElsewhere: in another network namespace a device of the same
// number may refuse as it likes.
func TestFastpathRefusedElsewhere(t *testing.T) {
	l := newForwardingLab(t)
	_, f := l.open(t, testBPFFS(t), FastpathOptions{})
	if f.tracer == nil {
		t.Skip("this kernel does not tell")
	}
	c := l.dial(t, "flow", "udp4", "192.168.1.10:43000")
	l.awaitForwarding(t, f, c)
	here := f.tables.state.Netns
	f.tables.state.Netns++
	l.atPeer(t, gro(false))
	lost, generation := packetsOf(t, f)["forwarded"], stateOf(t, f).Generation
	await(t, "refused frames", func() bool {
		_, _ = c.conn.Write(fmt.Appendf(nil, "%-*s", lineLen, c.name))
		return packetsOf(t, f)["forwarded"] > lost+10
	})
	if now := stateOf(t, f).Generation; now != generation {
		t.Errorf("another namespace's frames closed the fast path: generation %d, was %d", now, generation)
	}
	f.tables.state.Netns = here
	l.wantTakenOff(t, f, c)
}

func gro(on bool) func(netlink.Link) error {
	return func(netlink.Link) error { return ethtool.Switch("peer", groFeature, on) }
}

func (l *lab) awaitForwarding(t *testing.T, f *Fastpath, c *client) {
	t.Helper()
	before := packetsOf(t, f)["forwarded"]
	await(t, "the flow takes the fast path", func() bool {
		mustAsk(t, c)
		return packetsOf(t, f)["forwarded"] > before+10
	})
}

// wantTakenOff sends until wan0 has refused a frame, and wants the fast path
// closed by the kernel itself, and opened without wan0 then.
func (l *lab) wantTakenOff(t *testing.T, f *Fastpath, c *client) {
	t.Helper()
	func() {
		f.mu.Lock() // nobody but the kernel does anything
		defer f.mu.Unlock()
		await(t, "refused frames close the fast path", func() bool {
			_, _ = c.conn.Write(fmt.Appendf(nil, "%-*s", lineLen, c.name))
			return stateOf(t, f).Generation == 0
		})
	}()
	await(t, "refused frames are noticed", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.refused[l.ifindex].frames > 0 && stateOf(t, f).Generation != 0
	})
	if on := devicesOf(t, f); len(on) != 1 {
		t.Errorf("the programs have %v, want lan0", on)
	}
}
