// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"vippin/bpf"
	"vippin/policy"
)

// Settings are the few numbers that the programs take at run time.
type Settings struct {
	// Lease is how old the daemon's heartbeat may be for its roles to count.
	Lease time.Duration
	// Valid VRRP adverts get mark = (mark &^ TagMask) | TagMark, and
	// TagPriority as skb->priority. TagMask 0 leaves the mark alone.
	TagMark, TagMask, TagPriority uint32
}

// SetSettings puts settings into force.
func (d *Dataplane) SetSettings(s Settings) error {
	if s.Lease < 0 {
		return fmt.Errorf("set lease of %v: it must not be negative", s.Lease)
	}
	value := bpf.DataplaneSettings{
		LeaseNs: uint64(s.Lease), TagMark: s.TagMark, TagMask: s.TagMask, TagPriority: s.TagPriority,
		Marks: d.marksSetting(),
	}
	if err := d.maps.Settings.Put(uint32(0), value); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

func (d *Dataplane) settings() (value bpf.DataplaneSettings, err error) {
	if err := d.maps.Settings.Lookup(uint32(0), &value); err != nil {
		return value, fmt.Errorf("read settings: %w", err)
	}
	return value, nil
}

func (d *Dataplane) pin(id uint32) (value pinValue, err error) {
	if id >= maxPins {
		return value, fmt.Errorf("there is no pin %d", id)
	}
	if err := d.maps.Pins.Lookup(id, &value); err != nil {
		return value, fmt.Errorf("read pin %d: %w", id, err)
	}
	if id == 0 || value.Flags&pinUsed == 0 {
		return value, fmt.Errorf("there is no pin %d", id)
	}
	return value, nil
}

// SetRole says what this router is for a pin. A fixed role needs no heartbeat
// and no adverts: VIPs without VRRP. When it becomes MASTER, every flow takes the
// programs' long way once, where Passages are noted.
func (d *Dataplane) SetRole(pin uint32, role policy.Role, fixed bool) error {
	if pin == 0 || pin >= maxPins {
		return fmt.Errorf("there is no pin %d", pin)
	}
	value := bpf.DataplaneRole{Role: uint32(role), SinceNs: uint64(Monotonic())}
	if fixed {
		value.Fixed = 1
	}
	was, _, err := d.Role(pin)
	if err != nil {
		return err
	}
	if err := d.maps.Roles.Put(pin, value); err != nil {
		return fmt.Errorf("set role of pin %d: %w", pin, err)
	}
	if role == policy.RoleMaster && was != role {
		return d.newEpoch()
	}
	return nil
}

// Role reads back what SetRole said last; FAULT if nothing.
func (d *Dataplane) Role(pin uint32) (role policy.Role, fixed bool, err error) {
	var value bpf.DataplaneRole
	if err := d.maps.Roles.Lookup(pin, &value); err != nil {
		return policy.RoleFault, false, fmt.Errorf("read role of pin %d: %w", pin, err)
	}
	return policy.Role(value.Role), value.Fixed != 0, nil
}

// leaseAdverts is how many of its own intervals an advert that left speaks for.
const leaseAdverts = 3

// EffectiveRole is the role by which the programs judge new flows of a pin at
// now (CLOCK_MONOTONIC): MASTER only if fixed, confirmed by a heartbeat younger
// than the lease, or by an advert of our own that left lately; a MASTER that
// nobody confirms counts as BACKUP. See judge_role in bpf/role.h, which knows one
// exception more: the first moment of a takeover.
func (d *Dataplane) EffectiveRole(pin uint32, now time.Duration) (policy.Role, error) {
	value, err := d.pin(pin)
	if err != nil {
		return policy.RoleFault, err
	}
	role, fixed, err := d.Role(pin)
	if err != nil || fixed {
		return role, err
	}
	var settings bpf.DataplaneSettings
	var beat uint64
	var own bpf.DataplaneOwnAdvert
	err = errors.Join(
		d.maps.Settings.Lookup(uint32(0), &settings),
		d.maps.Heartbeat.Lookup(uint32(0), &beat),
		d.maps.OwnAdverts.Lookup(value.Group, &own))
	if err != nil {
		return policy.RoleFault, fmt.Errorf("read lease of pin %d: %w", pin, err)
	}
	if beat != 0 && int64(now)-int64(beat) < int64(settings.LeaseNs) {
		return role, nil
	}
	if own.LastNs != 0 && uint64(now)-own.LastNs < leaseAdverts*own.IntervalNs {
		return policy.RoleMaster, nil
	}
	if role == policy.RoleMaster {
		role = policy.RoleBackup
	}
	return role, nil
}

// Heartbeat tells the programs that the daemon was alive at now
// (CLOCK_MONOTONIC) and stands by the roles it set.
func (d *Dataplane) Heartbeat(now time.Duration) error {
	if err := d.maps.Heartbeat.Put(uint32(0), uint64(now)); err != nil {
		return fmt.Errorf("write heartbeat: %w", err)
	}
	return nil
}

// clearPins forgets the pins that are not wanted any more, with their roles
// and counters.
func (d *Dataplane) clearPins(now, want map[uint32]pinValue) error {
	var errs []error
	for id := range now {
		if _, ok := want[id]; ok {
			continue
		}
		errs = append(errs,
			d.maps.Pins.Put(id, pinValue{}),
			d.maps.Roles.Put(id, bpf.DataplaneRole{}),
			d.maps.Passages.Put(id, bpf.DataplanePassage{}),
			d.clearCounters(id))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget pins: %w", err)
	}
	return nil
}

func (d *Dataplane) clearGroups(now, want map[uint32]groupValue) error {
	var errs []error
	for id := range now {
		if _, ok := want[id]; !ok {
			errs = append(errs,
				d.maps.Groups.Put(id, groupValue{}),
				d.maps.OwnAdverts.Put(id, bpf.DataplaneOwnAdvert{}))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget groups: %w", err)
	}
	return nil
}

func (d *Dataplane) clearCounters(pin uint32) error {
	zeros := make([]uint64, ebpf.MustPossibleCPU())
	var errs []error
	for counter := range pinCounters {
		errs = append(errs, d.maps.PinCounters.Put(pin*pinCounters+counter, zeros))
	}
	return errors.Join(errs...)
}
