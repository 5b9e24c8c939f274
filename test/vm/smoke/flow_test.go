// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const port = "7000"

// serveSources answers each line over TCP and each datagram over UDP with the
// source that the server's socket sees.
func (l *lab) serveSources(t *testing.T) {
	t.Helper()
	l.server.must(t, func() error {
		stream, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		t.Cleanup(func() { stream.Close() })
		datagrams, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		t.Cleanup(func() { datagrams.Close() })
		go func() {
			for {
				conn, err := stream.Accept()
				if err != nil {
					return // closed
				}
				go answerLines(conn)
			}
		}()
		go func() {
			piece := make([]byte, 2048)
			for {
				_, from, err := datagrams.ReadFrom(piece)
				if err != nil {
					return // closed
				}
				_, _ = fmt.Fprintln(packetTo{datagrams, from}, from)
			}
		}()
		return nil
	})
}

func answerLines(conn net.Conn) {
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := fmt.Fprintln(conn, conn.RemoteAddr()); err != nil {
			return
		}
	}
}

// packetTo writes each piece as one datagram.
type packetTo struct {
	net.PacketConn
	to net.Addr
}

func (p packetTo) Write(piece []byte) (int, error) { return p.WriteTo(piece, p.to) }

// flow is a connection of the inside host to the server.
type flow struct {
	what string
	conn net.Conn
	read *bufio.Reader
}

// open starts a flow; network is tcp or udp.
func (l *lab) open(t *testing.T, network, server string) *flow {
	t.Helper()
	f := &flow{what: network + " to " + server}
	l.host.must(t, func() (err error) {
		f.conn, err = net.DialTimeout(network, net.JoinHostPort(server, port), 20*time.Second)
		return err
	})
	f.reads(t)
	return f
}

// reads makes a flow whose connection is open ready, and closes it after the test.
func (f *flow) reads(t *testing.T) {
	t.Cleanup(func() { f.conn.Close() })
	f.read = bufio.NewReader(f.conn)
}

// source sends something and returns the source that the server saw. A lost
// datagram is sent again: the first one may go while a neighbour is looked for.
func (f *flow) source(t *testing.T) netip.AddrPort {
	t.Helper()
	for range 5 {
		if _, err := f.conn.Write([]byte("who am I?\n")); err != nil {
			t.Fatalf("%s: %v", f.what, err)
		}
		seen, err := f.answer()
		if errors.Is(err, os.ErrDeadlineExceeded) && f.conn.LocalAddr().Network() == "udp" {
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", f.what, err)
		}
		return seen
	}
	t.Fatalf("%s: no answer", f.what)
	return netip.AddrPort{}
}

// answer reads the next source that the server tells.
func (f *flow) answer() (netip.AddrPort, error) {
	if err := f.conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return netip.AddrPort{}, err
	}
	line, err := f.read.ReadString('\n')
	if err != nil {
		return netip.AddrPort{}, err
	}
	seen, err := netip.ParseAddrPort(strings.TrimSuffix(line, "\n"))
	return netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()), err
}

// pingSource sends an echo request from the inside host, waits for its reply and
// returns the source that the server saw.
func (l *lab) pingSource(t *testing.T, server string) netip.Addr {
	t.Helper()
	network, local := "ip4:icmp", "0.0.0.0"
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if netip.MustParseAddr(server).Is6() {
		network, local, kind = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest
	}
	var at, from *icmp.PacketConn
	l.server.must(t, func() (err error) { at, err = icmp.ListenPacket(network, local); return err })
	defer at.Close()
	l.host.must(t, func() (err error) { from, err = icmp.ListenPacket(network, local); return err })
	defer from.Close()
	// A fresh identifier, or conntrack would take it for the ping before.
	nonce := fmt.Sprintf("smoke %d", time.Now().UnixNano())
	echo := icmp.Message{Type: kind, Body: &icmp.Echo{ID: int(time.Now().UnixNano() & 0xffff), Seq: 1, Data: []byte(nonce)}}
	packet, err := echo.Marshal(nil) // the kernel fills in ICMPv6's checksum
	if err != nil {
		t.Fatal(err)
	}
	if _, err := from.WriteTo(packet, &net.IPAddr{IP: net.ParseIP(server)}); err != nil {
		t.Fatalf("ping %s: %v", server, err)
	}
	seen := awaitEcho(t, at, kind, nonce)
	if kind == ipv4.ICMPTypeEcho {
		awaitEcho(t, from, ipv4.ICMPTypeEchoReply, nonce)
	} else {
		awaitEcho(t, from, ipv6.ICMPTypeEchoReply, nonce)
	}
	return seen
}

// awaitEcho waits for the echo message of that type and content and returns
// where it came from.
func awaitEcho(t *testing.T, conn *icmp.PacketConn, kind icmp.Type, nonce string) netip.Addr {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(piece)
		if err != nil {
			t.Fatalf("wait for %v: %v", kind, err)
		}
		message, err := icmp.ParseMessage(kind.Protocol(), piece[:n])
		if err != nil || message.Type != kind {
			continue
		}
		if echo, ok := message.Body.(*icmp.Echo); ok && string(echo.Data) == nonce {
			addr, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
			return addr.Unmap()
		}
	}
}
