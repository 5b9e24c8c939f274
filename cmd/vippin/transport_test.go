// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vippin/policy"
)

// side is one router's transport, with an address of its own on the loopback.
type side struct {
	*transport
	t        *testing.T
	name     string
	address  netip.AddrPort
	logged   lockedBuffer
	sessions chan *served
	living   atomic.Int32 // sessions that are served now
	most     atomic.Int32
}

// served is one call of serve. It ends with the connection, or by hand.
type served struct {
	peer  string
	conn  net.Conn
	hurry chan struct{} // closed: return at once
	ended chan struct{} // closed: has returned
	heard lockedBuffer
}

// hasty is for tests that wait for none of it to run out.
var hasty = pace{
	connect: 20 * time.Second, passive: 50 * time.Millisecond, hold: 10 * time.Second,
	retry: 2 * time.Millisecond, retryMax: 20 * time.Millisecond, recheck: 5 * time.Millisecond,
}

// newPair makes two sides that could connect; the first one has the smaller key.
func newPair(t *testing.T) (a, b *side) {
	t.Helper()
	a, b = newSide(t, "router-a", "127.0.0.1"), newSide(t, "router-b", "127.0.0.2")
	if lessKey(b.public, a.public) {
		a.transport, b.transport = b.transport, a.transport
		a.transport.serve, b.transport.serve = a.serve, b.serve
		a.log, b.log = b.log, a.log
	}
	return a, b
}

func newSide(t *testing.T, name, ip string) *side {
	t.Helper()
	listener, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &side{t: t, name: name, address: addrOf(listener.Addr()), sessions: make(chan *served, 1024)}
	listener.Close()
	dir := t.TempDir()
	key, made, err := keyStore{dir}.LoadOrMake()
	if err != nil || !made {
		t.Fatal(made, err)
	}
	log := slog.New(slog.NewTextHandler(&s.logged, nil))
	if s.transport, err = newTransport(key, trustStore{dir}, s.serve, log); err != nil {
		t.Fatal(err)
	}
	s.pace = hasty
	return s
}

func (s *side) serve(ctx context.Context, peer string, conn net.Conn) error {
	if now := s.living.Add(1); now > s.most.Load() {
		s.most.Store(now)
	}
	defer s.living.Add(-1)
	session := &served{peer: peer, conn: conn, hurry: make(chan struct{}), ended: make(chan struct{})}
	defer close(session.ended)
	s.sessions <- session
	read := make(chan error, 1)
	go func() { _, err := io.Copy(&session.heard, conn); read <- err }()
	select {
	case <-session.hurry:
		conn.Close()
		return <-read
	case <-ctx.Done():
		return <-read // the transport closes the connection
	case err := <-read:
		return err
	}
}

// peerOf is how another router's configuration names s.
func (s *side) peerOf() policy.PeerConfig {
	return policy.PeerConfig{Name: s.name, Address: s.address, Key: s.public.String()}
}

func (s *side) configFor(peers ...policy.PeerConfig) policy.SyncConfig {
	return policy.SyncConfig{Listen: s.address, Peers: peers}
}

// start runs the transport until the test ends, or until stop.
func (s *side) start(config policy.SyncConfig) (stop func()) {
	s.t.Helper()
	s.Set(config)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		if living := s.living.Load(); living != 0 {
			s.t.Errorf("%s: Run has returned and %d sessions are served", s.name, living)
		}
	})
	s.t.Cleanup(stop)
	for _, peer := range config.Peers {
		waitFor(s.t, func() bool { _, known := s.Peer(peer.Name); return known })
	}
	return stop
}

func (s *side) next() *served {
	s.t.Helper()
	select {
	case session := <-s.sessions:
		return session
	case <-time.After(30 * time.Second):
		s.t.Fatalf("%s: no session; warnings %q, log:\n%s", s.name, s.Warnings(), s.logged.String())
		return nil
	}
}

func (s *side) link(name string) linkStatus {
	s.t.Helper()
	l, known := s.Peer(name)
	if !known {
		s.t.Fatalf("%s knows no peer %s", s.name, name)
	}
	return l
}

func (v *served) wait(t *testing.T) {
	t.Helper()
	select {
	case <-v.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("a session goes on that should end")
	}
}

func (v *served) say(t *testing.T, text string) {
	t.Helper()
	if _, err := v.conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestPeersConnect(t *testing.T) {
	a, b := newPair(t)
	stopA := a.start(a.configFor(b.peerOf()))
	b.start(b.configFor(a.peerOf()))
	atA, atB := a.next(), b.next()
	if atA.peer != "router-b" || atB.peer != "router-a" {
		t.Errorf("%s and %s", atA.peer, atB.peer)
	}
	const plain = "the first words of a session"
	atA.say(t, plain)
	atB.say(t, plain)
	waitFor(t, func() bool { return atA.heard.String() == plain && atB.heard.String() == plain })
	ab, ba := a.link("router-b"), b.link("router-a")
	if ab.State != linkConnected || ab.Sessions != 1 || ab.Key != b.public.String() {
		t.Errorf("%+v", ab)
	}
	if ba.Remote.Addr() != a.address.Addr() || ab.Remote.Addr() != b.address.Addr() {
		t.Errorf("b sees %s, a sees %s", ba.Remote, ab.Remote)
	}
	if ab.BytesSent == 0 || ab.BytesSent != ba.BytesReceived || ba.BytesSent != ab.BytesReceived {
		t.Errorf("octets: %+v %+v", ab, ba)
	}
	if w := append(a.Warnings(), b.Warnings()...); len(w) > 0 {
		t.Errorf("%q", w)
	}
	stopA()
	atA.wait(t)
	atB.wait(t)
	waitFor(t, func() bool { return b.link("router-a").State == linkDown })
	if ba := b.link("router-a"); ba.LastError == "" || ba.Remote.IsValid() {
		t.Errorf("%+v", ba)
	}
}

// TestTheSmallerKeyDials: the other one leaves it to its peer.
func TestTheSmallerKeyDials(t *testing.T) {
	for _, reachable := range []bool{true, false} {
		a, b := newPair(t)
		toB := b.peerOf()
		if !reachable {
			toB.Address = netip.AddrPortFrom(toB.Address.Addr(), 1) // nobody listens there
			b.pace.passive = 0
		} else {
			b.pace.passive = time.Hour
		}
		a.start(a.configFor(toB))
		b.start(b.configFor(a.peerOf()))
		a.next()
		first := b.next()
		if reachable { // whoever was first: a dials the next one
			close(first.hurry)
			a.next()
			b.next()
		}
		if dialled := b.link("router-a").Remote == a.address; dialled == reachable {
			t.Errorf("b dialled %v, a could %v", dialled, reachable)
		}
	}
}

// TestBothDial starts two routers at the same moment, again and again: they
// agree on one connection, and no session is begun in vain.
func TestBothDial(t *testing.T) {
	for range 30 {
		a, b := newPair(t)
		var started sync.WaitGroup
		var stops [2]func()
		started.Go(func() { stops[0] = a.start(a.configFor(b.peerOf())) })
		started.Go(func() { stops[1] = b.start(b.configFor(a.peerOf())) })
		started.Wait()
		for {
			atA, atB := a.next(), b.next()
			one, other := atA.conn, atB.conn
			if one.LocalAddr().String() == other.RemoteAddr().String() && one.RemoteAddr().String() == other.LocalAddr().String() {
				atA.say(t, "x")
				waitFor(t, func() bool { return atB.heard.String() == "x" })
				break
			}
		}
		stops[0]()
		stops[1]()
		if a.most.Load() != 1 || b.most.Load() != 1 {
			t.Fatalf("%d and %d sessions at once", a.most.Load(), b.most.Load())
		}
	}
}

// TestNewestConnectionCounts: a peer that comes anew is believed, whatever its
// old connection looks like.
func TestNewestConnectionCounts(t *testing.T) {
	a, b := newPair(t)
	b.pace.passive = time.Hour
	b.start(b.configFor(a.peerOf()))
	waitFor(t, func() bool { return canConnect(b.address) })
	a.Set(a.configFor(b.peerOf()))
	var old *served
	for range 3 {
		s, err := a.dial(t.Context(), b.peerOf(), b.public)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		session := b.next()
		if old != nil {
			select {
			case <-old.ended:
			default:
				t.Error("the new session began before the old one had ended")
			}
		}
		old = session
	}
	if l := b.link("router-a"); l.LastError != errReplaced.Error() || l.State != linkConnected || l.Sessions != 3 {
		t.Errorf("%+v", l)
	}
	if b.most.Load() != 1 {
		t.Errorf("%d sessions at once", b.most.Load())
	}
}

// TestReload changes peers and address while a session lives.
func TestReload(t *testing.T) {
	a, b := newPair(t)
	c := newSide(t, "router-c", "127.0.0.3")
	a.start(a.configFor(b.peerOf()))
	b.start(b.configFor(a.peerOf()))
	c.start(c.configFor(a.peerOf()))
	atA, atB := a.next(), b.next()

	a.Set(a.configFor(b.peerOf(), c.peerOf()))
	if third := a.next(); third.peer != "router-c" {
		t.Errorf("%s connected", third.peer)
	}
	moved := newSide(t, "", "127.0.0.4").address
	a.Set(policy.SyncConfig{Listen: moved, Peers: []policy.PeerConfig{c.peerOf(), b.peerOf()}})
	waitFor(t, func() bool { return canConnect(moved) && !canConnect(a.address) })
	atA.say(t, "still here")
	waitFor(t, func() bool { return atB.heard.String() == "still here" })

	a.Set(policy.SyncConfig{Listen: moved, Peers: []policy.PeerConfig{c.peerOf()}})
	atA.wait(t)
	atB.wait(t)
	if _, known := a.Peer("router-b"); known {
		t.Error("a removed peer is known")
	}
	waitFor(t, func() bool { return strings.Contains(b.link("router-a").LastError, "listens") })
	a.Set(policy.SyncConfig{})
	waitFor(t, func() bool { return !canConnect(moved) })
}

func canConnect(at netip.AddrPort) bool {
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// TestListenAddressComesLater: VRRP or a slow link may bring it.
func TestListenAddressComesLater(t *testing.T) {
	a, b := newPair(t)
	absent := netip.MustParseAddrPort("203.0.113.77:7443")
	a.start(policy.SyncConfig{Listen: absent, Peers: []policy.PeerConfig{b.peerOf()}})
	waitFor(t, func() bool {
		return strings.Contains(strings.Join(a.Warnings(), ""), "203.0.113.77 is not on this router")
	})
	waitFor(t, func() bool { return strings.Contains(a.link("router-b").LastError, "not on this router") })

	taken, err := net.Listen("tcp", a.address.String())
	if err != nil {
		t.Fatal(err)
	}
	a.Set(a.configFor(b.peerOf()))
	waitFor(t, func() bool { return strings.Contains(strings.Join(a.Warnings(), ""), "in use") })
	taken.Close()
	waitFor(t, func() bool { return len(a.Warnings()) == 0 })
	b.start(b.configFor(a.peerOf()))
	a.next()
}

// TestNothingReadableOnTheWire puts a listener between the two.
func TestNothingReadableOnTheWire(t *testing.T) {
	a, b := newPair(t)
	b.pace.passive = time.Hour
	b.start(b.configFor(a.peerOf()))
	through, captured := eavesdrop(t, b.address)
	toB := b.peerOf()
	toB.Address = through
	a.start(policy.SyncConfig{Peers: []policy.PeerConfig{toB}})
	var atA, atB *served
	for atA == nil || atA.conn.RemoteAddr().String() != through.String() { // b may have dialled once
		atA = a.next()
	}
	plain := strings.Repeat("198.51.100.2:4000 to 192.0.2.80:443 ", 200)
	atA.say(t, plain)
	waitFor(t, func() bool {
		select {
		case atB = <-b.sessions:
		default:
		}
		return atB != nil && atB.heard.String() == plain
	})
	atB.say(t, plain)
	waitFor(t, func() bool { return atA.heard.String() == plain })
	wire := []byte(captured.String())
	if len(wire) < 2*len(plain) {
		t.Fatalf("only %d octets were seen", len(wire))
	}
	for what, secret := range map[string][]byte{
		"words": []byte("198.51.100.2"), "a's key": a.public[:], "b's key": b.public[:], "a certificate": []byte("vippin\x30"),
	} {
		if bytes.Contains(wire, secret) {
			t.Errorf("%s can be read", what)
		}
	}
}

// eavesdrop forwards connections and keeps all that passes.
func eavesdrop(t *testing.T, to netip.AddrPort) (at netip.AddrPort, captured *lockedBuffer) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.5:0")
	if err != nil {
		t.Fatal(err)
	}
	captured = new(lockedBuffer)
	var tasks sync.WaitGroup
	t.Cleanup(func() { listener.Close(); tasks.Wait() })
	tasks.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to.String())
			if err != nil {
				in.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				tasks.Go(func() {
					_, _ = io.Copy(io.MultiWriter(captured, way[0]), way[1])
					in.Close()
					out.Close()
				})
			}
		}
	})
	return addrOf(listener.Addr()), captured
}
