// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

// FuzzParseSelectors: what is read can be read again entry by entry, and
// selects as a plain comparison would.
func FuzzParseSelectors(f *testing.F) {
	f.Add("2,20,101,201,239-240,250")
	pins := []PlanPin{
		{VLAN: VLAN{}, Interface: "eth0"},
		{VLAN: VLAN{Outer: 2}, Interface: "eth0.2"},
		{VLAN: VLAN{Outer: 20}, Name: "voip", Interface: "eth0.20"},
		{VLAN: VLAN{Outer: 20}, Name: "rest", Interface: "eth0.20"},
		{VLAN: VLAN{100, 20}, Interface: "wan"},
		{VLAN: VLAN{100, 2}, Interface: "wan2", Retired: true},
		{VLAN: VLAN{Outer: 4094}, Interface: ""},
	}
	f.Fuzz(func(t *testing.T, list string) {
		selectors, err := ParseSelectors(list)
		if err != nil {
			if selectors != nil {
				t.Fatalf("%d selectors came with an error", len(selectors))
			}
			return
		}
		if len(selectors) == 0 {
			t.Fatalf("%q reads as nothing", list)
		}
		var texts []string
		for _, s := range selectors {
			again, err := ParseSelectors(s.Text)
			if err != nil || len(again) != 1 || again[0] != s {
				t.Fatalf("entry %+v reads again as %+v, %v", s, again, err)
			}
			texts = append(texts, s.Text)
		}
		if again, err := ParseSelectors(texts...); err != nil || len(again) != len(selectors) {
			t.Fatalf("as arguments of their own: %d of %d selectors, %v", len(again), len(selectors), err)
		}
		matched, unknown := Select(selectors, pins)
		if got, want := keysOf(matched), bruteSelect(selectors, pins); got != want {
			t.Fatalf("%q selects %s, want %s", list, got, want)
		}
		if len(matched) == 0 && len(unknown) == 0 {
			t.Fatalf("%q selects nothing and nothing of it is unknown", list)
		}
	})
}

func keysOf(pins []PlanPin) string {
	var keys []string
	for _, pin := range pins {
		keys = append(keys, pin.Key().String())
	}
	return strings.Join(keys, " ")
}

// bruteSelect asks each pin whether one of the selectors means it.
func bruteSelect(selectors []Selector, pins []PlanPin) string {
	var chosen []PlanPin
	for _, pin := range pins {
		for _, s := range selectors {
			last := max(s.Last, s.VLAN.Outer)
			inRange := pin.VLAN.Inner == 0 && pin.VLAN.Outer >= s.VLAN.Outer && pin.VLAN.Outer <= last
			if !pin.Retired && (s.Interface != "" && s.Interface == pin.Interface ||
				s.Interface == "" && s.Name != "" && pin.VLAN == s.VLAN && pin.Name == s.Name ||
				s.Interface == "" && s.Name == "" && (pin.VLAN == s.VLAN || s.VLAN.Inner == 0 && inRange)) {
				chosen = append(chosen, pin)
				break
			}
		}
	}
	return keysOf(chosen)
}
