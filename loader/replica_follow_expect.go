// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"time"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// A helper announces what it expects before it changes the packet that announces
// it to the other side, and no event tells of the latter. So the expectation is
// held until that is certainly done, and its master told with it.
const expectationHold = 2 * time.Millisecond

// heldExpectation is one that is told at a time, CLOCK_MONOTONIC.
type heldExpectation struct {
	at     time.Duration
	expect *conntrack.Expectation
}

func (f *follower) hold(e *conntrack.Expectation) {
	at := Monotonic() + expectationHold
	f.held = append(f.held, heldExpectation{at: at, expect: e})
	f.wakeAt(at)
}

// letGo tells of the expectations whose time has come.
func (f *follower) letGo(now time.Duration) error {
	for len(f.held) > 0 && f.held[0].at <= now {
		e := f.held[0].expect
		f.held = f.held[1:]
		if err := f.expected(e); err != nil {
			return err
		}
	}
	return nil
}

// expected tells of an expectation if its master is told, and of how the master's
// sequence numbers are moved since.
func (f *follower) expected(e *conntrack.Expectation) error {
	x := f.reader
	told, err := f.r.expectation(x, e)
	if err != nil || told == nil {
		return err
	}
	if x.flow.Extra != nil && x.extra.Adjust != [2]policy.SeqAdjust{} {
		if err := f.tell(FlowEvent{Kind: FlowSeen, Flow: &x.flow, Ifindex: x.ifindex()}); err != nil {
			return err
		}
	}
	return f.tell(FlowEvent{Kind: ExpectationSeen, Expectation: told})
}

// Expectations hands every expectation to yield whose master Dump would hand
// out, as Dump does. With sync.expect off there are none.
func (r *Replica) Expectations(ctx context.Context, yield func(*policy.Expectation) error) error {
	x := r.newFlowReader()
	if !x.options.expect {
		return nil
	}
	return r.conn.Expectations(ctx, func(e *conntrack.Expectation) error {
		told, err := r.expectation(x, e)
		if err != nil || told == nil {
			return err
		}
		return yield(told)
	})
}

// expectation is what a peer is told of an expectation; nil: nothing, since its
// master is none of the flows that are told, or it comes to an address that no
// other router gets. The master is what x has read last.
func (r *Replica) expectation(x *flowReader, e *conntrack.Expectation) (*policy.Expectation, error) {
	if !x.options.expect || x.index.own[e.Tuple.Dst] == ownUnique || !isReplicable(&e.Master, &e.Tuple) {
		return nil, nil
	}
	master, err := r.conn.Get(e.Master)
	if errors.Is(err, conntrack.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if x.read(master) != 0 {
		return nil, nil
	}
	if err := x.place(master); err != nil || x.whyNot() != 0 {
		return nil, err
	}
	told := x.expectation(e)
	return &told, nil
}
