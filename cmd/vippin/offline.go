// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vippin/loader"
	"vippin/policy"
)

// Verbs that work from bpffs when no daemon runs. The daemon is asked first:
// it alone knows the roles' evidence, and its word must not be passed by.

func (c *cli) pins(ctx context.Context) ([]policy.PinStatus, error) {
	p, err := c.places()
	if err != nil {
		return nil, err
	}
	pins, err := newClient(c.env, p.runDir).Pins(ctx)
	if !errors.Is(err, errNoDaemon) {
		return pins, err
	}
	d, err := c.openPinned(p)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.PinStatus()
}

// openPinned explains when nothing is there.
func (c *cli) openPinned(p places) (dataplane, error) {
	d, err := c.env.open(p.bpffs)
	if err == nil {
		return d, nil
	}
	switch {
	case errors.Is(err, loader.ErrNotLoaded):
		err = fmt.Errorf("%w: nobody listens in %s, and nothing is loaded below %s (start \"vippin run\" or \"vippin load\")",
			errNoDaemon, p.runDir, p.bpffs)
	case errors.Is(err, fs.ErrPermission) && c.env.euid != 0:
		err = fmt.Errorf("no daemon runs in %s, and without it only root may look: %w", p.runDir, err)
	}
	if p.problem != nil {
		err = fmt.Errorf("%w; these are the default places, since: %w", err, p.problem)
	}
	return nil, err
}

type flowLister func(yield func(policy.FlowStatus) error) error

// flowSource asks the daemon, else the pinned maps.
func (c *cli) flowSource(ctx context.Context) (flowLister, error) {
	p, err := c.places()
	if err != nil {
		return nil, err
	}
	return func(yield func(policy.FlowStatus) error) error {
		err := newClient(c.env, p.runDir).Flows(ctx, yield)
		if !errors.Is(err, errNoDaemon) {
			return err
		}
		d, err := c.openPinned(p)
		if err != nil {
			return err
		}
		defer d.Close()
		return listFlows(ctx, c.env, d, alone, yield)
	}, nil
}

// switchPins lets the daemon toggle, or does it in the pinned maps.
func (c *cli) switchPins(ctx context.Context, action toggleAction, vlans string, selectors []policy.Selector) ([]policy.PinState, error) {
	p, err := c.places()
	if err != nil {
		return nil, err
	}
	pins, err := newClient(c.env, p.runDir).Toggle(ctx, action, vlans)
	if !errors.Is(err, errNoDaemon) {
		return pins, err
	}
	if err := c.needsRoot("switch pins without a daemon"); err != nil {
		return nil, err
	}
	unlock, err := lockRunDir(ctx, p.runDir, c.env.pid)
	if err != nil {
		return nil, whileRunning(err, "it is starting or ending, try again")
	}
	defer unlock()
	d, err := c.openPinned(p)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return c.switchPinned(d, p, action, selectors)
}

func (c *cli) switchPinned(d dataplane, p places, action toggleAction, selectors []policy.Selector) ([]policy.PinState, error) {
	planned, err := d.Planned()
	if err != nil {
		return nil, err
	}
	chosen, unknown := policy.Select(selectors, planned.Pins)
	if len(unknown) > 0 {
		return nil, &unknownPinsError{Unknown: unknown}
	}
	store := toggleStore{dir: p.stateDir}
	before, err := store.Load()
	if err != nil {
		return nil, err
	}
	configured := func(key policy.PinKey) (bool, error) {
		if p.config == nil {
			return false, fmt.Errorf("reset pin %s: the configuration decides, and it cannot be read: %w", key, p.problem)
		}
		return configuredIn(p.config)(key)
	}
	changes, after, err := toggledPins(action, chosen, before, configured)
	if err != nil {
		return nil, err
	}
	if err := store.Change(before, after, func() error { return d.Switch(changes) }); err != nil {
		return nil, err
	}
	return statesOf(d, chosen)
}

// statesOf returns what the chosen pins are now, without counting their flows:
// that takes longer than a switch may.
func statesOf(d dataplane, chosen []policy.PlanPin) ([]policy.PinState, error) {
	all, err := d.PinStates()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(row policy.PinState) bool {
		return !slices.ContainsFunc(chosen, func(pin policy.PlanPin) bool { return pin.Key() == row.Key() })
	}), nil
}
