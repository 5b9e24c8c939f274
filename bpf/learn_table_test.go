// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fastTalk returns a flow that XDP forwards both ways.
func (l *learnLab) fastTalk(t *testing.T, ipv6 bool, port uint16) *talk {
	t.Helper()
	k := l.talk(t, ipv6, port)
	k.out(t)
	k.back(t)
	k.out(t)
	l.expect(t, "back", forwardedOne, func() { k.back(t) })
	l.expect(t, "out", forwardedOne, func() { k.out(t) })
	return k
}

// outward is the entry of the client's direction.
func (l *learnLab) outward(t *testing.T) entry {
	t.Helper()
	for _, e := range l.entries(t) {
		if e.place&0x3f000000 == lanNumber<<24 {
			return e
		}
	}
	t.Fatal("no entry of the client's direction")
	return entry{}
}

// A flow is learnt anew where it stands, and its counters go on; not so those of one
// that has ended.
func TestLearnsAnew(t *testing.T) {
	l := newLearnLab(t)
	for _, ipv6 := range []bool{false, true} {
		l.clearEntries(t)
		k := l.fastTalk(t, ipv6, 5555)
		for _, c := range []struct {
			name   string
			change func(e entry)
			goesOn bool
		}{
			{"too old", func(e entry) { e.fate.Until -= 100000; e.write(e.fate) }, true},
			{"another hop", func(e entry) { e.fate.Hop = 7; e.write(e.fate) }, true},
			{"another generation", func(e entry) { e.fate.Generation--; e.write(e.fate) }, true},
			{"ended", func(e entry) { e.fate.Generation = 0; e.write(e.fate) }, false},
		} {
			before := l.outward(t)
			c.change(before)
			l.expect(t, c.name, learntOne, func() { k.out(t) })
			after := l.outward(t)
			packets, bytes := before.fate.PacketsSeen>>16, before.fate.Bytes
			if !c.goesOn {
				packets, bytes = 0, 0
			}
			if after.fate.PacketsSeen>>16 != packets || after.fate.Bytes != bytes {
				t.Errorf("%s: %d packets, %d octets; want %d, %d", c.name,
					after.fate.PacketsSeen>>16, after.fate.Bytes, packets, bytes)
			}
			if after.fate.Hop != before.fate.Hop || after.fate.Generation != fastGeneration {
				t.Errorf("%s: entry %+v, want as before: %+v", c.name, after.fate, before.fate)
			}
			if found := l.entries(t); len(found) != 2 {
				t.Errorf("%s: %d entries, want 2", c.name, len(found))
			}
			l.expect(t, c.name+", then", forwardedOne, func() { k.out(t) })
		}
	}
}

// Packets take the stack again after the pace, or after half of what conntrack gives
// the flow, if that is less.
func TestLearnDeadline(t *testing.T) {
	l := newLearnLab(t)
	var tick unix.Timespec
	mustDo(t, unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick))
	for i, c := range []struct {
		pace    time.Duration
		timeout string // s
		want    time.Duration
	}{
		{4 * time.Second, "30", 4 * time.Second},
		{30 * time.Second, "30", 15 * time.Second},
		{30 * time.Second, "10", 5 * time.Second},
		{30 * time.Second, "300", 30 * time.Second},
	} {
		sysctl(t, "net/netfilter/nf_conntrack_udp_timeout", c.timeout)
		sysctl(t, "net/netfilter/nf_conntrack_udp_timeout_stream", c.timeout) // of flows older than 2 s
		l.setState(t, func(s *FastpathFastState) { s.PaceNs = uint64(c.pace) })
		for _, ipv6 := range []bool{false, true} {
			k := l.talk(t, ipv6, uint16(5000+10*i))
			k.out(t)
			k.back(t)
			// Shorter by as long as the packet took from conntrack to here.
			await(t, fmt.Sprintf("pace %v, timeout %s s: valid for %v", c.pace, c.timeout, c.want), func() bool {
				l.clearEntries(t)
				l.expect(t, "out", learntOne, func() { k.out(t) })
				fate := l.outward(t).fate
				got := time.Duration(uint16(fate.Until)-uint16(fate.PacketsSeen)) * time.Duration(tick.Nano())
				if got > c.want {
					t.Errorf("pace %v, timeout %s s: valid for %v, want %v", c.pace, c.timeout, got, c.want)
				}
				return got >= c.want-4*time.Duration(tick.Nano())
			})
			_, _ = k.client.Close(), k.server.Close()
		}
	}
}

// A flow's hop is what its last interface adds; a number stands for one.
func TestLearnHops(t *testing.T) {
	l := newLearnLab(t)
	neighbour := func(ipv6 bool, mac string) {
		address, err := net.ParseMAC(mac)
		mustDo(t, err, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.wan0, IP: server(ipv6).AsSlice(), HardwareAddr: address, State: netlink.NUD_PERMANENT,
		}))
		mustDo(t, inside(l.wan, func() error {
			peer, err := netlink.LinkByName("peer")
			if err != nil {
				return err
			}
			return netlink.LinkSetHardwareAddr(peer, address)
		}))
	}
	wan0, err := netlink.LinkByIndex(l.wan0)
	mustDo(t, err)
	route := func(ipv6 bool, mtu int) {
		dst := netip.PrefixFrom(server(ipv6), server(ipv6).BitLen())
		mustDo(t, netlink.RouteReplace(&netlink.Route{
			LinkIndex: l.wan0, MTU: mtu, Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Bits())},
		}))
	}
	for _, ipv6 := range []bool{false, true} {
		l.clearEntries(t)
		neighbour(ipv6, "02:00:00:00:00:aa")
		port := uint16(5000)
		hop := func() (uint16, FastpathFastHop) {
			l.clearEntries(t)
			port += 10
			l.fastTalk(t, ipv6, port)
			number := l.outward(t).fate.Hop
			return number, l.hop(t, number)
		}
		first, one := hop()
		given := l.numbersGiven(t)
		want := [12]uint8{2, 0, 0, 0, 0, 0xaa}
		copy(want[6:], wan0.Attrs().HardwareAddr)
		if one != (FastpathFastHop{Macs: want, Mtu: 1500, Device: wanNumber, Alive: 1}) {
			t.Errorf("hop %+v, want MACs % x", one, want)
		}
		if second, _ := hop(); second != first || l.numbersGiven(t) != given {
			t.Errorf("the next flow has hop %d, want %d as the one before, and no number for nothing", second, first)
		}
		neighbour(ipv6, "02:00:00:00:00:bb")
		third, other := hop()
		if third == first || other.Macs[5] != 0xbb {
			t.Errorf("after a change of the neighbour's address: hop %d, %+v", third, other)
		}
		for _, c := range []struct{ device, route, want int }{{1500, 1400, 1400}, {1350, 1400, 1350}, {1500, 0, 1500}} {
			mustDo(t, netlink.LinkSetMTU(wan0, c.device))
			route(ipv6, c.route)
			if _, got := hop(); got.Mtu != uint16(c.want) {
				t.Errorf("device %d, route %d: MTU %d, want %d", c.device, c.route, got.Mtu, c.want)
			}
		}
	}
}

// numbersGiven is how many numbers of hops have been given.
func (l *learnLab) numbersGiven(t *testing.T) (last uint64) {
	t.Helper()
	mustDo(t, l.fast.FastHopLast.Lookup(uint32(0), &last))
	return last
}

// fill gives every entry to somebody else, valid for an hour.
func (l *learnLab) fill(t *testing.T, change func(bucket uint32, way int, fate *FastpathFastFate)) {
	t.Helper()
	now := uint32(l.outward(t).fate.Until)
	for i := range uint32(fastBuckets) {
		var b4 FastpathFast4Bucket
		var b6 FastpathFast6Bucket
		for way := range b4.Way {
			fate := FastpathFastFate{Generation: fastGeneration, Until: now + 3600*1000}
			change(i, way, &fate)
			b4.Way[way] = FastpathFast4Entry{Addrs: uint64(way), Place: 1, Fate: fate}
			b6.Way[way] = FastpathFast6Entry{Ports: uint32(way), Place: 1, Fate: fate}
		}
		put(t, l.fast.Fast4, i, b4)
		put(t, l.fast.Fast6, i, b6)
	}
}

// foreign lists the ways of a family whose entries are still somebody else's, and
// which of them end before long.
func (l *learnLab) foreign(t *testing.T, ipv6 bool, long uint32) (ways [fastWays]int, ending int) {
	t.Helper()
	for i := range uint32(fastBuckets) {
		var b4 FastpathFast4Bucket
		var b6 FastpathFast6Bucket
		mustDo(t, l.fast.Fast4.Lookup(i, &b4), l.fast.Fast6.Lookup(i, &b6))
		for way := range b4.Way {
			place, fate := b4.Way[way].Place, b4.Way[way].Fate
			if ipv6 {
				place, fate = b6.Way[way].Place, b6.Way[way].Fate
			}
			if place != 1 {
				continue
			}
			ways[way]++
			if int32(fate.Until-long) < 0 {
				ending++
			}
		}
	}
	return ways, ending
}

const fastWays = len(FastpathFast4Bucket{}.Way)

// A new flow gets the entry that is void, or idle for longest; never one that is valid
// or was a tick ago: XDP may be at work with it. A void one of those ends, or now and
// then any, and the flow gets it the next time.
func TestLearnTakesOver(t *testing.T) {
	l := newLearnLab(t)
	full := refused(FastpathFastRefusalREFUSED_FULL)
	const chosen = 2
	for i, c := range []struct {
		name   string
		change func(way int, fate *FastpathFastFate)
		first  outcome
		exact  bool // it is the chosen way
	}{
		{"all are valid", func(int, *FastpathFastFate) {}, full, false},
		{"one is void, since just now", func(way int, fate *FastpathFastFate) {
			if way == chosen {
				fate.Generation = 0
			}
		}, full, true},
		{"one is idle", func(way int, fate *FastpathFastFate) {
			if way == chosen {
				fate.Until -= 2 * 3600 * 1000
			}
		}, learntOne, true},
		{"one is idle for longest", func(way int, fate *FastpathFastFate) {
			fate.Until -= 2 * 3600 * 1000
			if way == chosen {
				fate.Until -= 1000
			}
		}, learntOne, true},
		{"one is void, for some time", func(way int, fate *FastpathFastFate) {
			fate.Until -= 2 * 3600 * 1000
			if way == chosen {
				fate.Generation = 0
				fate.Until += 2000
			}
		}, learntOne, true},
		{"one was never used", nil, learntOne, true},
	} {
		for _, ipv6 := range []bool{false, true} {
			port := uint16(5000 + 20*i)
			l.clearEntries(t)
			k := l.fastTalk(t, ipv6, port)
			long := l.outward(t).fate.Until + 1800*1000
			l.fill(t, func(_ uint32, way int, fate *FastpathFastFate) {
				if c.change != nil {
					c.change(way, fate)
				}
			})
			if c.change == nil {
				l.neverUsed(t, chosen)
			}
			l.expect(t, c.name, c.first, func() { k.out(t) })
			if c.first.learnt == 0 {
				if _, ending := l.foreign(t, ipv6, long); c.exact && ending != 1 {
					t.Errorf("%s: %d entries end, want 1", c.name, ending)
				}
				await(t, "a tick later the flow is learnt", func() bool {
					k.out(t)
					return l.outcome(t).learnt == 1
				})
			}
			l.expect(t, c.name+", at last", forwardedOne, func() { k.out(t) })
			ways, _ := l.foreign(t, ipv6, long)
			lost, want := 0, 1
			if c.change == nil {
				ways[chosen], want = fastBuckets, 0 // nobody had it
			}
			for way, n := range ways {
				lost += fastBuckets - n
				if c.exact && way != chosen && n != fastBuckets {
					t.Errorf("%s: way %d has %d of %d left", c.name, way, n, fastBuckets)
				}
			}
			if lost != want {
				t.Errorf("%s: %d entries were lost, want %d", c.name, lost, want)
			}
			_, _ = k.client.Close(), k.server.Close()
		}
	}
}

// neverUsed empties one way of every bucket.
func (l *learnLab) neverUsed(t *testing.T, way int) {
	t.Helper()
	for i := range uint32(fastBuckets) {
		var b4 FastpathFast4Bucket
		var b6 FastpathFast6Bucket
		mustDo(t, l.fast.Fast4.Lookup(i, &b4), l.fast.Fast6.Lookup(i, &b6))
		b4.Way[way], b6.Way[way] = FastpathFast4Entry{}, FastpathFast6Entry{}
		put(t, l.fast.Fast4, i, b4)
		put(t, l.fast.Fast6, i, b6)
	}
}

func await(t *testing.T, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !met(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for this: %s", patience, what)
		}
	}
}
