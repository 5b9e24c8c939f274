// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// Apply makes the maps and attachments what plan says, writing only what
// differs. Nobody's packets meet half a plan:
//
//   - What an interface's packets look up is written before the interface
//     becomes known to the programs, and removed after it is forgotten.
//   - A unique address that is new, or on an interface whose packets were not
//     seen until now, is marked so: the programs note every flow they meet on
//     it and pin none. The flows that live already are added from conntrack's
//     table, and only then is the mark taken off. So each flow is either known
//     to be older than pinning, or is decided on from its first packet on. Flows
//     on other addresses go on being pinned meanwhile.
//
// An interface that left the plan stays attached while mappings of it live, and
// so do their pins, as retired ones. One bad interface does not keep the others
// from being done: nothing is pinned there, and the error names it.
func (d *Dataplane) Apply(plan policy.Plan) error {
	unlock, err := lockDir(d.dir)
	if err != nil {
		return err
	}
	defer unlock()
	want, err := wanted(plan)
	if err != nil {
		return fmt.Errorf("apply plan: %w", err)
	}
	now, err := d.content()
	if err != nil {
		return fmt.Errorf("apply plan: %w", err)
	}
	if err := d.keepUsed(now, want); err != nil {
		return fmt.Errorf("apply plan: %w", err)
	}
	letRest(now, want)
	names := make(map[uint32]string)
	for _, iface := range plan.Interfaces {
		names[uint32(iface.Index)] = iface.Name
	}
	marks, errs, err := d.planMarks(now, want, plan)
	if err != nil {
		return fmt.Errorf("apply plan: %w", errors.Join(append(errs, err)...))
	}
	step := convergence{d: d, now: now, want: want, names: names, pause: releaseEvery, marks: marks, errs: errs}
	return step.run()
}

// keepUsed adds to want what has left the plan but still has mappings.
func (d *Dataplane) keepUsed(now, want content) error {
	if !missing(now.ifaces, want.ifaces) && !missing(now.pins, want.pins) && !anyRetired(want.pins) {
		return nil
	}
	slots, pins := make(map[uint32]bool), make(map[uint32]bool)
	err := scanMap(d.maps.ByLocal, func(key flowKey, end publicEnd) bool {
		pins[end.Pin] = true
		if end.Flags&mappingNative == 0 {
			slots[key.Slot] = true
		}
		return true
	})
	if err != nil {
		return err
	}
	for id, pin := range want.pins {
		if pin.Flags&pinRetired != 0 && !pins[id] {
			delete(want.pins, id) // its last mapping is gone
		}
	}
	for id, pin := range now.pins {
		if _, ok := want.pins[id]; !ok && pins[id] {
			pin.Flags |= pinRetired
			want.pins[id] = pin
		}
	}
	taken := make(map[uint32]bool)
	for _, iface := range want.ifaces {
		taken[iface.Slot] = true
	}
	for ifindex, iface := range now.ifaces {
		if _, ok := want.ifaces[ifindex]; ok || !slots[iface.Slot] || taken[iface.Slot] {
			continue
		}
		// Only where the programs still are: the interface may have been
		// deleted, and its number be another's.
		if on, err := d.attached(int(ifindex)); err != nil || !on {
			continue
		}
		want.ifaces[ifindex] = iface
		for key := range now.uniques {
			if key.Slot == iface.Slot {
				want.uniques[key] = uniqueKnown
			}
		}
		for key, vip := range now.vips {
			if _, ok := want.vips[key]; !ok && key.Slot == iface.Slot {
				want.vips[key] = vip
			}
		}
	}
	return nil
}

func missing[K comparable, V any](now, want map[K]V) bool {
	for key := range now {
		if _, ok := want[key]; !ok {
			return true
		}
	}
	return false
}

func anyRetired(pins map[uint32]pinValue) bool {
	for _, pin := range pins {
		if pin.Flags&pinRetired != 0 {
			return true
		}
	}
	return false
}

// releaseEvery is how long interfaces wait that have their programs while others
// are still to get theirs, which takes some 10 ms each: the kernel waits for a
// grace period.
const releaseEvery = 50 * time.Millisecond

// convergence is one Apply under way.
type convergence struct {
	d         *Dataplane
	now, want content
	names     map[uint32]string // of interfaces in the plan, for messages
	pause     time.Duration     // between two looks for living flows
	marks     *marksStep        // nil where the kernel has BTF
	errs      []error           // of the preparation
}

func (c *convergence) run() error {
	fresh, errs := c.markFresh()
	errs = append(errs, c.errs...)
	if err := c.fill(); err != nil {
		return fmt.Errorf("apply plan: %w", err)
	}
	if err := c.marks.put(c.d); err != nil {
		errs, fresh = append(errs, err), nil // nothing is pinned, then
	}
	errs = append(errs, c.attachAll(fresh)...)
	errs = append(errs, c.clean())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("apply plan: %w", err)
	}
	return nil
}

func (c *convergence) name(ifindex uint32) string {
	if name := c.names[ifindex]; name != "" {
		return name
	}
	return fmt.Sprint(ifindex)
}

// markFresh marks the unique addresses on which flows may live that the programs
// were not shown, and returns them.
func (c *convergence) markFresh() ([]slotAddr, []error) {
	unseen := make(map[uint32]bool) // by slot
	var errs []error
	for ifindex, iface := range c.want.ifaces {
		on, err := c.d.attached(int(ifindex))
		if err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", c.name(ifindex), err))
		}
		before, known := c.now.ifaces[ifindex]
		unseen[iface.Slot] = !on || !known || before != iface || !c.marks.shows(ifindex)
	}
	var fresh []slotAddr
	for key := range c.want.uniques {
		if unseen[key.Slot] || c.now.uniques[key] != uniqueKnown {
			c.want.uniques[key] = uniqueNew
			fresh = append(fresh, key)
		}
	}
	return fresh, errs
}

// fill writes everything new or different, with the interfaces last. Pins that
// are to go make no mappings from here on.
func (c *convergence) fill() error {
	maps := &c.d.maps
	leaving := make(map[uint32]pinValue)
	for id, pin := range c.now.pins {
		if _, ok := c.want.pins[id]; !ok {
			pin.Flags |= pinRetired
			leaving[id] = pin
		}
	}
	for _, write := range []func() error{
		c.d.newEpoch, // a packet that knew a pin by another address looks again
		func() error { return put(maps.Groups, c.now.groups, c.want.groups) },
		func() error { return put(maps.Pins, c.now.pins, c.want.pins) },
		func() error { return put(maps.Pins, c.now.pins, leaving) },
		func() error { return c.d.putSwitches(c.now.switches, c.want.switches) },
		func() error { return put(maps.Vips, c.now.vips, c.want.vips) },
		func() error { return put(maps.Sources, c.now.sources, c.want.sources) },
		func() error { return put(maps.Vrids, c.now.vrids, c.want.vrids) },
		func() error { return put(maps.Uniques, c.now.uniques, c.want.uniques) },
		func() error { return c.d.putIfaces(c.now.ifaces, c.want.ifaces) },
		c.d.newEpoch,
	} {
		if err := write(); err != nil {
			return err
		}
	}
	return nil
}

// attachAll puts the programs on the interfaces and releases the fresh addresses
// of those that have them, in portions: a look for living flows reads the whole
// table, so that no more than half of the time goes into it.
func (c *convergence) attachAll(fresh []slotAddr) (errs []error) {
	bySlot := make(map[uint32][]slotAddr)
	for _, key := range fresh {
		bySlot[key.Slot] = append(bySlot[key.Slot], key)
	}
	var ready []slotAddr
	pause, since := c.pause, time.Now()
	for ifindex, iface := range c.want.ifaces {
		if err := c.d.attach(int(ifindex)); err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", c.name(ifindex), err))
			continue
		}
		ready = append(ready, bySlot[iface.Slot]...)
		if time.Since(since) < pause {
			continue
		}
		begun := time.Now()
		if err := c.release(ready); err != nil {
			errs = append(errs, err)
		}
		ready, since, pause = nil, time.Now(), max(c.pause, time.Since(begun))
	}
	if err := c.release(ready); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// release notes the living flows on fresh addresses and takes their mark off.
func (c *convergence) release(fresh []slotAddr) error {
	if len(fresh) == 0 {
		return nil
	}
	if err := c.noteLiving(fresh); err != nil {
		return fmt.Errorf("note living flows, none is pinned on the addresses concerned: %w", err)
	}
	for _, key := range fresh {
		if err := c.d.maps.Uniques.Put(key, uniqueKnown); err != nil {
			return fmt.Errorf("write map uniques: %w", err)
		}
	}
	return nil
}

// noteLiving puts the masqueraded flows in conntrack's table whose local end is
// on one of the addresses, and that have no mapping, among the unpinned ones.
func (c *convergence) noteLiving(fresh []slotAddr) error {
	bySelf := selfSlots(slices.Values(fresh))
	conn, err := conntrack.Dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	filter := conntrack.Filter{Status: conntrack.SrcNAT, StatusMask: conntrack.SrcNAT}
	return conn.Dump(context.Background(), filter, func(flow *conntrack.Flow) error {
		for _, slot := range bySelf[flow.Reply.Dst] {
			if err := c.noteFlow(slot, flow); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *convergence) noteFlow(slot uint32, flow *conntrack.Flow) error {
	key, ok := replyKey(slot, flow.Reply)
	if !ok {
		return nil
	}
	var end publicEnd
	err := c.d.maps.ByLocal.Lookup(key, &end)
	if err == nil {
		return nil
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read map by_local: %w", err)
	}
	// Which entry it is, the flow's next packet will fill in.
	value := leftAlone{Pin: c.pinOf(slot, flow.Orig.Src), Reason: pinBornBefore}
	err = c.d.maps.Unpinned.Update(key, value, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return c.renewNote(key)
	}
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("map unpinned is full: raise dataplane.max_flows: %w", err)
	}
	if err != nil {
		return fmt.Errorf("write map unpinned: %w", err)
	}
	return nil
}

// renewNote makes a note one of the flow that lives now. It may be of an earlier
// one on the same tuple, which went while the programs did not look.
func (c *convergence) renewNote(key flowKey) error {
	var value leftAlone
	there, err := found(c.d.maps.Unpinned.Lookup(key, &value))
	if err != nil || !there {
		return err
	}
	value.Conntrack = 0
	if err := ignoreNotExist(c.d.maps.Unpinned.Update(key, value, ebpf.UpdateExist)); err != nil {
		return fmt.Errorf("write map unpinned: %w", err)
	}
	return nil
}

// pinOf finds the pin of an inside host, as the programs do.
func (c *convergence) pinOf(slot uint32, client netip.Addr) uint32 {
	var key sourceKey
	key.PrefixLen, key.Slot, key.Addr.Word = 32+128, slot, addrWords(client)
	var pin uint32
	if err := c.d.maps.Sources.Lookup(key, &pin); err != nil {
		return 0
	}
	return pin
}

// selfSlots tells the slots in which an address is a flow's local end.
func selfSlots(of iter.Seq[slotAddr]) map[netip.Addr][]uint32 {
	list := make(map[netip.Addr][]uint32)
	for key := range of {
		addr := wordsAddr(key.Addr.Word)
		list[addr] = append(list[addr], key.Slot)
	}
	return list
}

// clean removes what has left the plan, interfaces first.
func (c *convergence) clean() error {
	m := &c.d.maps
	errs := []error{c.d.dropIfaces(c.now.ifaces, c.want.ifaces)}
	attached, err := c.d.attachments()
	errs = append(errs, err)
	for _, ifindex := range attached {
		if _, ok := c.want.ifaces[uint32(ifindex)]; ok {
			continue
		}
		if err := c.d.detach(ifindex); err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", c.name(uint32(ifindex)), err))
		}
	}
	errs = append(errs,
		drop(m.Uniques, c.now.uniques, c.want.uniques),
		drop(m.Vrids, c.now.vrids, c.want.vrids),
		drop(m.Sources, c.now.sources, c.want.sources),
		drop(m.Vips, c.now.vips, c.want.vips),
		c.d.clearPins(c.now.pins, c.want.pins),
		c.d.clearGroups(c.now.groups, c.want.groups))
	return errors.Join(errs...)
}
