// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

func waitAsLongAsItTakes(*GateOptions) {}

// Answers wait until the flow is acknowledged, then come in their order and
// unchanged; what comes afterwards is not even marked.
func TestGateHoldsUntilAcked(t *testing.T) {
	for _, ends := range bothFamilies {
		l := newGateLab(t, waitAsLongAsItTakes)
		defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
		c, other := l.udp(t, ends.src, ends.dst), l.udp(t, strings.Replace(ends.src, ":5000", ":5001", 1), strings.Replace(ends.dst, ":7777", ":7778", 1))
		c.answer(t, "one", "two", "three")
		other.answer(t, "of another flow")
		l.expectCounts(t, GateCounts{Held: 4, Waiting: 4})
		c.expectNothing(t)
		l.gate.Acked([]policy.Flow{c.flow})
		c.expect(t, "one", "two", "three")
		l.expectCounts(t, GateCounts{Held: 4, Acked: 3, Waiting: 1})
		if waited := l.counts(t).Waited; waited <= 0 {
			t.Errorf("waited %v", waited)
		}
		c.answer(t, "four")
		c.expect(t, "four")
		other.expectNothing(t)
		l.gate.Release([]policy.Flow{other.flow})
		other.expect(t, "of another flow")
		l.expectCounts(t, GateCounts{Held: 4, Acked: 3, Released: 1})
		l.stop()
	}
}

// A connection is established to the inside host when the peer has it, not before.
func TestGateHoldsTCP(t *testing.T) {
	for _, ends := range bothFamilies {
		l := newGateLab(t, waitAsLongAsItTakes)
		var client *net.TCPConn
		done := make(chan struct{})
		go func() {
			defer close(done)
			client, _ = connect(t, l.lan, l.wan, ends.src, ends.dst, ends.dst)
		}()
		await(t, "the answer waits", func() bool { return l.counts(t).Waiting > 0 })
		select {
		case <-done:
			t.Fatal("connected before the peer has it")
		default:
		}
		src, dst, to := netip.MustParseAddrPort(ends.src), netip.MustParseAddrPort(ends.dst), addrs(vip)[0]
		if src.Addr().Is6() {
			to = addrs(vip6)[0]
		}
		l.gate.Acked([]policy.Flow{pinnedFlow(unix.IPPROTO_TCP, src, dst, netip.AddrPortFrom(to, src.Port()))})
		<-done
		if client == nil {
			t.Fatal("no connection")
		}
		await(t, "nothing waits", func() bool { return l.counts(t).Waiting == 0 })
		l.stop()
	}
}

// Pings are known by their identifier.
func TestGateHoldsEcho(t *testing.T) {
	l := newGateLab(t, waitAsLongAsItTakes)
	for i, c := range []struct {
		proto             uint8
		from, to, virtual string
	}{
		{unix.IPPROTO_ICMP, "192.168.1.10", "198.51.100.9", vip},
		{unix.IPPROTO_ICMPV6, "2001:db8:1::10", "2001:db8:100::9", vip6},
	} {
		seen := l.echoFrom(t, c.from, c.to, 77)
		if seen.Addr() != addrs(c.virtual)[0] {
			t.Fatalf("ping came from %v", seen)
		}
		l.expectCounts(t, GateCounts{Held: uint64(i + 1), Acked: uint64(i), Waiting: 1})
		flow := pinnedFlow(c.proto, netip.AddrPortFrom(addrs(c.from)[0], 77), netip.AddrPortFrom(addrs(c.to)[0], 0), seen)
		l.gate.Acked([]policy.Flow{flow})
		l.expectCounts(t, GateCounts{Held: uint64(i + 1), Acked: uint64(i + 1)})
	}
}

// A flow that is acknowledged before its first answer does not wait at all.
func TestGatePassesAcked(t *testing.T) {
	l := newGateLab(t, waitAsLongAsItTakes)
	c := l.udp(t, bothFamilies[0].src, bothFamilies[0].dst)
	l.gate.Acked([]policy.Flow{c.flow})
	c.answer(t, "one")
	c.expect(t, "one")
	l.expectCounts(t, GateCounts{})
}

// After its time an answer goes on whatever the peers do, and the flow waits no
// more.
func TestGateTimesOut(t *testing.T) {
	l := newGateLab(t, func(o *GateOptions) { o.Timeout = 5 * time.Millisecond })
	for i, ends := range bothFamilies {
		c := l.udp(t, ends.src, ends.dst)
		for range 3 {
			c.answer(t, "one")
			c.expect(t, "one")
		}
		l.expectCounts(t, GateCounts{Held: uint64(i + 1), TimedOut: uint64(i + 1)})
		l.gate.Acked([]policy.Flow{c.flow}) // too late
		l.expectCounts(t, GateCounts{Held: uint64(i + 1), TimedOut: uint64(i + 1)})
	}
}

// Without a peer nothing waits: what does goes on, what comes is not marked, and
// flows that began meanwhile do not wait later either.
func TestGateHoldsNothingWithoutPeer(t *testing.T) {
	l := newGateLab(t, waitAsLongAsItTakes)
	c := l.udp(t, bothFamilies[0].src, bothFamilies[0].dst)
	c.answer(t, "one")
	l.expectCounts(t, GateCounts{Held: 1, Waiting: 1})
	l.hold(t, false)
	c.expect(t, "one")
	c.answer(t, "two")
	c.expect(t, "two")
	between := l.udp(t, "192.168.1.10:5001", "198.51.100.9:7778")
	for now := monotonic(); monotonic() == now; { // births are known to the tick
	}
	l.hold(t, true)
	between.answer(t, "three")
	between.expect(t, "three")
	later := l.udp(t, "192.168.1.10:5002", "198.51.100.9:7779")
	later.answer(t, "four")
	l.expectCounts(t, GateCounts{Held: 2, Released: 1, Waiting: 1})
	l.stop()
	later.expect(t, "four")
	if held, err := l.d.heldPackets(); err != nil || held != 2 {
		t.Errorf("%d marked, %v", held, err)
	}
}

// Several segments in one, and a datagram in pieces: each waits as one packet and
// comes whole.
func TestGateHoldsLarge(t *testing.T) {
	for _, ends := range bothFamilies {
		l := newGateLab(t, waitAsLongAsItTakes)
		c := l.udp(t, ends.src, ends.dst)
		raw, err := c.server.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		segments := func(size int) {
			if err := raw.Control(func(fd uintptr) {
				if err := unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
					t.Error(err)
				}
			}); err != nil {
				t.Error(err)
			}
		}
		var five []string
		for i := range 5 {
			five = append(five, strings.Repeat(fmt.Sprint(i), 1000))
		}
		pieces := strings.Repeat("piece", 1000)
		segments(1000)
		c.answer(t, strings.Join(five, ""))
		segments(0)
		c.answer(t, pieces)
		l.expectCounts(t, GateCounts{Held: 2, Waiting: 2})
		c.expectNothing(t)
		l.gate.Acked([]policy.Flow{c.flow})
		c.expect(t, append(five, pieces)...)
		l.expectCounts(t, GateCounts{Held: 2, Acked: 2})
		l.stop()
	}
}

// What finds the queue full goes on, and is counted.
func TestGateFullFailsOpen(t *testing.T) {
	l := newGateLab(t, func(o *GateOptions) { o.length = 4 })
	c := l.udp(t, bothFamilies[0].src, bothFamilies[0].dst)
	c.answer(t, "1", "2", "3", "4")
	l.expectCounts(t, GateCounts{Held: 4, Waiting: 4})
	c.answer(t, "5", "6")
	c.expect(t, "5", "6")
	l.expectCounts(t, GateCounts{Held: 4, Waiting: 4, PassedBy: 2})
	l.gate.Acked([]policy.Flow{c.flow})
	c.expect(t, "1", "2", "3", "4")
}

// Peers are not told of these flows: their answers do not wait.
func TestGateLeavesOut(t *testing.T) {
	for name, change := range map[string]func(*policy.SyncConfig){
		"protocol": func(s *policy.SyncConfig) { s.Protocols = []string{"tcp", "icmp"} },
		"remote":   func(s *policy.SyncConfig) { s.Ignore = []netip.Prefix{netip.MustParsePrefix("198.51.100.9/32")} },
		"inside":   func(s *policy.SyncConfig) { s.Ignore = []netip.Prefix{netip.MustParsePrefix("192.168.1.10/32")} },
		"": func(s *policy.SyncConfig) { // the good one
			s.Ignore = []netip.Prefix{netip.MustParsePrefix("192.168.1.11/32")}
		},
	} {
		l := newGateLab(t, waitAsLongAsItTakes)
		l.setSync(change)
		c := l.udp(t, bothFamilies[0].src, bothFamilies[0].dst)
		c.answer(t, "one")
		if name == "" {
			l.expectCounts(t, GateCounts{Held: 1, Waiting: 1})
			l.stop()
			continue
		}
		c.expect(t, "one")
		l.expectCounts(t, GateCounts{Passed: 1})
		c.answer(t, "two")
		c.expect(t, "two")
		l.expectCounts(t, GateCounts{Passed: 1}) // it was not marked again
		l.stop()
	}
}

// watchMarks counts packets from outside behind the table: those that still have
// the mark, and those that have bits of the user's own.
const watchMarks = `
table netdev own { chain in { type filter hook ingress device "wan0" priority 0; ip protocol udp meta mark set meta mark | 0x2000; }; }
table ip watch { chain pre { type filter hook prerouting priority raw; iifname "wan0" udp sport 7777 jump look; }
	chain look { meta mark and 0x100 == 0x100 counter name marked; meta mark 0x2000 counter name own; }
	counter marked {}; counter own {}; }`

// expectCounters compares named counters of the table.
func expectCounters(t *testing.T, want map[string]uint64) {
	t.Helper()
	for name, n := range want {
		text, err := exec.Command("nft", "list", "counter", "ip", "watch", name).CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, text)
		}
		var got uint64
		if _, after, ok := strings.Cut(string(text), "packets "); !ok {
			t.Fatalf("no packets in %s", text)
		} else if _, err := fmt.Sscan(after, &got); err != nil {
			t.Fatal(err)
		}
		if got != n {
			t.Errorf("%d packets are %s, want %d", got, name, n)
		}
	}
}

// Whichever way a packet goes, the mark does not stay on it, and the user's own
// bits do.
func TestGateClearsMark(t *testing.T) {
	l := newGateLab(t, waitAsLongAsItTakes)
	nft(t, watchMarks)
	c := l.udp(t, bothFamilies[0].src, bothFamilies[0].dst)
	c.answer(t, "acknowledged")
	l.expectCounts(t, GateCounts{Held: 1, Waiting: 1})
	l.gate.Acked([]policy.Flow{c.flow})
	c.expect(t, "acknowledged")
	expectCounters(t, map[string]uint64{"marked": 0, "own": 1})
	l.stop()
	if err := l.gate.queue.Close(); err != nil { // nobody serves it, as when the daemon was killed
		t.Fatal(err)
	}
	if err := l.d.hold(bpf.DataplaneHold{SinceNs: 1, Mark: gateMark.Value, Mask: gateMark.Mask}); err != nil {
		t.Fatal(err)
	}
	c = l.begin(t, socket(t, l.lan, "192.168.1.10:5001"), c.server)
	c.answer(t, "nobody")
	c.expect(t, "nobody")
	expectCounters(t, map[string]uint64{"marked": 0, "own": 2})
	if held, err := l.d.heldPackets(); err != nil || held != 2 {
		t.Errorf("%d marked, %v", held, err)
	}
	if err := RemoveHold(); err != nil {
		t.Fatal(err)
	}
	c.answer(t, "nobody") // without the table the mark would stay
	c.expect(t, "nobody")
	expectCounters(t, map[string]uint64{"marked": 1, "own": 2})
	l.gate.queue = nil
}

// A packet with the mark that belongs to no mapping is somebody else's: it goes on.
func TestGatePassesOthers(t *testing.T) {
	l := newGateLab(t, waitAsLongAsItTakes)
	nft(t, `table netdev own { chain in { type filter hook ingress device "lan0" priority 0; meta mark set 0x100; }; }`)
	c := l.udp(t, bothFamilies[0].src, bothFamilies[0].dst)
	l.gate.Acked([]policy.Flow{c.flow})
	c.answer(t, "one")
	c.expect(t, "one")
	counts := l.counts(t)
	if counts.Passed == 0 || counts.Held != 0 {
		t.Errorf("counts %+v", counts)
	}
}

// Who flushes all rules takes the table along: it is put back.
func TestGateRepairsTable(t *testing.T) {
	l := newGateLab(t, waitAsLongAsItTakes)
	rule := l.gate.rule()
	there := func() bool {
		whole, err := HoldInstalled(rule)
		if err != nil {
			t.Fatal(err)
		}
		return whole
	}
	if !there() {
		t.Fatal("no table in the beginning")
	}
	for range 2 {
		nft(t, "flush ruleset\n"+masqueradeWAN)
		await(t, "the table is back", there)
	}
	c := l.udp(t, bothFamilies[0].src, bothFamilies[0].dst)
	c.answer(t, "one")
	l.expectCounts(t, GateCounts{Held: 1, Waiting: 1})
	l.stop()
	if err := l.gate.Close(); err != nil {
		t.Error(err)
	}
	if there() {
		t.Error("the table is there after Close")
	}
	var err error
	if l.gate, err = l.replica.NewGate(l.gate.options); err != nil { // the next one counts anew
		t.Fatal(err)
	}
	l.expectCounts(t, GateCounts{})
}

// Many flows at once, each acknowledged while its answers come: none is lost. (One
// that is not marked any more may overtake one that is just let go.)
func TestGateLosesNothing(t *testing.T) {
	const flows, answers = 64, 20
	l := newGateLab(t, func(o *GateOptions) {
		waitAsLongAsItTakes(o)
		o.length = flows * answers // all of them may wait
	})
	server := socket(t, l.wan, server4)
	var all []*talk
	for i := range flows {
		all = append(all, l.begin(t, socket(t, l.lan, fmt.Sprintf("192.168.1.10:%d", 6000+i)), server))
	}
	acked := make(chan struct{})
	go func() {
		defer close(acked)
		for _, c := range all {
			l.gate.Acked([]policy.Flow{c.flow})
		}
	}()
	var texts []string
	for i := range answers {
		texts = append(texts, fmt.Sprint(i))
		for _, c := range all {
			c.answer(t, texts[i])
		}
	}
	<-acked
	for _, c := range all {
		got := make(map[string]bool)
		buffer := make([]byte, 64)
		for range answers {
			_ = c.client.SetReadDeadline(time.Now().Add(patience))
			n, _, err := c.client.ReadFromUDPAddrPort(buffer)
			if err != nil {
				t.Fatalf("%d of %d answers came: %v", len(got), answers, err)
			}
			got[string(buffer[:n])] = true
		}
		if len(got) != answers {
			t.Errorf("%d different answers, want %d", len(got), answers)
		}
	}
	counts := l.counts(t)
	if counts.Waiting != 0 || counts.TimedOut != 0 || counts.PassedBy != 0 || counts.Acked != counts.Held {
		t.Errorf("counts %+v", counts)
	}
}

// A connection on the tuple of an earlier one that the peer had is another one.
func TestGateHoldsReused(t *testing.T) {
	l := newGateLab(t, waitAsLongAsItTakes)
	ends := bothFamilies[0]
	src := netip.MustParseAddrPort(ends.src)
	flow := pinnedFlow(unix.IPPROTO_TCP, src, netip.MustParseAddrPort(ends.dst), netip.AddrPortFrom(addrs(vip)[0], src.Port()))
	for round := range uint64(3) {
		var client, server *net.TCPConn
		done := make(chan struct{})
		go func() {
			defer close(done)
			client, server = connect(t, l.lan, l.wan, ends.src, ends.dst, ends.dst)
		}()
		await(t, "the answer waits", func() bool { return l.counts(t).Waiting > 0 })
		l.gate.Acked([]policy.Flow{flow})
		<-done
		if client == nil {
			t.Fatalf("no connection in round %d", round)
		}
		// The server closes first: the port is free again at once.
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("the end did not come: %v", err)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
