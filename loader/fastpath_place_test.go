// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"testing"

	"github.com/vishvananda/netlink"

	"vippin/policy"
)

// The kernel that runs the tests may have no VLANs: these are made up.

func vlanOn(index, parent, id int, proto netlink.VlanProtocol) netlink.Link {
	attrs := attrsOf("vlan" + string(rune('a'+index%26)))
	attrs.Index, attrs.ParentIndex, attrs.NetNsID = index, parent, -1
	return &netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: proto}
}

func macvlanOn(index, parent int) netlink.Link {
	attrs := attrsOf("vrrp1")
	attrs.Index, attrs.ParentIndex, attrs.NetNsID = index, parent, -1
	return &netlink.Macvlan{LinkAttrs: attrs}
}

func deviceAt(index int, name string) netlink.Link {
	attrs := attrsOf(name)
	attrs.Index, attrs.EncapType, attrs.HardwareAddr, attrs.NetNsID = index, "ether", []byte{2, 0, 0, 0, 0, byte(index)}, -1
	return &netlink.Device{LinkAttrs: attrs}
}

func linksByIndex(list ...netlink.Link) map[int]netlink.Link {
	links := make(map[int]netlink.Link)
	for _, link := range list {
		links[link.Attrs().Index] = link
	}
	return links
}

const ieee8021Q, ieee8021AD = netlink.VLAN_PROTOCOL_8021Q, netlink.VLAN_PROTOCOL_8021AD

// mustAttachWith is mustAttach where there are these links, too.
func mustAttachWith(t *testing.T, f *Fastpath, names []string, more ...netlink.Link) []policy.FastpathDevice {
	t.Helper()
	scene, err := lookAround()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range more {
		scene.links[link.Attrs().Index] = link
	}
	f.named = names
	devices, err := f.attach(scene)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return devices
}

// TestFastpathPlaces: where packets of an interface come in, as the programs
// write it into a key (bpf/fast_types.h).
func TestFastpathPlaces(t *testing.T) {
	const eth, vlan, inner, third, service, customer, both, priority, macvlan, other, onOther, nowhere, onMac, lent = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
	links := linksByIndex(deviceAt(eth, "eth0"), deviceAt(other, "eth1"),
		vlanOn(vlan, eth, 2, ieee8021Q), vlanOn(inner, vlan, 3, ieee8021Q), vlanOn(third, inner, 4, ieee8021Q),
		vlanOn(service, eth, 0xabc, ieee8021AD), vlanOn(customer, service, 0xdef, ieee8021Q), vlanOn(both, service, 5, ieee8021AD),
		vlanOn(priority, eth, 0, ieee8021Q), macvlanOn(macvlan, vlan), vlanOn(onOther, other, 2, ieee8021Q),
		vlanOn(nowhere, 77, 2, ieee8021Q), vlanOn(onMac, macvlan, 9, ieee8021Q),
		&netlink.IPVlan{LinkAttrs: netlink.LinkAttrs{Index: lent, Name: "lent", ParentIndex: eth, NetNsID: -1}})
	places := placesOn(map[int]bool{eth: true}, links)
	want := map[int]uint32{
		eth:      7 << 24,
		vlan:     7<<24 | 2<<12,
		inner:    7<<24 | 2<<12 | 3,
		service:  0x40000000 | 7<<24 | 0xabc<<12,
		customer: 0x40000000 | 7<<24 | 0xabc<<12 | 0xdef,
		macvlan:  0x20000000 | 7<<24 | 2<<12,
		onMac:    0x20000000 | 7<<24 | 2<<12 | 9,
		lent:     7 << 24,
	}
	below := map[int]int{macvlan: vlan, lent: eth}
	for ifindex, number := range want {
		place, ok := places[ifindex]
		if !ok || place.device != eth || place.number(7) != number {
			t.Errorf("%d: %+v (%v), number %x, want %x", ifindex, place, ok, place.number(7), number)
		}
		if want := cmp.Or(below[ifindex], ifindex); place.below != want {
			t.Errorf("%d is on %d, want %d", ifindex, place.below, want)
		}
		delete(places, ifindex)
	}
	if len(places) != 0 {
		t.Errorf("there are places for %v, too", places)
	}
}

// TestFastpathVLANs: the programs are told of VLANs that come, and of those that
// go, and what was learnt before is void.
func TestFastpathVLANs(t *testing.T) {
	enterNamespace(t)
	eth := cable(t, "eth0", "eth1")
	setFeature(t, "eth0", stripsCustomer, false)
	_, f := newFastpath(t, FastpathOptions{})
	mustTake(t, f, "eth0", "native")
	if err := f.SetOpen(true); err != nil {
		t.Fatal(err)
	}
	const vlan = 4000
	number := uint32(f.numbers[eth]) << 24
	for i, step := range []struct {
		more []netlink.Link
		want map[uint32]uint32
		bump bool
	}{
		{nil, map[uint32]uint32{uint32(eth): number}, false},
		{[]netlink.Link{vlanOn(vlan, eth, 2, ieee8021Q)}, map[uint32]uint32{uint32(eth): number, vlan: number | 2<<12}, true},
		{[]netlink.Link{vlanOn(vlan, eth, 2, ieee8021Q)}, map[uint32]uint32{uint32(eth): number, vlan: number | 2<<12}, false},
		{[]netlink.Link{vlanOn(vlan, eth, 3, ieee8021Q)}, map[uint32]uint32{uint32(eth): number, vlan: number | 3<<12}, true},
		{nil, map[uint32]uint32{uint32(eth): number}, true},
	} {
		before := stateOf(t, f).Generation
		devices := mustAttachWith(t, f, []string{"eth0"}, step.more...)
		if len(devices) != 1 || devices[0].Mode != "native" || len(devices[0].VLANs) != len(step.more) {
			t.Fatalf("step %d: %+v", i, devices)
		}
		places, err := readMap[uint32, fastPlaceValue](f.maps.Places)
		if err != nil || len(places) != len(step.want) {
			t.Errorf("step %d: places %x, %v, want %x", i, places, err, step.want)
		}
		for ifindex, place := range step.want {
			if places[ifindex] != (fastPlaceValue{Number: place, Below: ifindex}) {
				t.Errorf("step %d: places %x, want %x", i, places, step.want)
			}
		}
		if now := stateOf(t, f).Generation; (now != before) != step.bump {
			t.Errorf("step %d: generation %d became %d, want another: %v", i, before, now, step.bump)
		}
	}
}

// TestFastpathTags: a device that takes tags off before XDP sees them is refused
// while it has VLANs of that kind.
func TestFastpathTags(t *testing.T) {
	enterNamespace(t)
	eth := cable(t, "eth0", "eth1")
	_, f := newFastpath(t, FastpathOptions{})
	mustTake(t, f, "eth0", "native")
	customer, service := vlanOn(4000, eth, 2, ieee8021Q), vlanOn(4001, eth, 3, ieee8021AD)
	refused := func(want string, more ...netlink.Link) {
		t.Helper()
		devices := mustAttachWith(t, f, []string{"eth0"}, more...)
		if len(devices) != 1 || devices[0].Mode != "" {
			t.Errorf("devices %+v, want eth0 refused", devices)
		}
		contains(t, devices[0].Refused, want)
		if on := devicesOf(t, f); len(on) != 0 {
			t.Errorf("the programs have %v", on)
		}
	}
	setFeature(t, "eth0", stripsCustomer, true)
	refused("it takes VLAN tags off before XDP sees them: ethtool -K eth0 rx-vlan-hw-parse off, and at its other end", customer)
	setFeature(t, "eth0", stripsCustomer, false)
	devices := mustAttachWith(t, f, []string{"eth0"}, customer)
	if devices[0].Mode != "native" || len(devices[0].VLANs) != 1 || devices[0].VLANs[0] != (policy.VLAN{Outer: 2}) {
		t.Errorf("devices %+v, want eth0 with VLAN 2", devices)
	}
	refused("ethtool -K eth0 rx-vlan-stag-hw-parse off", customer, service)
}
