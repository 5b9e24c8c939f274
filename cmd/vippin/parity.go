// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"vippin/policy"
	"vippin/policy/parity"
)

// The rhythm of comparing. What no event tells of (rules, sysctls) is looked at now
// and then; what changes is settled first, a takeover has the CPU to itself.
const (
	alikeEvery   = 30 * time.Second
	alikeSettle  = time.Second
	alikePause   = 5 * time.Second // between two looks, unless somebody asks
	alikeAnew    = 5 * time.Minute // what did not change is told again, for the clock's sake
	alikeStepped = time.Second     // the clock was set
	alikeWait    = 3 * time.Second // for the facts of a peer that is connected
)

// alike knows what this router and its peers say of themselves that should be
// alike. Nothing of it is done by the daemon's loop.
type alike struct {
	log    *slog.Logger
	now    func() time.Time
	mono   func() time.Duration
	gather func(context.Context) (*parity.Facts, error) // nil: there is nobody to compare with
	tell   func(context.Context)                        // has the peers told of digest

	wake chan struct{} // something may have changed here
	news chan struct{} // a peer has said something

	gathering sync.Mutex // one look at a time

	mu     sync.Mutex
	own    *parity.Facts // nil: not looked yet
	told   []byte        // without the time
	toldAt time.Duration
	clock  time.Time // at monotonic time 0
	peers  map[string]*peerFacts
	heardC chan struct{} // closed when a peer has said something
}

// peerFacts are of one peer that is connected.
type peerFacts struct {
	facts parity.Facts
	at    time.Time           // by this router's clock
	err   error               // it was not understood
	found []policy.Difference // nil: not compared yet
}

func newAlike(e *env, log *slog.Logger) *alike {
	return &alike{
		log: log, now: e.now, mono: e.monotonic, wake: make(chan struct{}, 1), news: make(chan struct{}, 1),
		peers: make(map[string]*peerFacts), heardC: make(chan struct{}),
	}
}

// Run looks and compares until ctx ends.
func (a *alike) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	looked, due := a.mono(), a.mono()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.news:
			a.compare()
		case <-a.wake:
			if soon := max(a.mono()+alikeSettle, looked+alikePause); soon < due {
				due = soon
				timer.Reset(max(0, due-a.mono()))
			}
		case <-timer.C:
			if err := a.look(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("look at what peers should have alike", "error", err)
			}
			looked, due = a.mono(), a.mono()+alikeEvery
			timer.Reset(alikeEvery)
		}
	}
}

// rouse says that something may have changed here.
func (a *alike) rouse() {
	poke(a.wake)
}

// look gathers this router's facts, tells peers of them if they have changed, and
// compares.
func (a *alike) look(ctx context.Context) error {
	a.gathering.Lock()
	defer a.gathering.Unlock()
	facts, err := a.gather(ctx)
	if facts == nil || err != nil {
		return err
	}
	if a.changed(facts) {
		a.tell(ctx)
	}
	a.compare()
	return nil
}

// changed keeps facts and tells whether peers should hear of them. That time passes
// is no change, but that it jumps.
func (a *alike) changed(facts *parity.Facts) bool {
	timeless := *facts
	timeless.Clock.Time = time.Time{}
	text, err := timeless.Encode()
	if err != nil {
		a.log.Error("tell peers what they should have alike", "error", err)
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	mono := a.mono()
	clock := a.now().Round(0).Add(-mono)
	same := a.own != nil && bytes.Equal(text, a.told) && mono-a.toldAt < alikeAnew && clock.Sub(a.clock).Abs() < alikeStepped
	timeless.Clock = facts.Clock
	a.own = &timeless // without what there is no room for
	if !same {
		a.told, a.toldAt, a.clock = text, mono, clock
	}
	return !same
}

// digest is what peers are told, with the time of now; nil: nothing is known yet.
func (a *alike) digest() []byte {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own == nil {
		return nil
	}
	facts := *a.own
	facts.Clock.Time = a.now()
	text, err := facts.Encode()
	if err != nil {
		return nil // changed has complained
	}
	return text
}

// heard takes a peer's digest.
func (a *alike) heard(peer string, digest []byte) {
	if a == nil {
		return
	}
	at := a.now().Round(0)
	facts, err := parity.Decode(digest)
	if err != nil {
		a.log.Warn("cannot compare this router with a peer", "peer", peer, "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := &peerFacts{facts: facts, at: at, err: err}
	if before := a.peers[peer]; before != nil {
		now.found = before.found // until they are compared
	}
	a.peers[peer] = now
	close(a.heardC)
	a.heardC = make(chan struct{})
	poke(a.news)
}

// gone forgets a peer that is not connected any more.
func (a *alike) gone(peer string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.peers, peer)
}

// compare finds the differences with every peer. It may take a while, and holds no
// lock meanwhile.
func (a *alike) compare() {
	a.mu.Lock()
	own := a.own
	peers := make(map[string]*peerFacts, len(a.peers))
	for name, p := range a.peers {
		peers[name] = p
	}
	a.mu.Unlock()
	if own == nil {
		return
	}
	for name, p := range peers {
		if p.err != nil {
			continue
		}
		found := parity.Compare(*own, p.facts, name, p.at)
		a.mu.Lock()
		p.found = found
		a.mu.Unlock()
	}
}

// await waits until some peers have said something, or ctx ends.
func (a *alike) await(ctx context.Context, names []string) {
	for {
		a.mu.Lock()
		heard := a.heardC
		all := !slices.ContainsFunc(names, func(name string) bool { return a.peers[name] == nil })
		a.mu.Unlock()
		if all {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-heard:
		}
	}
}

// warnings names the peers with which differences would break connections.
func (a *alike) warnings() (warnings []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, p := range a.peers {
		if n := parity.Errors(p.found); n > 0 {
			what := "differences"
			if n == 1 {
				what = "difference"
			}
			warnings = append(warnings, fmt.Sprintf("%d %s with peer %s would break connections at a failover (vippin parity shows more)", n, what, name))
		}
	}
	slices.Sort(warnings)
	return warnings
}

// Parity compares this router, as it is now, with its peers.
func (d *daemon) Parity(ctx context.Context) ([]policy.Difference, error) {
	var peers []policy.PeerReport
	if err := d.ask(ctx, func() { peers = d.peerReports() }); err != nil {
		return nil, err
	}
	if len(peers) == 0 {
		return nil, errors.New("there is no peer to compare with (sync.peers names them)")
	}
	var connected []string
	for _, peer := range peers {
		if peer.State == "up" || peer.State == "bulk" {
			connected = append(connected, peer.Name)
		}
	}
	if len(connected) == 0 {
		return nil, errors.New("no peer is connected: \"vippin peers\" says why")
	}
	if err := d.alike.look(ctx); err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, alikeWait)
	defer cancel()
	d.alike.await(waiting, connected)
	d.alike.compare()
	return d.alike.differences(peers, connected)
}

// differences is those with all peers, the worst first. Peers that cannot be
// compared with are among them, unless there are no others.
func (a *alike) differences(peers []policy.PeerReport, connected []string) ([]policy.Difference, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	found, compared := []policy.Difference{}, 0
	for _, peer := range peers {
		there := "not connected (\"vippin peers\" says why)"
		p := a.peers[peer.Name]
		switch {
		case p != nil && p.err == nil && p.found != nil:
			found = append(found, p.found...)
			compared++
			continue
		case p != nil && p.err != nil:
			there = p.err.Error()
		case slices.Contains(connected, peer.Name):
			there = "has not said what it has: it may be of an older version"
		}
		found = append(found, policy.Difference{Peer: peer.Name, Check: "peer", About: "the comparison", Here: "ready", There: there,
			State: parity.Warning, Breaks: "what differs, and what that would break, is not known"})
	}
	if compared == 0 {
		return nil, fmt.Errorf("cannot compare with peer %s: %s", found[0].Peer, found[0].There)
	}
	slices.SortStableFunc(found, parity.Worst)
	return found, nil
}
