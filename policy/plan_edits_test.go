// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestMakePlanRandomEdits edits configuration and interfaces at random, and
// holds every plan to checkPlan and to what must stay as it was.
func TestMakePlanRandomEdits(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 2))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	kept := 0
	for range 150 {
		var before Plan
		for range 12 {
			before = before.DropRetired(func(uint32) bool { return random.IntN(2) == 0 })
			cfg, seen := randomConfig(random), randomLinks(random)
			after := MakePlan(cfg, nil, seen, before)
			checkPlan(t, cfg, seen, after)
			kept += checkStable(t, before, after)
			before = after
		}
	}
	if kept < 500 {
		t.Errorf("only %d pins stayed where they were: the test is blind", kept)
	}
}

func randomConfig(random *rand.Rand) *Config {
	cfg := DefaultConfig("f", "host")
	for i := range random.IntN(3) {
		cfg.Groups = append(cfg.Groups, GroupConfig{Name: fmt.Sprintf("g%d", i), VRIDs: []VRIDConfig{{VRID: uint8(i + 1)}}})
	}
	for i := range 6 {
		if random.IntN(3) == 0 {
			continue
		}
		pin := PinConfig{VLAN: VLAN{Outer: uint16(i/2 + 1)}, Name: fmt.Sprint(i % 2), VIPs: addrs("192.0.2.1"), Enabled: true}
		if random.IntN(4) == 0 {
			pin.Interface = fmt.Sprintf("eth%d", random.IntN(4))
		}
		if g := random.IntN(3); g < len(cfg.Groups) {
			pin.Group = cfg.Groups[g].Name
		}
		cfg.Pins = append(cfg.Pins, pin)
	}
	return cfg
}

func randomLinks(random *rand.Rand) Observed {
	var seen Observed
	for i := range 4 {
		if random.IntN(5) > 0 {
			seen.Links = append(seen.Links, Link{
				Index: 10*i + random.IntN(2) + 1, Name: fmt.Sprintf("eth%d", i), Kind: "vlan", VLAN: VLAN{Outer: uint16(i)}, HasL2: true,
			})
		}
	}
	return seen
}

// checkStable compares two plans in a row and counts the pins that stayed on
// their interface.
func checkStable(t *testing.T, before, after Plan) (kept int) {
	t.Helper()
	pins, faces := map[PinKey]PlanPin{}, map[string]uint32{}
	for _, pin := range before.Pins {
		pins[pin.Key()] = pin
	}
	for _, face := range before.Interfaces {
		faces[face.Name] = face.Slot
	}
	names := before.GroupNames()
	groups := map[string]uint32{}
	for _, group := range after.Groups {
		groups[group.Name] = group.ID
	}
	for _, pin := range after.Pins {
		old, known := pins[pin.Key()]
		if !known {
			continue
		}
		if old.ID != pin.ID {
			t.Fatalf("pin %s was number %d and is %d", pin.Key(), old.ID, pin.ID)
		}
		if id, stays := groups[names[old.Group]]; stays && id != old.Group {
			t.Fatalf("group %s was number %d and is %d", names[old.Group], old.Group, id)
		}
		if old.Interface == pin.Interface && old.Ifindex != 0 && pin.Ifindex != 0 && !old.Retired {
			kept++
			if slot := faces[pin.Interface]; slot != pin.Slot && !pin.Retired {
				t.Fatalf("interface %s of pin %s had slot %d and has %d", pin.Interface, pin.Key(), slot, pin.Slot)
			}
		}
	}
	if len(after.Pins) < len(before.Pins)-countRetired(before) {
		t.Fatalf("pins got lost: %d before, %d after", len(before.Pins), len(after.Pins))
	}
	return kept
}

func countRetired(plan Plan) (n int) {
	for _, pin := range plan.Pins {
		if pin.Retired {
			n++
		}
	}
	return n
}
