// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vippin/policy"
)

// Of a list, all are switched or none, and the toggles on disk agree.
func TestToggleAllOrNone(t *testing.T) {
	b := newRig(t)
	b.run("load")
	store := toggleStore{dir: filepath.Join(b.dir, "state")}
	b.run("pin", "off", "2") // the configuration has 2 on and 20 off
	want := fmt.Sprint(mustToggles(t, store), b.plane.plan.Pins)
	for i, pin := range b.plane.plan.Pins {
		b.plane.stuck = pin.ID
		code, _, stderr := b.run("pin", "on", "2,20")
		if code != exitFailed || !strings.Contains(stderr, "switch pin "+pin.Key().String()+":") {
			t.Errorf("pin %d is stuck: exit code %d, %q", i, code, stderr)
		}
		if got := fmt.Sprint(mustToggles(t, store), b.plane.plan.Pins); got != want {
			t.Errorf("pin %d is stuck: %s, want %s", i, got, want)
		}
	}
	b.plane.stuck = 0
	if code, _, stderr := b.run("pin", "on", "2,20"); code != exitDone {
		t.Error(stderr)
	}
	for _, pin := range b.plane.plan.Pins {
		if !pin.Enabled {
			t.Errorf("pin %s is off", pin.Key())
		}
	}
}

func mustToggles(t *testing.T, store toggleStore) policy.Toggles {
	t.Helper()
	toggles, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	return toggles
}

// What cannot be put back is told: the file has what the next start will do.
func TestTogglesNotPutBack(t *testing.T) {
	store := toggleStore{dir: t.TempDir()}
	key := policy.PinKey{VLAN: policy.VLAN{Outer: 2}}
	broken := errors.New("it is stuck")
	err := store.Change(nil, policy.Toggles(nil).With(key, true), func() error {
		if err := os.RemoveAll(store.dir); err != nil {
			t.Fatal(err)
		}
		return errors.Join(broken, os.WriteFile(store.dir, nil, 0o600))
	})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "put the toggles back") {
		t.Errorf("%v", err)
	}
}
