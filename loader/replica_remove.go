// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// Removal names a flow that is to go.
type Removal struct {
	Key policy.FlowKey
	To  policy.End // only if this is its public end; zero: whichever it is
	Pin policy.PinName
}

// Remove removes flows as peers tell that they are over: conntrack's entry, and
// the mapping with it. (Collect sweeps the mapping of a flow that was born here.)
// It returns which of them were there; the error is of the whole, after which
// that is not known.
func (r *Replica) Remove(list []Removal) ([]bool, error) {
	x := &r.installer
	x.mu.Lock()
	defer x.mu.Unlock()
	removed := make([]bool, len(list))
	for start := 0; start < len(list); start += installBatch {
		end := min(start+installBatch, len(list))
		if err := r.removeBatch(list[start:end], removed[start:end]); err != nil {
			return nil, fmt.Errorf("remove %d flows: %w", len(list), err)
		}
	}
	return removed, nil
}

func (r *Replica) removeBatch(list []Removal, removed []bool) error {
	x := &r.installer
	x.tuples = x.tuples[:0]
	for i := range list {
		x.tuples = append(x.tuples, origTuple(&list[i].Key))
	}
	var refs []conntrack.Ref
	var replies []conntrack.Tuple
	var which []int
	err := r.conn.LookUp(x.tuples, func(i int, flow *conntrack.Flow) {
		if flow.Orig == x.tuples[i] {
			refs, replies, which = append(refs, flow.Ref()), append(replies, flow.Reply), append(which, i)
		}
	}, func(i int, err error) { r.log.Warn("cannot look a flow up", "flow", list[i].Key, "error", err) })
	if err != nil {
		return err
	}
	kept := 0
	for i, at := range which {
		is, err := r.hasEnd(&list[at], replies[i])
		if err != nil {
			return err
		}
		if is {
			refs[kept], replies[kept], which[kept] = refs[i], replies[i], at
			kept++
		}
	}
	results, err := r.conn.Delete(refs[:kept])
	if err != nil {
		return err
	}
	for i, result := range results {
		if removed[which[i]] = result == nil; result == nil {
			err = errors.Join(err, r.dropNative(&list[which[i]], replies[i]))
		}
	}
	return err
}

// hasEnd tells whether an entry with this reply tuple has the public end that is
// to go. Of a flow that was born here, the mapping knows.
func (r *Replica) hasEnd(removal *Removal, reply conntrack.Tuple) (bool, error) {
	local := policy.MakeEnd(reply.Destination())
	if removal.To == (policy.End{}) || removal.To == local {
		return true, nil
	}
	for _, end := range r.index.Load().ends[reply.Dst] {
		key, ok := replyKey(end.slot, reply)
		if !ok {
			continue
		}
		var public publicEnd
		there, err := found(r.d.maps.ByLocal.Lookup(&key, &public))
		if err != nil {
			return false, fmt.Errorf("read map by_local: %w", err)
		}
		if there {
			return policy.MakeEnd(endAddrPort(public.Addr.Word, public.Port)) == removal.To, nil
		}
	}
	return false, nil
}

// dropNative removes a mapping that leads to itself. The local end goes first, as
// in a sweep.
func (r *Replica) dropNative(removal *Removal, reply conntrack.Tuple) error {
	pin := r.index.Load().named[removal.Pin]
	if pin == nil {
		return nil // there is none, or it is left to Collect
	}
	key, ok := replyKey(pin.Slot, reply)
	if !ok {
		return nil
	}
	m := &r.d.maps
	var end publicEnd
	there, err := found(m.ByLocal.LookupAndDelete(&key, &end))
	switch {
	case err != nil || !there:
		return wrapMap("remove mapping", err)
	case publicKey(key, &end) != key: // it was born here
		return wrapMap("write map by_local", ignoreExist(m.ByLocal.Update(&key, &end, ebpf.UpdateNoExist)))
	}
	_, err = found(m.ByPublic.Delete(&key))
	return wrapMap("remove mapping", err)
}
