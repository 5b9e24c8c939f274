// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"strings"

	"vippin/policy"
)

// toggleAction is what is done to pins, or the fast path.
type toggleAction string

// The toggles. A toggle beats the configuration until it is reset.
const (
	toggleOn    toggleAction = "on"
	toggleOff   toggleAction = "off"
	toggleReset toggleAction = "reset"
)

func parseToggleAction(text string) (toggleAction, error) {
	switch action := toggleAction(text); action {
	case toggleOn, toggleOff, toggleReset:
		return action, nil
	}
	return "", fmt.Errorf("unknown toggle %q (one of on, off, reset)", text)
}

// switchOf is what the action says of what there is one of; nil: the
// configuration decides.
func (a toggleAction) switchOf() *bool {
	if a == toggleReset {
		return nil
	}
	on := a == toggleOn
	return &on
}

// unknownPinsError lists what was named and has no pin; nothing has changed.
type unknownPinsError struct{ Unknown []string }

func (e *unknownPinsError) Error() string {
	return fmt.Sprintf("nothing changed: no pin for %s (see \"vippin pin ls\")", strings.Join(e.Unknown, ", "))
}

// toggledPins returns the pins as action leaves them, and all toggles there
// are then. configured says what the configuration wants of a pin; only a
// reset asks it.
func toggledPins(action toggleAction, chosen []policy.PlanPin, toggles policy.Toggles,
	configured func(policy.PinKey) (enabled bool, err error)) ([]policy.PlanPin, policy.Toggles, error) {
	after, next := make([]policy.PlanPin, len(chosen)), policy.Toggles{}
	maps.Copy(next, toggles)
	for i, pin := range chosen {
		enabled := action == toggleOn
		if action == toggleReset {
			var err error
			if enabled, err = configured(pin.Key()); err != nil {
				return nil, nil, err
			}
			delete(next, pin.Key())
		} else {
			next[pin.Key()] = enabled
		}
		pin.Enabled, pin.EnabledBy = next.Decide(pin.Key(), enabled)
		after[i] = pin
	}
	return after, next, nil
}

// configuredIn asks a configuration, which must know the pin.
func configuredIn(config *policy.Config) func(policy.PinKey) (bool, error) {
	return func(key policy.PinKey) (bool, error) {
		for _, pin := range config.Pins {
			if pin.Key() == key {
				return pin.Enabled, nil
			}
		}
		return false, fmt.Errorf("reset pin %s: %s has no such pin any more (apply it first: \"vippin reload\" or \"vippin load\")", key, config.File)
	}
}
