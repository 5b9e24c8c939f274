// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

const vip6, unique6 = "2001:db8:100::2", "2001:db8:100::3"

// replicaLab is a lab with IPv6 as well, 2001:db8:1::10 inside and
// 2001:db8:100::9 outside, and a Replica that follows.
type replicaLab struct {
	*lab
	d       *Dataplane
	replica *Replica
	admin   *conntrack.Conn // somebody else's: what the Replica changes itself is not told

	mu     sync.Mutex
	events []heard
	more   chan struct{} // something was heard
	stall  chan struct{} // if not nil, the handler waits for it
}

// heard is a FlowEvent, copied.
type heard struct {
	kind    FlowEventKind
	flow    policy.Flow
	ifindex int
	at      time.Duration
	expect  policy.Expectation
}

const masqueradeWAN = `
table inet nat {
	chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }
}`

func newReplicaLab(t *testing.T, rules string) *replicaLab {
	t.Helper()
	l := &replicaLab{lab: newLab(t), more: make(chan struct{}, 1)}
	nft(t, "flush ruleset\n"+rules)
	l.addAddrs(t)
	l.d = mustLoad(t, Options{BPFFS: testBPFFS(t)})
	if err := os.WriteFile(eventsPath, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	replica, err := l.d.NewReplica(ReplicaOptions{Sync: policy.DefaultConfig("", "").Sync})
	if err != nil {
		t.Fatal(err)
	}
	l.replica = replica
	if l.admin, err = conntrack.Dial(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.admin.Close() })
	t.Cleanup(func() {
		if err := replica.Close(); err != nil {
			t.Error(err)
		}
	})
	l.setPlan(t, func(*policy.Plan) {})
	return l
}

func (l *replicaLab) addAddrs(t *testing.T) {
	t.Helper()
	add := func(ns netns.NsHandle, name, text string, lifetime int) {
		err := inNamespace(ns, func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			addr.Flags, addr.ValidLft, addr.PreferedLft = unix.IFA_F_NODAD, lifetime, 0
			return netlink.AddrAdd(link, addr)
		})
		if err != nil {
			t.Fatalf("add %s to %s: %v", text, name, err)
		}
	}
	router, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = router.Close() }()
	add(router, "lan0", "2001:db8:1::1/64", 0)
	add(router, "wan0", unique6+"/64", 0)
	add(router, "wan0", vip6+"/128", 1<<30) // deprecated, as keepalived's
	add(l.lan, "peer", "2001:db8:1::10/64", 0)
	add(l.wan, "peer", "2001:db8:100::9/64", 0)
	err = inNamespace(l.lan, func() error {
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("2001:db8:1::1")})
	})
	if err != nil {
		t.Fatalf("add inside route: %v", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func switchedOff(plan *policy.Plan) { plan.Pins[0].Enabled = false }

// setPlan puts one pin with both VIPs into force, as MASTER.
func (l *replicaLab) setPlan(t *testing.T, change func(*policy.Plan)) {
	t.Helper()
	plan := onePin(l.ifindex, "wan0", true)
	plan.Pins[0].VIP6 = netip.MustParseAddr(vip6)
	plan.Pins[0].VIPs = addrs(vip, vip6)
	plan.Interfaces[0].VIPs = addrs(vip, vip6)
	plan.Interfaces[0].Uniques = addrs(unique, unique6)
	change(&plan)
	if err := l.d.SetRole(1, policy.RoleMaster, true); err != nil {
		t.Fatal(err)
	}
	mustApply(t, l.d, plan)
	seen, err := Observe()
	if err != nil {
		t.Fatal(err)
	}
	l.replica.SetPlan(plan, seen)
}

func (l *replicaLab) setSync(change func(*policy.SyncConfig)) {
	sync := policy.DefaultConfig("", "").Sync
	change(&sync)
	l.replica.SetOptions(sync)
}

// follow runs Follow until the test ends, as MASTER of something.
func (l *replicaLab) follow(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.replica.Follow(ctx, l.hear) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("follow: %v", err)
		}
	})
	l.replica.SetActive(true)
	l.await(t, "the start", func(h *heard) bool { return h.kind == FlowsLost })
}

func (l *replicaLab) hear(e *FlowEvent) error {
	h := heard{kind: e.Kind, ifindex: e.Ifindex, at: e.At}
	if e.Flow != nil {
		h.flow = *e.Flow
		if e.Flow.Extra != nil {
			extra := *e.Flow.Extra
			h.flow.Extra = &extra
		}
	}
	if e.Expectation != nil {
		h.expect = *e.Expectation
	}
	l.mu.Lock()
	l.events = append(l.events, h)
	stall := l.stall
	l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	if stall != nil {
		<-stall
	}
	return nil
}

// heardOf returns the events that match.
func (l *replicaLab) heardOf(match func(*heard) bool) (list []heard) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.events {
		if match(&l.events[i]) {
			list = append(list, l.events[i])
		}
	}
	return list
}

// await returns the last event that matches, once there is one.
func (l *replicaLab) await(t *testing.T, what string, match func(*heard) bool) heard {
	t.Helper()
	timeout := time.After(patience)
	for {
		if list := l.heardOf(match); len(list) > 0 {
			return list[len(list)-1]
		}
		select {
		case <-l.more:
		case <-timeout:
			for _, h := range l.heardOf(func(*heard) bool { return true }) {
				t.Logf("heard %v of %+v", h.kind, h.flow)
			}
			t.Fatalf("%s was not heard of within %v; skipped: %v", what, patience, l.replica.Skipped())
		}
	}
}

func end(text string) policy.End { return policy.MakeEnd(netip.MustParseAddrPort(text)) }

// seenFrom matches what is told of a living flow of a protocol from an inside end.
func seenFrom(proto uint8, src string) func(*heard) bool {
	return func(h *heard) bool { return h.kind == FlowSeen && h.flow.Proto == proto && h.flow.Src == end(src) }
}

// notTold fails if anything was told of a flow from an inside end.
func (l *replicaLab) notTold(t *testing.T, src string) {
	t.Helper()
	for _, h := range l.heardOf(func(h *heard) bool { return h.flow.Src == end(src) }) {
		t.Errorf("told %v of %+v", h.kind, h.flow)
	}
}

// awaitSkipped waits until so many flows were left out for a reason.
func (l *replicaLab) awaitSkipped(t *testing.T, reason string, n uint64) {
	t.Helper()
	await(t, fmt.Sprintf("%d flows are left out: %s", n, reason), func() bool { return l.replica.Skipped()[reason] >= n })
}

// socket opens a UDP socket in a namespace.
func socket(t *testing.T, ns netns.NsHandle, at string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := inNamespace(ns, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		return err
	})
	if err != nil {
		t.Fatalf("listen at %s: %v", at, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func unmap(at netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()) }

// exchange sends datagrams to an address until one was answered, and returns the
// source that the server saw.
func exchange(t *testing.T, client, server *net.UDPConn, to string) netip.AddrPort {
	t.Helper()
	buffer := make([]byte, 64)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := client.WriteToUDPAddrPort([]byte("ask"), netip.MustParseAddrPort(to)); err != nil {
			t.Fatalf("send to %s: %v", to, err)
		}
		_ = server.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		_, from, err := server.ReadFromUDPAddrPort(buffer)
		if err != nil {
			continue
		}
		if _, err := server.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
			t.Fatal(err)
		}
		_ = client.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if _, _, err := client.ReadFromUDPAddrPort(buffer); err == nil {
			return unmap(from)
		}
	}
	t.Fatalf("no answer from %s within %v", to, patience)
	return netip.AddrPort{}
}

// connect makes a TCP connection and returns both ends of it.
func connect(t *testing.T, from, to netns.NsHandle, src, dst, listenAt string) (client, server *net.TCPConn) {
	t.Helper()
	var listener net.Listener
	err := inNamespace(to, func() (err error) { listener, err = net.Listen("tcp", listenAt); return err })
	if err != nil {
		t.Fatalf("listen at %s: %v", listenAt, err)
	}
	defer func() { _ = listener.Close() }()
	var conn net.Conn
	err = inNamespace(from, func() (err error) {
		dialer := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(src))}
		conn, err = dialer.Dial("tcp", dst)
		return err
	})
	if err != nil {
		t.Fatalf("dial %s: %v", dst, err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = conn.Close(), accepted.Close() })
	return conn.(*net.TCPConn), accepted.(*net.TCPConn)
}

// echoFrom pings a server and returns from where and by which identifier it saw it.
func (l *replicaLab) echoFrom(t *testing.T, from, to string, id int) netip.AddrPort {
	t.Helper()
	network, number, kind := "ip4:icmp", unix.IPPROTO_ICMP, icmp.Type(ipv4.ICMPTypeEcho)
	if netip.MustParseAddr(from).Is6() {
		network, number, kind = "ip6:ipv6-icmp", unix.IPPROTO_ICMPV6, ipv6.ICMPTypeEchoRequest
	}
	raw := func(ns netns.NsHandle, at string) (conn *net.IPConn) {
		err := inNamespace(ns, func() (err error) {
			conn, err = net.ListenIP(network, &net.IPAddr{IP: net.ParseIP(at)})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	inside, outside := raw(l.lan, from), raw(l.wan, to)
	request := icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("ping")}}
	octets, err := request.Marshal(nil) // the kernel writes the checksum of ICMPv6
	if err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1500)
	for range 20 {
		if _, err := inside.WriteToIP(octets, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
			t.Fatal(err)
		}
		_ = outside.SetReadDeadline(time.Now().Add(patience / 20))
		for {
			n, addr, err := outside.ReadFromIP(buffer)
			if err != nil {
				break
			}
			message, err := icmp.ParseMessage(number, buffer[:n])
			if err != nil || message.Type != kind {
				continue
			}
			source, _ := netip.AddrFromSlice(addr.IP)
			return netip.AddrPortFrom(source.Unmap(), uint16(message.Body.(*icmp.Echo).ID))
		}
	}
	t.Fatalf("no ping from %s came to %s", from, to)
	return netip.AddrPort{}
}
