// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"github.com/vishvananda/netlink"

	"vippin/policy"
)

// fastPlace is where packets of an interface come in: a device, and the tags on
// the way to it.
type fastPlace struct {
	device int // ifindex
	vlan   policy.VLAN
	proto  [2]netlink.VlanProtocol // of the tags, outermost first
	tags   int
}

// tagsFast is how many tags a packet on the fast path may have.
const tagsFast = 2

// number is the place in a key, without FAST_TCP (bpf/fast_types.h).
func (p fastPlace) number(device uint8) uint32 {
	return uint32(device)<<24 | uint32(p.vlan.Outer)<<12 | uint32(p.vlan.Inner)
}

// placesOn finds the interfaces whose packets come in by one of these devices:
// the device itself, VLANs and macvlans on it, and those on them.
func placesOn(devices map[int]bool, links map[int]netlink.Link) map[int]fastPlace {
	places := make(map[int]fastPlace)
	type key struct {
		device int
		vlan   policy.VLAN
	}
	proto := make(map[key][2]netlink.VlanProtocol)
	twice := make(map[key]bool)
	for ifindex := range links {
		place, ok := placeOf(ifindex, devices, links)
		if !ok {
			continue
		}
		k := key{place.device, place.vlan}
		if other, seen := proto[k]; seen && other != place.proto {
			twice[k] = true
		}
		proto[k] = place.proto
		places[ifindex] = place
	}
	for ifindex, place := range places {
		// The same tags by 802.1Q and by 802.1ad are one place to the programs.
		if twice[key{place.device, place.vlan}] {
			delete(places, ifindex)
		}
	}
	return places
}

func placeOf(ifindex int, devices map[int]bool, links map[int]netlink.Link) (place fastPlace, ok bool) {
	for range tagsMax {
		if devices[ifindex] {
			place.device = ifindex
			return place, true
		}
		link := links[ifindex]
		if link == nil || place.tags == tagsFast && link.Type() == "vlan" {
			return place, false
		}
		if vlan, isVLAN := link.(*netlink.Vlan); isVLAN {
			place.vlan = policy.VLAN{Outer: uint16(vlan.VlanId), Inner: place.vlan.Outer}
			place.proto = [2]netlink.VlanProtocol{vlan.VlanProtocol, place.proto[0]}
			place.tags++
		}
		if ifindex = taggingOf(link).parent; ifindex == 0 {
			return place, false
		}
	}
	return place, false
}
