// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"

	"vippin/policy"
)

// switches are those of all pins, by number: pinEnabled and pinToggled. They are in
// a map of their own, which nobody changes; who has others puts another one in its
// place (bpf/switches.h). So programs and readers find what was before or what is
// after a change of many, also when the process that makes it dies.
type switches [maxPins]uint8

func (s *switches) on(pin uint32) bool { return s[pin]&uint8(pinEnabled) != 0 }

func (s *switches) set(pin uint32, on bool, by policy.EnabledBy) {
	s[pin] = 0
	if on {
		s[pin] |= uint8(pinEnabled)
	}
	if by == policy.EnabledByToggle {
		s[pin] |= uint8(pinToggled)
	}
}

// by says whose word is in force.
func (s *switches) by(pin uint32) policy.EnabledBy {
	if s[pin]&uint8(pinToggled) != 0 {
		return policy.EnabledByToggle
	}
	return policy.EnabledByConfig
}

// Switch puts pins on or off as they say (ID, Enabled, EnabledBy), in one step: all
// of them or, after an error, none. Living flows are not touched: before a pin is
// on, those are noted that live on an interface which rested. That takes about 3 ms
// for every 1,000 connections of the router; the step itself waits for a grace period
// of the kernel, some 10 ms.
func (d *Dataplane) Switch(pins []policy.PlanPin) error {
	unlock, err := lockDir(d.dir) // Apply writes the same map
	if err != nil {
		return err
	}
	defer unlock()
	now, err := d.content()
	if err != nil {
		return fmt.Errorf("switch %s: %w", namesOf(pins), err)
	}
	want := *now.switches
	on := make(map[uint32]bool)
	for _, pin := range pins {
		held, there := now.pins[pin.ID]
		if !there {
			return fmt.Errorf("switch pin %s: there is no pin %d", pin.Key(), pin.ID)
		}
		if pin.Enabled && held.Flags&pinRetired != 0 {
			return fmt.Errorf("switch pin %s: it has left the configuration", pin.Key())
		}
		want.set(pin.ID, pin.Enabled, pin.EnabledBy)
		on[pin.ID] = pin.Enabled
	}
	for _, step := range []func() error{
		func() error { return d.wake(now, on) },
		func() error { return d.settle(now, on) },
		func() error { return d.putSwitches(now.switches, &want) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("switch %s: %w", namesOf(pins), err)
		}
	}
	return nil
}

func namesOf(pins []policy.PlanPin) string {
	var names []string
	for _, pin := range pins {
		names = append(names, pin.Key().String())
	}
	if len(names) == 1 {
		return "pin " + names[0]
	}
	return "pins " + strings.Join(names, ", ")
}

// readSwitches reads those in force, all of one moment.
func (d *Dataplane) readSwitches() (*switches, error) {
	all := new(switches)
	now, err := d.openSwitches()
	if err != nil || now == nil {
		return all, err
	}
	defer func() { _ = now.Close() }()
	if err := now.Lookup(uint32(0), all); err != nil {
		return nil, fmt.Errorf("read the pins' switches: %w", err)
	}
	return all, nil
}

// openSwitches opens the map that is in force; nil: none is, yet.
func (d *Dataplane) openSwitches() (*ebpf.Map, error) {
	for {
		var id uint32
		err := d.maps.Switches.Lookup(uint32(0), &id)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read map switches: %w", err)
		}
		m, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue // another one has taken its place
		}
		if err != nil {
			return nil, fmt.Errorf("open the pins' switches: %w", err)
		}
		return m, nil
	}
}

// putSwitches puts want in the place of now, in one store, unless they are the same.
// Programs that have read now have ended when it returns.
func (d *Dataplane) putSwitches(now, want *switches) error {
	if *now == *want {
		return nil
	}
	next, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "switched", Type: ebpf.Array, KeySize: 4, ValueSize: maxPins, MaxEntries: 1,
	})
	if err != nil {
		return fmt.Errorf("make a map of switches: %w", err)
	}
	defer func() { _ = next.Close() }()
	if err := next.Put(uint32(0), want); err != nil {
		return fmt.Errorf("fill a map of switches: %w", err)
	}
	// Held until the update has waited for a grace period: earlier 6.1 kernels free
	// it under a program's hands (CVE-2023-52447).
	last, err := d.openSwitches()
	if err != nil {
		return err
	}
	if last != nil {
		defer func() { _ = last.Close() }()
	}
	if err := d.maps.Switches.Put(uint32(0), next); err != nil {
		return fmt.Errorf("write map switches: %w", err)
	}
	return nil
}

// takeSwitches takes the switches over from a version that had them in the pins.
func (d *Dataplane) takeSwitches() error {
	pins, err := d.usedPins()
	if err != nil {
		return err
	}
	all := new(switches)
	for id, pin := range pins {
		all[id] = uint8(pin.Flags & (pinEnabled | pinToggled))
	}
	return d.putSwitches(new(switches), all)
}

// disablePins keeps new mappings from being made. restore undoes it.
func (d *Dataplane) disablePins() (restore func() error, err error) {
	before, err := d.readSwitches()
	if err != nil {
		return func() error { return nil }, err
	}
	off := *before
	for pin := range off {
		off[pin] &^= uint8(pinEnabled)
	}
	return func() error { return d.putSwitches(&off, before) }, d.putSwitches(before, &off)
}
