// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
)

// isNative tells whether the mapping at key in by_public leads to itself.
func isNative(key flowKey, local *localEnd) bool { return localKey(key, local) == key }

// reserveEnds takes the public ends of pinned flows, as the programs do: whoever
// inserts one into by_public has it.
func (r *Replica) reserveEnds() error {
	x := &r.installer
	for _, w := range x.undecided(func(*installing) bool { return true }) {
		roomy, err := r.hasRoom(w.pin != nil)
		if err != nil {
			return err
		}
		w.full = !roomy
		if w.pin == nil {
			continue
		}
		if err := r.reserve(w); err != nil {
			return err
		}
	}
	return nil
}

func (r *Replica) reserve(w *installing) error {
	m := &r.d.maps
	if w.full {
		there, err := found(m.ByPublic.Lookup(&w.key, &w.local))
		if w.held = there; !there {
			w.outcome = RefusedFull
		}
		return wrapMap("read map by_public", err)
	}
	w.makeNative(r.installer.ordinary != nil)
	err := m.ByPublic.Update(raw(&w.key), raw(&w.public), ebpf.UpdateNoExist)
	switch {
	case errors.Is(err, ebpf.ErrKeyExist):
		w.held, err = found(m.ByPublic.Lookup(&w.key, &w.local))
		if err == nil && !w.held { // it went between the two
			w.outcome = RefusedClash
		}
		return wrapMap("read map by_public", err)
	case errors.Is(err, unix.E2BIG):
		w.outcome = RefusedFull
		return nil
	case err != nil:
		return wrapMap("write map by_public", err)
	}
	w.made |= madePublic
	r.installer.room.mappings--
	return r.makeLocal(w)
}

// makeLocal writes the second half. Only a flow that masquerade gave the VIP can
// have its local end there, and then it has got another public end.
func (r *Replica) makeLocal(w *installing) error {
	err := r.d.maps.ByLocal.Update(raw(&w.key), raw(&w.end), ebpf.UpdateNoExist)
	switch {
	case errors.Is(err, ebpf.ErrKeyExist):
		w.outcome = RefusedClash
		return nil
	case errors.Is(err, unix.E2BIG):
		w.outcome = RefusedFull
		return nil
	case err != nil:
		return wrapMap("write map by_local", err)
	}
	w.made |= madeLocal
	return nil
}

// makeNative says what both maps are to have: a mapping that leads to itself, and
// was used just now, so that no sweep takes it. No answer waits for a peer: it told
// of the flow, or the flow was under way.
func (w *installing) makeNative(restored bool) {
	now, flags := uint64(w.now), mappingNative|mappingAcked
	if restored {
		flags = mappingNative | mappingReleased
	}
	w.public = localEnd{Port: w.key.SelfPort, Flags: flags, Pin: w.pin.ID, BornNs: now, LastInNs: now}
	w.end = publicEnd{Port: w.key.SelfPort, Flags: flags, Pin: w.pin.ID, LastOutNs: now}
	w.public.Addr.Word, w.end.Addr.Word = w.key.Self.Word, w.key.Self.Word
}

func wrapMap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// settleHeld looks at the public ends that were taken. One that leads to itself
// is this flow's, or conntrack will know whose. One that leads to a local end is
// that flow's; if conntrack does not know it any more, the mapping only waits to
// be swept.
func (r *Replica) settleHeld() error {
	x := &r.installer
	for _, w := range x.undecided(func(w *installing) bool { return w.held && isNative(w.key, &w.local) }) {
		if err := r.renewHeld(w); err != nil {
			return err
		}
	}
	some := x.undecided(func(w *installing) bool { return w.held && !isNative(w.key, &w.local) })
	if len(some) == 0 {
		return nil
	}
	x.tuples = x.tuples[:0]
	for _, w := range some {
		key := localKey(w.key, &w.local)
		x.tuples = append(x.tuples, replyTuple(&key, w.Flow.Zone))
	}
	stale := make([]bool, len(some))
	for i := range stale {
		stale[i] = true
	}
	err := r.conn.LookUp(x.tuples, func(i int, flow *conntrack.Flow) {
		if stale[i] = !isOurs(flow, x.tuples[i]); stale[i] {
			return
		}
		some[i].outcome = RefusedClash
		if flowKeyOf(&flow.Orig) == some[i].Flow.FlowKey {
			some[i].outcome = Here
		}
	}, func(i int, err error) {
		stale[i], some[i].outcome = false, Failed
		r.log.Warn("cannot look a flow up", "flow", some[i].Flow.FlowKey, "error", err)
	})
	if err != nil {
		return err
	}
	if err := r.takeOver(some, stale); err != nil || x.ordinary != nil {
		return err // what this router forwards has what it needs
	}
	here := slices.DeleteFunc(slices.Clone(some), func(w *installing) bool { return w.outcome != Here })
	return r.updateEntries(here, Here, func(w *installing) { w.outcome = RefusedClash }) // it ended just now
}

// renewHeld keeps a native mapping from being swept: its entry may have gone a
// moment ago.
func (r *Replica) renewHeld(w *installing) error {
	w.makeNative(r.installer.ordinary != nil)
	return wrapMap("renew mapping", errors.Join(
		r.d.maps.ByPublic.Update(&w.key, &w.public, ebpf.UpdateAny), r.d.maps.ByLocal.Update(&w.key, &w.end, ebpf.UpdateAny)))
}

// takeOver gives the public ends of mappings whose flow is gone to the flows
// that come. What remembers the way to their local ends must forget it.
func (r *Replica) takeOver(some []*installing, stale []bool) error {
	any := false
	for i, w := range some {
		if !stale[i] || w.outcome != 0 {
			continue
		}
		any = true
		w.makeNative(r.installer.ordinary != nil)
		if err := r.d.maps.ByPublic.Update(&w.key, &w.public, ebpf.UpdateAny); err != nil {
			return wrapMap("write map by_public", err)
		}
		w.made |= madePublic
		if _, err := found(r.d.maps.ByLocal.Delete(localKey(w.key, &w.local))); err != nil {
			return wrapMap("clean map by_local", err)
		}
		if err := r.makeLocal(w); err != nil {
			return err
		}
	}
	if any {
		return r.d.newEpoch()
	}
	return nil
}

// giveBack takes away what was made for flows that were refused.
func (r *Replica) giveBack() error {
	var errs []error
	for _, w := range r.installer.list {
		if w.outcome.There() {
			continue
		}
		if w.made&madeLocal != 0 {
			_, err := found(r.d.maps.ByLocal.Delete(&w.key))
			errs = append(errs, err)
		}
		if w.made&madePublic != 0 {
			_, err := found(r.d.maps.ByPublic.Delete(&w.key))
			errs = append(errs, err)
		}
	}
	return wrapMap("give public ends back", errors.Join(errs...))
}
