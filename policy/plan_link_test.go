// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMakePlanFindsTheInterface(t *testing.T) {
	twice := trunk()
	twice.Links = append(twice.Links, Link{Index: 8, Name: "eth1.2", Kind: "vlan", Parent: 7, VLAN: VLAN{Outer: 2}, HasL2: true})
	oneNIC := Observed{Links: []Link{
		{Index: 1, Name: "lo", Addrs: []Addr{addr("127.0.0.1/8")}},
		{Index: 2, Name: "eth0", HasL2: true},
		{Index: 3, Name: "vrrp.1", Kind: "macvlan", Parent: 2, HasL2: true, Addrs: []Addr{addr("192.0.2.2/32")}},
		{Index: 4, Name: "tun0", Kind: "tun", Addrs: []Addr{addr("192.0.2.9/24")}},
	}}
	bothOnNet := trunk()
	bothOnNet.Links[1].Addrs = []Addr{addr("192.168.7.9/24")}
	linkLocal := trunk()
	linkLocal.Links[1].Addrs = []Addr{addr("fe80::9/64")}
	tests := []struct {
		name, pin string
		seen      Observed
		current   string // the interface before
		want      string // the interface now
		index     int
		warning   string
	}{
		{name: "by its tag, not the macvlan on it", pin: "vlan: 2, vips: [10.10.10.2]", seen: trunk(), want: "eth0.2", index: 3},
		{name: "by both tags", pin: "vlan: 100.20, vips: [198.51.100.2]", seen: trunk(), want: "eth0.100.20", index: 6},
		{name: "not by the outer tag", pin: "vlan: 100, vips: [198.51.100.2]", seen: trunk(), warning: "pin 100: no interface carries VLAN 100"},
		{name: "named, untagged port", pin: "vlan: 2, interface: eth1, vips: [192.168.7.2]", seen: trunk(), want: "eth1", index: 7},
		{name: "named, tags of another VLAN", pin: "vlan: 2, interface: eth0.20, vips: [203.0.113.2]", seen: trunk(), want: "eth0.20", index: 5,
			warning: `pin 2: interface eth0.20 carries VLAN 20: correct "vlan" or "interface"`},
		{name: "named, no VLAN expected", pin: "vlan: 0, interface: eth0.20, vips: [203.0.113.2]", seen: trunk(), want: "eth0.20", index: 5,
			warning: "pin 0: interface eth0.20 carries VLAN 20"},
		{name: "two", pin: "vlan: 2, vips: [10.10.10.2]", seen: twice,
			warning: `pin 2: more than one interface carries VLAN 2 (eth0.2, eth1.2): give the pin the one that is meant with "interface"`},
		{name: "a second one turns up", pin: "vlan: 2, vips: [10.10.10.2]", seen: twice, current: "eth0.2", want: "eth0.2", index: 3,
			warning: "pin 2: more than one interface carries VLAN 2 (eth0.2, eth1.2): it stays on eth0.2"},
		{name: "untagged, the only one", pin: "vlan: 0, vips: [192.0.2.2]", seen: oneNIC, want: "eth0", index: 2},
		{name: "untagged, by the network of the VIP", pin: "vlan: 0, vips: [192.168.7.2]", seen: trunk(), want: "eth1", index: 7},
		{name: "untagged, no network tells", pin: "vlan: 0, vips: [192.0.2.2]", seen: trunk(), warning: "pin 0: more than one interface is untagged (eth0, eth1)"},
		{name: "untagged, a link-local VIP tells nothing", pin: `vlan: 0, vips: ["fe80::2", 192.0.2.2]`, seen: linkLocal, warning: "pin 0: more than one interface is untagged"},
		{name: "untagged, two networks fit", pin: "vlan: 0, vips: [192.168.7.2]", seen: bothOnNet, warning: "pin 0: more than one interface is untagged"},
		{name: "untagged, none", pin: "vlan: 0, vips: [192.0.2.2]", seen: Observed{Links: oneNIC.Links[:1]}, warning: "pin 0: no interface is untagged"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var current Plan
			if test.current != "" {
				current.Pins = []PlanPin{{ID: 9, Slot: 9, Group: 9, VLAN: VLAN{Outer: 2}, Interface: test.current}}
				current.Groups = []PlanGroup{{9, "2"}}
			}
			got := plan(t, "pins: [{"+test.pin+"}]", test.seen, current)
			if pin := got.Pins[0]; pin.Interface != test.want || pin.Ifindex != test.index {
				t.Errorf("found %q (%d), want %q (%d)", pin.Interface, pin.Ifindex, test.want, test.index)
			}
			if test.warning == "" {
				wantWarnings(t, got)
			} else {
				wantWarnings(t, got, test.warning)
			}
		})
	}
}

func TestUniques(t *testing.T) {
	old := func(text string) Addr { return Addr{Prefix: netip.MustParsePrefix(text), Deprecated: true} }
	for _, test := range []struct {
		name  string
		addrs []Addr
		want  []netip.Addr
	}{
		{"none", nil, nil},
		{"the VIP with its own and with the network's length", []Addr{addr("192.0.2.3/24"), addr("192.0.2.2/32"), addr("192.0.2.2/24")}, addrs("192.0.2.3")},
		{"the VIP alone", []Addr{addr("192.0.2.2/24")}, nil},
		{"two of its own", []Addr{addr("192.0.2.3/24"), addr("198.51.100.3/24"), addr("192.0.2.3/25")}, addrs("192.0.2.3", "198.51.100.3")},
		{"deprecated beside a good one", []Addr{addr("2001:db8::3/64"), old("2001:db8::9/128"), addr("fe80::3/64")}, addrs("2001:db8::3", "fe80::3")},
		{"deprecated beside link-local only", []Addr{old("2001:db8::9/64"), addr("fe80::3/64"), addr("192.0.2.3/24")}, addrs("fe80::3", "192.0.2.3", "2001:db8::9")},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := uniquesOf(&Link{Addrs: test.addrs}, addrs("192.0.2.2", "2001:db8::2"))
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestMakePlanVRIDs(t *testing.T) {
	got := plan(t, `
groups:
  - {name: Core, vrids: [10, "10@eth0.2", "11@eth1", "12@eth9"]}
  - {name: Other, vrids: [10, "13@eth0.2"]}
  - {name: Lonely, vrids: [14, "15@vrrp.10"]}
pins:
  - {vlan: 2, name: a, vips: [10.10.10.2], group: Core, sources: [192.168.0.0/16]}
  - {vlan: 2, name: b, vips: [10.10.10.9], group: Other, vrid: 13}
  - {vlan: 20, vips: [203.0.113.2], vrid: 10}
  - {vlan: 7, vips: [198.51.100.9], group: Core, vrid: 10}
`, trunk(), Plan{})
	vrids := map[string][]PlanVRID{}
	slots := map[string]uint32{}
	for _, face := range got.Interfaces {
		vrids[face.Name], slots[face.Name] = face.VRIDs, face.Slot
	}
	core, other, lonely, twenty := uint32(1), uint32(2), uint32(3), uint32(4)
	want := map[string][]PlanVRID{
		"eth0.2":  {{10, core}, {13, other}},
		"eth0.20": {{10, twenty}},
		"eth1":    {{11, core}},
		"vrrp.10": {{15, lonely}},
	}
	if diff := cmp.Diff(want, vrids); diff != "" {
		t.Errorf("VRIDs by interface (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint32{"eth0.2": 1, "eth0.20": 2, "eth1": 0, "vrrp.10": 0}, slots); diff != "" {
		t.Errorf("slots by interface (-want +got):\n%s", diff)
	}
	wantWarnings(t, got,
		"pin 7: no interface carries VLAN 7",
		"group Core: interface eth9 of VRID 12@eth9 does not exist",
		"VRID 10 on eth0.2 speaks for group Core already, not for Other too",
		"group Lonely: VRID 14 is heard nowhere, since the group has no pin")
}
