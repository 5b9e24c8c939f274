// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"vippin/policy"
)

// fastLoading is why it is closed for a moment; nobody needs to be warned.
const fastLoading = "it is being loaded"

// State is what "fastpath ls" shows.
func (k *fastKeeper) State() (state policy.FastpathState, err error) {
	k.using.RLock()
	defer k.using.RUnlock()
	k.mu.Lock()
	wish, table, devices, failed := k.want, k.table, k.shown, k.failed
	k.mu.Unlock()
	if table != nil {
		if state, err = table.State(); err != nil {
			return state, err
		}
	}
	state.Enabled, state.EnabledBy = wish.decide()
	state.All = wish.config.All
	if len(state.Interfaces) == 0 {
		state.Interfaces = devices
	}
	if state.Open {
		return state, nil
	}
	switch {
	case !state.Enabled:
		state.Closed = "it is switched off"
	case failed != "":
		state.Closed = failed
	case len(wish.config.Interfaces) == 0:
		state.Closed = "fastpath.interfaces names no interface"
	case devices != nil && !anyAttached(devices):
		state.Closed = "no interface can take it"
	case state.Closed == "":
		state.Closed = fastLoading
	}
	return state, nil
}

func anyAttached(devices []policy.FastpathDevice) bool {
	for _, device := range devices {
		if device.Mode != "" {
			return true
		}
	}
	return false
}

// Warnings is what an owner should look at, and what he may want to know.
func (k *fastKeeper) Warnings() []string {
	state, err := k.State()
	if err != nil {
		return []string{fmt.Sprintf("the fast path's state is not known: %v", err)}
	}
	return append(fastWarnings(state), fastAdvice(state)...)
}

// fastWarnings is what an owner should look at in a fast path's state: what keeps
// packets on the stack that are to take it.
func fastWarnings(state policy.FastpathState) (warnings []string) {
	if !state.Enabled {
		return nil
	}
	if !state.Open && state.Closed != fastLoading {
		warnings = append(warnings, "fast path: closed, every packet takes the stack: "+state.Closed)
	}
	for _, device := range state.Interfaces {
		if device.Refused != "" {
			warnings = append(warnings, fmt.Sprintf("fast path: not on %s: %s", device.Interface, device.Refused))
		}
	}
	for _, text := range state.Warnings {
		warnings = append(warnings, "fast path: "+text)
	}
	return warnings
}

// fastAdvice is what is not as good as it could be, and may be meant so: "status"
// does not warn of it all the time.
func fastAdvice(state policy.FastpathState) (advice []string) {
	if !state.Enabled {
		return nil
	}
	for _, device := range state.Interfaces {
		for _, text := range device.Warnings {
			advice = append(advice, fmt.Sprintf("fast path on %s: %s", device.Interface, text))
		}
	}
	return advice
}

func (d *daemon) Fastpath(context.Context) (policy.FastpathState, error) { return d.fast.State() }

// SwitchFastpath writes the toggle down before it takes effect, as switchPins
// does.
func (d *daemon) SwitchFastpath(ctx context.Context, action toggleAction) (policy.FastpathState, error) {
	if err := d.toggleFastpath(action.switchOf()); err != nil {
		return policy.FastpathState{}, err
	}
	d.fast.Settle(ctx)
	return d.fast.State()
}

func (d *daemon) toggleFastpath(toggle *bool) error {
	d.toggle.Lock()
	defer d.toggle.Unlock()
	if err := d.store.SaveFastpath(toggle); err != nil {
		return err
	}
	d.fast.SetToggle(toggle)
	d.alike.rouse()
	on, by := d.fast.wanted().decide()
	d.log.Info("fast path", "switched", onOff(on), "by", by.String())
	d.hub.Publish(policy.Event{Kind: "fastpath", Detail: fmt.Sprintf("%s (%s)", onOff(on), by)})
	return nil
}
