// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"vippin/policy/natsync"
	"vippin/policy/parity"
)

// facts gathers what this router's peers should have alike. The loop is asked for
// what it owns only.
func (d *daemon) facts(ctx context.Context) (*parity.Facts, error) {
	from := parity.Sources{Version: version, Protocol: [2]uint32{natsync.MinVersion, natsync.MaxVersion}, Tier: d.plane.Tier()}
	err := d.ask(ctx, func() {
		s := &d.state
		from.Config, from.Plan, from.Observed = s.config, s.plan, s.observed
		from.Fastpath, _ = d.fast.wanted().decide()
		from.Routers = s.tracker.Routers(d.env.monotonic())
	})
	if err != nil || len(from.Config.Sync.Peers) == 0 {
		return nil, err
	}
	from.Likeness = d.env.likeness(parity.Names(from.Observed))
	facts := parity.Gather(from)
	return &facts, nil
}

// tellFacts has the peers told of the digest.
func (d *daemon) tellFacts(ctx context.Context) {
	_ = d.ask(ctx, func() {
		if r := d.state.replication; r != nil {
			r.flows.tellDigest()
		}
	})
}

func (r *replicator) tellDigest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, link := range r.links {
		link.tellDigest()
	}
}

// tellDigest tells the peer what it should have alike, as soon as that is known.
// Called with mu.
func (l *peerLink) tellDigest() {
	digest := l.r.alike.digest()
	if digest == nil {
		return
	}
	if err := l.session.SetDigest(digest); err != nil {
		l.r.log.Error("tell a peer what it should have alike", "peer", l.peer, "error", err)
	}
}
