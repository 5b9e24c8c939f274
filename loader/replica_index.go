// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"

	"vippin/policy"
)

// replicaIndex is the plan, turned round for look-ups. It never changes.
type replicaIndex struct {
	pins   map[uint32]*replicaPin         // by number
	named  map[policy.PinName]*replicaPin // both families; a retired pin only where no other has the name
	ends   map[netip.Addr][]replicaEnd    // by local end: unique addresses and VIPs of pinned interfaces
	groups map[netip.Addr]string          // by VIP, of the groups' names
	own    map[netip.Addr]ownership       // this router's addresses, and broadcasts to it
}

// replicaPin is a pin with the name of its group.
type replicaPin struct {
	policy.PlanPin
	group string
}

// name is how other routers know the pin, in the family of an address.
func (p *replicaPin) name(is4 bool) policy.PinName {
	vip := p.VIP6
	if is4 {
		vip = p.VIP4
	}
	return policy.PinName{VLAN: p.VLAN, VIP: vip}
}

// replicaEnd is where an address is a flow's local end.
type replicaEnd struct {
	slot    uint32
	ifindex int
	unique  bool   // an address of the router's own; else a VIP
	enabled bool   // a pin there is on
	group   string // of all pins there, "" = they are in several
}

// ownership says what an address is to this router; the zero value: nothing.
type ownership uint8

const (
	ownFloating ownership = 1 + iota // goes to whichever router is MASTER
	ownUnique                        // stays with this router
)

func newReplicaIndex(plan policy.Plan, seen policy.Observed) *replicaIndex {
	x := &replicaIndex{
		pins: make(map[uint32]*replicaPin), named: make(map[policy.PinName]*replicaPin),
		ends: make(map[netip.Addr][]replicaEnd), groups: make(map[netip.Addr]string),
		own: make(map[netip.Addr]ownership),
	}
	groups := plan.GroupNames()
	for _, pin := range plan.Pins {
		x.addPin(&replicaPin{PlanPin: pin, group: groups[pin.Group]})
	}
	for i := range plan.Interfaces {
		x.addInterface(&plan.Interfaces[i])
	}
	for i := range seen.Links {
		x.addLink(&seen.Links[i])
	}
	return x
}

func (x *replicaIndex) addPin(pin *replicaPin) {
	x.pins[pin.ID] = pin
	for _, vip := range []netip.Addr{pin.VIP4, pin.VIP6} {
		name := policy.PinName{VLAN: pin.VLAN, VIP: vip}
		if there := x.named[name]; vip.IsValid() && (there == nil || there.Retired && !pin.Retired) {
			x.named[name] = pin
		}
	}
	for _, vip := range pin.VIPs {
		if _, there := x.groups[vip]; !there || !pin.Retired {
			x.groups[vip] = pin.group
		}
	}
}

func (x *replicaIndex) addInterface(face *policy.PlanInterface) {
	if face.Slot == 0 {
		return
	}
	end := replicaEnd{slot: face.Slot, ifindex: face.Index}
	first := true
	for _, pin := range x.pins {
		if pin.Slot != face.Slot || pin.Retired {
			continue
		}
		end.enabled = end.enabled || pin.Enabled
		if first {
			end.group = pin.group
		} else if end.group != pin.group {
			end.group = ""
		}
		first = false
	}
	for _, vip := range face.VIPs {
		x.ends[vip] = append(x.ends[vip], end)
	}
	end.unique = true
	for _, unique := range face.Uniques {
		x.ends[unique] = append(x.ends[unique], end)
	}
}

// addLink notes the addresses of a link. Which of them float cannot be known of
// those that are in no pin, only guessed: keepalived's are secondary, of full
// length, or on a macvlan of their own.
func (x *replicaIndex) addLink(link *policy.Link) {
	for _, addr := range link.Addrs {
		ip := addr.Prefix.Addr().Unmap().WithZone("")
		kind := ownUnique
		_, vip := x.groups[ip]
		if vip || addr.Deprecated || link.Kind == "macvlan" || link.HasL2 && addr.Prefix.IsSingleIP() {
			kind = ownFloating
		}
		x.own[ip] = max(x.own[ip], kind)
		if last := broadcast(addr.Prefix); last.IsValid() {
			x.own[last] = ownUnique
		}
	}
}

// broadcast is the subnet's broadcast address, RFC 919; the zero Addr where it
// has none.
func broadcast(prefix netip.Prefix) netip.Addr {
	if !prefix.Addr().Is4() || prefix.Bits() > 30 {
		return netip.Addr{}
	}
	octets := prefix.Addr().As4()
	for bit := prefix.Bits(); bit < 32; bit++ {
		octets[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(octets)
}
