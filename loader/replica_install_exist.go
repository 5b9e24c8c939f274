// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"vippin/loader/conntrack"
)

// settleExisting looks at the entries that are in the way, or that are all that
// a full table allows.
func (r *Replica) settleExisting() error {
	x := &r.installer
	some := x.undecided(func(*installing) bool { return true })
	if len(some) == 0 {
		return nil
	}
	x.tuples = x.tuples[:0]
	for _, w := range some {
		x.tuples = append(x.tuples, origTuple(&w.Flow.FlowKey))
	}
	var same []*installing
	var others []replacing
	for _, w := range some {
		w.outcome = RefusedClash
		if w.full {
			w.outcome = RefusedFull
		}
	}
	err := r.conn.LookUp(x.tuples, func(i int, flow *conntrack.Flow) {
		w := some[i]
		switch {
		case flow.Orig != x.tuples[i]: // the other direction of another flow
			w.outcome = RefusedClash
		case flow.Reply == wireTuple(w.Flow):
			same = append(same, w)
		case w.Replace:
			others = append(others, replacing{installing: w, old: flow.Ref(), reply: flow.Reply})
		default:
			w.outcome = RefusedClash
		}
	}, func(i int, err error) {
		some[i].outcome = Failed
		r.log.Warn("cannot look a flow up", "flow", some[i].Flow.FlowKey, "error", err)
	})
	if err != nil {
		return err
	}
	err = r.updateEntries(same, Adopted, func(w *installing) { w.outcome = Failed })
	return errors.Join(err, r.replaceEntries(others))
}

// replacing is a flow whose entry has another public end.
type replacing struct {
	*installing
	old   conntrack.Ref
	reply conntrack.Tuple // the old one
}

// replaceEntries puts the flows' entries in the place of those with another
// public end, if no other flow has the new one.
func (r *Replica) replaceEntries(list []replacing) error {
	if len(list) == 0 {
		return nil
	}
	x := &r.installer
	x.tuples = x.tuples[:0]
	for _, w := range list {
		w.outcome = Installed
		x.tuples = append(x.tuples, wireTuple(w.Flow))
	}
	err := r.conn.LookUp(x.tuples, func(i int, _ *conntrack.Flow) { list[i].outcome = RefusedClash },
		func(i int, _ error) { list[i].outcome = Failed })
	if err != nil {
		return err
	}
	var free []replacing
	var replacements []conntrack.Replacement
	for _, w := range list {
		if w.outcome != Installed {
			continue
		}
		if w.full { // then nothing of the flow's was reserved
			w.outcome = RefusedFull
			continue
		}
		replacement := conntrack.Replacement{Old: w.old}
		w.entry(&replacement.New, x)
		free, replacements = append(free, w), append(replacements, replacement)
	}
	if len(free) == 0 {
		return nil
	}
	results, err := r.conn.Replace(replacements)
	if err != nil {
		return err
	}
	for i, w := range free {
		if results[i] != nil {
			if w.outcome = outcomeOf(results[i]); w.outcome == 0 {
				w.outcome = RefusedClash
			}
			r.log.Warn("cannot replace a flow", "flow", w.Flow.FlowKey, "error", results[i])
		}
		if err := r.dropMapping(w.reply); err != nil {
			return err
		}
	}
	return wrapMap("replace flows", r.d.newEpoch())
}

// dropMapping removes the mapping of an entry that this router has removed, by
// its reply tuple. The local end goes first, as in a sweep.
func (r *Replica) dropMapping(reply conntrack.Tuple) error {
	m := &r.d.maps
	for _, end := range r.index.Load().ends[reply.Dst] {
		key, ok := replyKey(end.slot, reply)
		if !ok {
			continue
		}
		var public publicEnd
		there, err := found(m.ByLocal.LookupAndDelete(key, &public))
		if err == nil && there {
			c := collector{d: r.d}
			err = c.releasePublic(key, &public)
		}
		if err != nil {
			return fmt.Errorf("remove mapping: %w", err)
		}
	}
	return nil
}
