// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// listen accepts at the address until ctx ends. The address may come later, with
// its interface.
func (t *transport) listen(ctx context.Context, at netip.AddrPort) {
	defer t.setTrouble("")
	for ctx.Err() == nil {
		var config net.ListenConfig
		listener, err := config.Listen(ctx, "tcp", at.String())
		if err == nil {
			t.setTrouble("")
			err = t.accept(ctx, listener.(*net.TCPListener))
		}
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, unix.EADDRNOTAVAIL):
			t.setTrouble(fmt.Sprintf("sync.listen: %s is not on this router: no peer can connect until it is", at.Addr()))
		default:
			t.setTrouble(fmt.Sprintf("sync.listen: no peer can connect: %v", err))
		}
		pause(ctx, t.pace.recheck)
	}
}

func (t *transport) setTrouble(text string) {
	t.mu.Lock()
	told := t.trouble == text
	t.trouble = text
	t.mu.Unlock()
	if !told && text != "" {
		t.log.Warn(text)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// accept returns when ctx ends or the listener breaks, after the handshakes that
// it began.
func (t *transport) accept(ctx context.Context, listener *net.TCPListener) error {
	var handshakes sync.WaitGroup
	defer handshakes.Wait()
	defer listener.Close()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		raw, err := listener.AcceptTCP()
		var temporary net.Error
		switch {
		case errors.As(err, &temporary) && temporary.Timeout(),
			errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			pause(ctx, 50*time.Millisecond)
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		from := addrOf(raw.RemoteAddr())
		leave, ok := t.halfOpen.enter(from.Addr())
		if !ok {
			dropTCP(raw)
			t.refused(from, &refusal{reason: refusedHalfOpen, text: "too many connections are in their handshake"})
			continue
		}
		handshakes.Go(func() {
			defer leave()
			t.greet(ctx, raw, from)
		})
	}
}

// greet finds out who it is, and hands the connection to the peer's task.
func (t *transport) greet(ctx context.Context, raw *net.TCPConn, from netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, t.pace.connect)
	defer cancel()
	counted := &countedConn{Conn: raw}
	var peer string
	var key policy.PublicKey
	config, old := t.tlsConfig(t.acceptPeers(&peer, &key)), false
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		old = !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) // which ends the handshake
		return nil, nil
	}
	conn := tls.Server(counted, config)
	err := tuneTCP(raw)
	if err == nil {
		err = conn.HandshakeContext(ctx)
	}
	if old {
		err = &refusal{reason: refusedVersion, text: "it does not speak TLS 1.3"}
	}
	if err != nil {
		t.refused(from, err)
		sayGoodbye(ctx, raw, err)
		return
	}
	t.mu.Lock()
	l := t.links[peer]
	t.mu.Unlock()
	s := &session{conn: conn, counted: counted, key: key, inbound: true}
	if l == nil || !l.offer(s) {
		s.close() // it has left the configuration meanwhile
	}
}

// sayGoodbye closes a connection that was refused. What the other side is still
// sending is read: else the kernel answers it with a reset, which may overtake
// the alert that says why.
func sayGoodbye(ctx context.Context, raw *net.TCPConn, why error) {
	defer dropTCP(raw)
	var refused *refusal
	if !errors.As(why, &refused) || raw.CloseWrite() != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	_, _ = io.CopyN(io.Discard, raw, 64<<10)
}

// refused counts, and tells of keys that nobody knows.
func (t *transport) refused(from netip.AddrPort, err error) {
	reason := reasonOf(err)
	var shown policy.PublicKey
	var refused *refusal
	if errors.As(err, &refused) {
		shown = refused.key
	}
	t.mu.Lock()
	t.counts[reason]++
	for _, l := range t.links {
		if plainAddr(l.peer.Address.Addr()) == from.Addr() {
			l.refused(reason, shown, err)
		}
	}
	tell, more := false, uint64(0)
	if !shown.IsZero() {
		tell, more = t.unknown.due(time.Now())
	}
	t.mu.Unlock()
	if !tell {
		t.log.Debug("connection to sync.listen refused", "from", from, "reason", reason, "error", err)
		return
	}
	t.log.Warn("connection to sync.listen refused", "from", from, "reason", reason, "key", shown.String(), "error", err, "untold", more)
}

// unknownLog lets one line a second through.
type unknownLog struct {
	last   time.Time
	untold uint64
}

func (u *unknownLog) due(now time.Time) (tell bool, untold uint64) {
	if now.Sub(u.last) < time.Second {
		u.untold++
		return false, 0
	}
	untold, u.last, u.untold = u.untold, now, 0
	return true, untold
}
