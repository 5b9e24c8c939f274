// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// deaf is a peer's place in the configuration where nobody listens, so that the
// connection must come from the peer.
func (s *side) deaf() policy.PeerConfig {
	peer := s.peerOf()
	peer.Address = netip.AddrPortFrom(peer.Address.Addr(), 1)
	return peer
}

// noSession fails when somebody was served.
func (s *side) noSession() {
	s.t.Helper()
	select {
	case session := <-s.sessions:
		s.t.Errorf("%s has a session with %s", s.name, session.peer)
	default:
	}
}

// TestUnknownKey: each side alone keeps the session from being.
func TestUnknownKey(t *testing.T) {
	other := newSide(t, "router-x", "127.0.0.6").public.String()
	for _, c := range []struct {
		name           string
		spoilA, spoilB bool // the key that A (B) expects is another router's
	}{{"the dialler's key", false, true}, {"the listener's key", true, false}, {"both", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			a, b := newPair(t)
			toA, toB := a.deaf(), b.peerOf()
			if c.spoilA {
				toB.Key = other
			}
			if c.spoilB {
				toA.Key = other
			}
			b.start(b.configFor(toA))
			waitFor(t, func() bool { return canConnect(b.address) })
			a.start(policy.SyncConfig{Listen: a.address, Peers: []policy.PeerConfig{toB}})
			key, remedy := a.public.String(), `"vippin trust NAME `+a.public.String()+`" there`
			if c.spoilA {
				key, remedy = b.public.String(), fmt.Sprintf(`"vippin trust router-b %s"`, b.public)
			}
			waitFor(t, func() bool { return strings.Contains(a.link("router-b").LastError, remedy) })
			if l := a.link("router-b"); l.State == linkConnected || l.Sessions != 0 || !strings.Contains(l.LastError, key) {
				t.Errorf("%+v", l)
			}
			if !c.spoilA {
				waitFor(t, func() bool { return b.Refused()[refusedKey] > 3 })
				l := b.link("router-a")
				if l.ShownKey != key || l.Refused[refusedKey] == 0 {
					t.Errorf("%+v", l)
				}
				waitFor(t, func() bool { return strings.Contains(b.logged.String(), "key=\""+key) })
			}
			a.noSession()
			b.noSession()
		})
	}
}

// TestUnknownKeysAreToldOnceASecond, and how many were left out.
func TestUnknownKeysAreToldOnceASecond(t *testing.T) {
	var log unknownLog
	now := testNow
	var told, untold uint64
	for range 1000 {
		now = now.Add(5 * time.Millisecond)
		if tell, more := log.due(now); tell {
			told++
			untold += more
		}
	}
	if told != 5 || untold+told+log.untold != 1000 {
		t.Errorf("told %d, %d left out", told, untold)
	}
}

// TestTrustTakesEffect without a reload: given, and taken away again.
func TestTrustTakesEffect(t *testing.T) {
	a, b := newPair(t)
	toB := b.peerOf()
	toB.Key = ""
	b.start(b.configFor(a.deaf()))
	a.start(a.configFor(toB))
	waitFor(t, func() bool { return a.link("router-b").State == linkDown })
	if w := strings.Join(a.Warnings(), "\n"); !strings.Contains(w, `"vippin trust router-b KEY" here`) {
		t.Errorf("warnings: %s", w)
	}
	a.noSession()
	trust(t, a.trust, "router-b", b.public)
	trust(t, a.trust, "ruoter-b", a.public)
	session := a.next()
	b.next()
	if w := a.Warnings(); len(w) != 1 || !strings.Contains(w[0], `"ruoter-b" is trusted, but no peer`) {
		t.Errorf("warnings: %q", w)
	}
	if err := a.trust.Change(func(keys map[string]policy.PublicKey) error { delete(keys, "router-b"); return nil }); err != nil {
		t.Fatal(err)
	}
	session.wait(t)
	waitFor(t, func() bool { return a.link("router-b").Key == "" })
	if l := a.link("router-b"); l.LastError != errUntrusted.Error() {
		t.Errorf("%+v", l)
	}
}

func trust(t *testing.T, store trustStore, name string, key policy.PublicKey) {
	t.Helper()
	err := store.Change(func(keys map[string]policy.PublicKey) error { keys[name] = key; return nil })
	if err != nil {
		t.Fatal(err)
	}
}

// TestOwnKey: a disk that was copied.
func TestOwnKey(t *testing.T) {
	a, b := newPair(t)
	b.transport.key, b.transport.public, b.transport.cert = a.transport.key, a.public, a.cert
	a.start(a.configFor(b.deaf()))
	waitFor(t, func() bool { return canConnect(a.address) })
	if w := strings.Join(a.Warnings(), ""); !strings.Contains(w, "is this router's own") {
		t.Errorf("warnings: %s", w)
	}
	waitFor(t, func() bool { return strings.Contains(a.link("router-b").LastError, "own") })
	toA := a.peerOf()
	toA.Key = newSide(t, "", "127.0.0.6").public.String() // whatever it expects
	b.start(b.configFor(toA))
	waitFor(t, func() bool { return strings.Contains(b.link("router-a").LastError, "was a disk copied?") })
	conn, err := tls.Dial("tcp", a.address.String(), b.tlsConfig(func(policy.PublicKey) error { return nil }))
	if err == nil {
		defer conn.Close()
	}
	waitFor(t, func() bool { return a.Refused()[refusedOwnKey] == 1 })
	a.noSession()
}

// TestRefusedHandshakes: what is no peer ends in the handshake, is counted, and
// a peer gets in meanwhile.
func TestRefusedHandshakes(t *testing.T) {
	a, b := newPair(t)
	b.listens(a)
	good := func() *tls.Config {
		return a.tlsConfig(func(policy.PublicKey) error { return nil })
	}
	withTLS := func(spoil func(*tls.Config)) func(net.Conn) {
		config := good()
		spoil(config)
		return func(conn net.Conn) {
			if err := tls.Client(conn, config).Handshake(); err == nil {
				_, _ = io.Copy(io.Discard, conn)
			}
		}
	}
	for _, c := range []struct {
		name, reason string
		act          func(net.Conn)
	}{
		{"TLS 1.2", refusedVersion, withTLS(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })},
		{"no certificate", refusedHandshake, withTLS(func(c *tls.Config) { c.Certificates = nil })},
		{"another protocol", refusedHandshake, withTLS(func(c *tls.Config) { c.NextProtos = []string{"h2"} })},
		{"no protocol", refusedHandshake, withTLS(func(c *tls.Config) { c.NextProtos = nil })},
		{"a key of another kind", refusedKey, withTLS(func(c *tls.Config) { c.Certificates = []tls.Certificate{ecdsaCertificate(t)} })},
		{"a known key without having it", refusedHandshake, withTLS(func(c *tls.Config) { c.Certificates = []tls.Certificate{forged(t, a)} })},
		{"garbage", refusedHandshake, func(conn net.Conn) { _, _ = io.CopyN(conn, rand.Reader, 1<<16) }},
		{"HTTP", refusedHandshake, func(conn net.Conn) { _, _ = io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n") }},
		{"a huge record", refusedHandshake, func(conn net.Conn) { _, _ = conn.Write([]byte{22, 3, 3, 0xff, 0xff, 1, 2, 3}) }},
		{"hangs up", refusedHandshake, func(conn net.Conn) { conn.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) { b.refuses(t, c.reason, c.act) })
	}
	b.noSession()
	a.start(a.configFor(b.peerOf()))
	a.next()
	b.next()
}

// listens starts s, and waits until the connection that shows it is counted.
func (s *side) listens(peer *side) {
	s.t.Helper()
	s.start(s.configFor(peer.deaf()))
	waitFor(s.t, func() bool { return canConnect(s.address) })
	waitFor(s.t, func() bool { return s.Refused()[refusedHandshake] == 1 })
}

// refuses wants a connection to be closed and counted, whatever it says.
func (s *side) refuses(t *testing.T, reason string, act func(net.Conn)) {
	t.Helper()
	before := s.Refused()
	conn, err := net.Dial("tcp", s.address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	act(conn)
	_, _ = io.Copy(io.Discard, conn) // until it is closed
	waitFor(t, func() bool { return s.Refused()[reason] == before[reason]+1 })
}

// TestHangingHandshakes end when their time is over.
func TestHangingHandshakes(t *testing.T) {
	a, b := newPair(t)
	b.pace.connect = 200 * time.Millisecond
	b.listens(a)
	for name, said := range map[string]string{"nothing": "", "an octet and no more": "\x16"} {
		t.Run(name, func(t *testing.T) {
			b.refuses(t, refusedHandshake, func(conn net.Conn) { _, _ = io.WriteString(conn, said) })
		})
	}
	b.noSession()
}

func ecdsaCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// forged shows the owner's certificate and signs with another key.
func forged(t *testing.T, owner *side) tls.Certificate {
	t.Helper()
	return tls.Certificate{Certificate: owner.cert.Certificate, PrivateKey: newSide(t, "", "127.0.0.6").key}
}

// TestImpostorListens: who shows a peer's certificate without having its key is
// not told a word.
func TestImpostorListens(t *testing.T) {
	a, b := newPair(t)
	listener, err := net.Listen("tcp", b.address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	heard := make(chan string, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			heard <- err.Error()
			return
		}
		defer conn.Close()
		config := b.tlsConfig(func(policy.PublicKey) error { return nil })
		config.Certificates = []tls.Certificate{forged(t, b)}
		server := tls.Server(conn, config)
		_ = server.Handshake()
		text, _ := io.ReadAll(server)
		heard <- string(text)
	}()
	if s, err := a.dial(t.Context(), b.peerOf(), b.public); err == nil {
		s.close()
		t.Error("connected with an impostor")
	}
	if text := <-heard; text != "" {
		t.Errorf("the impostor heard %q", text)
	}
}

// TestHalfOpenFlood holds many connections open that never say a word. A peer
// gets in, what is too much is closed at once, and goroutines do not pile up.
func TestHalfOpenFlood(t *testing.T) {
	flood := 400
	if os.Getenv("VIPPIN_FULL") != "" { // make test FULL=1
		flood = 10_000
	}
	a, b := newPair(t)
	b.pace.connect = time.Hour // nobody's time is over
	b.start(b.configFor(a.deaf()))
	waitFor(t, func() bool { return canConnect(b.address) })
	before := runtime.NumGoroutine()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	for range flood {
		conn, err := dialer.Dial("tcp", b.address.String())
		switch {
		case errors.Is(err, unix.ECONNRESET): // refused that fast
		case err != nil:
			t.Fatal(err)
		default:
			defer conn.Close()
		}
	}
	const strangers = halfOpenMax - halfOpenPerPeer
	waitFor(t, func() bool { return b.Refused()[refusedHalfOpen] == uint64(flood-strangers) })
	if more := runtime.NumGoroutine() - before; more > 2*strangers+10 {
		t.Errorf("%d more goroutines", more)
	}
	a.start(a.configFor(b.peerOf()))
	a.next()
	b.next()
	if l := b.link("router-a"); l.Refused[refusedHalfOpen] != 0 {
		t.Errorf("the peer was refused: %v", l.Refused)
	}
}

func TestHalfOpen(t *testing.T) {
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}) }
	peers := func(count int) (list []policy.PeerConfig) {
		for i := range count {
			list = append(list, policy.PeerConfig{Address: netip.AddrPortFrom(addr(i), 7443)})
		}
		return list
	}
	stranger := netip.MustParseAddr("203.0.113.1")
	fill := func(h *halfOpen, from netip.Addr) (leave []func()) {
		for {
			gone, ok := h.enter(from)
			if !ok {
				return leave
			}
			leave = append(leave, gone)
		}
	}
	for count, share := range map[int]int{0: 0, 1: 4, 12: 4, 13: 3, 48: 1, 60: 1} {
		var h halfOpen
		h.reserve(peers(count))
		counted := min(count, halfOpenPeers)
		strangers := fill(&h, stranger)
		if len(strangers) != halfOpenMax-share*counted {
			t.Errorf("%d peers: %d strangers", count, len(strangers))
		}
		total := len(strangers)
		for i := range count {
			own := fill(&h, addr(i))
			total += len(own)
			if i < counted && len(own) != share {
				t.Errorf("%d peers: peer %d has %d places", count, i, len(own))
			}
		}
		if total > halfOpenMax {
			t.Errorf("%d peers: %d in all", count, total)
		}
		for _, leave := range strangers {
			leave()
		}
		if again := fill(&h, stranger); len(again) != len(strangers) {
			t.Errorf("%d peers: %d of %d places were given back", count, len(again), len(strangers))
		}
	}
}

// TestHalfOpenReload: a peer that leaves the configuration while it is in the
// handshake takes no place with it.
func TestHalfOpenReload(t *testing.T) {
	peer := policy.PeerConfig{Address: netip.MustParseAddrPort("198.51.100.1:7443")}
	from := peer.Address.Addr()
	var h halfOpen
	h.reserve([]policy.PeerConfig{peer})
	asPeer, _ := h.enter(from)
	h.reserve(nil)
	asOther, _ := h.enter(from)
	h.reserve([]policy.PeerConfig{peer})
	again, _ := h.enter(from)
	again()
	asPeer()
	asOther()
	if h.others != 0 || *h.peers[from] != 0 {
		t.Errorf("%d others, %d of the peer's", h.others, *h.peers[from])
	}
	for range 2 * halfOpenMax { // places of peers that leave again and again count
		h.reserve([]policy.PeerConfig{peer})
		h.enter(from)
		h.reserve(nil)
	}
	used := h.others
	for _, left := range h.left {
		used += *left
	}
	if used != halfOpenMax {
		t.Errorf("%d places are taken", used)
	}
}

// TestTCPOptions: a peer that is silent or does not read is given up.
func TestTCPOptions(t *testing.T) {
	a, b := newPair(t)
	b.start(b.configFor(a.deaf()))
	waitFor(t, func() bool { return canConnect(b.address) })
	s, err := a.dial(t.Context(), b.peerOf(), b.public)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, conn := range []net.Conn{s.conn, b.next().conn} {
		if got := userTimeout(t, conn); got != unansweredFor {
			t.Errorf("TCP_USER_TIMEOUT is %v", got)
		}
	}
}

func userTimeout(t *testing.T, conn net.Conn) time.Duration {
	t.Helper()
	raw, err := conn.(*tls.Conn).NetConn().(*countedConn).Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ms int
	var failed error
	err = raw.Control(func(fd uintptr) { ms, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ms) * time.Millisecond
}

// TestDialTrouble is told in words that help.
func TestDialTrouble(t *testing.T) {
	a, b := newPair(t)
	dial := func() string {
		s, err := a.dial(t.Context(), b.peerOf(), b.public)
		if err == nil {
			s.close()
			return ""
		}
		return err.Error()
	}
	wantIn(t, dial(), "nobody listens at "+b.address.String())
	listener, err := net.Listen("tcp", b.address.String())
	if err != nil {
		t.Fatal(err)
	}
	a.pace.connect = 50 * time.Millisecond
	wantIn(t, dial(), "no answer from "+b.address.String())
	a.pace.connect = hasty.connect
	var closing sync.WaitGroup
	defer closing.Wait()
	defer listener.Close()
	closing.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	})
	wantIn(t, dial(), "it hung up")
	a.Set(policy.SyncConfig{Listen: netip.MustParseAddrPort("203.0.113.77:7443")})
	wantIn(t, dial(), "sync.listen is not on this router")
}

// TestDialEndsWithItsContext while the other side keeps silent.
func TestDialEndsWithItsContext(t *testing.T) {
	a, b := newPair(t)
	listener, err := net.Listen("tcp", b.address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := a.dial(ctx, b.peerOf(), b.public); done <- err }()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
