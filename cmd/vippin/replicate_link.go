// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"vippin/policy"
	"vippin/policy/natsync"
)

// peerLink is a session with a peer, and what belongs to it alone.
type peerLink struct {
	r       *replicator
	peer    string
	key     string // the peer's public key
	session *natsync.Session
	wanted  chan struct{} // a bulk is wanted
	began   time.Time

	// With the replicator's mu:
	hello    natsync.Hello
	greeted  bool
	groups   []natsync.GroupState
	pins     []natsync.PinState
	rounds   map[string]uint32 // of bulks that are coming in, by group
	offered  map[string]bool   // groups whose flows were told though the peer is MASTER, of late
	early    map[string]bool   // groups whose bulk may not know of the offer
	missing  bool              // this router has lost flows that the peer told of
	askedAt  time.Duration
	refused  map[policy.FlowKey]natsync.Reason // by the peer, of late
	bulkSent bool                              // the peer has been told of all once
	whole    bool                              // and has acknowledged that
	marks    [2]rates                          // for the rates that are shown

	// Of the session's reader alone, so that a batch makes no garbage:
	work installWork

	table peerTable // for a rehearsal
}

// refusedMost bounds what is remembered flow by flow; all are counted.
const refusedMost = 16384

// Serve talks with a peer over an authenticated connection until it ends.
func (r *replicator) Serve(ctx context.Context, peer, key string, conn net.Conn) error {
	link := &peerLink{
		r: r, peer: peer, key: key, wanted: make(chan struct{}, 1), began: r.now(),
		rounds: make(map[string]uint32), offered: make(map[string]bool), early: make(map[string]bool),
		refused: make(map[policy.FlowKey]natsync.Reason),
	}
	config := r.identity
	config.Handler = link
	link.session = natsync.NewSession(config)
	r.join(link)
	defer r.leave(link)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error {
		if err := link.session.Run(ctx, conn); err != nil {
			return err
		}
		return natsync.ErrClosed // ends the bulks, too
	})
	tasks.Go(func() error { return link.bulks(ctx) })
	err := tasks.Wait()
	if errors.Is(err, natsync.ErrClosed) {
		return nil
	}
	return err
}

func (r *replicator) join(link *peerLink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links[link.peer] = link
	if r.history[link.peer] == nil {
		r.history[link.peer] = &peerHistory{}
	}
	link.session.SetState(r.state())
	link.tellDigest()
	r.ready.Joined(link.peer)
	link.session.SetPrompt(r.strict.Strict())
}

func (r *replicator) leave(link *peerLink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	history, stats := r.history[link.peer], link.session.Stats()
	history.sent += stats.Sent.Flows
	history.received += stats.Received.Flows
	if link.greeted {
		r.publish(policy.Event{Kind: "peer", Over: true, Detail: link.peer + " is not connected any more"})
		r.flight.peerSession(r.monotonic(), link.peer, false)
	}
	if r.links[link.peer] == link {
		delete(r.links, link.peer)
		r.authority.Gone(link.peer)
		r.alike.gone(link.peer)
		r.ready.Left(link.peer)
		r.words.Gone(link.peer)
		r.ready.Believed("", r.authority) // it may be another one now
		for _, group := range r.authority.Mastered() {
			r.unheard[group] = true
		}
		r.holdAnswers()
	}
}

// isUp tells whether the peer has had everything once in this session. Called with
// mu.
func (l *peerLink) isUp() bool {
	l.whole = l.whole || l.bulkSent && !l.session.Stats().Sent.Bulk.Running
	return l.greeted && l.whole
}

// askBulk has the peer told of everything soon.
func (l *peerLink) askBulk() {
	poke(l.wanted)
}

// bulks tells the peer of every flow whenever that is wanted.
func (l *peerLink) bulks(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wanted:
		}
		pause := time.NewTimer(bulkPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		select {
		case <-l.wanted: // asked again meanwhile
		default:
		}
		if err := l.bulk(ctx); err != nil && ctx.Err() == nil {
			l.r.log.Warn("tell a peer of all flows, trying again", "peer", l.peer, "error", err)
			l.askBulk()
		}
	}
}

// bulk tells the peer of all flows that this router speaks for.
func (l *peerLink) bulk(ctx context.Context) error {
	groups, offers := l.groupsOfBulk()
	if len(groups) == 0 {
		l.r.bulkDone(l)
		return nil
	}
	speaks := make(map[string]bool, len(groups))
	for _, group := range groups {
		speaks[group] = true
	}
	l.session.BeginBulk(groups, 0)
	err := l.r.table.Dump(ctx, func(flow *policy.Flow) error {
		if !speaks[flow.Group] {
			return nil
		}
		keepExtra(flow)
		return l.session.PutBulk(ctx, flow)
	})
	if errors.Is(err, natsync.ErrLost) {
		return nil // Lost has asked for another one
	}
	if err != nil {
		return err
	}
	err = l.r.table.Expectations(ctx, func(e *policy.Expectation) error {
		l.session.Expect(e)
		return nil
	})
	if err != nil {
		l.r.log.Warn("read expectations", "error", err)
	}
	l.session.EndBulk()
	l.r.bulkDone(l)
	l.offerMade(offers)
	return nil
}

// groupsOfBulk lists the groups whose flows the peer is told of: those that this
// router speaks for, and as offers those that it was MASTER of unheard. The peer
// takes what clashes with nothing, and its own bulk, which it is asked for then,
// makes both tables one.
func (l *peerLink) groupsOfBulk() (groups, offers []string) {
	r := l.r
	r.mu.Lock()
	defer r.mu.Unlock()
	groups = r.authority.Mastered()
	if len(groups) > 0 {
		groups = append(groups, "")
	}
	for group := range r.unheard {
		if r.authority.Role(group) != policy.RoleMaster && l.contests(group) {
			offers = append(offers, group)
		}
	}
	return append(groups, offers...), offers
}

// offerMade asks for the peer's bulk of the groups that it was offered.
func (l *peerLink) offerMade(offers []string) {
	if len(offers) == 0 {
		return
	}
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	for _, group := range offers {
		l.offered[group] = true
		delete(l.r.unheard, group)
	}
	l.session.RequestBulk(offers)
}

func (r *replicator) bulkDone(link *peerLink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	link.bulkSent = true
	clear(link.refused)
	now := r.now()
	r.history[link.peer].bulk = &now
	if r.allHear() {
		for _, group := range r.authority.Mastered() {
			delete(r.unheard, group)
		}
	}
}

// allHear tells whether every peer has been told of everything in this session.
// Called with mu.
func (r *replicator) allHear() bool {
	for _, link := range r.links {
		if !link.bulkSent {
			return false
		}
	}
	return len(r.links) >= len(r.sync.Peers)
}

// masters lists the groups that the peer is believed to be MASTER of, and "".
func (l *peerLink) masters(authority *natsync.Authority) []string {
	groups := []string{""}
	for _, group := range l.groups {
		if authority.Believes(l.peer, group.Name) {
			groups = append(groups, group.Name)
		}
	}
	return groups
}
