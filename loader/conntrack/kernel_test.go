// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo is an ICMP or ICMPv6 echo message.
type echo struct {
	kind    uint8
	id, seq uint16
}

func (e echo) bytes() []byte {
	b := make([]byte, 8)
	b[0] = e.kind
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], e.seq)
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16)) // ICMPv6: the kernel makes its own
	return b
}

func echoKinds(addr netip.Addr) (proto, request, reply uint8) {
	if addr.Is4() {
		return unix.IPPROTO_ICMP, 8, 0
	}
	return unix.IPPROTO_ICMPV6, 128, 129
}

// awaitEcho reads until an echo message of this kind comes.
func awaitEcho(t *testing.T, conn *net.IPConn, kind uint8) (echo, netip.Addr) {
	t.Helper()
	for b := make([]byte, 1500); ; {
		n, from, err := conn.ReadFromIP(b)
		if err != nil {
			t.Fatalf("wait for ICMP type %d: %v", kind, err)
		}
		if n >= 8 && b[0] == kind {
			addr, _ := netip.AddrFromSlice(from.IP)
			got := echo{kind, binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])}
			return got, addr.Unmap()
		}
	}
}

func send(t *testing.T, conn *net.UDPConn, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := conn.WriteToUDPAddrPort([]byte(text), to); err != nil {
		t.Fatalf("send to %v: %v", to, err)
	}
}

func receive(t *testing.T, conn *net.UDPConn, want string) netip.AddrPort {
	t.Helper()
	b := make([]byte, 100)
	n, from, err := conn.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatalf("wait for %q: %v", want, err)
	}
	if string(b[:n]) != want {
		t.Fatalf("received %q, want %q", b[:n], want)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func get(t *testing.T, conn *Conn, tuple Tuple) *Flow {
	t.Helper()
	flow, err := conn.Get(tuple)
	if err != nil {
		t.Fatal(err)
	}
	return flow
}

func allNil(t *testing.T, results []error, err error) {
	t.Helper()
	if err := errors.Join(append(results, err)...); err != nil {
		t.Fatal(err)
	}
}

func udpTuple(src, dst netip.AddrPort) Tuple {
	return Tuple{Src: src.Addr(), Dst: dst.Addr(), Proto: unix.IPPROTO_UDP, SrcPort: src.Port(), DstPort: dst.Port()}
}

// pairs are the lab's ends by IP version.
var pairs = []struct {
	name                        string
	client, router, server, vip netip.Addr
}{
	{"IPv4", client4, router4, server4, vip4},
	{"IPv6", client6, router6, server6, vip6},
}

func TestMasqueradedFlowsAreRead(t *testing.T) {
	l := newLab(t, masquerade)
	for _, p := range pairs {
		t.Run(p.name+" UDP", func(t *testing.T) {
			from, to := netip.AddrPortFrom(p.client, 5000), netip.AddrPortFrom(p.server, 6000)
			server, client := l.server.udp(to), l.client.udp(from)
			send(t, client, to, "ping")
			public := receive(t, server, "ping")
			send(t, server, public, "pong")
			receive(t, client, "pong")

			flow := get(t, l.conn, udpTuple(from, to))
			if flow.Orig != udpTuple(from, to) || flow.Reply != udpTuple(to, public) {
				t.Errorf("read %v and %v, but the server saw %v", flow.Orig, flow.Reply, public)
			}
			if public.Addr() != p.router || public.Port() < 40000 {
				t.Errorf("server saw %v: not masqueraded as the rule says", public)
			}
			if want := SrcNAT | SeenReply | Confirmed | SrcNATDone | DstNATDone; flow.Status != want {
				t.Errorf("status %v, want %v", flow.Status, want)
			}
			if flow.TCP != nil || flow.OrigCounters == nil || flow.ReplyCounters == nil ||
				flow.OrigCounters.Packets != 1 || flow.ReplyCounters.Packets != 1 || flow.OrigCounters.Bytes < 20+8+4 {
				t.Errorf("counters %+v, %+v, TCP %v", flow.OrigCounters, flow.ReplyCounters, flow.TCP)
			}
			if age := time.Since(flow.Start); age < 0 || age > time.Minute || !flow.Stop.IsZero() {
				t.Errorf("started at %v, stopped at %v", flow.Start, flow.Stop)
			}
			if flow.Timeout < 5*time.Second || flow.Timeout > 5*time.Minute || flow.ID == 0 {
				t.Errorf("timeout %v, ID %d", flow.Timeout, flow.ID)
			}
			if reverse := get(t, l.conn, flow.Reply); reverse.ID != flow.ID || reverse.Orig != flow.Orig {
				t.Errorf("by its reply tuple found %+v, want %+v", reverse, flow)
			}
		})
		t.Run(p.name+" TCP", func(t *testing.T) {
			from, to := netip.AddrPortFrom(p.client, 5001), netip.AddrPortFrom(p.server, 6001)
			listener := l.server.listenTCP(to)
			l.client.dialTCP(from, to)
			accepted, err := listener.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()
			tuple := udpTuple(from, to)
			tuple.Proto = unix.IPPROTO_TCP
			flow := get(t, l.conn, tuple)
			if flow.Reply.Destination() != accepted.RemoteAddr().(*net.TCPAddr).AddrPort() {
				t.Errorf("reply tuple %v, but the server saw %v", flow.Reply, accepted.RemoteAddr())
			}
			if flow.TCP == nil || flow.TCP.State != TCPEstablished || flow.TCP.OrigFlags&TCPWindowScale == 0 ||
				flow.TCP.OrigScale == 0 || flow.TCP.OrigScale > scaleMax {
				t.Errorf("TCP state %+v", flow.TCP)
			}
			if flow.Status&(Assured|SrcNAT) != Assured|SrcNAT {
				t.Errorf("status %v", flow.Status)
			}
		})
		t.Run(p.name+" ICMP", func(t *testing.T) {
			proto, request, reply := echoKinds(p.client)
			client := l.client.rawICMP(p.client)
			if _, err := client.WriteToIP(echo{request, 77, 1}.bytes(), &net.IPAddr{IP: p.server.AsSlice()}); err != nil {
				t.Fatal(err)
			}
			if got, _ := awaitEcho(t, client, reply); got.id != 77 {
				t.Fatalf("answer has id %d", got.id)
			}
			flow := get(t, l.conn, Tuple{Src: p.client, Dst: p.server, Proto: proto, ICMPType: request, ICMPID: 77})
			if flow.Reply.ICMPType != reply || flow.Reply.Dst != p.router || flow.Status&SrcNAT == 0 {
				t.Errorf("read %+v", flow)
			}
		})
	}
	testDump(t, l)
}

// testDump expects the six flows of TestMasqueradedFlowsAreRead and the
// neighbour discovery that IPv6 needs not to be followed.
func testDump(t *testing.T, l *lab) {
	count := func(filter Filter) (n int) {
		t.Helper()
		err := l.conn.Dump(t.Context(), filter, func(flow *Flow) error {
			if again := get(t, l.conn, flow.Orig); again.ID != flow.ID { // uses the Conn meanwhile
				t.Errorf("dumped %+v, got %+v", flow, again)
			}
			n++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(Filter{Status: SrcNAT, StatusMask: SrcNAT}); n != 6 {
		t.Errorf("dumped %d masqueraded flows, want 6", n)
	}
	if n := count(Filter{Family: IPv6, Status: SrcNAT, StatusMask: SrcNAT}); n != 3 {
		t.Errorf("dumped %d masqueraded flows of IPv6, want 3", n)
	}
	if n := count(Filter{Status: 0, StatusMask: SrcNAT}); n != 0 {
		t.Errorf("dumped %d flows that are not masqueraded, want none", n)
	}
	if n := count(Filter{Mark: 1, MarkMask: 0xff}); n != 0 {
		t.Errorf("dumped %d flows with a mark, want none", n)
	}
	enough := errors.New("enough")
	yielded := 0
	err := l.conn.Dump(t.Context(), Filter{}, func(*Flow) error { yielded++; return enough })
	if !errors.Is(err, enough) || yielded != 1 {
		t.Errorf("dump stopped by yield says %v and went on %d times", err, yielded-1)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.conn.Dump(ended, Filter{}, func(*Flow) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("dump with an ended context says %v", err)
	}
	if n := count(Filter{}); n < 6 { // and the socket is as good as new
		t.Errorf("dumped %d flows in all, want at least 6", n)
	}
}

// entries makes n UDP entries that differ in their source port.
func entries(n int) []Entry {
	made := make([]Entry, n)
	for i := range made {
		from := netip.AddrPortFrom(client4, uint16(10000+i))
		made[i] = Entry{
			Orig:    udpTuple(from, netip.AddrPortFrom(server4, 6000)),
			NATSrc:  netip.AddrPortFrom(vip4, uint16(30000+i)),
			Timeout: 100 * time.Second, Status: Assured, Mark: 7,
		}
	}
	return made
}

func TestManyEntries(t *testing.T) {
	l := newLab(t, nothing)
	const n = 1000
	made := entries(n)
	results, err := l.conn.Create(made)
	allNil(t, results, err)

	results, err = l.conn.Create(made[:2])
	if err != nil || !errors.Is(results[0], ErrExist) || !errors.Is(results[1], ErrExist) {
		t.Errorf("made twice: %v, %v", results, err)
	}
	taken := entries(n + 1)[n:]
	taken[0].NATSrc = made[0].NATSrc
	if results, err = l.conn.Create(taken); err != nil || !errors.Is(results[0], ErrExist) {
		t.Errorf("made with a public end that is taken: %v, %v", results, err)
	}

	var refs []Ref
	var tuples []Tuple
	for i, entry := range made {
		tuples = append(tuples, entry.Orig)
		if i%3 == 0 {
			refs = append(refs, Ref{Orig: entry.Orig})
		}
	}
	results, err = setTimeout(l.conn, refs, 250*time.Second+time.Millisecond)
	allNil(t, results, err)
	flows, err := l.conn.GetBatch(tuples)
	if err != nil {
		t.Fatal(err)
	}
	for i, flow := range flows {
		want := 100 * time.Second
		if i%3 == 0 {
			want = 251 * time.Second
		}
		if flow == nil || flow.Orig != tuples[i] || flow.Reply.Destination() != made[i].NATSrc || flow.Mark != 7 ||
			flow.Timeout > want || flow.Timeout < want-20*time.Second || flow.Status&(Assured|SrcNAT) != Assured|SrcNAT {
			t.Fatalf("entry %d is %+v", i, flow)
		}
	}
	refs[0].ID = flows[0].ID + 1
	results, err = l.conn.Delete(refs)
	if err != nil || !errors.Is(results[0], ErrNotExist) {
		t.Errorf("deletion with a wrong ID: %v, %v", results[0], err)
	}
	allNil(t, results[1:], err)
	if flows, err = l.conn.GetBatch(tuples); err != nil {
		t.Fatal(err)
	}
	for i, flow := range flows {
		if want := i%3 != 0 || i == 0; want != (flow != nil) {
			t.Errorf("entry %d after the deletion: %+v", i, flow)
		}
	}
	_, err = l.conn.Get(tuples[3])
	if text := "get conntrack entry udp 192.168.77.2:10003 -> 198.51.100.2:6000: no such file or directory"; !errors.Is(err, ErrNotExist) || err.Error() != text {
		t.Errorf("get of a deleted entry says %v", err)
	}
	if results, err := setTimeout(l.conn, []Ref{{Orig: tuples[3]}}, time.Second); err != nil || !errors.Is(results[0], ErrNotExist) {
		t.Errorf("timeout of a deleted entry: %v, %v", results, err)
	}
}

func TestZonesAreApart(t *testing.T) {
	l := newLab(t, nothing)
	entry := entries(1)[0]
	entry.Orig.Zone = 5
	results, err := l.conn.Create([]Entry{entry})
	allNil(t, results, err)
	if flow := get(t, l.conn, entry.Orig); flow.Orig != entry.Orig || flow.Reply.Zone != 5 {
		t.Errorf("read %+v", flow)
	}
	other := entry.Orig
	other.Zone = 0
	if _, err := l.conn.Get(other); !errors.Is(err, ErrNotExist) {
		t.Errorf("found in zone 0 as well: %v", err)
	}
	results, err = l.conn.Delete([]Ref{{Orig: entry.Orig}})
	allNil(t, results, err)
}

// setTimeout gives entries a new timeout; results as those of Delete.
func setTimeout(conn *Conn, refs []Ref, timeout time.Duration) ([]error, error) {
	changes := make([]Change, len(refs))
	for i, ref := range refs {
		changes[i] = Change{Tuple: ref.Orig, Timeout: timeout}
	}
	results := make([]error, len(refs))
	return results, conn.Update(changes, func(i int, err error) { results[i] = err })
}
