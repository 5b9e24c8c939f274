// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/loader/ethtool"
	"vippin/policy"
)

// newFastRouter is a lab whose router has both devices in the fast path, open, with
// Run at work, and IPv6: hosts 2001:db8:1::10 inside and 2001:db8:2::9 outside.
func newFastRouter(t *testing.T) (*lab, *Fastpath) {
	t.Helper()
	l := newLab(t)
	sysctl(t, "ipv6/conf/all/forwarding", "1")
	nft(t, "table ip6 filter { chain forward { type filter hook forward priority 0; ct state established accept;\n}\n}") // conntrack, too
	addAddr(t, up(t, "lan0"), "2001:db8:1::1/64")
	addAddr(t, up(t, "wan0"), "2001:db8:2::1/64")
	for _, side := range []struct {
		ns            netns.NsHandle
		addr, gateway string
	}{{l.lan, "2001:db8:1::10/64", "2001:db8:1::1"}, {l.wan, "2001:db8:2::9/64", "2001:db8:2::1"}} {
		err := inNamespace(side.ns, func() error {
			peer, err := netlink.LinkByName("peer")
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(side.addr)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(peer, addr); err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: peer.Attrs().Index, Gw: net.ParseIP(side.gateway)}); err != nil {
				return err
			}
			return errors.Join(ethtool.Switch("peer", groFeature, true), ethtool.Switch("peer", checksums, false))
		})
		if err != nil {
			t.Fatalf("set up %s: %v", side.addr, err)
		}
	}
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	l.plan(t, d, true)
	f := mustFastpath(t, d, FastpathOptions{All: true})
	mustAttach(t, f, "lan0", "wan0")
	f.tables.state.LeaseNs = uint64(time.Hour)
	if err := d.Heartbeat(Monotonic()); err != nil {
		t.Fatal(err)
	}
	if err := f.SetOpen(true); err != nil {
		t.Fatal(err)
	}
	return l, f
}

// follow runs Run until the test ends.
func follow(t *testing.T, f *Fastpath) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = here.Close() })
	go func() { result <- inNamespace(here, func() error { return f.Run(ctx) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-result; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// echo6 answers datagrams to 2001:db8:2::9, port 7777.
func (l *lab) echo6(t *testing.T) {
	t.Helper()
	err := inNamespace(l.wan, func() error {
		conn, err := net.ListenPacket("udp6", "[2001:db8:2::9]:7777")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
		go l.serveUDP(conn)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) dial6(t *testing.T, name, from string) *client {
	t.Helper()
	c := &client{name: name, udp: true}
	err := inNamespace(l.lan, func() (err error) {
		dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}
		c.conn, err = dialer.Dial("udp6", "[2001:db8:2::9]:7777")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.conn.Close() })
	return c
}

func flowOf(proto uint8, src, dst string) policy.FlowKey {
	return policy.FlowKey{
		Src: policy.MakeEnd(netip.MustParseAddrPort(src)), Dst: policy.MakeEnd(netip.MustParseAddrPort(dst)), Proto: proto,
	}
}

// awaitFast has a flow's packets go until so many have taken the fast path.
func awaitFast(t *testing.T, f *Fastpath, c *client, flow policy.FlowKey, packets uint64) policy.FastpathFlow {
	t.Helper()
	var seen policy.FastpathFlow
	await(t, fmt.Sprintf("%d packets of %s take the fast path", packets, c.name), func() bool {
		mustAsk(t, c)
		flows, err := f.Flows()
		if err != nil {
			t.Fatal(err)
		}
		seen = flows[flow]
		return seen.Packets >= packets
	})
	return seen
}

// TestFastFlows: entries as the programs write them are found where they stand, are
// counted under conntrack's ends, both directions and families, and are forgotten
// together.
func TestFastFlows(t *testing.T) {
	l, f := newFastRouter(t)
	l.serve(t)
	l.echo6(t)
	follow(t, f)
	flows := map[policy.FlowKey]*client{
		flowOf(unix.IPPROTO_UDP, "192.168.1.10:4000", "198.51.100.9:7777"):        l.dial(t, "pinned", "udp4", "192.168.1.10:4000"),
		flowOf(unix.IPPROTO_TCP, "192.168.1.11:4001", "198.51.100.9:7777"):        l.dial(t, "stream", "tcp4", "192.168.1.11:4001"),
		flowOf(unix.IPPROTO_UDP, "[2001:db8:1::10]:4002", "[2001:db8:2::9]:7777"): l.dial6(t, "plain", "[2001:db8:1::10]:4002"),
	}
	before := make(map[policy.FlowKey]policy.FastpathFlow)
	for flow, c := range flows {
		before[flow] = awaitFast(t, f, c, flow, 20)
		if seen := before[flow]; seen.Bytes < 28*seen.Packets || seen.IdleS < 0 || seen.IdleS > 5 {
			t.Errorf("%s: %+v", c.name, seen)
		}
	}
	f.tables.each(func(e fastEntry) bool {
		if e.fate().Generation == 0 {
			return true
		}
		in, out := e.ends()
		if f.tables.find(&in, placeIn(e)) != e {
			t.Errorf("the entry of %v to %v is not where it is looked for", in, out)
		}
		return true
	})
	await(t, "both directions of all flows are valid", func() bool {
		for _, c := range flows {
			mustAsk(t, c)
		}
		valid, err := f.tables.valid()
		if err != nil {
			t.Fatal(err)
		}
		return valid == 2*len(flows)
	})
	await(t, "no entry is valid after a bump", func() bool { // but what teaches anew meanwhile, as a late acknowledgement
		err1 := f.Bump()
		valid, err2 := f.tables.valid()
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return valid == 0
	})
	// What is not liberal yet is asked for again after a second.
	if loose, gone := f.loosened(), f.follow.loosener.gone.Load(); loose == 0 || gone != 0 {
		t.Errorf("%d connections were made liberal, %d were not there, want one at least and none", loose, gone)
	}
	for flow, c := range flows {
		await(t, c.name+" is forgotten", func() bool {
			err1 := f.Forget([]policy.FlowKey{flow}) // once more if it has been learnt again
			seen, err2 := f.Flows()
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			_, there := seen[flow]
			return !there
		})
		awaitFast(t, f, c, flow, 4) // and learnt again
	}
}

// TestFastForgetMany: so many flows that looking each up takes longer than looking at
// all entries.
func TestFastForgetMany(t *testing.T) {
	l, f := newFastRouter(t)
	l.serve(t)
	follow(t, f)
	c := l.dial(t, "pinned", "udp4", "192.168.1.10:4000")
	flow := flowOf(unix.IPPROTO_UDP, "192.168.1.10:4000", "198.51.100.9:7777")
	awaitFast(t, f, c, flow, 4)
	many := []policy.FlowKey{flow}
	for i := range 10000 {
		many = append(many, flowOf(unix.IPPROTO_UDP, fmt.Sprintf("198.18.0.1:%d", i), "198.51.100.9:7777"))
	}
	if err := f.Forget(many); err != nil {
		t.Fatal(err)
	}
	await(t, "it is forgotten", func() bool {
		seen, err := f.Flows()
		if err != nil {
			t.Fatal(err)
		}
		return len(seen) == 0
	})
	before := f.tables.generation()
	if err := f.Forget(make([]policy.FlowKey, endedMost+1)); err != nil {
		t.Fatal(err)
	}
	if f.tables.generation() == before {
		t.Error("more than can wait did not bump")
	}
}

func placeIn(e fastEntry) uint32 {
	switch e := e.(type) {
	case *fast4Entry:
		return e.Place
	case *fast6Entry:
		return e.Place
	}
	return 0
}

// TestFastTick: the clock is the programs', and a tick's lower half is made whole.
func TestFastTick(t *testing.T) {
	enterNamespace(t)
	clock, err := newTickClock()
	if err != nil {
		t.Fatal(err)
	}
	defer clock.Close()
	began := monotonic() // the kernel moves this clock and the tick together, however late it is
	tick, err := clock.now()
	if err != nil {
		t.Fatal(err)
	}
	await(t, "100 ticks", func() bool {
		now, err := clock.now()
		if err != nil {
			t.Fatal(err)
		}
		return now-tick >= 100
	})
	if took := monotonic() - began; took < 99*clock.length {
		t.Errorf("100 ticks of %v took %v", clock.length, took)
	}
	for _, c := range []struct {
		lower            uint16
		until, now, want uint32
	}{
		{0x1000, 0x1200, 0x1100, 0x1000},     // valid
		{0x1000, 0x1200, 0x31200, 0x1000},    // since long ago
		{0xfff0, 0x1_0100, 0x1_0010, 0xfff0}, // the lower half ran over
		{0xfff0, 0x100, 0x10, 0xfffffff0},    // all of it did
		{0x1100, 0x1200, 0x1100, 0x1100},     // now
		{0x1150, 0x1200, 0x1100, 0xffff1150}, // not in the future: a round ago
	} {
		if got := fastLastTick(c.lower, c.until, c.now); got != c.want {
			t.Errorf("%x until %x at %x: %x, want %x", c.lower, c.until, c.now, got, c.want)
		}
	}
}

// TestFastGenerations: closed is 0, opened is another one than before, and what is
// closed stays so when something changes.
func TestFastGenerations(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	f := mustFastpath(t, d, FastpathOptions{})
	state := func() (value bpf.FastpathFastState) {
		if err := f.maps.State.Lookup(uint32(0), &value); err != nil {
			t.Fatal(err)
		}
		return value
	}
	seen := map[uint32]bool{}
	step := func(what string, do func() error, open bool) {
		t.Helper()
		before := state()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		now := state()
		if open == (now.Generation == 0) || open && seen[now.Generation] || now.BumpedNs <= before.BumpedNs {
			t.Errorf("%s: %+v after %+v", what, now, before)
		}
		seen[now.Generation] = true
	}
	step("bump what is closed", f.Bump, false)
	step("open", func() error { return f.SetOpen(true) }, true)
	f.tables.last = 1<<32 - 1
	step("run over", f.Bump, true)
	step("bump", f.Bump, true)
	f.tables.pause(true)
	step("bump in a pause", f.Bump, false)
	f.tables.pause(false)
	step("bump after it", f.Bump, true)
	step("close", func() error { return f.SetOpen(false) }, false)
	step("open again", func() error { return f.SetOpen(true) }, true)
}
