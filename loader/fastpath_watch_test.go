// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// fastLab is a fast path that is open, with Run at work, in a namespace with wan0
// (198.51.100.3).
type fastLab struct {
	*Fastpath
	t    *testing.T
	wan  netlink.Link
	hops uint32 // numbers given
}

func newFastLab(t *testing.T, buffer int) *fastLab {
	t.Helper()
	return newFastLabWith(t, func(follow *fastFollow) { follow.buffer = buffer })
}

func newFastLabWith(t *testing.T, change func(*fastFollow)) *fastLab {
	t.Helper()
	ns := enterNamespace(t)
	sysctl(t, "ipv6/conf/default/accept_dad", "0") // it would go on for a while
	cable(t, "wan0", "wan1")
	wan := up(t, "wan0")
	addAddr(t, wan, "198.51.100.3/24")
	addAddr(t, wan, "2001:db8::3/64")
	awaitAddrs(t, "wan0")
	awaitAddrs(t, "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	f := &fastLab{Fastpath: mustFastpath(t, d, FastpathOptions{}), t: t, wan: wan}
	change(f.follow)
	if err := f.SetOpen(true); err != nil {
		t.Fatal(err)
	}
	f.run(ns)
	return f
}

// awaitAddrs waits until an interface has a link-local address, which it gets once its
// link is up, and a route to every IPv6 address: until then the kernel has more to tell.
func awaitAddrs(t *testing.T, name string) {
	t.Helper()
	link := up(t, name)
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: link.Attrs().Index}
	await(t, name+" has its addresses", func() bool {
		addrs, err1 := netlink.AddrList(link, netlink.FAMILY_V6)
		routes, err2 := netlink.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		if err := errors.Join(err1, err2); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			t.Fatal(err)
		}
		there, linkLocal := make(map[string]bool), false
		for _, route := range routes {
			there[route.Dst.IP.String()] = true
		}
		for _, addr := range addrs {
			linkLocal = linkLocal || addr.IP.IsLinkLocalUnicast()
			if !there[addr.IP.String()] {
				return false
			}
		}
		return linkLocal
	})
}

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
		t.Fatalf("set sysctl net/%s: %v", name, err)
	}
}

// run runs Run until the test ends, and returns once the firewall is known.
func (f *fastLab) run(ns netns.NsHandle) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- inNamespace(ns, func() error { return f.Run(ctx) }) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-result; err != nil {
			f.t.Errorf("run: %v", err)
		}
	})
	await(f.t, "the firewall is known", func() bool { pace, _ := f.pace(); return pace == calmPace })
}

// addHop numbers a hop as the programs do.
func (f *fastLab) addHop(address mac) (number uint32) {
	f.t.Helper()
	f.hops++
	hop := fastHop{Alive: 1, Device: 1, Mtu: uint16(1000 + f.hops)}
	copy(hop.Macs[:], address[:])
	if err := errors.Join(f.maps.Hops.Put(f.hops, hop), f.maps.HopNumbers.Put(hop, f.hops)); err != nil {
		f.t.Fatal(err)
	}
	return f.hops
}

// alive tells whether a hop is, and whether the programs would find its number again.
func (f *fastLab) alive(number uint32) (alive, known bool) {
	f.t.Helper()
	var hop fastHop
	if err := f.maps.Hops.Lookup(number, &hop); err != nil {
		f.t.Fatal(err)
	}
	alive, hop.Alive = hop.Alive == 1, 1
	err := f.maps.HopNumbers.Lookup(hop, &number)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		f.t.Fatal(err)
	}
	return alive, err == nil
}

func (f *fastLab) awaitDead(number uint32) {
	f.t.Helper()
	await(f.t, "a hop is killed", func() bool { alive, known := f.alive(number); return !alive && !known })
}

func (f *fastLab) neighbour(ip string, address mac, state int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: f.wan.Attrs().Index, IP: net.ParseIP(ip), HardwareAddr: address[:], State: state, Type: unix.RTN_UNICAST,
	}
}

func (f *fastLab) setNeighbour(ip string, address mac, state int) {
	f.t.Helper()
	if err := netlink.NeighSet(f.neighbour(ip, address, state)); err != nil {
		f.t.Fatalf("set neighbour %s: %v", ip, err)
	}
}

// barrier returns when Run has taken what rtnetlink told until now. It asks again,
// since events may be lost.
func (f *fastLab) barrier() {
	f.t.Helper()
	address := mac{2, 0xba, 0, 0, 0, 0}
	hop := f.addHop(address)
	await(f.t, "a hop is killed", func() bool {
		f.setNeighbour("198.51.100.250", address, unix.NUD_PERMANENT)
		if err := netlink.NeighDel(f.neighbour("198.51.100.250", address, 0)); err != nil {
			f.t.Fatal(err)
		}
		alive, known := f.alive(hop)
		return !alive && !known
	})
}

// calm returns the generation once no event is on its way.
func (f *fastLab) calm() uint32 {
	f.t.Helper()
	for {
		before := f.tables.generation()
		f.barrier()
		pace, _ := f.pace()
		if f.tables.generation() == before && pace == calmPace {
			return before
		}
	}
}

// fastChanges make each flow's packets take the stack.
var fastChanges = []string{
	"nft add table inet filter",
	"nft add chain inet filter forward { type filter hook forward priority 0 ; }",
	"nft add set inet filter s { type ipv4_addr ; }",
	"nft add rule inet filter forward ip saddr @s drop",
	"nft add element inet filter s { 198.51.100.77 }",
	"nft delete element inet filter s { 198.51.100.77 }",
	"nft flush ruleset",
	"ip xfrm policy add dir out src 198.51.100.0/24 dst 203.0.113.0/24 action block",
	"ip xfrm policy del dir out src 198.51.100.0/24 dst 203.0.113.0/24",
	"ip route add 203.0.113.0/24 via 198.51.100.9",
	"ip route replace 203.0.113.0/24 via 198.51.100.10",
	"ip route del 203.0.113.0/24",
	"ip route add blackhole 203.0.113.0/24",
	"ip route add 203.0.113.0/24 via 198.51.100.9 table 77",
	"ip -6 route add 2001:db8:1::/48 via 2001:db8::9",
	"ip rule add fwmark 7 table 77",
	"ip -6 rule add fwmark 7 table 77",
	"ip addr add 198.51.100.4/24 dev wan0",
	"ip addr del 198.51.100.4/24 dev wan0",
	"ip addr add 2001:db8::4/64 dev wan0 nodad",
	"ip link set wan0 mtu 1400",
	"ip link set wan0 address 02:00:00:00:00:33",
	"ip link add br0 type bridge",
	"ip link set wan0 master br0",
	"ip link set wan0 nomaster",
	"ip link set br0 name br7",
	"ip link del br7",
	"ip link set wan1 down",
	"ip link set wan1 up",
	"ip link set wan0 group 7",
	"ip nexthop add id 7 via 198.51.100.9 dev wan0",
	"tc qdisc add dev wan0 clsact",
	"tc filter add dev wan0 egress u32 match u32 0 0 flowid 1:1",
	"sysctl -qw net.ipv4.conf.wan0.forwarding=1",
	"sysctl -qw net.ipv4.conf.wan0.rp_filter=2",
	"sysctl -qw net.ipv6.conf.wan0.forwarding=1",
	"ip link set wan0 down",
	"ip link set wan0 up",
}

// TestFastChanges: every kind of change has flows judged anew.
func TestFastChanges(t *testing.T) {
	f := newFastLab(t, fastBuffer)
	for _, line := range fastChanges {
		before := f.calm()
		command(t, line)
		await(t, line, func() bool { return f.tables.generation() != before })
	}
}

// TestFastNoChanges: what tells of nothing new does not: neighbours' states,
// addresses and links that are set as they are, lifetimes, promiscuity's counters,
// conntrack, sockets, our own tables being read.
func TestFastNoChanges(t *testing.T) {
	f := newFastLab(t, fastBuffer)
	address := mac{2, 0, 0, 0, 0, 9}
	f.setNeighbour("198.51.100.9", address, unix.NUD_REACHABLE)
	command(t, "ip addr add 2001:db8::7/64 dev wan0 nodad valid_lft 1000 preferred_lft 1000")
	awaitAddrs(t, "wan0")
	hop := f.addHop(address)
	before := f.calm()
	for _, state := range []int{unix.NUD_STALE, unix.NUD_DELAY, unix.NUD_REACHABLE, unix.NUD_PERMANENT, unix.NUD_STALE} {
		f.setNeighbour("198.51.100.9", address, state)
	}
	for _, line := range []string{
		"ip addr change 2001:db8::7/64 dev wan0 nodad valid_lft 2000 preferred_lft 2000",
		"ip link set wan0 up",
		"ip link set wan0 alias something",
		"ip link set wan0 txqueuelen 77",
		"ip route get 203.0.113.1 from 198.51.100.3 oif wan0",
		"nft list ruleset",
		"conntrack -F",
		"ping -c1 -W1 198.51.100.3",
	} {
		command(t, line)
	}
	if after := f.calm(); after != before {
		t.Errorf("the generation went from %d to %d", before, after)
	}
	if alive, known := f.alive(hop); !alive || !known {
		t.Errorf("the hop is alive %v, known %v", alive, known)
	}
}

// TestFastNeighbours: the hops of a neighbour are killed when its address changes,
// when it is gone, and when it does not answer; others live. Flows are not judged
// anew for it.
func TestFastNeighbours(t *testing.T) {
	// A second look comes late enough for what is learnt in between.
	f := newFastLabWith(t, func(follow *fastFollow) { follow.hops.again = 2 * time.Second })
	first, second, other := mac{2, 0, 0, 0, 0, 1}, mac{2, 0, 0, 0, 0, 2}, mac{2, 0, 0, 0, 0, 3}
	for _, ip := range []string{"198.51.100.9", "2001:db8::9"} {
		f.setNeighbour(ip, first, unix.NUD_REACHABLE)
		old, kept, another := f.addHop(first), f.addHop(other), f.addHop(first)
		before := f.calm()
		f.setNeighbour(ip, second, unix.NUD_REACHABLE)
		f.awaitDead(old)
		f.awaitDead(another)
		// A packet that was under way.
		late, next := f.addHop(first), f.addHop(second)
		f.awaitDead(late)
		for what, number := range map[string]uint32{"another neighbour's": kept, "the new address'": next} {
			if alive, known := f.alive(number); !alive || !known {
				t.Errorf("%s: %s hop is alive %v, known %v", ip, what, alive, known)
			}
		}
		if err := netlink.NeighDel(f.neighbour(ip, second, 0)); err != nil {
			t.Fatal(err)
		}
		f.awaitDead(next)
		if after := f.tables.generation(); after != before {
			t.Errorf("%s: the generation went from %d to %d", ip, before, after)
		}
	}
}

// TestFastNeighbourSilent: a neighbour that does not answer any more.
func TestFastNeighbourSilent(t *testing.T) {
	f := newFastLab(t, fastBuffer)
	for name, value := range map[string]string{
		"delay_first_probe_time": "1", "retrans_time_ms": "20", "ucast_solicit": "1", "mcast_solicit": "1",
	} {
		sysctl(t, "ipv4/neigh/wan0/"+name, value)
	}
	address := mac{2, 0, 0, 0, 0, 1}
	f.setNeighbour("198.51.100.9", address, unix.NUD_STALE)
	hop := f.addHop(address)
	before := f.calm()
	conn, err := net.Dial("udp4", "198.51.100.9:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	await(t, "the silent neighbour's hop is killed", func() bool {
		_, _ = conn.Write([]byte("is anybody there"))
		alive, known := f.alive(hop)
		return !alive && !known
	})
	if after := f.tables.generation(); after != before {
		t.Errorf("the generation went from %d to %d", before, after)
	}
}

// TestFastEventsLost: events that ran over are as good as a change.
func TestFastEventsLost(t *testing.T) {
	f := newFastLab(t, 4096)
	address := mac{2, 0, 0, 0, 0, 1}
	f.setNeighbour("198.51.100.9", address, unix.NUD_REACHABLE)
	before := f.calm()
	func() {
		f.follow.hops.mu.Lock() // the reader stands still
		defer f.follow.hops.mu.Unlock()
		f.setNeighbour("198.51.100.9", mac{2, 0, 0, 0, 0, 2}, unix.NUD_REACHABLE)
		for i := range 200 {
			f.setNeighbour("198.51.100.9", mac{2, 0, 0, 0, 0, 2}, []int{unix.NUD_STALE, unix.NUD_REACHABLE}[i%2])
		}
	}()
	await(t, "a bump after events were lost", func() bool { return f.tables.generation() != before })
	// The new subscription is as good as the old one.
	before = f.calm()
	command(t, "ip route add 203.0.113.0/24 via 198.51.100.9")
	await(t, "a bump after a route", func() bool { return f.tables.generation() != before })
}

// TestFastHopNumbers: when most numbers of hops have been given, they begin anew, and
// nothing learnt before counts.
func TestFastHopNumbers(t *testing.T) {
	f := newFastLab(t, fastBuffer)
	f.addHop(mac{2, 0, 0, 0, 0, 7})
	before := f.calm()
	if err := f.maps.HopLast.Put(uint32(0), uint64(hopsMost)); err != nil {
		t.Fatal(err)
	}
	await(t, "numbers begin anew", func() bool {
		var last uint64
		if err := f.maps.HopLast.Lookup(uint32(0), &last); err != nil {
			t.Fatal(err)
		}
		return last == 0
	})
	await(t, "the fast path opens again", func() bool { return f.tables.generation() != 0 })
	hops, err := readMap[fastHop, uint32](f.maps.HopNumbers)
	if err != nil || len(hops) != 0 {
		t.Errorf("numbers are left: %v, %v", hops, err)
	}
	if after := f.tables.generation(); after == before {
		t.Error("the generation is the same")
	}
}

// TestFastRunEnds: Run leaves nothing behind, and may begin again.
func TestFastRunEnds(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	f := mustFastpath(t, d, FastpathOptions{})
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for range 2 {
		ctx, cancel := context.WithCancel(context.Background())
		stop := time.AfterFunc(300*time.Millisecond, cancel)
		if err := f.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
		stop.Stop()
		cancel()
	}
}

// TestFastPace: the pace goes with the firewall, and to a quicker one by a bump.
func TestFastPace(t *testing.T) {
	f := newFastLab(t, fastBuffer)
	command(t, "nft add table inet filter")
	nft(t, inForward("limit rate 1/second accept"))
	await(t, "a limit is seen", func() bool {
		pace, why := f.pace()
		return pace == quickPace && strings.Contains(why, "limit in inet filter forward")
	})
	command(t, "nft flush ruleset")
	await(t, "the limit is gone", func() bool { pace, why := f.pace(); return pace == calmPace && why == "" })
	before := f.calm()
	command(t, "iptables-legacy -t raw -L")
	await(t, "a legacy table is seen", func() bool {
		pace, why := f.pace()
		return pace == quickPace && why == "iptables-legacy table raw" && f.tables.generation() != before
	})
}
