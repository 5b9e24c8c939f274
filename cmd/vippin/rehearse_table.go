// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"vippin/policy"
	"vippin/policy/natsync"
)

// peerTable takes down the table that a peer tells, while somebody wants it; else it
// costs a look at a flag. The session's reader calls note, begin and end.
type peerTable struct {
	wanted atomic.Bool

	mu     sync.Mutex
	groups map[string]bool
	bulk   bool                   // the flows that come are of a bulk that has all groups
	flows  []policy.Flow          // a key once
	at     map[policy.FlowKey]int // in flows
	over   bool                   // there are more than rehearseMost
	done   chan struct{}          // the bulk has ended
}

// take asks for a bulk of groups and waits for its end. The flows stay until drop.
func (t *peerTable) take(ctx context.Context, groups []string, ask func()) (whole bool) {
	ended := make(chan struct{})
	t.mu.Lock()
	t.groups, t.done = namesOf(groups), ended
	t.restart(false)
	t.mu.Unlock()
	t.wanted.Store(true)
	ask()
	timeout := time.NewTimer(rehearseTable)
	defer timeout.Stop()
	select {
	case <-ended:
		whole = true
	case <-timeout.C:
	case <-ctx.Done():
	}
	t.wanted.Store(false)
	t.mu.Lock() // the reader may be in the midst of a batch
	defer t.mu.Unlock()
	t.bulk, t.at = false, nil
	return whole && !t.over
}

// drop forgets the flows.
func (t *peerTable) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.restart(false)
}

// restart begins anew. Called with mu.
func (t *peerTable) restart(bulk bool) {
	t.bulk, t.flows, t.at, t.over = bulk, nil, make(map[policy.FlowKey]int), false
}

// begin begins with a bulk, if it is of all groups that are wanted.
func (t *peerTable) begin(groups []string) {
	if !t.wanted.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	covered := namesOf(groups)
	all := true
	for group := range t.groups {
		all = all && covered[group]
	}
	t.restart(all)
}

// end is that of the bulk.
func (t *peerTable) end() {
	if !t.wanted.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bulk {
		t.bulk = false
		t.wanted.Store(false)
		close(t.done)
	}
}

// note takes a batch down.
func (t *peerTable) note(batch *natsync.Batch) {
	if !t.wanted.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.bulk {
		return
	}
	for i := range batch.Gones {
		t.remove(batch.Gones[i].Key)
	}
	for i := range batch.Flows {
		if f := &batch.Flows[i]; t.groups[f.Group] {
			t.put(f)
		}
	}
}

func (t *peerTable) put(f *policy.Flow) {
	at, there := t.at[f.FlowKey]
	switch {
	case there:
		t.flows[at] = *f
	case len(t.flows) >= rehearseMost:
		t.over = true
	default:
		t.at[f.FlowKey] = len(t.flows)
		t.flows = append(t.flows, *f)
	}
}

// remove puts the last flow in the place of one that has ended.
func (t *peerTable) remove(key policy.FlowKey) {
	at, there := t.at[key]
	if !there {
		return
	}
	last := len(t.flows) - 1
	t.flows[at] = t.flows[last]
	t.at[t.flows[at].FlowKey] = at
	t.flows = t.flows[:last]
	delete(t.at, key)
}
