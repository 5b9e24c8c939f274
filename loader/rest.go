// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// An interface rests when its only pin is switched off, takes every inside host,
// and has no mapping left: its packets cost next to nothing, and no flow is
// noted (bpf/rest.h). The flows that live when the pin is switched on are noted
// then, from conntrack's table, before any is pinned.

// nameOnlyPins tells every interface its pin, if it has just one.
func (c content) nameOnlyPins() {
	pins := make(map[uint32][]uint32) // by slot
	for id, pin := range c.pins {
		pins[pin.Slot] = append(pins[pin.Slot], id)
	}
	for ifindex, iface := range c.ifaces {
		if list := pins[iface.Slot]; iface.Slot != 0 && len(list) == 1 {
			iface.Pin = list[0]
			c.ifaces[ifindex] = iface
		}
	}
}

// mayRest tells whether nothing that passes an interface could be pinned.
func (c content) mayRest(iface ifaceValue) bool {
	if iface.Pin == 0 || c.switches.on(iface.Pin) {
		return false
	}
	for _, everybody := range []string{"0.0.0.0/0", "::/0"} {
		if c.sources[newSourceKey(iface.Slot, netip.MustParsePrefix(everybody))] != iface.Pin {
			return false
		}
	}
	for key, pin := range c.sources {
		if key.Slot == iface.Slot && pin != iface.Pin && !isNumberKey(key) {
			return false
		}
	}
	return true
}

// letRest leaves the interfaces at rest for which a plan changes nothing.
func letRest(now, want content) {
	for ifindex, iface := range want.ifaces {
		rested := iface
		rested.Resting = 1
		if now.ifaces[ifindex] == rested && want.mayRest(iface) {
			want.ifaces[ifindex] = rested
		}
	}
}

// rester puts interfaces to rest. One that may rest does so at the second look:
// a program that had seen its pin switched on has long come to its end then.
type rester struct {
	d      *Dataplane
	before map[uint32]bool // by ifindex, those that might rest at the last look
}

// Rest puts to rest every interface that may. Collect does it by itself; this is
// for who has no Collect, and whose pins have been off for a moment.
func (d *Dataplane) Rest() error {
	r := rester{d: d}
	return errors.Join(r.look(), r.look())
}

func (r *rester) look() error {
	pins, err := r.d.usedPins()
	if err != nil {
		return err
	}
	all, err := r.d.readSwitches()
	if err != nil {
		return err
	}
	if !anyOff(pins, all) { // the rest reads all, and waits for whoever applies a plan
		r.before = nil
		return nil
	}
	unlock, err := lockDir(r.d.dir)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := r.d.content()
	if err != nil {
		return err
	}
	able := make(map[uint32]bool)
	slots := make(map[uint32]uint32) // of those that rest now: ifindex by slot
	for ifindex, iface := range now.ifaces {
		if iface.Resting != 0 || !now.mayRest(iface) {
			continue
		}
		able[ifindex] = true
		if r.before[ifindex] {
			slots[iface.Slot] = ifindex
		}
	}
	r.before = able
	if len(slots) == 0 {
		return nil
	}
	err = scanMap(r.d.maps.ByLocal, func(key flowKey, _ publicEnd) bool {
		delete(slots, key.Slot)
		return len(slots) > 0
	})
	if err != nil {
		return err
	}
	want := make(map[uint32]ifaceValue)
	for _, ifindex := range slots {
		iface := now.ifaces[ifindex]
		iface.Resting = 1
		want[ifindex] = iface
	}
	return r.d.putIfaces(now.ifaces, want)
}

func anyOff(pins map[uint32]pinValue, all *switches) bool {
	for id := range pins {
		if !all.on(id) {
			return true
		}
	}
	return false
}

// wake makes the programs look again at the packets of interfaces that rest, whose
// pins are to go on. Until settle has noted the flows that live, none is pinned.
func (d *Dataplane) wake(now content, pins map[uint32]bool) error {
	awake := make(map[uint32]ifaceValue)
	for ifindex, iface := range now.ifaces {
		if iface.Resting == 0 || !pins[iface.Pin] {
			continue
		}
		for key := range now.uniques {
			if key.Slot != iface.Slot {
				continue
			}
			if err := d.maps.Uniques.Put(key, uniqueNew); err != nil {
				return fmt.Errorf("write map uniques: %w", err)
			}
			now.uniques[key] = uniqueNew
		}
		iface.Resting = 0
		awake[ifindex] = iface
	}
	return d.putIfaces(now.ifaces, awake)
}

// settle notes the flows that live on the interfaces of pins that are to go on, as
// far as the programs were not shown them: the pins are off still, so from here on
// the programs note what begins.
func (d *Dataplane) settle(now content, pins map[uint32]bool) error {
	slots := make(map[uint32]bool)
	for id, on := range pins {
		slots[now.pins[id].Slot] = slots[now.pins[id].Slot] || on
	}
	var fresh []slotAddr
	for ifindex, iface := range now.ifaces {
		unsettled := now.unsettled(iface.Slot)
		if !slots[iface.Slot] || len(unsettled) == 0 {
			continue
		}
		on, err := d.attached(int(ifindex))
		if err != nil {
			return err
		}
		if on { // else Apply does it, once the programs are there
			fresh = append(fresh, unsettled...)
		}
	}
	step := convergence{d: d, now: now, want: now}
	return step.release(fresh)
}

// unsettled are the addresses in a slot on which flows may live that are not noted.
func (c content) unsettled(slot uint32) (keys []slotAddr) {
	for key, state := range c.uniques {
		if key.Slot == slot && state != uniqueKnown {
			keys = append(keys, key)
		}
	}
	return keys
}

// nearIfaces is NEAR_IFACES in bpf/maps.h: a smaller ifindex has its place in
// the array, too.
const nearIfaces = 4096

// putIfaces writes what differs: first where the programs look in the second
// place.
func (d *Dataplane) putIfaces(now, want map[uint32]ifaceValue) error {
	if err := put(d.maps.Ifaces, now, want); err != nil {
		return err
	}
	near := make(map[uint32]ifaceValue)
	for ifindex, iface := range want {
		if ifindex < nearIfaces && now[ifindex] != iface {
			near[ifindex] = iface
		}
	}
	return put(d.maps.NearIfaces, nil, near)
}

// dropIfaces forgets those that are not wanted any more.
func (d *Dataplane) dropIfaces(now, want map[uint32]ifaceValue) error {
	for ifindex := range now {
		if _, ok := want[ifindex]; ok || ifindex >= nearIfaces {
			continue
		}
		if err := d.maps.NearIfaces.Update(ifindex, ifaceValue{}, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("clean map near_ifaces: %w", err)
		}
	}
	return drop(d.maps.Ifaces, now, want)
}
