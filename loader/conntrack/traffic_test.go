// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The router has no NAT rule in these tests: whatever is translated is
// translated by an entry made here.

func TestNativeEntryTranslatesUDPAndICMP(t *testing.T) {
	l := newLab(t, nothing)
	for _, p := range pairs {
		t.Run(p.name+" UDP", func(t *testing.T) {
			from, to := netip.AddrPortFrom(p.client, 5000), netip.AddrPortFrom(p.server, 6000)
			public := netip.AddrPortFrom(p.vip, 31234)
			results, err := l.conn.Create([]Entry{{Orig: udpTuple(from, to), NATSrc: public, Timeout: time.Minute}})
			allNil(t, results, err)
			server, client := l.server.udp(to), l.client.udp(from)
			send(t, client, to, "ping")
			if saw := receive(t, server, "ping"); saw != public {
				t.Fatalf("server saw %v, want %v", saw, public)
			}
			send(t, server, public, "pong")
			if saw := receive(t, client, "pong"); saw != to {
				t.Fatalf("client saw %v, want %v", saw, to)
			}
		})
		t.Run(p.name+" ICMP", func(t *testing.T) {
			proto, request, reply := echoKinds(p.client)
			results, err := l.conn.Create([]Entry{{
				Orig:   Tuple{Src: p.client, Dst: p.server, Proto: proto, ICMPType: request, ICMPID: 77},
				NATSrc: netip.AddrPortFrom(p.vip, 4242), Timeout: time.Minute,
			}})
			allNil(t, results, err)
			server, client := l.server.rawICMP(p.server), l.client.rawICMP(p.client)
			if _, err := client.WriteToIP(echo{request, 77, 9}.bytes(), &net.IPAddr{IP: p.server.AsSlice()}); err != nil {
				t.Fatal(err)
			}
			if got, saw := awaitEcho(t, server, request); saw != p.vip || got.id != 4242 || got.seq != 9 {
				t.Fatalf("server saw %v, %+v", saw, got)
			}
			if got, saw := awaitEcho(t, client, reply); saw != p.server || got.id != 77 || got.seq != 9 {
				t.Fatalf("client saw %v, %+v", saw, got)
			}
		})
	}
}

func TestForwardedPortAndSource(t *testing.T) {
	l := newLab(t, nothing)
	from, to := netip.AddrPortFrom(client4, 5000), netip.AddrPortFrom(server4, 6000)
	asked := netip.MustParseAddrPort("203.0.113.9:53")
	public := netip.AddrPortFrom(vip4, 31234)
	results, err := l.conn.Create([]Entry{{Orig: udpTuple(from, asked), NATSrc: public, NATDst: to, Timeout: time.Minute}})
	allNil(t, results, err)
	server, client := l.server.udp(to), l.client.udp(from)
	send(t, client, asked, "ping")
	if saw := receive(t, server, "ping"); saw != public {
		t.Fatalf("server saw %v, want %v", saw, public)
	}
	send(t, server, public, "pong")
	if saw := receive(t, client, "pong"); saw != asked {
		t.Fatalf("client saw %v, want %v", saw, asked)
	}
}

// TestReplaceKeepsTCPAlive swaps the entry of a living masqueraded TCP
// connection for a native one. The rule is gone by then and moved the port, so
// the connection can only go on through the new entry.
func TestReplaceKeepsTCPAlive(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			l := newLab(t, masquerade)
			from, to := netip.AddrPortFrom(p.client, 5001), netip.AddrPortFrom(p.server, 6001)
			listener := l.server.listenTCP(to)
			client := l.client.dialTCP(from, to)
			server, err := listener.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			_ = server.SetDeadline(time.Now().Add(patience))
			talk(t, client, server, "before")

			tuple := udpTuple(from, to)
			tuple.Proto = unix.IPPROTO_TCP
			old := get(t, l.conn, tuple)
			l.rules(nothing)
			results, err := l.conn.Replace([]Replacement{{Old: old.Ref(), New: Entry{
				Orig: tuple, NATSrc: old.Reply.Destination(), Timeout: time.Hour, Status: old.Status, TCP: old.TCP,
			}}})
			allNil(t, results, err)
			talk(t, client, server, "after")

			flow := get(t, l.conn, tuple)
			if !flow.Start.After(old.Start) { // the ID may well be the same
				t.Error("it is still the old entry")
			}
			if flow.Reply != old.Reply || flow.Status&(SrcNAT|Assured|SeenReply) != SrcNAT|Assured|SeenReply {
				t.Errorf("new entry is %+v, old one was %+v", flow, old)
			}
			if flow.TCP == nil || flow.TCP.State != TCPEstablished || flow.TCP.OrigScale != old.TCP.OrigScale ||
				flow.TCP.ReplyScale != old.TCP.ReplyScale || flow.TCP.OrigFlags&flow.TCP.ReplyFlags&TCPLiberal == 0 {
				t.Errorf("new TCP state %+v, old one %+v", flow.TCP, old.TCP)
			}
			closeBoth(t, client, server)
		})
	}
}

// talk sends enough each way to slide the windows far.
func talk(t *testing.T, client, server net.Conn, word string) {
	t.Helper()
	for i, way := range [][2]net.Conn{{client, server}, {server, client}} {
		done := make(chan error, 1)
		go func() {
			_, err := fmt.Fprintf(way[0], "%0300000d %s\n", i, word)
			done <- err
		}()
		line, err := bufio.NewReaderSize(way[1], 1<<20).ReadString('\n')
		if err != nil {
			t.Fatalf("%s, way %d: read: %v", word, i, err)
		}
		if want := fmt.Sprintf("%0300000d %s\n", i, word); line != want {
			t.Fatalf("%s, way %d: read %d octets, want %d", word, i, len(line), len(want))
		}
		if err := <-done; err != nil {
			t.Fatalf("%s, way %d: write: %v", word, i, err)
		}
	}
}

// closeBoth shows that FIN still finds its way, too.
func closeBoth(t *testing.T, client, server *net.TCPConn) {
	t.Helper()
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err == nil || err.Error() != "EOF" {
		t.Fatalf("server: %v, want the end of the stream", err)
	}
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil || err.Error() != "EOF" {
		t.Fatalf("client: %v, want the end of the stream", err)
	}
}
