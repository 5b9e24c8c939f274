// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// pinging is an inside host that pings the server with one identifier.
type pinging struct {
	id      int
	seq     int
	inside  net.PacketConn
	outside net.PacketConn // what the server hears
	from    netip.AddrPort // of the last request: address and identifier
}

func (l *lab) ping(t *testing.T, from string, id int) *pinging {
	t.Helper()
	p := &pinging{id: id}
	listen := func(conn *net.PacketConn, on string) func() error {
		return func() (err error) { *conn, err = net.ListenPacket("ip4:icmp", on); return err }
	}
	if err := inNamespace(l.lan, listen(&p.inside, from)); err != nil {
		t.Fatalf("open ping socket: %v", err)
	}
	t.Cleanup(func() { _ = p.inside.Close() })
	if err := inNamespace(l.wan, listen(&p.outside, "198.51.100.9")); err != nil {
		t.Fatalf("open ping socket: %v", err)
	}
	t.Cleanup(func() { _ = p.outside.Close() })
	return p
}

// await pings until an answer comes. The server must have seen it come from an
// address.
func (p *pinging) await(t *testing.T, from string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		p.seq++
		request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: p.seq, Data: []byte("ping")}}
		octets, err := request.Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.inside.WriteTo(octets, &net.IPAddr{IP: net.IPv4(198, 51, 100, 9)}); err != nil {
			t.Fatalf("ping: %v", err)
		}
		heard, id := hear(t, p.outside, ipv4.ICMPTypeEcho, p.seq)
		if !heard.IsValid() {
			continue
		}
		p.from = netip.AddrPortFrom(heard, uint16(id))
		if answer, id := hear(t, p.inside, ipv4.ICMPTypeEchoReply, p.seq); answer.IsValid() {
			if id != p.id {
				t.Errorf("the answer has the identifier %d, want %d", id, p.id)
			}
			if heard.String() != from {
				t.Errorf("the ping came from %v, want %v", heard, from)
			}
			return
		}
	}
	t.Fatalf("no answer to pings within %v", patience)
}

// hear waits half a second for one echo message.
func hear(t *testing.T, conn net.PacketConn, kind icmp.Type, seq int) (from netip.Addr, id int) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1500)
	for {
		n, addr, err := conn.ReadFrom(buffer)
		if err != nil {
			return from, 0
		}
		message, err := icmp.ParseMessage(1, buffer[:n]) // 1: ICMP
		if err != nil || message.Type != kind {
			continue
		}
		if echo, ok := message.Body.(*icmp.Echo); ok && echo.Seq == seq {
			return netip.MustParseAddr(addr.String()), echo.ID
		}
	}
}
