// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"time"

	"vippin/policy"
)

// waitSteps are the pauses between looks for a mapping. conntrack tells of a flow
// before its first packet leaves: microseconds as a rule, three seconds at most
// while the neighbour is being resolved (RFC 4861 section 7.2.2). The first one is
// for Replicas that are prompt.
var waitSteps = [...]time.Duration{200 * time.Microsecond, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 3 * time.Second}

// vipSteps is where they end when the flow may well have no mapping: its source is
// a VIP already.
const vipSteps = 3

// waitMost is how many flows may wait.
const waitMost = 65536

// waiting is a flow whose mapping is not there yet.
type waiting struct {
	flow  policy.Flow
	extra policy.FlowExtra
	local *replicaEnd
	born  bool // it came as new
	step  int  // of waitSteps, the pause it is in
}

// look is one look that is due.
type look struct {
	at   time.Duration // CLOCK_MONOTONIC
	key  flowKey
	flow *waiting // stale if it is not the one in flows
}

// waits keeps the flows that wait. Each step has a queue, in order of time since
// all its pauses are alike.
type waits struct {
	flows  map[flowKey]*waiting
	queues [len(waitSteps)][]look
}

func newWaits() waits { return waits{flows: make(map[flowKey]*waiting)} }

// add lets a flow wait for its next look.
func (w *waits) add(key flowKey, flow *waiting, now time.Duration) {
	w.flows[key] = flow
	w.queues[flow.step] = append(w.queues[flow.step], look{at: now + waitSteps[flow.step], key: key, flow: flow})
}

// next tells when something is due.
func (w *waits) next() (at time.Duration, any bool) {
	for _, queue := range w.queues {
		if len(queue) > 0 && (!any || queue[0].at < at) {
			at, any = queue[0].at, true
		}
	}
	return at, any
}

// pop takes one flow out whose look is due.
func (w *waits) pop(now time.Duration) (due look, any bool) {
	for step := range w.queues {
		queue := &w.queues[step]
		for len(*queue) > 0 && (*queue)[0].at <= now {
			due = (*queue)[0]
			(*queue)[0] = look{}
			*queue = (*queue)[1:]
			if w.flows[due.key] == due.flow {
				delete(w.flows, due.key)
				return due, true
			}
		}
	}
	return look{}, false
}

// mayBeMapped tells whether the flow that was placed last may get a mapping yet.
// One from a VIP without a mapping is as good as pinned, and waits only where
// nothing else is told.
func (x *flowReader) mayBeMapped() bool {
	if x.local.unique {
		return x.local.enabled
	}
	return x.options.scope == policy.ScopePinned
}

// wait lets the flow that was placed last wait for its mapping, if it does not
// already: then it is only what will be told that changed.
func (f *follower) wait(before *waiting, born bool) {
	x := f.reader
	if before == nil && len(f.waits.flows) >= waitMost {
		f.missed = true
		f.skip(skipWaiting, born)
		return
	}
	flow := &waiting{born: born, step: 1}
	if f.r.prompt.Load() {
		flow.step = 0
	}
	if before != nil {
		flow = before
	}
	flow.flow, flow.extra, flow.local = x.flow, x.extra, x.local
	if x.flow.Extra != nil {
		flow.flow.Extra = &flow.extra
	}
	if before == nil {
		f.waitMore(x.key, flow)
	}
}

func (f *follower) waitMore(key flowKey, flow *waiting) {
	now := Monotonic()
	f.waits.add(key, flow, now)
	f.wakeAt(now + waitSteps[flow.step])
}

// wakeAt has run look at what waits at that time, or earlier.
func (f *follower) wakeAt(at time.Duration) {
	if at >= f.wakes {
		return
	}
	select {
	case f.sooner <- struct{}{}:
	default:
	}
}

// looksAtOnce is how many flows are looked at while an event has to wait.
const looksAtOnce = 64

// lookAgain looks at the flows whose time has come.
func (f *follower) lookAgain(ctx context.Context) error {
	for ctx.Err() == nil {
		if more, err := f.lookAtSome(); err != nil || !more {
			return err
		}
	}
	return nil
}

func (f *follower) lookAtSome() (more bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reader.renew(f.r)
	now := Monotonic()
	for range looksAtOnce {
		due, any := f.waits.pop(now)
		if !any {
			return false, errors.Join(f.letGo(now), f.makeUp())
		}
		if err := f.look(due.key, due.flow); err != nil {
			return false, err
		}
	}
	return true, nil
}

// look tells of a flow that waited if it has a mapping now.
func (f *follower) look(key flowKey, flow *waiting) error {
	x := f.reader
	x.key, x.flow, x.local = key, flow.flow, flow.local
	if err := x.lookUp(); err != nil {
		return err
	}
	if !x.mapped {
		noted, err := x.isLeftAlone()
		if err != nil {
			return err
		}
		flow.step++
		if !noted && flow.step < len(waitSteps) && (x.local.unique || flow.step < vipSteps) {
			f.waitMore(key, flow)
			return nil
		}
	}
	return f.tellFlow(flow.born)
}

// makeUp has the table compared when flows were left out because too many
// waited, and fewer do now.
func (f *follower) makeUp() error {
	if !f.missed || len(f.waits.flows) > waitMost/2 {
		return nil
	}
	f.missed = false
	return f.tell(FlowEvent{Kind: FlowsLost})
}

// pause is how long run may sleep.
func (f *follower) pause() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := Monotonic()
	f.wakes = now + time.Hour
	if at, any := f.waits.next(); any {
		f.wakes = at
	}
	if len(f.held) > 0 {
		f.wakes = min(f.wakes, f.held[0].at)
	}
	return max(0, f.wakes-now)
}
