// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

const vip, unique = "198.51.100.2", "198.51.100.3"

// TestBornBefore: flows that live when a pin comes keep their source for ever,
// later ones get the VIP, and neither a toggle nor a second process changes
// that.
func TestBornBefore(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	oldTCP, oldUDP := l.dial(t, "old tcp", "tcp4", "192.168.1.10:41000"), l.dial(t, "old udp", "udp4", "192.168.1.10:41001")
	mustAsk(t, oldTCP, oldUDP)
	opts := Options{BPFFS: testBPFFS(t)}
	d := mustLoad(t, opts)
	l.plan(t, d, true)
	newTCP, newUDP := l.dial(t, "new tcp", "tcp4", "192.168.1.11:41000"), l.dial(t, "new udp", "udp4", "192.168.1.11:41001")
	mustAsk(t, oldTCP, oldUDP, newTCP, newUDP)
	if err := switchPin(d, 1, false); err != nil {
		t.Fatal(err)
	}
	offUDP := l.dial(t, "off udp", "udp4", "192.168.1.11:41002")
	mustAsk(t, offUDP, newTCP)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = mustLoad(t, opts)
	l.plan(t, d, true)
	mustAsk(t, oldTCP, oldUDP, newTCP, newUDP, offUDP)
	for name, want := range map[string]string{"old tcp": unique, "old udp": unique, "new tcp": vip, "new udp": vip, "off udp": unique} {
		if got := l.source(t, name).Addr().String(); got != want {
			t.Errorf("%s came from %s, want %s", name, got, want)
		}
	}
	counters, err := d.PinCounters()
	if err != nil || counters[1].Created != 2 || counters[1].Unpinned["born_before"] == 0 || counters[1].Unpinned["off"] == 0 {
		t.Errorf("counters %+v, %v", counters[1], err)
	}
	if removed, err := d.Sweep(); err != nil || removed != 0 {
		t.Errorf("a sweep removed %d living flows (%v)", removed, err)
	}
}

// The kernel tells neither state nor timeout of what a flow table has: the native
// entry gets what an ordinary one has.
func TestNativeOfOffloaded(t *testing.T) {
	c := &converter{ordinary: readTimeouts()}
	for _, test := range []struct {
		name  string
		proto uint8
		want  time.Duration
	}{
		{"tcp", unix.IPPROTO_TCP, c.ordinary.tcp[conntrack.TCPEstablished]},
		{"udp", unix.IPPROTO_UDP, c.ordinary.udpStream},
	} {
		entry := c.native(&conversion{flow: &conntrack.Flow{
			Orig:   conntrack.Tuple{Src: addrs("192.168.1.10")[0], Dst: addrs("198.51.100.9")[0], Proto: test.proto, SrcPort: 5, DstPort: 7},
			Status: conntrack.Offload | conntrack.SeenReply | conntrack.Assured | conntrack.SrcNAT,
		}})
		if entry.Timeout != test.want || test.want < time.Minute {
			t.Errorf("%s lives for %v, want %v", test.name, entry.Timeout, test.want)
		}
		if isTCP := test.proto == unix.IPPROTO_TCP; isTCP != (entry.TCP != nil) || isTCP && entry.TCP.State != conntrack.TCPEstablished {
			t.Errorf("%s has the state %+v", test.name, entry.TCP)
		}
	}
}

// TestUnloadKeepsFlows: living flows go on with the same source, also those
// whose public port is not their own, while they are busy.
func TestUnloadKeepsFlows(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	l.plan(t, d, true)
	server := netip.MustParseAddrPort("198.51.100.9:7777")
	var clients []*client
	for i := range 5 {
		for _, network := range []string{"tcp4", "udp4"} {
			port := uint16(42000 + i)
			if i == 0 { // somebody else's: the flow must move to another port
				occupy(t, d, network, netip.AddrPortFrom(netip.MustParseAddr(vip), port), server)
			}
			for _, host := range []string{"10", "11"} { // both from the same port
				name := fmt.Sprintf("%s %s.%d", network, host, i)
				c := l.dial(t, name, network, fmt.Sprintf("192.168.1.%s:%d", host, port))
				mustAsk(t, c)
				clients = append(clients, c)
			}
		}
	}
	before := make(map[string]netip.AddrPort)
	moved := 0
	for _, c := range clients {
		before[c.name] = l.source(t, c.name)
		if before[c.name].Addr().String() != vip {
			t.Fatalf("%s comes from %v before the unload", c.name, before[c.name])
		}
	}
	err := d.Flows(func(m policy.Mapping) bool {
		if m.Local.Port() != m.Public.Port() {
			moved++
		}
		return true
	})
	if err != nil || moved < 2 {
		t.Fatalf("%d flows have another public port (%v), want 2 or more", moved, err)
	}

	ping := l.ping(t, "192.168.1.10", 77)
	ping.await(t, vip)
	pinged := ping.from

	var stop atomic.Bool
	var busy sync.WaitGroup
	asked := make([]int, len(clients))
	for i, c := range clients {
		busy.Go(func() {
			for !stop.Load() {
				if err := c.ask(); err != nil {
					t.Errorf("during the unload: %v", err)
					return
				}
				asked[i]++
			}
		})
	}
	report, err := d.Unload(false)
	stop.Store(true)
	busy.Wait()
	if err != nil || report != (UnloadReport{Converted: len(clients) + 1}) {
		t.Errorf("unload: %+v, %v, want %d converted", report, err, len(clients)+1)
	}
	if on, err := d.attached(l.ifindex); err != nil || on {
		t.Errorf("attached after unload: %v, %v", on, err)
	}
	mustAsk(t, clients...)
	for i, c := range clients {
		if got := l.source(t, c.name); got != before[c.name] {
			t.Errorf("%s came from %v, then from %v", c.name, before[c.name], got)
		}
		if asked[i] == 0 {
			t.Errorf("%s was idle during the unload", c.name)
		}
	}
	ping.await(t, vip)
	if got := ping.from; got != pinged {
		t.Errorf("the ping came from %v, then from %v", pinged, got)
	}
	late := l.dial(t, "late", "udp4", "192.168.1.10:43000")
	mustAsk(t, late)
	if got := l.source(t, "late"); got.Addr().String() != unique {
		t.Errorf("a flow after the unload came from %v", got)
	}
}

// TestConversionHoldsAnswers stops a conversion half-way: an answer that comes
// when there is no conntrack entry at all does not end the flow.
func TestConversionHoldsAnswers(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	l.plan(t, d, true)
	c := l.dial(t, "held", "tcp4", "192.168.1.10:42000")
	mustAsk(t, c)
	server := <-l.accepted
	conn, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	converter := &converter{d: d, conn: conn}
	var flow conversion
	err = converter.living(func(batch []conversion) error { flow = batch[0]; return nil })
	if err != nil || flow.flow == nil {
		t.Fatalf("find the flow: %+v, %v", flow, err)
	}
	if err := converter.holdAnswers(&flow); err != nil {
		t.Fatal(err)
	}
	untrack(t, conn, flow.key)
	before := mustCount(t, d).Returned
	line := fmt.Sprintf("%-*s", lineLen, "pushed")
	if _, err := server.Write([]byte(line)); err != nil {
		t.Fatal(err)
	}
	await(t, "the answer comes while there is no entry", func() bool { return mustCount(t, d).Returned > before })
	results, err := converter.replace([]conntrack.Replacement{{Old: flow.flow.Ref(), New: converter.native(&flow)}})
	if err := errors.Join(append(results, err, converter.finish([]*conversion{&flow}, results))...); err != nil {
		t.Fatalf("finish: %v", err)
	}
	pushed := make([]byte, lineLen)
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c.conn, pushed); err != nil || string(pushed) != line {
		t.Fatalf("read %q, %v, want %q", pushed, err, line)
	}
	mustAsk(t, c)
	if got := l.source(t, "held"); got.String() != vip+":42000" {
		t.Errorf("the flow came from %v", got)
	}
	var end publicEnd
	var local localEnd
	err = errors.Join(d.maps.ByLocal.Lookup(flow.key, &end), d.maps.ByPublic.Lookup(publicKey(flow.key, &flow.end), &local))
	if err != nil || end.Flags&mappingNative == 0 || local.Flags&mappingNative == 0 || local.Addr.Word != flow.key.Self.Word {
		t.Errorf("mapping afterwards: %+v, %+v, %v, want both native", end, local, err)
	}
}

func mustCount(t *testing.T, d *Dataplane) PinCounters {
	t.Helper()
	sums, err := d.sumPins([]uint32{1})
	if err != nil {
		t.Fatal(err)
	}
	return sums.of(1)
}

// TestUnloadRefuses: what cannot be converted is known before anything is done.
func TestUnloadRefuses(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	conn, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	fine, _ := testMapping(t, d, 4001)
	tracked(t, conn, fine)
	testMapping(t, d, 4002) // without an entry: dead already
	odd := fine
	odd.Proto, odd.SelfPort, odd.RemotePort = unix.IPPROTO_GRE, 0, 0
	end := publicEnd{Pin: 1}
	end.Addr.Word = addrWords(netip.MustParseAddr(vip))
	local := localEnd{Pin: 1}
	local.Addr.Word = odd.Self.Word
	if err := errors.Join(d.maps.ByPublic.Put(publicKey(odd, &end), local), d.maps.ByLocal.Put(odd, end)); err != nil {
		t.Fatal(err)
	}
	tracked(t, conn, odd)
	report, err := d.Unload(false)
	if err == nil || report != (UnloadReport{Broken: 1}) {
		t.Fatalf("unload: %+v, %v, want a refusal for one flow", report, err)
	}
	contains(t, err.Error(), "1 living flows would break")
	if plan := mustPlanned(t, d); !plan.Pins[0].Enabled {
		t.Error("a refused unload left the pin off")
	}
	if flow, err := conn.Get(replyTuple(&fine, 0)); err != nil || !isOurs(flow, replyTuple(&fine, 0)) {
		t.Errorf("a refused unload changed an entry: %+v, %v", flow, err)
	}
	if on, err := d.attached(ifindex); err != nil || !on {
		t.Errorf("a refused unload detached: %v, %v", on, err)
	}
	report, err = d.Unload(true)
	if err != nil || report != (UnloadReport{Converted: 1, Broken: 1}) {
		t.Errorf("forced unload: %+v, %v", report, err)
	}
	if _, err := Open(d.dir); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("open after unload: %v", err)
	}
}

// occupy takes a public end.
func occupy(t *testing.T, d *Dataplane, network string, public, remote netip.AddrPort) {
	t.Helper()
	proto := uint8(17)
	if network == "tcp4" {
		proto = 6
	}
	local := localEnd{Port: 1, Pin: 1, BornNs: uint64(monotonic())}
	local.Addr.Word = addrWords(netip.MustParseAddr("198.51.100.77"))
	if err := d.maps.ByPublic.Put(newFlowKey(1, proto, public, remote), local); err != nil {
		t.Fatal(err)
	}
}
