// SPDX-License-Identifier: Apache-2.0

package parity

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vippin/policy"
)

func (c *comparison) pins() {
	keys, here, there := both(c.own.Pins, c.peer.Pins, Pin.key)
	for _, key := range keys {
		a, hasA := here[key]
		b, hasB := there[key]
		switch {
		case hasA && hasB:
			c.pin(a, b)
		case hasA && c.peer.LeftOut.Pins == 0:
			c.lonePin(a, true)
		case hasB && c.own.LeftOut.Pins == 0:
			c.lonePin(b, false)
		}
	}
}

// lonePin is a pin that one router has.
func (c *comparison) lonePin(pin Pin, isHere bool) {
	others := c.peer.Pins
	if !isHere {
		others = c.own.Pins
	}
	check, about := "pin", "pin "+pin.key().String()
	if !slices.ContainsFunc(others, func(other Pin) bool { return other.VLAN == pin.VLAN }) {
		check, about = "vlan", "VLAN "+pin.VLAN.String()
		c.absent[pin.VLAN] = true
	}
	has, hasNot := "a pin with "+joined(pin.VIPs), "no pin"
	if !isHere {
		has, hasNot = hasNot, has
	}
	c.error(check, about, has, hasNot,
		"on a failover to %s, living connections of %s break, and new ones leave with its own address", c.lacking(isHere), about)
}

// pin compares what both routers have a pin for.
func (c *comparison) pin(a, b Pin) {
	about := "pin " + a.key().String()
	if a.Present != b.Present {
		c.absent[a.VLAN] = true
		c.error("interface", about, presence(a), presence(b), "without the interface, %s cannot take the connections of %s over", c.lacking(a.Present), about)
	}
	if a.Group != b.Group {
		c.regrouped[[2]string{a.Group, b.Group}] = true
		c.error("group", about, a.Group, b.Group, "the routers tell each other of connections and roles by group: neither takes the other's for its own, and both may call themselves MASTER unnoticed")
	}
	c.vips(about, a, b)
	if a.Enabled != b.Enabled {
		c.error("pin", about+", the switch", switchText(a), switchText(b),
			"connections that begin while %s is MASTER leave with its own address, and break at the next failover", c.lacking(a.Enabled))
	}
	if !slices.Equal(a.Sources, b.Sources) {
		c.error("pin", about+", sources", sourcesText(a.Sources), sourcesText(b.Sources),
			"inside hosts that only one router pins leave with the other's own address after a failover, or with another VIP, and break at the next one (the order counts, too)")
	}
}

func presence(p Pin) string {
	if p.Present {
		return p.Interface
	}
	return "no such interface"
}

func switchText(p Pin) string {
	if p.Enabled {
		return "on (" + p.EnabledBy.String() + ")"
	}
	return "off (" + p.EnabledBy.String() + ")"
}

func sourcesText(prefixes []netip.Prefix) string {
	if len(prefixes) == 0 {
		return "every inside host"
	}
	return joined(prefixes)
}

// vips compares the addresses that flows leave with, then the others.
func (c *comparison) vips(about string, a, b Pin) {
	told := make(map[netip.Addr]bool)
	for _, v6 := range []bool{false, true} {
		from, other := a.source(v6), b.source(v6)
		if from == other {
			continue
		}
		told[from], told[other] = true, true
		family := "IPv4"
		if v6 {
			family = "IPv6"
		}
		why := "living connections with the one address are not taken over where the other is the VIP: they break"
		if slices.Contains(a.VIPs, other) && slices.Contains(b.VIPs, from) {
			why = "the first VIP of a family is the source of new connections; those of each router are told under a name that the other does not have, and break"
		}
		c.error("vip", about+", source of "+family, addrText(from), addrText(other), "%s", why)
	}
	if here, there := onlyIn(a.VIPs, b.VIPs, told), onlyIn(b.VIPs, a.VIPs, told); len(here)+len(there) > 0 {
		c.error("vip", about+", further VIPs", joined(here), joined(there),
			"a router is MASTER of a pin when it holds all its VIPs: with other ones in the configuration than in VRRP's, %s pins nothing after a failover",
			c.lacking(len(there) == 0))
	}
}

func addrText(addr netip.Addr) string {
	if !addr.IsValid() {
		return "none"
	}
	return addr.String()
}

func onlyIn(a, b []netip.Addr, but map[netip.Addr]bool) (list []netip.Addr) {
	for _, addr := range a {
		if !slices.Contains(b, addr) && !but[addr] {
			list = append(list, addr)
		}
	}
	return list
}

// groups compares names that no pin has told of already.
func (c *comparison) groups() {
	if c.own.LeftOut.Pins+c.peer.LeftOut.Pins > 0 {
		return
	}
	explained := func(name string) bool {
		for pair := range c.regrouped {
			if pair[0] == name || pair[1] == name {
				return true
			}
		}
		for _, pin := range slices.Concat(c.own.Pins, c.peer.Pins) {
			if pin.Group == name && c.absent[pin.VLAN] {
				return true
			}
		}
		return false
	}
	same := func(name string) string { return name }
	names, here, there := both(c.own.Groups, c.peer.Groups, same)
	for _, name := range names {
		if here[name] != there[name] && !explained(name) {
			c.error("group", "group "+name, here[name], there[name], "%s knows no such group, and cannot tell who is MASTER of it", c.lacking(here[name] != ""))
		}
	}
}

// vridsOn are the virtual routers of one network: their groups, and what adverts of
// this router's own said.
type vridsOn struct {
	groups  map[uint8]string
	adverts map[string]VRID // by "20 ipv4"
}

func vridsBy(list []VRID, labels map[string]string) map[string]vridsOn {
	by := make(map[string]vridsOn)
	for _, v := range list {
		label := labels[v.Interface]
		if label == "" {
			label = "interface " + v.Interface
		}
		if by[label].groups == nil {
			by[label] = vridsOn{make(map[uint8]string), make(map[string]VRID)}
		}
		by[label].groups[v.VRID] = v.Group
		if v.Family != "" {
			by[label].adverts[fmt.Sprintf("%d %s", v.VRID, v.Family)] = v
		}
	}
	return by
}

// vrids compares the virtual routers network by network.
func (c *comparison) vrids() {
	if c.own.LeftOut.Pins+c.peer.LeftOut.Pins > 0 {
		return
	}
	here, there := vridsBy(c.own.VRIDs, c.pairing.here), vridsBy(c.peer.VRIDs, c.pairing.there)
	var labels []string
	for label := range here {
		labels = append(labels, label)
	}
	for label := range there {
		labels = append(labels, label)
	}
	slices.Sort(labels)
	for _, label := range slices.Compact(labels) {
		if c.isAbsent(label) {
			continue
		}
		c.vridsOn(label, here[label], there[label])
		c.adverts(label, here[label], there[label])
	}
}

// isAbsent tells whether a network's pin is missing on one router, which says it
// all.
func (c *comparison) isAbsent(label string) bool {
	for _, couple := range c.pairing.couples {
		if couple.label == label {
			return slices.ContainsFunc(couple.vlans, func(vlan policy.VLAN) bool { return c.absent[vlan] })
		}
	}
	return false
}

func (c *comparison) vridsOn(label string, a, b vridsOn) {
	names := make(map[string]bool)
	for vrid, group := range a.groups {
		names[group] = true
		if other, known := b.groups[vrid]; known && other != group && !c.regrouped[[2]string{group, other}] {
			c.error("group", fmt.Sprintf("VRID %d on %s", vrid, label), group, other, "its adverts speak for another group on each router: the role of one of them is wrong")
		}
	}
	for _, group := range b.groups {
		names[group] = true
	}
	for _, group := range sorted(names) {
		onlyHere, onlyThere := vridsOnly(a, b, group), vridsOnly(b, a, group)
		if onlyHere == "" && onlyThere == "" {
			continue
		}
		c.error("vrid", label+", group "+group, onlyHere, onlyThere,
			"each router takes other adverts for the group's: it does not hear when the other is MASTER; with other VRIDs in VRRP itself, both become MASTER")
	}
}

func sorted(set map[string]bool) (list []string) {
	for one := range set {
		list = append(list, one)
	}
	slices.Sort(list)
	return list
}

// vridsOnly lists a group's VRIDs that the other side has not at all.
func vridsOnly(a, b vridsOn, group string) string {
	var list []int
	for vrid, of := range a.groups {
		if _, known := b.groups[vrid]; of == group && !known {
			list = append(list, int(vrid))
		}
	}
	slices.Sort(list)
	words := make([]string, len(list))
	for i, vrid := range list {
		words[i] = fmt.Sprintf("VRID %d", vrid)
	}
	return strings.Join(words, ", ")
}

// adverts compares what both routers advertise themselves, when both have.
func (c *comparison) adverts(label string, a, b vridsOn) {
	for _, key := range sorted(keysOf(a.adverts)) {
		here, there := a.adverts[key], b.adverts[key]
		if there.Family == "" {
			continue
		}
		about := fmt.Sprintf("VRID %d on %s, %s", here.VRID, label, here.Family)
		if here.Version != there.Version {
			c.error("vrid", about, fmt.Sprintf("VRRPv%d", here.Version), fmt.Sprintf("VRRPv%d", there.Version),
				"routers of different versions do not hear each other: both become MASTER")
		}
		if here.Interval != there.Interval {
			c.warning("vrid", about, fmt.Sprintf("an advert every %gms", here.Interval), fmt.Sprintf("an advert every %gms", there.Interval),
				"how soon a failure is noticed depends on which router fails; VRRPv2 drops adverts with another interval, and both become MASTER")
		}
	}
}

func keysOf[T any](m map[string]T) map[string]bool {
	keys := make(map[string]bool, len(m))
	for key := range m {
		keys[key] = true
	}
	return keys
}
