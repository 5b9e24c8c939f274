// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// failures collects what changes were refused.
type failures map[int]error

func (f failures) note(i int, err error) { f[i] = err }

func tcpTuple(src, dst netip.AddrPort) Tuple {
	t := udpTuple(src, dst)
	t.Proto = unix.IPPROTO_TCP
	return t
}

// TestUpdate: a living entry is found by what the outside sees of it, and takes
// state, status, mark and timeout; status bits are never taken away.
func TestUpdate(t *testing.T) {
	l := newLab(t, nothing)
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			from, to, public := netip.AddrPortFrom(p.client, 5000), netip.AddrPortFrom(p.server, 80), netip.AddrPortFrom(p.vip, 31000)
			orig, reply := tcpTuple(from, to), tcpTuple(to, public)
			results, err := l.conn.Create([]Entry{{
				Orig: orig, NATSrc: public, Timeout: time.Minute, Mark: 0xff, Status: SeenReply, TCP: &TCP{State: TCPEstablished},
			}})
			allNil(t, results, err)
			failed := failures{}
			err = l.conn.Update([]Change{
				{Tuple: reply, Reply: true, Timeout: time.Hour, Status: SeenReply | Assured, Mark: 0x10, MarkMask: 0xf0, TCP: &TCP{State: TCPFinWait}},
				{Tuple: tcpTuple(to, netip.AddrPortFrom(p.vip, 31001)), Reply: true, Timeout: time.Hour}, // nobody's
			}, failed.note)
			if err != nil || len(failed) != 1 || !errors.Is(failed[1], ErrNotExist) {
				t.Fatalf("update: %v, refused %v, want the second with ErrNotExist", err, failed)
			}
			flow := get(t, l.conn, orig)
			if flow.TCP.State != TCPFinWait || flow.Mark != 0x1f || flow.Status&(SeenReply|Assured) != SeenReply|Assured || flow.Timeout < 59*time.Minute {
				t.Errorf("entry is %+v, TCP %+v", flow, flow.TCP)
			}
			// It is ASSURED now, of which this one does not know.
			err = l.conn.Update([]Change{{Tuple: orig, Timeout: time.Minute, Status: SeenReply, TCP: &TCP{State: TCPTimeWait}}}, func(int, error) { t.Error("refused") })
			if flow = get(t, l.conn, orig); err != nil || flow.TCP.State != TCPTimeWait || flow.Status&Assured == 0 || flow.Timeout > time.Minute {
				t.Errorf("update with fewer bits: %v, entry %+v, TCP %+v", err, flow, flow.TCP)
			}
		})
	}
}

// TestNoOtherPort: where the public end is taken the entry is refused, and never
// made with another port, whichever end is translated.
func TestNoOtherPort(t *testing.T) {
	l := newLab(t, nothing)
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			asked := netip.AddrPortFrom(p.vip, 53)
			from, to := netip.AddrPortFrom(p.client, 5000), netip.AddrPortFrom(p.server, 6000)
			other := Entry{Orig: udpTuple(netip.AddrPortFrom(p.router, 9), to), NATSrc: from, Timeout: time.Minute} // takes the answers to from
			results, err := l.conn.Create([]Entry{other})
			allNil(t, results, err)
			results, err = l.conn.Create([]Entry{{Orig: udpTuple(from, asked), NATDst: to, Timeout: time.Minute}})
			if err != nil || !errors.Is(results[0], ErrExist) {
				flow, _ := l.conn.Get(udpTuple(from, asked))
				t.Fatalf("create: %v, %v, entry %+v, want ErrExist", results, err, flow)
			}
		})
	}
}

// TestForwardedPing: an echo request to one address goes to another host, and
// keeps its identifier unless the source is translated, too.
func TestForwardedPing(t *testing.T) {
	l := newLab(t, nothing)
	asked := netip.MustParseAddr("203.0.113.9")
	server, client := l.server.rawICMP(server4), l.client.rawICMP(client4)
	for id, public := range map[uint16]netip.AddrPort{77: netip.AddrPortFrom(vip4, 4242), 78: netip.AddrPortFrom(client4, 78)} {
		entry := Entry{
			Orig:   Tuple{Src: client4, Dst: asked, Proto: unix.IPPROTO_ICMP, ICMPType: 8, ICMPID: id},
			NATDst: netip.AddrPortFrom(server4, 0), Timeout: time.Minute,
		}
		if public.Addr() != client4 {
			entry.NATSrc = public
		}
		results, err := l.conn.Create([]Entry{entry})
		allNil(t, results, err)
		if _, err := client.WriteToIP(echo{8, id, 9}.bytes(), &net.IPAddr{IP: asked.AsSlice()}); err != nil {
			t.Fatal(err)
		}
		if got, saw := awaitEcho(t, server, 8); saw != public.Addr() || got.id != public.Port() {
			t.Fatalf("server saw %v, %+v, want %v", saw, got, public)
		}
		if public.Addr() == client4 {
			continue // the server has no way back
		}
		if got, saw := awaitEcho(t, client, 0); saw != asked || got.id != id {
			t.Fatalf("client saw %v, %+v", saw, got)
		}
	}
}

// TestHelperAndExpectation: what a helper knows of a session and of the ones to
// come is taken over, and the expected flow becomes its master's child.
func TestHelperAndExpectation(t *testing.T) {
	l := newLab(t, nothing)
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			// An FTP server inside, reached by the VIP; it has announced a port.
			outside, session := netip.AddrPortFrom(p.server, 40000), netip.AddrPortFrom(p.vip, 21)
			inside := netip.AddrPortFrom(p.client, 2121)
			data, announced := netip.AddrPortFrom(p.vip, 35000), netip.AddrPortFrom(p.client, 35000)
			master := tcpTuple(outside, session)
			adjust := &Adjustment{Position: 4000000000, Before: -2, After: 3}
			results, err := l.conn.Create([]Entry{
				{Orig: master, NATDst: inside, Timeout: time.Hour, Status: SeenReply | Assured, TCP: &TCP{State: TCPEstablished}, Helper: "ftp", ReplyAdjust: adjust},
				{Orig: tcpTuple(netip.AddrPortFrom(p.server, 40001), session), Timeout: time.Hour, TCP: &TCP{State: TCPEstablished}, Helper: "none-such"},
			})
			if err != nil || results[0] != nil || !errors.Is(results[1], unix.EOPNOTSUPP) {
				t.Fatalf("create: %v, %v, want the second refused", results, err)
			}
			flow := get(t, l.conn, master)
			if flow.Helper != "ftp" || flow.ReplyAdjust == nil || *flow.ReplyAdjust != *adjust || flow.Status&SeqAdjust == 0 {
				t.Errorf("master is %+v, adjusted %+v", flow, flow.ReplyAdjust)
			}
			expected := Expectation{
				Master: master, Tuple: tcpTuple(netip.AddrPortFrom(p.server, 0), data), Timeout: 30 * time.Second,
				Helper: "ftp", Function: "nat-follow-master", NAT: announced,
			}
			results, err = l.conn.Expect([]Expectation{expected})
			allNil(t, results, err)
			found := 0
			err = l.conn.Expectations(context.Background(), func(e *Expectation) error {
				if e.Master == master {
					got := *e
					got.Timeout, got.Flags = expected.Timeout, expected.Flags
					if got != expected {
						t.Errorf("expectation is %+v, want %+v", got, expected)
					}
					found++
				}
				return nil
			})
			if err != nil || found != 1 {
				t.Fatalf("%d expectations, %v", found, err)
			}
			listener := l.client.listenTCP(announced)
			conn := l.server.dialTCP(netip.AddrPortFrom(p.server, 40002), data)
			accepted, err := listener.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()
			_ = accepted.SetDeadline(time.Now().Add(patience))
			talk(t, accepted, conn, "data")
			child := get(t, l.conn, tcpTuple(netip.AddrPortFrom(p.server, 40002), data))
			if child.Master == nil || *child.Master != master || child.Status&Expected == 0 {
				t.Errorf("child is %+v of %v", child, child.Master)
			}
			// And a child that a peer tells of.
			told := tcpTuple(netip.AddrPortFrom(p.server, 40003), netip.AddrPortFrom(p.vip, 35001))
			results, err = l.conn.Create([]Entry{{Orig: told, NATDst: announced, Timeout: time.Hour, TCP: &TCP{State: TCPEstablished}, Master: &master}})
			allNil(t, results, err)
			if child = get(t, l.conn, told); child.Master == nil || *child.Master != master || child.Status&Expected == 0 {
				t.Errorf("told child is %+v of %v", child, child.Master)
			}
		})
	}
}

// TestLookUpAndUsage: answers find their question; what is not there says nothing.
func TestLookUpAndUsage(t *testing.T) {
	l := newLab(t, nothing)
	to := netip.AddrPortFrom(server4, 6000)
	tuples := make([]Tuple, 300)
	var entries []Entry
	for i := range tuples {
		tuples[i] = udpTuple(netip.AddrPortFrom(client4, uint16(5000+i)), to)
		if i%3 != 0 {
			entries = append(entries, Entry{Orig: tuples[i], Timeout: time.Minute, Mark: uint32(i)})
		}
	}
	results, err := l.conn.Create(entries)
	allNil(t, results, err)
	seen, failed := make(map[int]bool), failures{}
	err = l.conn.LookUp(tuples, func(i int, flow *Flow) {
		seen[i] = true
		if flow.Mark != uint32(i) || flow.Orig != tuples[i] {
			t.Errorf("number %d is %+v", i, flow)
		}
	}, failed.note)
	if err != nil || len(failed) > 0 || len(seen) != len(entries) || seen[0] || !seen[299-1] {
		t.Errorf("looked up %d, %v, failed %v, want %d", len(seen), err, failed, len(entries))
	}
	used, most, err := l.conn.Usage()
	if err != nil || int(used) < len(entries) || used > uint32(len(entries)+10) || most < used {
		t.Errorf("usage %d of %d, %v, want about %d", used, most, err, len(entries))
	}
}
