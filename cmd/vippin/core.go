// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/vrrp"
)

const (
	heartbeatsPerLease = 8               // signs of life in one vrrp.lease
	retireEvery        = 5 * time.Second // how often pins that left the configuration are looked at
	busyAt             = 16              // adverts handled before anything else gets its turn
)

// coreState is what the loop owns.
type coreState struct {
	config   *policy.Config
	toggles  policy.Toggles
	observed policy.Observed
	plan     policy.Plan
	tracker  *vrrp.Tracker
	failed   error    // of the last attempt to apply the plan; nil: the kernel has it
	retry    bool     // the plan has to be applied again
	trouble  []string // what went wrong at the start and is worth a warning

	follow following
	marks  lostMarks

	replication       *replication // nil: there are no peers, or it failed
	replicationFailed string
	replicateAt       time.Duration // when it is tried again
}

func newCoreState(config *policy.Config) coreState {
	return coreState{config: config, tracker: vrrp.NewTracker(vrrp.Config{})}
}

// start brings the kernel to the configuration's state. Roles come before pins:
// a pin that is switched on must not meet a role of yesterday.
func (d *daemon) start() error {
	s := &d.state
	toggles, err := d.store.Load()
	if err != nil {
		s.trouble = append(s.trouble, err.Error())
		d.log.Error("toggles are not known", "error", err)
	}
	s.toggles = toggles
	toggle, err := d.store.LoadFastpath()
	if err != nil {
		s.trouble = append(s.trouble, err.Error())
		d.log.Error("the fast path's toggle is not known", "error", err)
	}
	d.fast.SetToggle(toggle)
	if s.observed, err = d.env.observe(); err != nil {
		return err
	}
	current, err := d.plane.Planned()
	if err != nil {
		return err
	}
	plan := policy.MakePlan(s.config, s.toggles, s.observed, current)
	if err := d.plane.SetSettings(settingsOf(s.config)); err != nil {
		return err
	}
	now := d.env.monotonic()
	s.plan = plan
	d.flight.planned(plan)
	d.decided(s.tracker.Update(now, plan))
	d.decided(s.tracker.Observe(now, s.observed))
	d.seedOwnAdverts(now)
	if err := d.plane.Heartbeat(now); err != nil {
		return err
	}
	d.flight.begin(s.tracker.Groups(now, d.env.now()))
	d.apply(plan)
	return nil
}

// seedOwnAdverts tells the tracker of adverts that left before it began.
func (d *daemon) seedOwnAdverts(now time.Duration) {
	for _, group := range d.state.plan.Groups {
		last, interval, err := d.plane.OwnAdvert(group.ID)
		if err != nil {
			d.log.Warn("own adverts of before the start are not known", "group", group.Name, "error", err)
			continue
		}
		d.decided(d.state.tracker.OwnAdvert(now, group.ID, last, interval))
	}
}

func settingsOf(config *policy.Config) loader.Settings {
	tag := config.VRRP.Tag
	return loader.Settings{
		Lease: config.VRRP.Lease, TagMark: tag.Mark.Value, TagMask: tag.Mark.Mask, TagPriority: tag.Priority,
	}
}

// loop is the daemon's heart: one event after the other, the role first.
func (d *daemon) loop(ctx context.Context) error {
	beat := time.NewTicker(d.state.config.VRRP.Lease / heartbeatsPerLease)
	defer beat.Stop()
	retire := time.NewTicker(retireEvery)
	defer retire.Stop()
	marks := time.NewTicker(marksEvery)
	defer marks.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	tick := time.NewTimer(0)
	defer tick.Stop()
	settle := time.NewTimer(0)
	defer settle.Stop()
	d.setReplication(d.state.config)
	for {
		d.sendProbes()
		d.armTick(tick)
		d.armRetry(retry)
		d.armSettle(settle)
		select {
		case <-ctx.Done():
			return nil
		case event := <-d.links:
			d.linksChanged(event)
		case <-settle.C:
			d.replan()
		case advert := <-d.adverts:
			d.advertsHeard(advert)
		case claim := <-d.claims:
			d.decided(d.state.tracker.Claim(d.env.monotonic(), claim))
		case n := <-d.notices:
			d.noticed(n)
		case <-d.words.wake:
			d.peersSaid()
		case what := <-d.asked:
			what()
		case lacking := <-d.lacking:
			d.putBack(lacking)
		case <-tick.C:
			d.decided(d.state.tracker.Tick(d.env.monotonic()))
		case <-beat.C:
			if err := d.plane.Heartbeat(d.env.monotonic()); err != nil {
				return err
			}
			beat.Reset(d.state.config.VRRP.Lease / heartbeatsPerLease)
		case <-retry.C:
			d.again()
		case <-retire.C:
			d.dropRetired()
			d.lookAround()
			d.fast.Attach() // what tells no event: queue disciplines, features of drivers
			d.tryReplication()
		case <-marks.C:
			d.lookForMarks()
		}
	}
}

// armTick sets the timer to when time alone changes the tracker's mind.
func (d *daemon) armTick(tick *time.Timer) {
	tick.Stop()
	if next := d.state.tracker.Next(); next != 0 {
		tick.Reset(max(0, next-d.env.monotonic()))
	}
}

// advertsHeard takes what has piled up too, within reason.
func (d *daemon) advertsHeard(advert policy.AdvertSeen) {
	for range busyAt {
		d.advertHeard(advert)
		select {
		case advert = <-d.adverts:
		default:
			return
		}
	}
	d.advertHeard(advert)
}

func (d *daemon) advertHeard(advert policy.AdvertSeen) {
	d.flight.advert(advert)
	d.decided(d.state.tracker.Advert(d.env.monotonic(), advert))
}

// sendProbes asks the network what the tracker wants to know.
func (d *daemon) sendProbes() {
	for _, probe := range d.state.tracker.Probes() {
		if err := d.prober.Probe(probe); err != nil {
			d.log.Warn("another router's claim cannot be verified", "error", err)
		}
	}
}

func (d *daemon) apply(plan policy.Plan) {
	d.state.plan = plan
	d.flight.planned(plan)
	if err := d.beside(func() error { return d.plane.Apply(plan) }); err != nil {
		d.applyFailed(err)
		return
	}
	d.state.failed, d.state.retry, d.state.follow.gone = nil, false, ""
	d.tellReplication()
	d.fast.Bump()
	d.fast.Attach() // behind the programs that are attached now
}

func (d *daemon) applyFailed(err error) {
	if errors.Is(err, syscall.ENODEV) && d.state.follow.gone != err.Error() {
		// Deleted since we looked, most likely: its event is on the way. Where many are
		// deleted it is another one each time.
		d.log.Debug("an interface of the plan is gone", "error", err)
		d.state.follow.gone, d.state.retry = err.Error(), true
		return
	}
	if d.state.failed == nil || d.state.failed.Error() != err.Error() {
		d.log.Error("not everything of the plan is in the kernel, trying again", "error", err)
		d.hub.Publish(policy.Event{Kind: "warning", Detail: err.Error()})
	}
	d.state.failed, d.state.retry = err, true
}

func (d *daemon) tellPin(kind string, key policy.PinKey, detail string) {
	d.alike.rouse()
	d.log.Info("pin "+key.String(), kind, detail)
	d.hub.Publish(policy.Event{Kind: kind, Pin: key.String(), Detail: detail})
}

// decided puts the tracker's decisions into force and tells of them.
func (d *daemon) decided(changes []vrrp.Change) {
	if len(changes) == 0 {
		return
	}
	at := d.env.monotonic()
	turned := false
	for _, change := range changes {
		if change.RoleChanged && change.Pin != 0 {
			turned = true
			if err := d.plane.SetRole(change.Pin, change.Role, false); err != nil {
				d.log.Error("put role into the dataplane", "pin", change.Name, "role", change.Role.String(), "error", err)
			}
		}
	}
	if turned {
		d.fast.Bump()
	}
	d.flight.decided(at, changes)
	for _, change := range changes {
		if r := d.state.replication; r != nil && change.RoleChanged && change.Group != 0 && change.Pin == 0 {
			r.flows.SetRole(change.Name, change.Role)
		}
		d.tellChange(change)
	}
}

func (d *daemon) tellChange(change vrrp.Change) {
	if change.RoleChanged && change.Group != 0 && change.Pin == 0 {
		d.alike.rouse()
		d.log.Info("role", "group", change.Name, "is", change.Role.String(), "was", change.Was.String(), "evidence", change.Evidence)
		role := change.Role
		if role == policy.RoleMaster && d.ready.MayLack(change.Name) {
			d.hush.TakenOver(change.Name)
		}
		d.ready.SetRole(change.Name, role)
		d.hub.Publish(policy.Event{Kind: "role", Group: change.Name, Role: &role,
			Detail: "was " + change.Was.String()})
	}
	if change.ConflictChanged {
		detail, over := change.Conflict, change.Conflict == ""
		if over {
			detail = "the conflict is over"
		}
		if r := d.state.replication; r != nil && !over && change.Group != 0 {
			r.flows.Contested(change.Name)
		}
		d.log.Warn("conflict", "about", change.Name, "text", detail)
		d.hub.Publish(policy.Event{Kind: "conflict", Group: change.Name, Over: over, Detail: detail})
	}
}

// dropRetired takes pins out of the plan that left the configuration and have
// no mappings any more.
func (d *daemon) dropRetired() {
	retired := func(pin policy.PlanPin) bool { return pin.Retired }
	if !slices.ContainsFunc(d.state.plan.Pins, retired) {
		return
	}
	alive := map[uint32]bool{}
	err := d.plane.Flows(func(m policy.Mapping) bool {
		alive[m.Pin] = true
		return true
	})
	if err != nil {
		d.log.Error("look for mappings of removed pins", "error", err)
		return
	}
	kept := d.state.plan.DropRetired(func(pin uint32) bool { return alive[pin] })
	if len(kept.Pins) == len(d.state.plan.Pins) {
		return
	}
	plan := policy.MakePlan(d.state.config, d.state.toggles, d.state.observed, kept)
	d.decided(d.state.tracker.Update(d.env.monotonic(), plan))
	d.apply(plan)
}

// restartFor lists what a reload cannot change.
func restartFor(now, next *policy.Config) []string {
	var keys []string
	for key, differs := range map[string]bool{
		"run_dir": now.RunDir != next.RunDir, "state_dir": now.StateDir != next.StateDir, "bpffs": now.BPFFS != next.BPFFS,
		"control.group": now.Control != next.Control, "log.level": now.Log != next.Log,
		"vrrp.keepalived_fifo": now.VRRP.KeepalivedFIFO != next.VRRP.KeepalivedFIFO,
		"dataplane.max_flows":  now.Dataplane != next.Dataplane,
	} {
		if differs {
			keys = append(keys, key+" takes effect when the daemon is restarted")
		}
	}
	slices.Sort(keys)
	return keys
}

// errRolledBack says that a reload could not be applied and was undone.
var errRolledBack = errors.New("the old configuration stays in force")
