// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// Outcome is what became of a flow that was to be installed.
type Outcome uint8

// The outcomes.
const (
	Installed      Outcome = 1 + iota // it is there now
	Updated                           // it was, and its state is new
	Adopted                           // it was there exactly so, and nobody here knew
	Here                              // it was born here, and lives
	RefusedClash                      // its public end, or its key, is another flow's
	RefusedFull                       // conntrack or the maps are nearly full
	RefusedNoPin                      // there is no such pin
	RefusedInvalid                    // no flow that can be
	Failed                            // the kernel would not have it; the log says why
)

var outcomeNames = [...]string{
	"", "installed", "updated", "adopted", "here", "clash", "full", "no_pin", "invalid", "failed",
}

func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// There tells whether this router has the flow.
func (o Outcome) There() bool { return o >= Installed && o <= Here }

// Installation is a flow that a peer told.
type Installation struct {
	Flow *policy.Flow
	// Known: it was installed before with the same public end. Only state, mark,
	// timeout and status are new. If the kernel has lost it, it is made again.
	Known bool
	// Replace: it may take the place of an entry of the same FlowKey with another
	// public end.
	Replace bool
}

// installBatch flows are dealt with at a time, as many as conntrack takes in one
// datagram.
const installBatch = 128

// installer makes entries and mappings, one call at a time, always in the same
// memory.
type installer struct {
	mu       sync.Mutex
	room     room
	index    *replicaIndex
	standby  time.Duration
	ordinary *timeouts // of flows that are this router's own, else nil
	batch    [installBatch]installing
	list     []*installing // as many of batch as there are
	some     []*installing // those that a request is about
	entries  []conntrack.Entry
	changes  []conntrack.Change
	tuples   []conntrack.Tuple
	told     func(i int, w *installing) // what became of each flow; nil: the outcome is enough
}

// installing is a flow under way.
type installing struct {
	Installation
	outcome Outcome // 0: not decided
	pin     *replicaPin
	key     flowKey       // of its native mapping, in by_public and by_local; slot 0: it gets none
	now     time.Duration // CLOCK_MONOTONIC of the batch
	held    bool          // by_public had it
	local   localEnd      // what by_public had
	public  localEnd      // what by_public is to have
	end     publicEnd     // what by_local is to have
	made    madeHalfs     // what was written, and goes again when the flow is refused
	full    bool          // only an entry that is there already will do
	err     error         // of the kernel, which refused an entry
	tcp     conntrack.TCP
	sctp    conntrack.SCTP
	master  conntrack.Tuple
	adjust  [2]conntrack.Adjustment
}

type madeHalfs uint8

const (
	madePublic madeHalfs = 1 << iota
	madeLocal
)

// Install puts flows that a peer told into conntrack, as this router will
// translate them after a takeover, and reserves the public ends of the pinned
// ones. Nothing is evicted for them, and what is refused leaves nothing behind. It
// returns what became of each; the error is of the whole, after which that is not
// known. It is fastest with batches of 128 or a multiple.
func (r *Replica) Install(list []Installation) ([]Outcome, error) {
	return r.install(len(list), nil, func(i int) Installation { return list[i] })
}

// Restore puts flows back that this router's kernel has flushed, as it does when
// an interface goes down. They get their old public ends, where no other flow
// has taken them, and ordinary timeouts. An entry that a packet of the flow has
// made meanwhile is replaced if it has another public end.
func (r *Replica) Restore(flows []policy.Flow) ([]Outcome, error) {
	return r.install(len(flows), readTimeouts(), func(i int) Installation {
		return Installation{Flow: &flows[i], Replace: true}
	})
}

func (r *Replica) install(n int, ordinary *timeouts, of func(i int) Installation) ([]Outcome, error) {
	x := &r.installer
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ordinary = ordinary
	outcomes := make([]Outcome, n)
	for start := 0; start < n; start += installBatch {
		x.list = x.list[:0]
		now := monotonic()
		for i := start; i < min(start+installBatch, n); i++ {
			w := &x.batch[i-start]
			*w = installing{Installation: of(i), now: now}
			x.list = append(x.list, w)
		}
		if err := r.installBatch(); err != nil {
			return nil, fmt.Errorf("install %d flows: %w", n, err)
		}
		for i, w := range x.list {
			outcomes[start+i] = w.outcome
			if x.told != nil {
				x.told(start+i, w)
			}
		}
	}
	clear(x.batch[:min(n, installBatch)]) // it points to flows
	return outcomes, nil
}

// installBatch deals with x.list. In this order nothing is ever half there: the
// public end, the local one, the entry; and back where the entry is refused.
func (r *Replica) installBatch() error {
	x := &r.installer
	x.index, x.standby = r.index.Load(), r.options.Load().standbyTimeout
	for _, w := range x.list {
		w.prepare(x.index)
	}
	for _, step := range []func() error{
		r.updateKnown, r.reserveEnds, r.settleHeld, r.createEntries, r.settleExisting,
	} {
		if err := step(); err != nil {
			return errors.Join(err, r.giveBack())
		}
	}
	return r.giveBack()
}

// undecided lists the flows of the batch that a step is about.
func (x *installer) undecided(wanted func(*installing) bool) []*installing {
	x.some = x.some[:0]
	for _, w := range x.list {
		if w.outcome == 0 && wanted(w) {
			x.some = append(x.some, w)
		}
	}
	return x.some
}

// updateKnown tells conntrack what is new. What it does not know is installed.
func (r *Replica) updateKnown() error {
	x := &r.installer
	some := x.undecided(func(w *installing) bool { return w.Known })
	return r.updateEntries(some, Updated, func(w *installing) { w.Known = false })
}

// updateEntries gives entries state, mark, timeout and status. Those that are
// not there are handed to missing.
func (r *Replica) updateEntries(some []*installing, outcome Outcome, missing func(*installing)) error {
	if len(some) == 0 {
		return nil
	}
	x := &r.installer
	x.changes = slices.Grow(x.changes[:0], len(some))[:len(some)]
	for i, w := range some {
		w.outcome = outcome
		w.change(&x.changes[i], x)
	}
	return r.conn.Update(x.changes, func(i int, err error) {
		w := some[i]
		if errors.Is(err, conntrack.ErrNotExist) {
			w.outcome = 0
			missing(w)
			return
		}
		if w.outcome = outcomeOf(err); w.outcome == RefusedInvalid {
			return
		}
		w.outcome = Failed
		r.log.Warn("cannot update a flow", "flow", w.Flow.FlowKey, "error", err)
	})
}

// createEntries makes entries for what has its public end or needs none.
func (r *Replica) createEntries() error {
	x := &r.installer
	some := x.undecided(func(w *installing) bool { return !w.full })
	for range 3 { // with everything, without a helper, without a master
		if len(some) == 0 {
			return nil
		}
		var again []*installing
		x.entries = slices.Grow(x.entries[:0], len(some))[:len(some)]
		for i, w := range some {
			w.outcome = Installed
			w.entry(&x.entries[i], x)
		}
		err := r.conn.CreateEach(x.entries, func(i int, err error) {
			some[i].err = err
			if some[i].outcome = outcomeOf(err); some[i].outcome != Failed {
				return
			}
			if some[i].doWithout(err) {
				again = append(again, some[i])
				return
			}
			r.log.Warn("cannot install a flow", "flow", some[i].Flow.FlowKey, "error", err)
		})
		if err != nil {
			return err
		}
		for _, w := range some {
			if w.outcome == Installed {
				x.room.entries--
			}
		}
		some = again
	}
	return nil
}

// outcomeOf says what an entry's error means to the flow; 0: it, or another one,
// is there already.
func outcomeOf(err error) Outcome {
	var errno unix.Errno
	switch {
	case errors.Is(err, conntrack.ErrExist):
		return 0
	case errors.Is(err, unix.ENOMEM):
		return RefusedFull
	case !errors.As(err, &errno), errno == unix.EINVAL, errno == unix.ERANGE:
		return RefusedInvalid
	}
	return Failed
}
