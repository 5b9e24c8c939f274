// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// buildInterfaces lists the interfaces of the pins, retired ones included. One
// without a slot has only retired pins, whose mappings live elsewhere.
func (p *planner) buildInterfaces() {
	vips := map[int][]netip.Addr{}
	for _, pin := range p.plan.Pins {
		for _, vip := range pin.VIPs {
			if !slices.Contains(vips[pin.Ifindex], vip) {
				vips[pin.Ifindex] = append(vips[pin.Ifindex], vip)
			}
		}
	}
	here := map[int][]plannedPin{}
	for _, pin := range p.planned {
		if pin.link != nil {
			here[pin.link.Index] = append(here[pin.link.Index], pin)
		}
	}
	for _, pin := range p.plan.Pins {
		link := p.links[pin.Interface]
		if pin.Ifindex == 0 || p.slotOf[pin.Ifindex] == 0 || p.interfaceOf(pin.Ifindex) != nil {
			continue
		}
		face := p.addInterface(link)
		face.Slot = p.slotOf[link.Index]
		face.VIPs = vips[link.Index]
		face.Uniques = uniquesOf(link, face.VIPs)
		face.Sources = p.sourcesOf(here[link.Index], link.Name)
		face.Uppers = p.macvlansOn(link.Index)
	}
}

// macvlansOn lists the macvlans on a link.
func (p *planner) macvlansOn(index int) []int {
	var uppers []int
	for _, link := range p.links {
		if link.Kind == "macvlan" && link.Parent == index {
			uppers = append(uppers, link.Index)
		}
	}
	slices.Sort(uppers)
	return uppers
}

func (p *planner) interfaceOf(index int) *PlanInterface {
	i, there := p.faces[index]
	if !there {
		return nil
	}
	return &p.plan.Interfaces[i]
}

func (p *planner) addInterface(link *Link) *PlanInterface {
	p.faces[link.Index] = len(p.plan.Interfaces)
	p.plan.Interfaces = append(p.plan.Interfaces, PlanInterface{Index: link.Index, Name: link.Name, HasL2: link.HasL2, Bridged: p.bridgeBelow(link) != nil})
	return &p.plan.Interfaces[len(p.plan.Interfaces)-1]
}

// uniquesOf is the link's addresses that masquerade may choose: no VIP,
// whatever its prefix length here, and none that is deprecated as long as its
// family has another (RFC 6724 section 5, rule 3). So an explicit SNAT to a
// virtual address that is in no pin is left alone.
func uniquesOf(link *Link, vips []netip.Addr) []netip.Addr {
	var preferred, deprecated []netip.Addr
	for _, addr := range link.Addrs {
		unique := addr.Prefix.Addr().Unmap().WithZone("")
		switch {
		case slices.Contains(vips, unique):
		case addr.Deprecated:
			deprecated = append(deprecated, unique)
		case !slices.Contains(preferred, unique):
			preferred = append(preferred, unique)
		}
	}
	uniques := slices.Clone(preferred)
	for _, addr := range deprecated {
		better := slices.ContainsFunc(preferred, func(other netip.Addr) bool {
			return other.Is4() == addr.Is4() && (!other.IsLinkLocalUnicast() || addr.IsLinkLocalUnicast())
		})
		if !better && !slices.Contains(uniques, addr) {
			uniques = append(uniques, addr)
		}
	}
	return uniques
}

// sourcesOf says which inside prefix belongs to which of an interface's pins,
// and warns of pins that are left with none.
func (p *planner) sourcesOf(pins []plannedPin, name string) []PlanSource {
	var claims []sourceClaim
	for _, pin := range pins {
		claims = append(claims, sourceClaim{
			pin: pin.id, prefixes: pin.config.Sources,
			has4: pin.config.VIP4().IsValid(), has6: pin.config.VIP6().IsValid(),
		})
	}
	sources := resolveSources(claims)
	taking := map[uint32]bool{}
	for _, source := range sources {
		taking[source.Pin] = true
	}
	for _, pin := range pins {
		if !taking[pin.id] {
			p.warn("pin %s takes no flow: pins before it on %s take all its inside hosts: move it up, or narrow the \"sources\" of the others", pin.config.Key(), name)
		}
	}
	return sources
}

// sourceClaim is what a pin takes.
type sourceClaim struct {
	pin        uint32
	prefixes   []netip.Prefix // none = every inside host
	has4, has6 bool           // families it has a VIP of
}

// resolveSources turns "the first claim that contains the address wins" into
// prefixes of which the longest wins: the answer for a prefix is the first
// claim with a prefix that contains it. A claim to every inside host is for the
// families that it has a VIP of; in a family where nobody has one it comes
// last, so that its flows are counted where the VIP is missing.
func resolveSources(claims []sourceClaim) []PlanSource {
	rank := map[netip.Prefix]int{} // lowest place in order of the claims to a prefix
	var order []uint32             // pin, by rank
	claim := func(pin uint32, prefix netip.Prefix) {
		if _, taken := rank[prefix]; !taken {
			rank[prefix] = len(order)
			order = append(order, pin)
		}
	}
	every4 := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	every6 := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	for _, c := range claims {
		for _, prefix := range c.prefixes {
			claim(c.pin, prefix)
		}
		if len(c.prefixes) == 0 && c.has4 {
			claim(c.pin, every4)
		}
		if len(c.prefixes) == 0 && c.has6 {
			claim(c.pin, every6)
		}
	}
	for _, c := range claims {
		if len(c.prefixes) == 0 {
			claim(c.pin, every4)
			claim(c.pin, every6)
		}
	}
	var sources []PlanSource
	for prefix, best := range rank {
		for bits := range prefix.Bits() {
			around, err := prefix.Addr().Prefix(bits)
			if r, claimed := rank[around]; err == nil && claimed {
				best = min(best, r)
			}
		}
		sources = append(sources, PlanSource{Prefix: prefix, Pin: order[best]})
	}
	slices.SortFunc(sources, func(a, b PlanSource) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return sources
}

// watchVRIDs says on which interface adverts of which VRID speak for which
// group, and adds the interfaces that are only watched.
func (p *planner) watchVRIDs() {
	for _, group := range p.cfg.Groups {
		id, numbered := p.groups[group.Name]
		if !numbered {
			continue
		}
		for _, v := range group.VRIDs {
			if v.Interface != "" {
				p.watchNamed(v, PlanVRID{VRID: v.VRID, Group: id}, group.Name)
				continue
			}
			members := 0
			for _, pin := range p.planned {
				if pin.group == id {
					members++
					p.watch(pin.link, PlanVRID{VRID: v.VRID, Group: id})
				}
			}
			if members == 0 {
				p.warn("group %s: VRID %d is heard nowhere, since the group has no pin: write \"%d@INTERFACE\"", group.Name, v.VRID, v.VRID)
			}
		}
	}
	for _, pin := range p.planned {
		if pin.config.VRID != 0 {
			p.watch(pin.link, PlanVRID{VRID: pin.config.VRID, Group: pin.group})
		}
	}
}

func (p *planner) watchNamed(v VRIDConfig, vrid PlanVRID, group string) {
	link := p.links[v.Interface]
	if link == nil {
		p.warn("group %s: interface %s of VRID %s does not exist: create it or correct \"vrids\"", group, v.Interface, v)
		return
	}
	p.watch(link, vrid)
}

// watch adds a VRID to an interface. The first group that claims it has it.
func (p *planner) watch(link *Link, vrid PlanVRID) {
	if link == nil {
		return
	}
	face := p.interfaceOf(link.Index)
	if face == nil {
		face = p.addInterface(link)
	}
	for _, there := range face.VRIDs {
		if there.VRID != vrid.VRID {
			continue
		}
		if there.Group != vrid.Group {
			p.warn("VRID %d on %s speaks for group %s already, not for %s too: correct \"vrids\" and \"vrid\", or put both in one group",
				vrid.VRID, link.Name, p.groupName(there.Group), p.groupName(vrid.Group))
		}
		return
	}
	face.VRIDs = append(face.VRIDs, vrid)
}

func (p *planner) groupName(id uint32) string {
	for _, group := range p.plan.Groups {
		if group.ID == id {
			return group.Name
		}
	}
	return "?"
}
