// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// FlowEventKind says what happened.
type FlowEventKind uint8

// What can happen to flows.
const (
	FlowSeen        FlowEventKind = 1 + iota // it is new, or changed
	FlowGone                                 // conntrack has forgotten it
	FlowsLost                                // events were lost, or have only begun: compare by Dump
	ExpectationSeen                          // a helper expects one
)

func (k FlowEventKind) String() string {
	switch k {
	case FlowSeen:
		return "seen"
	case FlowGone:
		return "gone"
	case FlowsLost:
		return "lost"
	case ExpectationSeen:
		return "expectation"
	}
	return fmt.Sprintf("FlowEventKind(%d)", uint8(k))
}

// FlowEvent is one change. What it points to is valid during the call.
type FlowEvent struct {
	Kind FlowEventKind
	// Flow is nil for FlowsLost and ExpectationSeen. Of a flow that is gone only
	// key, pin, group and ends count; To and Pin are zero where the mapping went
	// before the flow.
	Flow        *policy.Flow
	Ifindex     int                 // of the pinned interface that it left by, 0 = by another one
	At          time.Duration       // CLOCK_MONOTONIC
	Expectation *policy.Expectation // nil but for ExpectationSeen
}

// wanted are the groups that only a router that is MASTER of something listens to.
const wantedGroups = conntrack.News | conntrack.Updates | conntrack.Expects

// SetActive says whether this router is MASTER of something. Unless it is,
// Follow tells of flows that are gone only. When it becomes active, FlowsLost
// follows: all that happens after that is told.
func (r *Replica) SetActive(on bool) {
	r.activeMu.Lock()
	defer r.activeMu.Unlock()
	if r.active.Load() == on {
		return
	}
	var err error
	r.active.Store(on)
	if on {
		err = r.listener.Join(wantedGroups)
	} else {
		err = r.listener.Leave(wantedGroups)
	}
	if err != nil {
		r.log.Error("cannot follow conntrack", "error", err)
	}
	select {
	case r.turned <- struct{}{}:
	default: // it is known already
	}
}

// Follow hands what happens to flows that peers should know to handle, one at a
// time and each flow's in order, until ctx ends (then it returns nil) or handle
// returns an error (which it returns). One Follow may run at a time.
func (r *Replica) Follow(ctx context.Context, handle func(*FlowEvent) error) error {
	f := &follower{
		r: r, reader: r.newFlowReader(), handle: handle, waits: newWaits(), sooner: make(chan struct{}, 1),
	}
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return r.listener.Receive(ctx, f.happened) })
	tasks.Go(func() error { return f.run(ctx) })
	return tasks.Wait()
}

// follower is a Follow that runs.
type follower struct {
	r      *Replica
	sooner chan struct{} // a look is due before wakes

	mu     sync.Mutex // one event at a time
	handle func(*FlowEvent) error
	reader *flowReader
	event  FlowEvent
	waits  waits
	held   []heldExpectation
	wakes  time.Duration // when run looks at what waits, CLOCK_MONOTONIC
	missed bool          // too many waited
}

// run looks at the flows that wait, and says when the router turned active.
func (f *follower) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-f.r.turned:
			err = f.turn()
		case <-f.sooner:
		case <-timer.C:
		}
		if err == nil {
			err = f.lookAgain(ctx)
		}
		if err != nil {
			return err
		}
		timer.Reset(f.pause())
	}
}

// turn acts on SetActive.
func (f *follower) turn() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waits, f.held, f.missed = newWaits(), nil, false
	if !f.r.active.Load() {
		return nil
	}
	return f.tell(FlowEvent{Kind: FlowsLost})
}

func (f *follower) tell(event FlowEvent) error {
	f.event = event
	f.event.At = Monotonic()
	return f.handle(&f.event)
}

// happened takes one event of conntrack's.
func (f *follower) happened(event conntrack.Event) error {
	active := f.r.active.Load()
	if !active && event.Type != conntrack.Destroy {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reader.renew(f.r)
	switch event.Type {
	case conntrack.New, conntrack.Update:
		return f.changed(event)
	case conntrack.Destroy:
		return f.gone(event.Flow)
	case conntrack.Expect:
		f.hold(event.Expectation)
		return nil
	case conntrack.Overrun:
		return f.tell(FlowEvent{Kind: FlowsLost})
	}
	return nil
}

// changed tells of a flow that is new or changed, if peers should know it.
func (f *follower) changed(event conntrack.Event) error {
	entry, born := event.Flow, event.Type == conntrack.New
	if !tellsState(entry) {
		return nil
	}
	reason := f.reader.leavesOut(entry)
	if reason == 0 && !born && isPartial(entry) {
		whole, err := f.r.conn.Get(entry.Orig)
		if errors.Is(err, conntrack.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if entry = whole; !tellsState(entry) {
			return nil
		}
	}
	if reason == 0 {
		reason = f.reader.read(entry)
	}
	if reason != 0 {
		f.skip(reason, born)
		return nil
	}
	if err := f.reader.place(entry); err != nil {
		return err
	}
	return f.tellOrWait(born)
}

// skip counts a flow that is not told, once: when it is born.
func (f *follower) skip(reason skipReason, born bool) {
	if born {
		f.r.skipped[reason].Add(1)
	}
}

// tellOrWait tells of the flow that was placed last, at once or when its mapping
// is there.
func (f *follower) tellOrWait(born bool) error {
	x := f.reader
	if x.local != nil {
		before := f.waits.flows[x.key]
		if before != nil && x.mapped {
			delete(f.waits.flows, x.key)
		}
		if !x.mapped && x.mayBeMapped() {
			f.wait(before, born)
			return nil
		}
	}
	return f.tellFlow(born)
}

func (f *follower) tellFlow(born bool) error {
	x := f.reader
	if reason := x.whyNot(); reason != 0 {
		f.skip(reason, born)
		return nil
	}
	return f.tell(FlowEvent{Kind: FlowSeen, Flow: &x.flow, Ifindex: x.ifindex()})
}

// isPartial tells whether an update lacks what did not change but is needed.
func isPartial(e *conntrack.Flow) bool {
	return e.Orig.Proto == unix.IPPROTO_TCP && e.TCP == nil || e.Orig.Proto == unix.IPPROTO_SCTP && e.SCTP == nil ||
		e.Status&(conntrack.Expected|conntrack.SeqAdjust) != 0
}

// gone tells of a flow that was told, or may have been.
func (f *follower) gone(entry *conntrack.Flow) error {
	x := f.reader
	if x.read(entry) != 0 {
		return nil
	}
	if err := x.place(entry); err != nil {
		return err
	}
	if x.local == nil && x.whyNot() != 0 {
		return nil
	}
	if x.local != nil {
		if waited := f.waits.flows[x.key]; waited != nil {
			delete(f.waits.flows, x.key)
			f.skip(skipNoMapping, waited.born)
			return nil
		}
		if x.local.unique && !x.mapped {
			x.flow.To, x.flow.Group = policy.End{}, x.local.group
		}
	}
	return f.tell(FlowEvent{Kind: FlowGone, Flow: &x.flow, Ifindex: x.ifindex()})
}
