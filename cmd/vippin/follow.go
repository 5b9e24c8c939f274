// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"vippin/loader"
	"vippin/policy"
)

// How the daemon follows the interfaces. Roles are decided at every look. The
// plan is made
//   - at once when an interface of it came, went, was made anew, or got its first
//     address: a flow that begins before that keeps the router's own address for
//     life, and hosts that were cut off begin many at once;
//   - after a pause in all other cases: a takeover moves one address after the
//     other, and applying a plan takes longer than all of them together, so that
//     the role would wait for it.
const (
	settled   = 20 * time.Millisecond // the pause
	settledBy = 40 * time.Millisecond // without a pause, since the first change

	applySoon  = 10 * time.Millisecond // after a look or a plan that failed, twice as long every time
	applyAgain = 2 * time.Second       // at most
)

// following is what the loop knows of changes that no plan was made for.
type following struct {
	since time.Duration // CLOCK_MONOTONIC of the first one, 0: there is none
	dueAt time.Duration // when to make the plan
	links map[int]bool  // the interfaces that changed, not only their addresses
	addrs map[int]bool  // those whose addresses changed
	any   bool          // events were lost: any may have
	blind bool          // the last look failed
	told  bool          // and that was logged
	gone  string        // what the last plan's failure was that met an interface which had gone

	looking bool // the interfaces are being looked at for their programs

	retryAt    time.Duration // when to try again, 0: not decided
	retryPause time.Duration // before that
}

// add notes what an event is about.
func (f *following) add(event loader.LinkEvent, now time.Duration) {
	if f.since == 0 {
		f.since = min(event.Time, now)
	}
	f.dueAt = min(now+settled, f.since+settledBy)
	if f.links == nil {
		f.links, f.addrs = map[int]bool{}, map[int]bool{}
	}
	switch event.Kind {
	case loader.LinkChanged:
		f.links[event.Ifindex] = true
	case loader.AddrChanged:
		f.addrs[event.Ifindex] = true
	case loader.Resync:
		f.any = true
	}
}

// done forgets the changes: a plan was made for them.
func (f *following) done() { f.since, f.dueAt, f.links, f.addrs, f.any = 0, 0, nil, nil, false }

// changed tells whether an interface itself may have changed.
func (f *following) changed(ifindex int) bool { return f.any || f.links[ifindex] }

// linksChanged looks at the interfaces and decides on the roles. Most plans
// follow when the interfaces have settled.
func (d *daemon) linksChanged(event loader.LinkEvent) {
	d.noteChanges(event)
	if d.look() && d.isUrgent() {
		d.replan()
	}
}

// noteChanges takes what has piled up too: one look serves for all.
func (d *daemon) noteChanges(event loader.LinkEvent) {
	now := d.env.monotonic()
	for {
		d.state.follow.add(event, now)
		d.flight.linkEvent(event)
		d.linkShaken(event)
		if event.Kind != loader.AddrChanged {
			d.fast.Attach()
		}
		if len(d.links) == 0 {
			return
		}
		event = <-d.links
	}
}

// look observes the interfaces and decides on the roles.
func (d *daemon) look() (seen bool) {
	f := &d.state.follow
	observed, err := d.env.observe()
	if err != nil {
		// While many come and go, no look is of one moment.
		lasting := f.retryPause >= applyAgain || !errors.Is(err, loader.ErrDisturbed)
		if lasting && !f.told {
			d.log.Warn("cannot look at the interfaces, trying again", "error", err)
			f.told = true
		}
		f.blind = true
		return false
	}
	f.blind, f.told = false, false
	was := d.state.observed
	d.state.observed = observed
	d.flight.observed(was, observed)
	d.groundLost(was)
	d.decided(d.state.tracker.Observe(d.env.monotonic(), observed))
	d.tellReplication()
	return true
}

// isUrgent tells whether the plan is not to wait for a pause. Most often a look
// at the addresses says so: plans take time.
func (d *daemon) isUrgent() bool {
	f := &d.state.follow
	if !f.any && len(f.links) == 0 && !f.gotFirstAddress(d.state.plan, d.state.observed) {
		return false
	}
	return isUrgent(d.state.plan, d.nextPlan()) || d.lacksPrograms(f.changed)
}

// gotFirstAddress tells whether an interface of the plan without an address of
// its own may have got one.
func (f *following) gotFirstAddress(plan policy.Plan, seen policy.Observed) bool {
	lacking := map[int]policy.PlanInterface{}
	for _, face := range plan.Interfaces {
		if f.addrs[face.Index] && !(hasUnique(face, false) && hasUnique(face, true)) {
			lacking[face.Index] = face
		}
	}
	for _, link := range seen.Links {
		face, lacks := lacking[link.Index]
		for _, addr := range link.Addrs {
			ip := addr.Prefix.Addr()
			if lacks && !ip.IsLinkLocalUnicast() && !hasUnique(face, ip.Is6()) && !slices.Contains(face.VIPs, ip) {
				return true
			}
		}
	}
	return false
}

// isUrgent tells whether an interface of the plan came or went, was renamed, or
// got its first address.
func isUrgent(now, next policy.Plan) bool {
	had := map[int]policy.PlanInterface{}
	for _, face := range now.Interfaces {
		had[face.Index] = face
	}
	if len(now.Interfaces) != len(next.Interfaces) {
		return true
	}
	for _, face := range next.Interfaces {
		before, there := had[face.Index]
		if !there || before.Name != face.Name || before.Slot != face.Slot {
			return true
		}
		for _, v6 := range []bool{false, true} {
			if !hasUnique(before, v6) && hasUnique(face, v6) {
				return true
			}
		}
	}
	return false
}

// hasUnique tells whether masquerade has an address to choose. Link-local ones
// come by themselves, and nothing that is forwarded gets one.
func hasUnique(face policy.PlanInterface, v6 bool) bool {
	return slices.ContainsFunc(face.Uniques, func(addr netip.Addr) bool {
		return addr.Is6() == v6 && !addr.IsLinkLocalUnicast()
	})
}

// lacksPrograms tells whether the programs are not on one of some interfaces of
// the plan: it was made anew, with the same name, number and addresses.
func (d *daemon) lacksPrograms(some func(ifindex int) bool) bool {
	return slices.ContainsFunc(d.state.plan.Interfaces, func(face policy.PlanInterface) bool {
		return some(face.Index) && !d.hasPrograms(face.Index)
	})
}

func (d *daemon) hasPrograms(ifindex int) bool {
	on, err := d.plane.Attached(ifindex)
	return err == nil && on
}

// hasStrays tells whether one of some interfaces is not in the plan any more but
// still in the maps, for its living mappings.
func (d *daemon) hasStrays(some func(ifindex int) bool) bool {
	strays, err := d.plane.Strays(d.state.plan)
	return err != nil || slices.ContainsFunc(strays, some)
}

// lookAround notices, now and then, what no event tells of: somebody has taken
// the programs off an interface (whoever replaces its queue discipline takes
// clsact filters with it), the last mapping has gone from an interface that
// had left the plan, or netfilter looks at bridges, or no more.
func (d *daemon) lookAround() {
	if d.state.retry {
		return
	}
	if loader.OnPort() != d.state.observed.OnPort && d.look() {
		d.replan()
	}
	if d.hasStrays(func(int) bool { return true }) {
		d.follow(d.nextPlan())
	}
	d.lookForPrograms()
}

// lookForPrograms has the interfaces of the plan looked at, and the loop told of those
// without programs. The loop goes on meanwhile: with many interfaces a router that has
// much to do takes longer for them than a role may wait.
func (d *daemon) lookForPrograms() {
	if d.state.follow.looking {
		return
	}
	d.state.follow.looking = true
	var faces []int
	for _, face := range d.state.plan.Interfaces {
		faces = append(faces, face.Index)
	}
	d.tasks.Go(func() error {
		lacking := slices.DeleteFunc(faces, func(ifindex int) bool { return d.ctx.Err() != nil || d.hasPrograms(ifindex) })
		select {
		case d.lacking <- lacking:
		case <-d.ctx.Done():
		}
		return nil
	})
}

// putBack puts the programs on interfaces that were seen without, if they still are.
func (d *daemon) putBack(lacking []int) {
	d.state.follow.looking = false
	if d.state.retry || !d.lacksPrograms(func(ifindex int) bool { return slices.Contains(lacking, ifindex) }) {
		return
	}
	d.log.Warn("programs were taken off an interface, they are put on again; look for what changes its queue disciplines or BPF programs")
	d.follow(d.nextPlan())
}

// again looks and applies once more, after either has failed.
func (d *daemon) again() {
	d.state.follow.retryAt = 0
	if d.look() {
		d.follow(d.nextPlan())
	}
}

// armRetry sets the timer to the next attempt while something has failed: soon
// at first, since what failed in the midst of a change works a moment later.
func (d *daemon) armRetry(timer *time.Timer) {
	f := &d.state.follow
	if !d.state.retry && !f.blind {
		f.retryAt, f.retryPause = 0, 0
		timer.Stop()
		return
	}
	if f.retryAt == 0 {
		f.retryPause = min(applyAgain, max(applySoon, 2*f.retryPause))
		f.retryAt = d.env.monotonic() + f.retryPause
	}
	timer.Reset(max(0, f.retryAt-d.env.monotonic()))
}

// armSettle sets the timer to when the plan is to be made.
func (d *daemon) armSettle(timer *time.Timer) {
	timer.Stop()
	if due := d.state.follow.dueAt; due != 0 {
		timer.Reset(max(0, due-d.env.monotonic()))
	}
}

// nextPlan plans for the interfaces as they were seen last.
func (d *daemon) nextPlan() policy.Plan {
	return policy.MakePlan(d.state.config, d.state.toggles, d.state.observed, d.state.plan)
}

// replan makes the plan anew and puts it into force when it differs, or when
// the kernel has lost what it says.
func (d *daemon) replan() {
	plan, changed := d.nextPlan(), d.state.follow.changed
	if reflect.DeepEqual(plan, d.state.plan) && !d.lacksPrograms(changed) && !d.hasStrays(changed) {
		d.state.follow.done()
		return
	}
	d.follow(plan)
}

// follow puts a plan into force that the interfaces made necessary.
func (d *daemon) follow(plan policy.Plan) {
	since := d.state.follow.since
	d.publishPlan(d.state.plan, plan)
	d.decided(d.state.tracker.Update(d.env.monotonic(), plan))
	d.state.follow.done() // what changes from here on is for the next plan
	d.apply(plan)
	now := d.env.monotonic()
	if since != 0 && !d.state.retry {
		d.log.Debug("followed the interfaces", "after", now-since)
	}
	d.hurry()
}

// hurry makes the plan at once if something changed meanwhile that does not wait.
func (d *daemon) hurry() {
	if d.state.follow.since != 0 && d.isUrgent() {
		d.state.follow.dueAt = d.env.monotonic()
	}
}

// beside lets the loop go on with the roles while something changes the kernel
// that takes time: it lets some 10 ms pass for every program that is attached, so
// that many new interfaces take seconds, and a large conntrack table takes some
// 100 ms to read. That is longer than a role may wait, or the lease lasts.
func (d *daemon) beside(change func() error) error {
	done := make(chan error, 1)
	go func() { done <- change() }()
	beat := time.NewTicker(d.state.config.VRRP.Lease / heartbeatsPerLease)
	defer beat.Stop()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		d.sendProbes()
		d.armTick(tick)
		select {
		case err := <-done:
			return err
		case event := <-d.links:
			d.noteChanges(event)
			d.look()
		case advert := <-d.adverts:
			d.advertsHeard(advert)
		case claim := <-d.claims:
			d.decided(d.state.tracker.Claim(d.env.monotonic(), claim))
		case n := <-d.notices:
			d.noticed(n)
		case <-tick.C:
			d.decided(d.state.tracker.Tick(d.env.monotonic()))
		case <-beat.C:
			if err := d.plane.Heartbeat(d.env.monotonic()); err != nil {
				d.log.Error("tell the programs that the daemon lives", "error", err)
			}
		}
	}
}

// publishPlan tells the watchers which pins found or lost their interface.
func (d *daemon) publishPlan(before, after policy.Plan) {
	had := map[policy.PinKey]policy.PlanPin{}
	for _, pin := range before.Pins {
		had[pin.Key()] = pin
	}
	for _, pin := range after.Pins {
		was, known := had[pin.Key()]
		switch {
		case pin.Retired, known && was.Ifindex == pin.Ifindex && was.Interface == pin.Interface:
			continue
		case pin.Ifindex == 0:
			d.tellPin("link", pin.Key(), fmt.Sprintf("interface %s is gone", pin.Interface))
		default:
			d.tellPin("link", pin.Key(), fmt.Sprintf("is on interface %s (%d)", pin.Interface, pin.Ifindex))
		}
	}
}
