// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/natsync"
)

// keepExtra gives a flow an Extra of its own: what the table hands over is valid
// during the call only.
func keepExtra(flow *policy.Flow) {
	if flow.Extra != nil {
		extra := *flow.Extra
		flow.Extra = &extra
	}
}

// flowEvent takes what conntrack tells.
func (r *replicator) flowEvent(event *loader.FlowEvent) error {
	if event.Flow != nil {
		keepExtra(event.Flow)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch event.Kind {
	case loader.FlowSeen:
		r.flowSeen(event.Flow)
	case loader.FlowGone:
		r.flowGone(event)
	case loader.FlowsLost:
		r.counts.EventsLost++
		r.bulkToAll()
	case loader.ExpectationSeen:
		if r.authority.IsMaster() {
			for _, link := range r.links {
				link.session.Expect(event.Expectation)
			}
		}
	}
	return nil
}

// flowSeen tells peers of a flow that passes here.
func (r *replicator) flowSeen(flow *policy.Flow) {
	if !r.speaksFor(flow.Group) {
		return
	}
	if over := r.hold.Seen(flow); over != nil {
		r.tellGone(over)
	}
	r.told.Own(flow.FlowKey)
	for _, link := range r.links {
		link.session.Put(flow)
	}
}

// flowGone holds the end of a flow back. If it was held ready for a peer, this
// router has lost it, and asks for it again.
func (r *replicator) flowGone(event *loader.FlowEvent) {
	flow := event.Flow
	if record, ok := r.told.Get(flow.FlowKey); ok {
		if !record.Taken {
			r.loses(&record)
			return
		}
		r.told.Drop(flow.FlowKey)
	}
	if event.Ifindex == 0 && !r.speaksFor(flow.Group) {
		return
	}
	switch r.hold.Gone(event.At, flow, event.Ifindex) {
	case natsync.Flushed:
		r.flushed = append(r.flushed, *flow)
		r.rouse()
	case natsync.HoldFull:
		r.bulkToAll()
	}
}

// tend tells of ends that were held long enough, refreshes what stands ready for
// peers, and asks again for what went missing here.
func (r *replicator) tend(ctx context.Context) error {
	timer := time.NewTimer(tendTick)
	defer timer.Stop()
	refreshed := r.monotonic()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		timer.Reset(r.untilTended())
		r.tellEnds()
		r.askMissing()
		r.measure()
		r.lookAtPeers()
		r.stay(ctx)
		if now := r.monotonic(); now-refreshed >= r.refreshEvery() {
			refreshed = now
			if err := r.refresh(ctx); err != nil {
				r.log.Warn("refresh the timeouts of peers' flows", "error", err)
			}
		}
	}
}

// untilTended is how long tend may sleep: whoever wakes often costs, even if there
// is nothing to do.
func (r *replicator) untilTended() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.hold.Next()
	if next == 0 {
		return tendTick
	}
	return max(holdTick, min(tendTick, next-r.monotonic()))
}

func (r *replicator) tellEnds() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold.Due(r.monotonic(), r.tellGone)
}

// tellGone tells peers that a flow has ended. Called with mu.
func (r *replicator) tellGone(flow *policy.Flow) {
	if !r.speaksFor(flow.Group) {
		return
	}
	for _, link := range r.links {
		link.session.Gone(natsync.Gone{Key: flow.FlowKey, To: flow.To})
	}
}

func (r *replicator) askMissing() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.monotonic()
	for _, link := range r.links {
		if link.missing && now-link.askedAt >= missingEvery {
			link.missing, link.askedAt = false, now
			link.session.RequestBulk(link.masters(r.authority))
		}
	}
}

// lookAtPeers notes which peers have come to have everything.
func (r *replicator) lookAtPeers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdAnswers()
}

func (r *replicator) refreshEvery() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sync.StandbyTimeout / 3
}

// refresh gives the flows that stand ready the standby timeout again, of peers
// that are there: what is left of one that has gone ends with its timeout. Those of
// GRE that this router forwards now need it, too.
func (r *replicator) refresh(ctx context.Context) error {
	r.mu.Lock()
	keys := r.told.Fixed()
	for peer := range r.links {
		keys = append(keys, r.told.Standing(peer)...)
	}
	r.mu.Unlock()
	return r.refreshKeys(ctx, keys)
}

func (r *replicator) refreshKeys(ctx context.Context, keys []policy.FlowKey) error {
	for chunk := range slices.Chunk(keys, refreshChunk) {
		if ctx.Err() != nil {
			return nil
		}
		var missing []policy.FlowKey
		if err := r.table.Refresh(chunk, func(i int) { missing = append(missing, chunk[i]) }); err != nil {
			return err
		}
		r.forget(missing)
	}
	return nil
}

// forget notes flows that this router has lost.
func (r *replicator) forget(keys []policy.FlowKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range keys {
		if record, ok := r.told.Get(key); ok && !record.Taken {
			r.loses(&record)
		}
	}
}

// loses notes that a flow does not stand ready any more that its peer has. Called
// with mu.
func (r *replicator) loses(record *natsync.Record) {
	r.told.Drop(record.Key)
	r.unready.note(record.Key, record.Group)
	if link := r.links[record.Peer]; link != nil {
		link.missing = true
	}
}

// mend puts flows back that the kernel flushed, prepares those that another router
// forwards for their return, and gives those that were taken over their ordinary
// timeouts.
func (r *replicator) mend(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		r.restore()
		r.letLoose(ctx)
		r.normalise(ctx)
	}
}

// letLoose loosens the TCP windows of groups that another router forwards.
func (r *replicator) letLoose(ctx context.Context) {
	r.mu.Lock()
	groups := r.loose
	r.loose = make(map[string]bool)
	r.mu.Unlock()
	if len(groups) == 0 {
		return
	}
	n, err := r.table.Loosen(ctx, func(group string) bool { return groups[group] })
	if err != nil {
		r.log.Warn("connections may break that come back to this router", "error", err)
	}
	r.log.Debug("loosened TCP windows", "connections", n)
}

// normalise gives flows that were taken over their ordinary timeouts.
func (r *replicator) normalise(ctx context.Context) {
	r.mu.Lock()
	taken := r.taken
	r.taken = 0
	r.mu.Unlock()
	if taken == 0 {
		return
	}
	groups := make(map[string]int)
	n, err := r.table.Normalise(ctx, func(key *policy.FlowKey) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		record, ok := r.told.Get(*key)
		if ok && record.Taken {
			groups[record.Group]++
		}
		return ok && record.Taken
	})
	r.flight.normalised(r.monotonic(), groups)
	if err != nil {
		r.log.Warn("give flows that were taken over their ordinary timeouts", "error", err)
	}
	r.mu.Lock()
	r.counts.Normalised += uint64(n)
	r.mu.Unlock()
	r.log.Info("took flows over", "flows", taken, "timeouts normalised", n)
}

// restore puts flows back that the kernel flushed.
func (r *replicator) restore() {
	r.mu.Lock()
	flows := r.flushed
	r.flushed = nil
	r.mu.Unlock()
	if len(flows) == 0 {
		return
	}
	r.installing.Lock()
	outcomes, err := r.table.Restore(flows)
	r.installing.Unlock()
	if err != nil {
		r.log.Error("put flows back that the kernel flushed", "flows", len(flows), "error", err)
	}
	restored := 0
	r.mu.Lock()
	for i, outcome := range outcomes {
		if !outcome.There() {
			continue
		}
		restored++
		if flows[i].Proto == unix.IPPROTO_GRE { // see Fixed
			r.told.Put("", &flows[i])
			r.told.Own(flows[i].FlowKey)
		}
	}
	r.counts.Restored += uint64(restored)
	r.counts.NotRestored += uint64(len(flows) - restored)
	r.mu.Unlock()
	r.log.Info("the kernel flushed flows of an interface that changed, they are back", "flows", restored, "not", len(flows)-restored)
}

// scopeChanged tells whether a configuration may replicate other flows.
func scopeChanged(was, is policy.SyncConfig) bool {
	return was.Scope != is.Scope || was.Expect != is.Expect ||
		!slices.Equal(was.Protocols, is.Protocols) || !slices.Equal(was.Ignore, is.Ignore)
}
