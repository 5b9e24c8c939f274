// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func addr(text string) Addr { return Addr{Prefix: netip.MustParsePrefix(text)} }

// trunk is a router with VLANs 2, 20 and 100.20 on eth0, a second NIC, and
// keepalived's virtual MAC interface over VLAN 2.
func trunk() Observed {
	return Observed{Links: []Link{
		{Index: 1, Name: "lo", Kind: "device", Up: true, Addrs: []Addr{addr("127.0.0.1/8")}},
		{Index: 2, Name: "eth0", Kind: "device", Up: true, HasL2: true},
		{Index: 3, Name: "eth0.2", Kind: "vlan", Parent: 2, VLAN: VLAN{Outer: 2}, Up: true, HasL2: true, Addrs: []Addr{
			addr("10.10.10.3/24"), addr("10.10.10.2/32"), addr("2001:db8:2::3/64"),
			{Prefix: netip.MustParsePrefix("2001:db8:2::2/128"), Deprecated: true}, addr("fe80::3/64"),
		}},
		{Index: 4, Name: "vrrp.10", Kind: "macvlan", Parent: 3, VLAN: VLAN{Outer: 2}, Up: true, HasL2: true, Addrs: []Addr{addr("10.10.10.2/24")}},
		{Index: 5, Name: "eth0.20", Kind: "vlan", Parent: 2, VLAN: VLAN{Outer: 20}, Up: true, HasL2: true, Addrs: []Addr{addr("203.0.113.3/24")}},
		{Index: 6, Name: "eth0.100.20", Kind: "vlan", VLAN: VLAN{100, 20}, Up: true, HasL2: true, Addrs: []Addr{addr("198.51.100.3/24")}},
		{Index: 7, Name: "eth1", Kind: "device", Up: true, HasL2: true, Addrs: []Addr{addr("192.168.7.1/24")}},
	}}
}

// plan makes a plan and holds it to checkPlan.
func plan(t *testing.T, text string, seen Observed, current Plan) Plan {
	t.Helper()
	cfg := parse(t, text)
	made := MakePlan(cfg, nil, seen, current)
	checkPlan(t, cfg, seen, made)
	return made
}

// wantWarnings compares the warnings of a plan by their beginnings.
func wantWarnings(t *testing.T, got Plan, want ...string) {
	t.Helper()
	ok := len(got.Warnings) == len(want)
	for i := range want {
		ok = ok && strings.HasPrefix(got.Warnings[i], want[i])
	}
	if !ok {
		t.Errorf("warnings\n%s\nwant\n%s", strings.Join(got.Warnings, "\n"), strings.Join(want, "\n"))
	}
}

func TestMakePlan(t *testing.T) {
	const text = `
groups:
  - {name: Core, vrids: [10, "11@eth1"]}
pins:
  - {vlan: 2, vips: ["fe80::2", 10.10.10.2, "2001:db8:2::2"], group: Core, vrid: 12}
  - {vlan: 20, vips: [203.0.113.2], enabled: false, vrid: 20}
  - {vlan: 100.20, vips: [198.51.100.2], group: Core, sources: [192.168.0.0/16]}
`
	got := plan(t, text, trunk(), Plan{})
	want := Plan{
		Interfaces: []PlanInterface{
			{
				Index: 3, Name: "eth0.2", Slot: 1, HasL2: true,
				Uniques: addrs("10.10.10.3", "2001:db8:2::3", "fe80::3"),
				VIPs:    addrs("fe80::2", "10.10.10.2", "2001:db8:2::2"),
				Sources: []PlanSource{{netip.MustParsePrefix("0.0.0.0/0"), 1}, {netip.MustParsePrefix("::/0"), 1}},
				VRIDs:   []PlanVRID{{10, 1}, {12, 1}},
				Uppers:  []int{4},
			},
			{
				Index: 5, Name: "eth0.20", Slot: 2, HasL2: true, Uniques: addrs("203.0.113.3"), VIPs: addrs("203.0.113.2"),
				Sources: []PlanSource{{netip.MustParsePrefix("0.0.0.0/0"), 2}, {netip.MustParsePrefix("::/0"), 2}},
				VRIDs:   []PlanVRID{{20, 2}},
			},
			{
				Index: 6, Name: "eth0.100.20", Slot: 3, HasL2: true, Uniques: addrs("198.51.100.3"), VIPs: addrs("198.51.100.2"),
				Sources: []PlanSource{{netip.MustParsePrefix("192.168.0.0/16"), 3}}, VRIDs: []PlanVRID{{10, 1}},
			},
			{Index: 7, Name: "eth1", HasL2: true, VRIDs: []PlanVRID{{11, 1}}},
		},
		Pins: []PlanPin{
			{
				ID: 1, Slot: 1, Group: 1, VLAN: VLAN{Outer: 2}, Interface: "eth0.2", Ifindex: 3, Enabled: true,
				VIP4: netip.MustParseAddr("10.10.10.2"), VIP6: netip.MustParseAddr("2001:db8:2::2"), VIPs: addrs("fe80::2", "10.10.10.2", "2001:db8:2::2"),
			},
			{ID: 2, Slot: 2, Group: 2, VLAN: VLAN{Outer: 20}, Interface: "eth0.20", Ifindex: 5, VIP4: netip.MustParseAddr("203.0.113.2"), VIPs: addrs("203.0.113.2")},
			{
				ID: 3, Slot: 3, Group: 1, VLAN: VLAN{100, 20}, Interface: "eth0.100.20", Ifindex: 6, Enabled: true,
				VIP4: netip.MustParseAddr("198.51.100.2"), VIPs: addrs("198.51.100.2"),
			},
		},
		Groups: []PlanGroup{{1, "Core"}, {2, "20"}},
	}
	slices.SortFunc(want.Interfaces, func(a, b PlanInterface) int { return a.Index - b.Index })
	slices.SortFunc(got.Interfaces, func(a, b PlanInterface) int { return a.Index - b.Index })
	if diff := cmp.Diff(want, got, comparable); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Nothing has changed: nothing changes.
	again := plan(t, text, trunk(), got)
	slices.SortFunc(again.Interfaces, func(a, b PlanInterface) int { return a.Index - b.Index })
	if diff := cmp.Diff(got, again, comparable); diff != "" {
		t.Errorf("planned again (-first +second):\n%s", diff)
	}
}

func TestMakePlanToggles(t *testing.T) {
	cfg := parse(t, "pins:\n- {vlan: 2, vips: [10.10.10.2]}\n- {vlan: 20, enabled: false, vips: [203.0.113.2]}\n- {vlan: 100.20, vips: [198.51.100.2]}\n")
	toggles := Toggles{{VLAN: VLAN{Outer: 2}}: false, {VLAN: VLAN{Outer: 20}}: true, {VLAN: VLAN{Outer: 99}}: true}
	var got []string
	for _, pin := range MakePlan(cfg, toggles, trunk(), Plan{}).Pins {
		got = append(got, fmt.Sprintf("%s %t %s", pin.Key(), pin.Enabled, pin.EnabledBy))
	}
	if want := []string{"2 false toggle", "20 true toggle", "100.20 true config"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestMakePlanKeepsNumbers takes a plan through edits of the configuration.
func TestMakePlanKeepsNumbers(t *testing.T) {
	const two, twenty, qinq = "- {vlan: 2, vips: [10.10.10.2]}\n", "- {vlan: 20, vips: [203.0.113.2]}\n", "- {vlan: 100.20, vips: [198.51.100.2]}\n"
	steps := []struct {
		name, pins, want string // want: VLAN:pin/slot/group, with r for retired
		drop             bool   // retired pins whose last flow has gone before this step
	}{
		{"start", two + twenty, "2:1/1/1 20:2/2/2", false},
		{"order changes", twenty + two, "20:2/2/2 2:1/1/1", false},
		{"one leaves, one comes", twenty + qinq, "20:2/2/2 100.20:3/3/3 2:1/1/1r", false},
		{"it stays retired while flows live", twenty + qinq, "20:2/2/2 100.20:3/3/3 2:1/1/1r", false},
		{"it comes back", twenty + qinq + two, "20:2/2/2 100.20:3/3/3 2:1/1/1", false},
		{"another leaves", qinq + two, "100.20:3/3/3 2:1/1/1 20:2/2/2r", false},
		{"and is gone", qinq + two, "100.20:3/3/3 2:1/1/1", true},
		{"its numbers are free again", qinq + two + "- {vlan: 20, name: new, vips: [203.0.113.9]}\n", "100.20:3/3/3 2:1/1/1 20/new:2/2/2", false},
	}
	var current Plan
	for _, step := range steps {
		if step.drop {
			current = current.DropRetired(func(uint32) bool { return false })
		}
		current = plan(t, "pins:\n"+step.pins, trunk(), current)
		var got []string
		for _, pin := range current.Pins {
			retired := ""
			if pin.Retired {
				retired = "r"
			}
			got = append(got, fmt.Sprintf("%s:%d/%d/%d%s", pin.Key(), pin.ID, pin.Slot, pin.Group, retired))
		}
		if strings.Join(got, " ") != step.want {
			t.Errorf("%s: %s, want %s", step.name, strings.Join(got, " "), step.want)
		}
		if len(current.Groups) != len(current.Pins) {
			t.Errorf("%s: %d groups of %d pins", step.name, len(current.Groups), len(current.Pins))
		}
	}
}

func TestDropRetired(t *testing.T) {
	before := Plan{Pins: []PlanPin{{ID: 1}, {ID: 2, Retired: true}, {ID: 3, Retired: true}}}
	after := before.DropRetired(func(pin uint32) bool { return pin == 3 })
	if len(after.Pins) != 2 || after.Pins[0].ID != 1 || after.Pins[1].ID != 3 {
		t.Errorf("pins %+v, want 1 and 3", after.Pins)
	}
	if len(before.Pins) != 3 || before.Pins[1].ID != 2 {
		t.Error("the plan it was called on has changed")
	}
}

// TestMakePlanRetiredPin: its interface keeps the programs, its VIP does not
// become an address that masquerade may choose, and it takes no flow.
func TestMakePlanRetiredPin(t *testing.T) {
	first := plan(t, "pins: [{vlan: 2, vips: [10.10.10.2], vrid: 10}]", trunk(), Plan{})
	second := plan(t, "pins: []", trunk(), first)
	wantWarnings(t, second, "no pin is configured")
	if len(second.Pins) != 1 || !second.Pins[0].Retired || second.Pins[0].Enabled || second.Pins[0].Ifindex != 3 {
		t.Fatalf("pins %+v, want one that is retired, on ifindex 3", second.Pins)
	}
	if len(second.Interfaces) != 1 {
		t.Fatalf("interfaces %+v, want eth0.2", second.Interfaces)
	}
	face := second.Interfaces[0]
	if face.Slot != 1 || len(face.Sources) != 0 || len(face.VRIDs) != 0 || slices.Contains(face.Uniques, netip.MustParseAddr("10.10.10.2")) {
		t.Errorf("interface %+v: want slot 1, no sources, no VRIDs, the VIP no unique address", face)
	}
	gone := Observed{Links: []Link{{Index: 3, Name: "other"}}}
	third := plan(t, "pins: []", gone, second)
	if len(third.Interfaces) != 0 || third.Pins[0].Ifindex != 0 || third.Pins[0].Slot != 1 {
		t.Errorf("without its interface: %+v on %+v, want it absent with slot 1", third.Pins, third.Interfaces)
	}
}

func TestMakePlanAbsentInterface(t *testing.T) {
	const text = "pins:\n- {vlan: 2, vips: [10.10.10.2]}\n- {vlan: 20, interface: eth9, vips: [203.0.113.2]}\n"
	got := plan(t, text, Observed{}, Plan{})
	wantWarnings(t, got,
		`pin 2: no interface carries VLAN 2: create one, or give the pin the one that is meant with "interface"`,
		`pin 20: interface eth9 does not exist: create it or correct "interface"`)
	for i, name := range []string{"", "eth9"} {
		if pin := got.Pins[i]; pin.Ifindex != 0 || pin.Slot != 0 || pin.Interface != name || pin.ID != uint32(i+1) {
			t.Errorf("pin %+v: want number %d, absent, interface %q, no slot", pin, i+1, name)
		}
	}
	// It appears, goes, and comes back with another index: numbers stay.
	seen := trunk()
	first := plan(t, text, seen, got)
	if first.Pins[0].Ifindex != 3 || first.Pins[0].Slot != 1 {
		t.Fatalf("pin %+v, want it on ifindex 3 with slot 1", first.Pins[0])
	}
	second := plan(t, text, Observed{}, first)
	if pin := second.Pins[0]; pin.Ifindex != 0 || pin.Slot != 1 || pin.Interface != "eth0.2" {
		t.Errorf("pin %+v, want it absent from eth0.2 with slot 1", pin)
	}
	seen.Links[2].Index = 33
	third := plan(t, text, seen, second)
	if pin := third.Pins[0]; pin.Ifindex != 33 || pin.Slot != 1 || pin.ID != 1 {
		t.Errorf("pin %+v, want number 1 on ifindex 33 with slot 1", pin)
	}
}

func TestMakePlanSlots(t *testing.T) {
	const a, b = "- {vlan: 2, name: a, interface: %s, vips: [10.10.10.2], sources: [192.168.1.0/24]}\n", "- {vlan: 2, name: b, interface: %s, vips: [10.10.10.9]}\n"
	slots := func(p Plan) string {
		var texts []string
		for _, pin := range p.Pins {
			texts = append(texts, fmt.Sprintf("%s:%s/%d", pin.Key(), pin.Interface, pin.Slot))
		}
		return strings.Join(texts, " ")
	}
	var current Plan
	for _, step := range []struct{ onA, onB, want string }{
		{"eth0.2", "eth0.2", "2/a:eth0.2/1 2/b:eth0.2/1"},
		{"eth1", "eth0.2", "2/a:eth1/2 2/b:eth0.2/1"},       // the slot stays with the interface
		{"eth0.20", "eth0.2", "2/a:eth0.20/2 2/b:eth0.2/1"}, // alone it takes its slot along
		{"eth0.2", "eth0.2", "2/a:eth0.2/1 2/b:eth0.2/1"},
	} {
		current = plan(t, "pins:\n"+fmt.Sprintf(a, step.onA)+fmt.Sprintf(b, step.onB), trunk(), current)
		if got := slots(current); got != step.want {
			t.Errorf("a on %s, b on %s: %s, want %s", step.onA, step.onB, got, step.want)
		}
	}
}

// TestMakePlanRename: keepalived and people rename interfaces; the flows stay.
func TestMakePlanRename(t *testing.T) {
	const text = "pins: [{vlan: 20, vips: [203.0.113.2]}, {vlan: 2, vips: [10.10.10.2]}]"
	first := plan(t, text, trunk(), Plan{})
	seen := trunk()
	seen.Links[2].Name = "wan"
	second := plan(t, text, seen, first)
	if pin := second.Pins[1]; pin.Interface != "wan" || pin.Slot != first.Pins[1].Slot || pin.Slot == 0 {
		t.Errorf("pin %+v, want it on wan with slot %d", pin, first.Pins[1].Slot)
	}
}

func TestMakePlanFull(t *testing.T) {
	cfg := DefaultConfig("f", "host")
	var current Plan
	for i := range PinsMax {
		vlan := VLAN{uint16(i/4000 + 1), uint16(i%4000 + 1)}
		cfg.Pins = append(cfg.Pins, PinConfig{VLAN: vlan, VIPs: addrs("198.51.100.2"), Enabled: true})
	}
	current = MakePlan(cfg, nil, trunk(), Plan{})
	checkPlan(t, cfg, trunk(), current)
	if len(current.Pins) != 4095 || current.Pins[4094].ID != 4095 {
		t.Fatalf("%d pins, the last is number %d", len(current.Pins), current.Pins[len(current.Pins)-1].ID)
	}
	// One is replaced, while the flows of the old one live: no number is free.
	cfg.Pins[7].VLAN = VLAN{Outer: 2}
	full := MakePlan(cfg, nil, trunk(), current)
	if len(full.Pins) != 4095 || !full.Pins[4094].Retired {
		t.Errorf("%d pins, want 4095 with one retired", len(full.Pins))
	}
	if !slices.ContainsFunc(full.Warnings, func(w string) bool { return strings.HasPrefix(w, "group 2 does not fit") }) {
		t.Errorf("no warning that group and pin 2 do not fit among %d", len(full.Warnings))
	}
	freed := MakePlan(cfg, nil, trunk(), full.DropRetired(func(uint32) bool { return false }))
	if len(freed.Pins) != 4095 || freed.Pins[7].ID != 8 || freed.Pins[7].Retired {
		t.Errorf("after the last flow: pin %+v of %d, want number 8", freed.Pins[7], len(freed.Pins))
	}
}
