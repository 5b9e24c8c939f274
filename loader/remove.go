// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"vippin/loader/conntrack"
)

// found sorts out the answers to a look-up.
func found(err error) (bool, error) {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}

// candidate is an entry about to be removed, as it was when conntrack was asked
// whether its flow lives.
type candidate struct {
	doomed
	end  publicEnd
	note leftAlone
}

// removeDead removes those of a batch that have not been used since they were
// marked and whose flow conntrack does not know. The others are forgotten: they
// live.
func (c *collector) removeDead(batch []doomed) (removed int, err error) {
	var candidates []candidate
	var tuples []conntrack.Tuple
	for _, what := range batch {
		c.mu.Lock()
		end := c.dying[what]
		delete(c.dying, what)
		c.mu.Unlock()
		now, still, err := c.look(what, end)
		if err != nil {
			return 0, err
		}
		if still {
			candidates = append(candidates, now)
			tuples = append(tuples, replyTuple(&what.key, end.zone))
		}
	}
	if len(candidates) == 0 {
		return 0, nil
	}
	flows, err := c.conn.GetBatch(tuples)
	if err != nil {
		return 0, err
	}
	for i, what := range candidates {
		if isOurs(flows[i], tuples[i]) {
			continue
		}
		gone, err := c.remove(&what)
		if err != nil {
			return removed, err
		}
		if gone {
			removed++
		}
	}
	return removed, nil
}

// isOurs tells whether a conntrack entry is that of a flow whose answers have
// this tuple; else something else uses the tuple, such as the router itself.
func isOurs(flow *conntrack.Flow, reply conntrack.Tuple) bool {
	return flow != nil && flow.Status&conntrack.SrcNAT != 0 && flow.Reply.Destination() == reply.Destination()
}

// look reads an entry that is dying. still is false if it is gone or revived.
func (c *collector) look(what doomed, end death) (now candidate, still bool, err error) {
	now.doomed = what
	if what.alone {
		still, err = found(c.d.maps.Unpinned.Lookup(what.key, &now.note))
		return now, still && now.note.Conntrack == end.entry, err
	}
	still, err = found(c.d.maps.ByLocal.Lookup(what.key, &now.end))
	return now, still && time.Duration(now.end.LastOutNs) <= end.at, err
}

// remove takes an entry out of the maps. If a packet used it since it was looked
// at, it goes back.
func (c *collector) remove(was *candidate) (gone bool, err error) {
	if was.alone {
		return c.removeNote(was)
	}
	m := &c.d.maps
	var end publicEnd
	if there, err := found(m.ByLocal.LookupAndDelete(was.key, &end)); err != nil || !there {
		return false, err
	}
	if end != was.end {
		return false, ignoreExist(m.ByLocal.Update(was.key, end, ebpf.UpdateNoExist))
	}
	return true, c.releasePublic(was.key, &end)
}

func (c *collector) removeNote(was *candidate) (gone bool, err error) {
	unpinned := c.d.maps.Unpinned
	var note leftAlone
	if there, err := found(unpinned.LookupAndDelete(was.key, &note)); err != nil || !there {
		return false, err
	}
	if note != was.note {
		return false, ignoreExist(unpinned.Update(was.key, note, ebpf.UpdateNoExist))
	}
	return true, nil
}

func ignoreExist(err error) error {
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	return err
}

// releasePublic gives the public end of a mapping free whose local end is gone,
// unless it is another flow's, or the flow is back with the same one.
func (c *collector) releasePublic(key flowKey, end *publicEnd) error {
	m := &c.d.maps
	public := publicKey(key, end)
	var local localEnd
	if there, err := found(m.ByPublic.Lookup(public, &local)); err != nil || !there || localKey(public, &local) != key {
		return err
	}
	if _, err := found(m.ByPublic.Delete(public)); err != nil {
		return err
	}
	var again publicEnd
	if back, err := found(m.ByLocal.Lookup(key, &again)); err != nil || !back || publicKey(key, &again) != public {
		return err
	}
	return ignoreExist(m.ByPublic.Update(public, local, ebpf.UpdateNoExist))
}

// reconcile compares the maps with conntrack's table: what it does not know is
// marked dying, and halves of mappings are repaired.
func (c *collector) reconcile(ctx context.Context) error {
	if err := c.refresh(); err != nil {
		return err
	}
	// First the maps, then the table: a flow that is born meanwhile is in
	// neither or in both.
	suspects, err := c.suspects()
	if err != nil {
		return err
	}
	slots := make(map[netip.Addr]map[uint32]bool)
	for what := range suspects {
		self := keySelf(&what.key).Addr()
		if slots[self] == nil {
			slots[self] = make(map[uint32]bool)
		}
		slots[self][what.key.Slot] = true
	}
	filter := conntrack.Filter{Status: conntrack.SrcNAT, StatusMask: conntrack.SrcNAT}
	err = c.conn.Dump(ctx, filter, func(flow *conntrack.Flow) error {
		for slot := range slots[flow.Reply.Dst] {
			if key, ok := replyKey(slot, flow.Reply); ok {
				delete(suspects, doomed{key, false})
				delete(suspects, doomed{key, true})
			}
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	c.mu.Lock()
	for what, end := range suspects {
		if _, ok := c.dying[what]; !ok {
			c.dying[what] = end
		}
	}
	c.mu.Unlock()
	return c.repair()
}

// suspects lists the mappings that have been silent for the grace time, and all
// notes of unpinned flows.
func (c *collector) suspects() (map[doomed]death, error) {
	now := monotonic()
	list := make(map[doomed]death)
	err := scanMap(c.d.maps.ByLocal, func(key flowKey, end publicEnd) bool {
		if now-time.Duration(end.LastOutNs) > dyingGrace {
			list[doomed{key, false}] = death{at: now, stay: c.stays(&key, &end)}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	err = scanMap(c.d.maps.Unpinned, func(key flowKey, note leftAlone) bool {
		list[doomed{key, true}] = death{at: now, entry: note.Conntrack}
		return true
	})
	return list, err
}

// repair mends mappings of which only one half is there, as a program or process
// that was stopped half-way leaves them.
func (c *collector) repair() error {
	m := &c.d.maps
	var failed error
	note := func(err error) bool {
		failed = errors.Join(failed, err)
		return failed == nil
	}
	err := scanMap(m.ByLocal, func(key flowKey, end publicEnd) bool {
		var local localEnd
		there, err := found(m.ByPublic.Lookup(publicKey(key, &end), &local))
		if err != nil || there && localKey(key, &local) == key {
			return note(err)
		}
		return note(c.restorePublic(key, &end, there && !goesNowhere(&local)))
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("repair mappings: %w", err)
	}
	before := monotonic() - dyingGrace
	var orphans []flowKey
	err = scanMap(m.ByPublic, func(public flowKey, local localEnd) bool {
		if time.Duration(local.BornNs) >= before {
			return true // in the making
		}
		orphan, err := c.isOrphan(public, &local)
		if orphan {
			orphans = append(orphans, public)
		}
		return note(err)
	})
	if err := errors.Join(err, failed, c.removeOrphans(orphans), c.d.newEpoch()); err != nil {
		return fmt.Errorf("repair mappings: %w", err)
	}
	return nil
}

// restorePublic puts the public end of a mapping back that is missing or held. If another flow
// has it (taken), the mapping is wrong and goes.
func (c *collector) restorePublic(key flowKey, end *publicEnd, taken bool) error {
	m := &c.d.maps
	var now publicEnd
	if there, err := found(m.ByLocal.Lookup(key, &now)); err != nil || !there || publicKey(key, &now) != publicKey(key, end) {
		return err // it changed since it was read
	}
	if taken {
		c.log.Warn("removed a mapping whose public end is another flow's", "local", keySelf(&key), "remote", keyRemote(&key))
		_, err := found(m.ByLocal.Delete(key))
		return err
	}
	local := localEnd{Port: key.SelfPort, Flags: end.Flags, Pin: end.Pin, BornNs: end.LastOutNs}
	local.Addr.Word = key.Self.Word
	return m.ByPublic.Put(publicKey(key, end), local)
}

// goesNowhere tells whether an unload that was stopped half-way left a mapping
// with its answers held off.
func goesNowhere(local *localEnd) bool {
	return local.Addr.Word == addrWords(nowhere4) || local.Addr.Word == addrWords(nowhere6)
}

// removeOrphans removes public ends without a local end, except native ones
// whose flow conntrack knows.
func (c *collector) removeOrphans(orphans []flowKey) error {
	for _, public := range orphans {
		var local localEnd
		there, err := found(c.d.maps.ByPublic.Lookup(public, &local))
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		if local.Flags&mappingNative != 0 {
			tuple := replyTuple(&public, 0)
			flows, err := c.conn.GetBatch([]conntrack.Tuple{tuple})
			if err != nil {
				return err
			}
			if isOurs(flows[0], tuple) {
				continue
			}
		}
		if orphan, err := c.isOrphan(public, &local); err != nil || !orphan {
			if err != nil {
				return err
			}
			continue
		}
		if _, err := found(c.d.maps.ByPublic.Delete(public)); err != nil {
			return err
		}
	}
	return nil
}

// isOrphan tells whether no mapping uses a public end.
func (c *collector) isOrphan(public flowKey, local *localEnd) (bool, error) {
	key := localKey(public, local)
	var end publicEnd
	there, err := found(c.d.maps.ByLocal.Lookup(key, &end))
	return err == nil && (!there || publicKey(key, &end) != public), err
}
