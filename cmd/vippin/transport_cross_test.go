// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"vippin/policy"
)

// TestDialsCross holds up what the router that prefers to dial sends, until its
// peer's connection is there: it waits for its own all the same.
func TestDialsCross(t *testing.T) {
	a, b := newPair(t)
	b.start(b.configFor(a.deaf()))
	waitFor(t, func() bool { return canConnect(b.address) })
	gate := make(chan struct{})
	toB := b.peerOf()
	toB.Address = addrOf(gated(t, gate, b.address.String()).Addr())
	a.start(a.configFor(toB))

	refused := make(chan error, 1)
	waitFor(t, func() bool { return canConnect(a.address) })
	go func() {
		s, err := b.dial(t.Context(), a.peerOf(), a.public)
		if err == nil {
			s.close()
		}
		refused <- err
	}()
	a.mu.Lock()
	l := a.links["router-b"]
	a.mu.Unlock()
	waitFor(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.waiting != nil
	})
	close(gate)
	session := a.next()
	b.next()
	if got := addrOf(session.conn.RemoteAddr()); got != toB.Address {
		t.Errorf("a is connected with %s, not with what it dialled", got)
	}
	if err := <-refused; err == nil {
		t.Error("b's connection was welcome, too")
	}
	a.noSession()
}

// gated listens and forwards, once gate is closed.
func gated(t *testing.T, gate <-chan struct{}, to string) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.7:0")
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	t.Cleanup(func() { listener.Close(); tasks.Wait() })
	tasks.Go(func() {
		in, err := listener.Accept()
		if err != nil {
			return
		}
		<-gate
		out, err := net.Dial("tcp", to)
		if err != nil {
			in.Close()
			return
		}
		for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
			tasks.Go(func() {
				_, _ = io.Copy(way[0], way[1])
				in.Close()
				out.Close()
			})
		}
	})
	return listener
}

// TestLateCrossing: a connection that the peer gave up when ours came is still
// on its way. It does not replace ours while that is young.
func TestLateCrossing(t *testing.T) {
	for _, young := range []bool{true, false} {
		a, b := newPair(t)
		if !young {
			a.pace.hold = 0
		}
		b.start(b.configFor(a.deaf()))
		waitFor(t, func() bool { return canConnect(b.address) })
		a.start(policy.SyncConfig{Listen: a.address, Peers: []policy.PeerConfig{b.peerOf()}})
		atA, atB := a.next(), b.next()
		waitFor(t, func() bool { return canConnect(a.address) })
		s, err := b.dial(t.Context(), a.peerOf(), a.public)
		if err == nil {
			s.close()
		}
		if refused := err != nil; refused != young {
			t.Errorf("young %v, refused %v: %v", young, refused, err)
		}
		if !young {
			atA.wait(t)
			continue
		}
		atA.say(t, "still here")
		waitFor(t, func() bool { return atB.heard.String() == "still here" })
		if most := a.link("router-b").Sessions; most != 1 {
			t.Errorf("%d sessions", most)
		}
	}
}

// TestPatience: the router with the greater key dials once at its start, and
// leaves it to its peer after each session.
func TestPatience(t *testing.T) {
	a, b := newPair(t)
	b.pace.passive, b.pace.retry, b.pace.retryMax = time.Hour, 1, 1
	listener, err := net.Listen("tcp", a.address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b.start(b.configFor(a.peerOf()))
	waitFor(t, func() bool { return canConnect(b.address) })
	first, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for range 5 {
		s, err := a.dial(t.Context(), b.peerOf(), b.public)
		if err != nil {
			t.Fatal(err)
		}
		session := b.next()
		s.close()
		session.wait(t)
		waitFor(t, func() bool { return b.link("router-a").State == linkConnecting })
	}
	if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if conn, err := listener.Accept(); err == nil {
		conn.Close()
		t.Error("it dials again")
	}
}

// TestDialNeedsTLS13, whoever listens.
func TestDialNeedsTLS13(t *testing.T) {
	a, b := newPair(t)
	config := b.tlsConfig(func(policy.PublicKey) error { return nil })
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	listener, err := tls.Listen("tcp", b.address.String(), config)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := listener.Accept(); err == nil {
			defer conn.Close()
			_, _ = conn.Write([]byte{welcome})
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
	s, err := a.dial(t.Context(), b.peerOf(), b.public)
	if err == nil {
		s.close()
		t.Error("TLS 1.2 is good enough")
	}
	listener.Close()
	<-done
}
