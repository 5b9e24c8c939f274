// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"vippin/policy"
)

// dial connects to a peer that has the key, and has this router's.
func (t *transport) dial(ctx context.Context, peer policy.PeerConfig, key policy.PublicKey) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, t.pace.connect)
	defer cancel()
	t.mu.Lock()
	dialer := net.Dialer{LocalAddr: sourceFor(peer.Address, t.config.Listen)}
	t.mu.Unlock()
	raw, err := dialer.DialContext(ctx, "tcp", peer.Address.String())
	if err != nil {
		return nil, t.dialTrouble(peer, err)
	}
	counted := &countedConn{Conn: raw}
	conn := tls.Client(counted, t.tlsConfig(t.acceptOnly(peer.Name, key)))
	if err := t.beWelcome(ctx, conn, raw.(*net.TCPConn)); err != nil {
		counted.Close()
		return nil, t.dialTrouble(peer, err)
	}
	return &session{conn: conn, counted: counted, key: key}, nil
}

func (t *transport) beWelcome(ctx context.Context, conn *tls.Conn, raw *net.TCPConn) error {
	if err := tuneTCP(raw); err != nil {
		return err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	if deadline, limited := ctx.Deadline(); limited {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	var said [1]byte
	_, err := io.ReadFull(conn, said[:])
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if said[0] != welcome {
		return fmt.Errorf("it begins with %d instead of %d: is it a version of vippin that is much newer?", said[0], welcome)
	}
	return conn.SetReadDeadline(time.Time{})
}

// sourceFor is the address that the peer knows this router by, or nil when the
// kernel should choose.
func sourceFor(peer, listen netip.AddrPort) net.Addr {
	ours := listen.Addr().Unmap()
	if !ours.IsValid() || ours.IsUnspecified() || ours.Is4() != peer.Addr().Unmap().Is4() {
		return nil
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ours, 0))
}

// backoff is how long to wait before the next dial.
func (l *link) backoff() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failures == 0 {
		return 0
	}
	d := min(l.t.pace.retry<<min(l.failures-1, 16), l.t.pace.retryMax)
	return d/2 + rand.N(d/2+1)
}

// patience is how long the router with the greater key leaves it to its peer to
// dial. A router that has just started does not wait: its peer may be resting
// after many failures.
func (l *link) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost.IsZero() {
		return 0
	}
	return l.t.pace.passive - time.Since(l.lost)
}

func lessKey(a, b policy.PublicKey) bool { return bytes.Compare(a[:], b[:]) < 0 }
