// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"testing"
)

// checkPlan holds a plan to what the dataplane takes for granted.
func checkPlan(t *testing.T, cfg *Config, seen Observed, plan Plan) {
	t.Helper()
	pins, groups := map[uint32]PlanPin{}, map[uint32]bool{}
	for _, group := range plan.Groups {
		if group.ID == 0 || group.ID > GroupsMax || groups[group.ID] || group.Name == "" || len(group.Name) > GroupNameMax {
			t.Fatalf("group %+v: number or name out of bounds, or there twice", group)
		}
		groups[group.ID] = true
	}
	active := 0
	for _, pin := range plan.Pins {
		if _, twice := pins[pin.ID]; twice || pin.ID == 0 || pin.ID > PinsMax {
			t.Fatalf("pin %s: number %d out of bounds, or there twice", pin.Key(), pin.ID)
		}
		if !groups[pin.Group] {
			t.Fatalf("pin %s: group %d is not there", pin.Key(), pin.Group)
		}
		if pin.Retired && (pin.Enabled || pin.EnabledBy != EnabledByConfig) {
			t.Fatalf("retired pin %s is enabled", pin.Key())
		}
		if !pin.Retired {
			active++
		}
		pins[pin.ID] = pin
	}
	if active != len(cfg.Pins) {
		t.Fatalf("%d of %d pins are planned", active, len(cfg.Pins))
	}
	slots, indexes := map[uint32]bool{}, map[int]PlanInterface{}
	for _, face := range plan.Interfaces {
		if _, twice := indexes[face.Index]; twice || face.Slot != 0 && slots[face.Slot] {
			t.Fatalf("interface %s or its slot %d is there twice", face.Name, face.Slot)
		}
		if !slices.ContainsFunc(seen.Links, func(l Link) bool { return l.Index == face.Index && l.Name == face.Name }) {
			t.Fatalf("interface %s is not one of the kernel's", face.Name)
		}
		slots[face.Slot], indexes[face.Index] = true, face
		checkInterface(t, face, pins, groups)
	}
	for _, pin := range pins {
		face, there := indexes[pin.Ifindex]
		if pin.Ifindex != 0 && !pin.Retired && (!there || face.Slot == 0 || face.Slot != pin.Slot || face.Name != pin.Interface) {
			t.Fatalf("pin %s: slot %d on %s, the interface is %+v", pin.Key(), pin.Slot, pin.Interface, face)
		}
	}
}

func checkInterface(t *testing.T, face PlanInterface, pins map[uint32]PlanPin, groups map[uint32]bool) {
	t.Helper()
	for _, unique := range face.Uniques {
		if slices.Contains(face.VIPs, unique) {
			t.Fatalf("interface %s: %s is VIP and unique", face.Name, unique)
		}
	}
	seen := map[netip.Prefix]bool{}
	for _, source := range face.Sources {
		pin, there := pins[source.Pin]
		if !there || pin.Retired || pin.Ifindex != face.Index || seen[source.Prefix] {
			t.Fatalf("interface %s: source %+v of pin %+v, there twice: %t", face.Name, source, pin, seen[source.Prefix])
		}
		seen[source.Prefix] = true
	}
	for _, vrid := range face.VRIDs {
		if vrid.VRID == 0 || !groups[vrid.Group] {
			t.Fatalf("interface %s: VRID %+v speaks for nobody", face.Name, vrid)
		}
	}
}
