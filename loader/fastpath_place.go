// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"github.com/vishvananda/netlink"

	"vippin/policy"
)

// fastPlace is where packets of an interface come in: a device, and the tags on
// the way to it. An inner tag is 802.1Q.
type fastPlace struct {
	device  int // ifindex
	vlan    policy.VLAN
	service bool // the outer tag is 802.1ad
	virtual bool // to a macvlan's MAC
	below   int  // ifindex of what a macvlan is on; else its own
}

// Of a place, in bpf/fast_types.h.
const (
	placeService = 0x40000000 // FAST_8021AD
	fastVirtual  = 0x20000000
	placeDevice  = 24
	placeOuter   = 12
)

// number is the place in a key, without FAST_TCP.
func (p fastPlace) number(device uint8) uint32 {
	n := uint32(device)<<placeDevice | uint32(p.vlan.Outer)<<placeOuter | uint32(p.vlan.Inner)
	if p.service {
		n |= placeService
	}
	if p.virtual {
		n |= fastVirtual
	}
	return n
}

// placesOn finds the interfaces whose packets come in by one of these devices:
// the device itself, VLANs and macvlans on it, and those on them.
func placesOn(devices map[int]bool, links map[int]netlink.Link) map[int]fastPlace {
	places := make(map[int]fastPlace)
	for ifindex := range links {
		if place, ok := placeOf(ifindex, devices, links); ok {
			places[ifindex] = place
		}
	}
	return places
}

// placeOf walks down from an interface, so that the inner tag comes first. A
// third tag, a priority tag, or an inner one by 802.1ad is not for the programs.
func placeOf(ifindex int, devices map[int]bool, links map[int]netlink.Link) (place fastPlace, ok bool) {
	place.below = ifindex
	for range tagsMax {
		if devices[ifindex] {
			place.device = ifindex
			return place, true
		}
		link := links[ifindex]
		if link == nil {
			return place, false
		}
		parent := taggingOf(link).parent
		vlan, isVLAN := link.(*netlink.Vlan)
		if isVLAN {
			if place.vlan.Inner != 0 || place.service || vlan.VlanId == 0 {
				return place, false
			}
			place.vlan = policy.VLAN{Outer: uint16(vlan.VlanId), Inner: place.vlan.Outer}
			place.service = vlan.VlanProtocol == netlink.VLAN_PROTOCOL_8021AD
		}
		place.virtual = place.virtual || link.Type() == "macvlan" || link.Type() == "macvtap"
		if !isVLAN && place.below == ifindex {
			place.below = parent
		}
		if ifindex = parent; ifindex == 0 {
			return place, false
		}
	}
	return place, false
}
