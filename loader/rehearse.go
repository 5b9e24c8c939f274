// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// Rehearsing is what a takeover is rehearsed with.
type Rehearsing struct {
	Flows []policy.Flow // the peer's table, a key once; it is not changed
	// Believed are the groups that the peer is MASTER of: its flows take the place of
	// entries here that have other public ends.
	Believed map[string]bool
	Pins     []policy.PinName // whose flows the peer tells of
	Plan     policy.Plan
	Seen     policy.Observed
}

const (
	rehearseChunk = 4096 // flows between two looks at the clock
	examplesMost  = 5
)

// Rehearse tries how this router would do with a peer's table, without changing
// anything here. The flows are installed as ever, but in a network namespace that is
// made for it and thrown away, and into maps of its own; then they are compared
// with what this router has, and the ways they would take are looked for. When ctx
// ends, the result says how far it came.
func (r *Replica) Rehearse(ctx context.Context, what Rehearsing) (policy.Rehearsal, error) {
	x := &rehearsal{
		Replica: r, Rehearsing: what, plan: r.index.Load(), bad: make([]bool, len(what.Flows)),
		failures: make(tally), missing: make(tally), complete: true,
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"install flows in a scratch namespace", x.install},
		{"compare flows with this router's", x.compare},
		{"look for routes", x.ways},
		{"look for rules", x.rules},
	} {
		if err := step.do(ctx); err != nil {
			return policy.Rehearsal{}, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	x.pins()
	return policy.Rehearsal{
		Flows: uint64(len(x.Flows)), Fit: x.fit(), Failures: x.failures.list(), Missing: x.missing.list(),
		Took: float64(x.took.Microseconds()) / 1000, Complete: x.complete, Note: strings.Join(x.notes, "; "),
	}, nil
}

// rehearsal is one that is under way.
type rehearsal struct {
	*Replica
	Rehearsing
	plan     *replicaIndex
	bad      []bool // the flow has failed already
	tried    int    // flows, the first ones
	failures tally
	missing  tally
	took     time.Duration // to install
	complete bool
	notes    []string
}

// fail notes why a flow does not fit; of several reasons the first one counts.
func (x *rehearsal) fail(i int, what, why string) {
	if !x.bad[i] {
		x.bad[i] = true
		x.failures.add(what, why, flowText(&x.Flows[i]))
	}
}

// fit is how many of the flows that were tried fit.
func (x *rehearsal) fit() uint64 {
	failed := uint64(0)
	for _, fault := range x.failures {
		failed += fault.Flows
	}
	return uint64(x.tried) - min(failed, uint64(x.tried))
}

func (x *rehearsal) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(x.notes, text) {
		x.notes = append(x.notes, text)
	}
}

// ranOut notes that ctx has ended, and tells so.
func (x *rehearsal) ranOut(ctx context.Context, done int, what string) bool {
	if ctx.Err() == nil {
		return false
	}
	x.complete = false
	x.note("time ran out: the first %d of %d flows were %s", done, len(x.Flows), what)
	return true
}

func flowText(f *policy.Flow) string {
	text := fmt.Sprintf("%s %v > %v", conntrack.ProtoName(f.Proto), endText(f.Proto, f.Src), endText(f.Proto, f.Dst))
	if f.To != f.Src {
		text += fmt.Sprintf(" as %v", endText(f.Proto, f.To))
	}
	return text
}

// endText leaves the port out where there is none.
func endText(proto uint8, end policy.End) string {
	if end.Port == 0 && proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return end.IP().String()
	}
	return end.String()
}

// tally counts flows by what is wrong.
type tally map[[2]string]*policy.RehearsalFault

// add counts one flow; example is text that names it, or what it lacks.
func (t tally) add(what, why, example string) {
	fault := t.put(what, why, 1)
	if len(fault.Example) < examplesMost && !slices.Contains(fault.Example, example) {
		fault.Example = append(fault.Example, example)
	}
}

func (t tally) put(what, why string, flows uint64) *policy.RehearsalFault {
	fault := t[[2]string{what, why}]
	if fault == nil {
		fault = &policy.RehearsalFault{What: what, Why: why, Example: []string{}}
		t[[2]string{what, why}] = fault
	}
	fault.Flows += flows
	return fault
}

// list is sorted, what most flows suffer from first.
func (t tally) list() []policy.RehearsalFault {
	list := make([]policy.RehearsalFault, 0, len(t))
	for fault := range maps.Values(t) {
		list = append(list, *fault)
	}
	slices.SortFunc(list, func(a, b policy.RehearsalFault) int {
		return cmp.Or(cmp.Compare(b.Flows, a.Flows), cmp.Compare(a.What, b.What), cmp.Compare(a.Why, b.Why))
	})
	return list
}

// reasonText says why the kernel would not have something.
func reasonText(err error) string {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	words := map[unix.Errno]string{
		unix.EOPNOTSUPP:      "this kernel lacks the module for this protocol or its translation",
		unix.EPROTONOSUPPORT: "this kernel lacks the module for this protocol",
		unix.EINVAL:          "such a translation or state is impossible",
		unix.ERANGE:          "such a translation or state is impossible",
		unix.ENOMEM:          "conntrack's table is full, or there is no memory",
		unix.ENOENT:          "what it belongs to is not there",
		unix.EPERM:           "this process may not",
	}[errno]
	if words == "" {
		return errno.Error()
	}
	return fmt.Sprintf("%s (%v)", words, errno)
}

// roomIn is what may be used of a table, see room.
func roomIn(most, used uint64) uint64 {
	if most == 0 { // without a limit
		return math.MaxUint32
	}
	return max(most*roomPercent/100, used) - used
}
