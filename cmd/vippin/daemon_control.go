// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"vippin/policy"
)

// What the control socket asks of the daemon. Whatever belongs to the loop is
// done by the loop.

func (d *daemon) Status(ctx context.Context) (policy.Status, error) {
	pins, err := d.plane.PinStatus()
	if err != nil {
		return policy.Status{}, err
	}
	withoutPin, err := d.plane.UnpinnedWithoutPin()
	if err != nil {
		return policy.Status{}, err
	}
	held, err := d.hush.Held()
	if err != nil {
		d.log.Debug("count segments that were not answered by RST", "error", err)
	}
	fast, err := d.fast.State()
	if err != nil {
		return policy.Status{}, err
	}
	var status policy.Status
	err = d.ask(ctx, func() {
		now := d.env.monotonic()
		status = policy.Status{
			Node: d.state.config.Node, Version: version, Tier: d.plane.Tier(),
			Uptime: d.env.now().Sub(d.began).Seconds(),
			Groups: d.state.tracker.Groups(now, d.env.now()),
			Pins:   pins, UnpinnedWithoutPin: withoutPin,
			Peers:              d.peerStatuses(),
			ConnectionsRefused: d.connectionsRefused(),
			Replication:        d.replicationStatus(),
			Warnings:           d.warnings(),
			ResetsHeld:         held,
		}
		d.ready.evidence(status.Groups)
	})
	if fast.Enabled {
		status.Fastpath = &fast
		status.Warnings = append(status.Warnings, fastWarnings(fast)...)
	}
	return status, err
}

// warnings is what an owner should look at, the plan's first.
func (d *daemon) warnings() []string {
	warnings := append([]string{}, d.state.plan.Warnings...)
	warnings = append(warnings, d.state.trouble...)
	warnings = append(warnings, d.replicaWarnings()...)
	warnings = append(warnings, d.alike.warnings()...)
	warnings = append(warnings, d.ready.warnings()...)
	warnings = append(warnings, notYet(d.state.config)...)
	warnings = append(warnings, marksWarnings(d.plane, d.state.config)...)
	if d.state.failed != nil {
		warnings = append(warnings, fmt.Sprintf("not everything of the plan is in the kernel: %v", d.state.failed))
	}
	warnings = append(warnings, d.state.marks.warnings(d.env.now())...)
	if over := d.state.tracker.Overflow(); over > 0 {
		warnings = append(warnings, fmt.Sprintf("%d VRRP events of more routers than are remembered", over))
	}
	return warnings
}

func (d *daemon) Pins(context.Context) ([]policy.PinStatus, error) { return d.plane.PinStatus() }

func (d *daemon) VRRP(ctx context.Context) (routers []policy.VRRPStatus, err error) {
	err = d.ask(ctx, func() { routers = d.state.tracker.Routers(d.env.monotonic()) })
	return routers, err
}

func (d *daemon) Flows(ctx context.Context, yield func(policy.FlowStatus) error) error {
	stands := standing(alone)
	err := d.ask(ctx, func() {
		if r := d.state.replication; r != nil {
			stands = r.flows.Standing
		}
	})
	if err != nil {
		return err
	}
	return listFlows(ctx, d.env, pinnedPlane{d.plane}, stands, yield)
}

func (d *daemon) Events(ctx context.Context) <-chan policy.Event { return d.hub.Subscribe(ctx) }

func (d *daemon) Toggle(ctx context.Context, action toggleAction, selectors []policy.Selector) ([]policy.PinState, error) {
	var chosen []policy.PlanPin
	var failed error
	if err := d.ask(ctx, func() { chosen, failed = d.switchPins(action, selectors) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	return statesOf(pinnedPlane{d.plane}, chosen)
}

// switchPins switches all that are selected, or none.
func (d *daemon) switchPins(action toggleAction, selectors []policy.Selector) ([]policy.PlanPin, error) {
	s := &d.state
	chosen, unknown := policy.Select(selectors, s.plan.Pins)
	if len(unknown) > 0 {
		return nil, &unknownPinsError{Unknown: unknown}
	}
	changes, toggles, err := toggledPins(action, chosen, s.toggles, configuredIn(s.config))
	if err != nil {
		return nil, err
	}
	err = d.store.Change(s.toggles, toggles, func() error {
		return d.beside(func() error { return d.plane.Switch(changes) })
	})
	d.hurry()
	if err != nil {
		return nil, err
	}
	s.toggles = toggles
	// The switches alone: what else may have changed is for replan, which would
	// not see it in a plan that has it already.
	s.plan.Pins = slices.Clone(s.plan.Pins)
	for _, change := range changes {
		i := slices.IndexFunc(s.plan.Pins, func(pin policy.PlanPin) bool { return pin.ID == change.ID })
		s.plan.Pins[i] = change
	}
	d.tellReplication()
	d.fast.Bump()
	for _, change := range changes {
		d.tellPin("pin", change.Key(), fmt.Sprintf("%s (%s)", onOff(change.Enabled), change.EnabledBy))
	}
	return chosen, nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (d *daemon) Reload(ctx context.Context) (policy.DryRun, error) {
	d.notify.Reloading()
	defer func() { d.notify.Ready("running") }()
	config, err := readConfig(d.opts.ConfigFile)
	if err != nil {
		return policy.DryRun{Errors: errorTexts(err)}, nil
	}
	var report policy.DryRun
	var failed error
	if err := d.ask(ctx, func() { report, failed = d.reload(config) }); err != nil {
		return policy.DryRun{}, err
	}
	if failed == nil {
		d.fast.Settle(ctx)
		report.Warnings = append(report.Warnings, d.fast.Warnings()...)
	}
	return report, failed
}

// reload puts a configuration into force, whole or not at all.
func (d *daemon) reload(config *policy.Config) (policy.DryRun, error) {
	s := &d.state
	if d.opts.RunDir != "" {
		config.RunDir = d.opts.RunDir
	}
	plan := policy.MakePlan(config, s.toggles, s.observed, s.plan)
	if err := d.plane.SetSettings(settingsOf(config)); err != nil {
		return policy.DryRun{}, err
	}
	now := d.env.monotonic()
	d.flight.planned(plan)
	d.decided(s.tracker.Update(now, plan))
	if err := d.beside(func() error { return d.plane.Apply(plan) }); err != nil {
		d.rollBack(now)
		return policy.DryRun{}, fmt.Errorf("%w: %w", errRolledBack, err)
	}
	report := planReport(plan, s.tracker.Pins())
	report.Warnings = append(report.Warnings, notYet(config)...)
	report.Warnings = append(report.Warnings, marksWarnings(d.plane, config)...)
	report.Warnings = append(report.Warnings, restartFor(s.config, config)...)
	d.publishPlan(s.plan, plan)
	s.config, s.plan, s.failed, s.retry = config, plan, nil, false
	d.fast.Bump()
	d.fast.Set(config.Fastpath)
	d.setReplication(config)
	d.tellReplication()
	d.log.Info("reloaded", "pins", len(config.Pins), "warnings", report.Warnings)
	d.hub.Publish(policy.Event{Kind: "reload", Detail: fmt.Sprintf("%d pins in force", len(config.Pins))})
	return report, nil
}

func (d *daemon) rollBack(now time.Duration) {
	s := &d.state
	d.flight.planned(s.plan)
	d.decided(s.tracker.Update(now, s.plan))
	if err := d.plane.SetSettings(settingsOf(s.config)); err != nil {
		d.log.Error("put the old settings back", "error", err)
	}
	d.apply(s.plan)
}

// notYet names what the configuration asks for and this version does not do.
func notYet(config *policy.Config) []string {
	var missing []string
	if listen := config.Metrics.Listen; listen.IsValid() && listen != policy.DefaultConfig("", "").Metrics.Listen {
		missing = append(missing, "metrics.listen: this version serves no metrics yet")
	}
	return missing
}
