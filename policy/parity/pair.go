// SPDX-License-Identifier: Apache-2.0

package parity

import (
	"net/netip"
	"slices"

	"vippin/policy"
)

// couple is one network's interfaces on both routers, and what it is called.
type couple struct {
	label       string
	here, there *Interface // nil: there is none
	vlans       []policy.VLAN
}

// pairing finds which interfaces mean the same: those with the same pin, else with
// the same VLAN, be it a pin's or a tag, else on the same network. The names say
// nothing as long as anything else does.
type pairing struct {
	couples     []couple
	here, there map[string]string // labels by interface name
}

// candidate is an interface with what it may be known by.
type candidate struct {
	*Interface
	pins  []policy.PinKey
	vlans []policy.VLAN
	taken bool
}

func candidates(f *Facts) []*candidate {
	list := make([]*candidate, 0, len(f.Interfaces))
	byName := make(map[string]*candidate)
	for i := range f.Interfaces {
		c := &candidate{Interface: &f.Interfaces[i]}
		list = append(list, c)
		byName[c.Name] = c
	}
	for _, pin := range f.Pins {
		if c := byName[pin.Interface]; c != nil {
			c.pins = append(c.pins, pin.key())
			c.vlans = append(c.vlans, pin.VLAN)
		}
	}
	for _, c := range list {
		if c.Tag != (policy.VLAN{}) && !slices.Contains(c.vlans, c.Tag) {
			c.vlans = append(c.vlans, c.Tag)
		}
	}
	return list
}

// likenesses are in the order of what they prove.
var likenesses = []func(a, b *candidate) bool{
	func(a, b *candidate) bool { return shares(a.pins, b.pins) },
	func(a, b *candidate) bool { return shares(a.vlans, b.vlans) },
	func(a, b *candidate) bool { return overlap(a.Networks, b.Networks) },
	func(a, b *candidate) bool { return a.Name == b.Name },
}

func shares[T comparable](a, b []T) bool {
	return slices.ContainsFunc(a, func(one T) bool { return slices.Contains(b, one) })
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(one netip.Prefix) bool { return slices.ContainsFunc(b, one.Overlaps) })
}

func pair(own, peer *Facts) pairing {
	here, there := candidates(own), candidates(peer)
	p := pairing{here: make(map[string]string), there: make(map[string]string)}
	for _, alike := range likenesses {
		for _, a := range here {
			if b := onlyOne(a, there, alike); b != nil && onlyOne(b, here, alike) == a {
				a.taken, b.taken = true, true
				p.add(a, b)
			}
		}
	}
	for _, a := range here {
		if !a.taken {
			p.add(a, nil)
		}
	}
	for _, b := range there {
		if !b.taken {
			p.add(nil, b)
		}
	}
	callAbsent(p.here, own.Pins)
	callAbsent(p.there, peer.Pins)
	return p
}

// callAbsent names the interfaces of pins that are not there: rules may speak of
// them.
func callAbsent(labels map[string]string, pins []Pin) {
	for _, pin := range pins {
		if labels[pin.Interface] == "" {
			labels[pin.Interface] = vlanLabel(pin.VLAN)
		}
	}
}

func vlanLabel(vlan policy.VLAN) string {
	if vlan == (policy.VLAN{}) {
		return "the untagged VLAN"
	}
	return "VLAN " + vlan.String()
}

// onlyOne returns the one that is like a, nil if there are several.
func onlyOne(a *candidate, list []*candidate, alike func(a, b *candidate) bool) (found *candidate) {
	if a.taken {
		return nil
	}
	for _, b := range list {
		if b.taken || !alike(a, b) {
			continue
		}
		if found != nil {
			return nil
		}
		found = b
	}
	return found
}

func (p *pairing) add(a, b *candidate) {
	c := couple{}
	for _, one := range []*candidate{a, b} {
		if one == nil {
			continue
		}
		for _, vlan := range one.vlans {
			if !slices.Contains(c.vlans, vlan) {
				c.vlans = append(c.vlans, vlan)
			}
		}
	}
	if a != nil {
		c.here = a.Interface
	}
	if b != nil {
		c.there = b.Interface
	}
	c.label = p.labelOf(c)
	if a != nil {
		p.here[a.Name] = c.label
	}
	if b != nil {
		p.there[b.Name] = c.label
	}
	p.couples = append(p.couples, c)
}

// labelOf names a network by its VLAN, else by its prefix, else by the interface.
// Two that are called alike are told apart by the interface.
func (p *pairing) labelOf(c couple) string {
	one := c.here
	if one == nil {
		one = c.there
	}
	label := one.Name
	switch {
	case len(c.vlans) > 0:
		label = vlanLabel(c.vlans[0])
	case len(one.Networks) > 0:
		label = "network " + one.Networks[0].String()
	}
	if slices.ContainsFunc(p.couples, func(other couple) bool { return other.label == label }) {
		return label + " (" + one.Name + ")"
	}
	return label
}
