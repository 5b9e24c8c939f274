// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"vippin/policy"
)

// link is one peer of the configuration: a task that sees to it that there is
// one connection.
type link struct {
	task
	t    *transport
	peer policy.PeerConfig

	arrived chan struct{} // waiting has something new

	mu       sync.Mutex
	waiting  *session  // accepted, not yet taken
	ended    bool      // nobody will take it any more
	current  *session  // served
	lost     time.Time // when the last session ended; zero: there was none
	failures int       // in a row, of dials and of short sessions
	told     linkStatus
}

// linkStatus is a peer as the transport sees it. The counters are since the
// start, or since its address or key was last changed.
type linkStatus struct {
	Key      string // the public key it must have; "" = none is known
	State    string // down, connecting, connected
	Since    time.Time
	Remote   netip.AddrPort // while connected
	Sessions uint64

	BytesSent, BytesReceived uint64            // as the wire sees them
	Refused                  map[string]uint64 // connections from its address, by reason
	ShownKey                 string            // the last key that was refused there
	LastError                string
	LastErrorAt              time.Time
}

// The states of linkStatus.
const (
	linkDown       = "down" // the last try failed, or there is no key
	linkConnecting = "connecting"
	linkConnected  = "connected" // and served
)

// session is an authenticated connection to a peer.
type session struct {
	conn    *tls.Conn
	counted *countedConn
	key     policy.PublicKey
	inbound bool
	began   time.Time // to be served
}

// close does not wait for the peer: a goodbye could.
func (s *session) close() { s.counted.Close() }

func newLink(t *transport, peer policy.PeerConfig) *link {
	return &link{
		t: t, peer: peer, arrived: make(chan struct{}, 1),
		told: linkStatus{State: linkConnecting, Since: time.Now(), Refused: make(map[string]uint64)},
	}
}

func (l *link) run(ctx context.Context) {
	defer l.end()
	for ctx.Err() == nil {
		s, err := l.connect(ctx)
		if err != nil {
			l.failed(err)
			continue
		}
		if s != nil {
			l.attend(ctx, s)
		}
	}
}

// offer hands over a connection that was accepted; false: too late. The newest
// one counts.
func (l *link) offer(s *session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	if l.waiting != nil {
		l.waiting.close()
	}
	l.waiting = s
	poke(l.arrived)
	return true
}

// take returns what was offered last, or nil.
func (l *link) take() *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.waiting
	l.waiting = nil
	return s
}

func (l *link) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.waiting != nil {
		l.waiting.close()
	}
}

// connect waits for the peer's connection, and dials when it is time to: nil and
// no error when ctx has ended.
func (l *link) connect(ctx context.Context) (*session, error) {
	keys, err := l.t.keys()
	key, known := keys[l.peer.Name]
	l.setKey(key, known)
	wait := l.backoff()
	prefers := lessKey(l.t.public, key)
	switch {
	case !known || key == l.t.public: // Warnings says so
		wait = l.t.pace.recheck
	case !prefers:
		wait = max(wait, l.patience())
	}
	s := l.await(ctx, wait)
	switch {
	case s != nil || ctx.Err() != nil:
		return s, nil
	case !known:
		return nil, err
	case key == l.t.public:
		return nil, errors.New("its key is this router's own")
	}
	return l.dial(ctx, key, prefers)
}

// await returns the connection that the peer makes, or nil when the time is over.
func (l *link) await(ctx context.Context, wait time.Duration) *session {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-l.arrived:
			if s := l.take(); s != nil {
				return s
			}
		case <-timer.C:
			return l.take()
		case <-ctx.Done():
			return nil
		}
	}
}

// dial returns the connection that is there first, ours or the peer's. Two
// routers that dial at once agree: the one that prefers to dial lets the peer's
// wait for its own.
func (l *link) dial(ctx context.Context, key policy.PublicKey, prefers bool) (*session, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		s   *session
		err error
	}
	dialled := make(chan result, 1)
	go func() {
		s, err := l.t.dial(ctx, l.peer, key)
		dialled <- result{s, err}
	}()
	arrived, hold := l.arrived, (<-chan time.Time)(nil)
	if prefers {
		timer := time.NewTimer(l.t.pace.hold)
		defer timer.Stop()
		arrived, hold = nil, timer.C
	}
	for {
		select {
		case r := <-dialled:
			if r.s != nil {
				l.refuseWaiting()
			}
			return r.s, r.err
		case <-hold:
			arrived = l.arrived
		case <-arrived:
			s := l.take()
			if s == nil {
				continue
			}
			cancel()
			if r := <-dialled; r.s != nil {
				r.s.close()
			}
			return s, nil
		}
	}
}

func (l *link) refuseWaiting() {
	if s := l.take(); s != nil {
		s.close()
	}
}

var (
	errReplaced  = errors.New("it has made a new connection")
	errUntrusted = errors.New("its key is no longer trusted")
)

// attend lets a connection be served, and the ones that replace it, until there
// is none.
func (l *link) attend(ctx context.Context, s *session) {
	recheck := time.NewTicker(l.t.pace.recheck)
	defer recheck.Stop()
	for s != nil {
		s.began = time.Now()
		serving, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		l.begin(s)
		go func() { done <- l.serve(serving, s) }()
		next, why := l.watch(ctx, s, done, recheck.C)
		cancel()
		s.close()
		if why == nil {
			why = <-done
		} else {
			<-done
		}
		l.over(s, why, time.Since(s.began), ctx.Err() != nil)
		s = next
	}
}

// watch returns when a session should end or has ended: nil, and what serve
// returned waits in done.
func (l *link) watch(ctx context.Context, s *session, done chan error, recheck <-chan time.Time) (next *session, why error) {
	for {
		select {
		case err := <-done:
			done <- err
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-l.arrived:
			next := l.take()
			switch {
			case next == nil:
			case crossed(l.t.public, s, next, l.t.pace.hold):
				next.close()
			default:
				return next, errReplaced
			}
		case <-recheck:
			if keys, err := l.t.keys(); err == nil && keys[l.peer.Name] != s.key {
				return nil, errUntrusted
			}
		}
	}
}

// crossed tells whether the peer's connection set out before it knew of ours, so
// that the peer has given it up by now.
func crossed(own policy.PublicKey, ours, theirs *session, hold time.Duration) bool {
	return lessKey(own, theirs.key) && !ours.inbound && theirs.inbound && time.Since(ours.began) < hold
}

// welcome is what the accepting side says first. Before it the other side cannot
// know whether its key was accepted: in TLS 1.3 the client is done first.
const welcome = 1

func (l *link) serve(ctx context.Context, s *session) error {
	if s.inbound {
		err := s.conn.SetWriteDeadline(time.Now().Add(l.t.pace.connect))
		if err == nil {
			_, err = s.conn.Write([]byte{welcome})
		}
		if err == nil {
			err = s.conn.SetWriteDeadline(time.Time{})
		}
		if err != nil {
			return fmt.Errorf("welcome it: %w", err)
		}
	}
	return l.t.serve(ctx, l.peer.Name, s.conn)
}

func (l *link) begin(s *session) {
	remote := addrOf(s.counted.RemoteAddr())
	l.mu.Lock()
	l.current = s
	l.told.Sessions++
	l.told.Remote = remote
	l.told.Key = s.key.String()
	l.enter(linkConnected)
	l.mu.Unlock()
	l.t.log.Info("peer connected", "peer", l.peer.Name, "at", remote, "inbound", s.inbound)
}

func (l *link) over(s *session, why error, lasted time.Duration, leaving bool) {
	l.mu.Lock()
	l.told.BytesSent += s.counted.out.Load()
	l.told.BytesReceived += s.counted.in.Load()
	l.current, l.lost = nil, time.Now()
	l.told.Remote = netip.AddrPort{}
	if lasted > l.t.pace.retryMax {
		l.failures = 0
	} else if !errors.Is(why, errReplaced) {
		l.failures++ // a peer that always hangs up is not dialled without a pause
	}
	l.enter(linkConnecting)
	if why != nil && !leaving {
		l.note(why)
	}
	l.mu.Unlock()
	l.t.log.Info("peer disconnected", "peer", l.peer.Name, "after", lasted.Round(time.Millisecond), "because", why)
}

// failed notes why there is no connection. A reason is logged once.
func (l *link) failed(err error) {
	l.mu.Lock()
	l.failures++
	l.enter(linkDown)
	told := l.told.LastError == err.Error()
	l.note(err)
	l.mu.Unlock()
	if !told {
		l.t.log.Warn("no connection to peer", "peer", l.peer.Name, "error", err)
	}
}

func (l *link) refused(reason string, shown policy.PublicKey, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told.Refused[reason]++
	if shown.IsZero() {
		return
	}
	l.told.ShownKey = shown.String()
	l.note(fmt.Errorf("a connection from its address was refused: %w", err))
}

// note and enter are called with mu held.
func (l *link) note(err error) { l.told.LastError, l.told.LastErrorAt = err.Error(), time.Now() }

func (l *link) enter(state string) {
	if l.told.State != state {
		l.told.State, l.told.Since = state, time.Now()
	}
}

func (l *link) setKey(key policy.PublicKey, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known {
		l.told.Key = key.String()
		return
	}
	l.told.Key = ""
	l.enter(linkDown)
}

func (l *link) status() linkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.told
	s.Refused = maps.Clone(s.Refused)
	if l.current != nil {
		s.BytesSent += l.current.counted.out.Load()
		s.BytesReceived += l.current.counted.in.Load()
	}
	return s
}
