// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
)

// pass sends octets one way and wants the same at the other end.
func pass(t *testing.T, from, to net.Conn, octets []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(octets)
		sent <- err
	}()
	got := make([]byte, len(octets))
	mustDo(t, to.SetReadDeadline(time.Now().Add(patience)), from.SetWriteDeadline(time.Now().Add(patience)))
	_, err := io.ReadFull(to, got)
	mustDo(t, err, <-sent)
	if !bytes.Equal(got, octets) {
		t.Error("other octets came than were sent")
	}
}

// A kernel's own TCP, whose segments the stack forwards many at a time (GRO): these
// teach as well, and the stream goes on by XDP until the connection is closed.
func TestLearnsBulk(t *testing.T) {
	l := newLearnLab(t)
	for _, ipv6 := range []bool{false, true} {
		l.clearEntries(t)
		c := &connection{client: netip.AddrPortFrom(host(ipv6), 5555), server: netip.AddrPortFrom(server(ipv6), 7777)}
		var client, server net.Conn
		var listener net.Listener
		mustDo(t, inside(l.wan, func() (err error) {
			listener, err = net.Listen("tcp", c.server.String())
			return err
		}), inside(l.lan, func() (err error) {
			dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(c.client), Timeout: patience}
			client, err = dialer.Dial("tcp", c.server.String())
			return err
		}))
		server, err := listener.Accept()
		mustDo(t, err)
		octets := make([]byte, 1<<20)
		for i := range octets {
			octets[i] = byte(rand.Uint32())
		}
		for _, way := range []struct {
			name     string
			from, to net.Conn
		}{{"out", client, server}, {"back", server, client}} {
			name := fmt.Sprintf("%v, %s", c.client, way.name)
			l.outcome(t)
			pass(t, way.from, way.to, octets)
			if got := l.outcome(t); way.name == "out" && (got.learnt > 0 || got.forwarded > 0) {
				t.Errorf("%s: %+v before the flow is liberal", name, got)
			}
			c.loosen(t)
			pass(t, way.from, way.to, octets) // teaches
			l.outcome(t)
			pass(t, way.from, way.to, octets)
			got := l.outcome(t)
			if half := uint64(len(octets) / 3000); got.forwarded < half {
				t.Errorf("%s: %d packets forwarded of some %d; %+v", name, got.forwarded, 2*half, got)
			}
		}
		mustDo(t, client.Close(), server.Close(), listener.Close())
		await(t, "what ends a connection voids its entries", func() bool { return len(l.entries(t)) == 0 })
	}
}
