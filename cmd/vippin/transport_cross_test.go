// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net"
	"sync"
	"testing"

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
