// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"vippin/policy"
)

// plan is what is written: groups and pins of the instances.
type plan struct {
	*setup
	groups []*groupPlan
	pins   []*pinPlan
	base   map[string]string // interface below each virtual MAC's
	rules  []*natRule        // those in force, in the order in which packets meet them
}

// groupPlan is one group of vippin.yaml.
type groupPlan struct {
	from    place
	what    string // it is in the input
	name    string
	members []*instance
	vrids   []vridPlan
	sites   []*site
}

type vridPlan struct {
	text string // 10@eth0.2
	from *instance
}

// site is an interface with the VIPs of one group.
type site struct {
	group *groupPlan
	iface string
	vips  []netip.Addr
	names []string // of the instances
	at    place
}

// pinPlan is one pin of vippin.yaml.
type pinPlan struct {
	*site
	vlan    policy.VLAN
	name    string
	vips    []netip.Addr
	sources []netip.Prefix
	off     string // why it is off
}

// makePlan decides on groups and pins.
func (s *setup) makePlan() *plan {
	p := &plan{setup: s, base: map[string]string{}, rules: s.rulesInForce()}
	p.dropInstances()
	for _, i := range s.instances {
		if i.vmac != "" && i.iface != "" {
			p.base[i.vmac] = i.iface
		}
	}
	p.makeGroups()
	p.makeVRIDs()
	for _, g := range p.groups {
		for _, i := range g.members {
			p.addSites(g, i)
		}
	}
	p.makePins()
	p.nameVLANs()
	return p
}

// dropInstances leaves out what is off, and names that are there twice.
func (p *plan) dropInstances() {
	seen := map[string]*instance{}
	p.instances = slices.DeleteFunc(p.instances, func(i *instance) bool {
		if first, twice := seen[i.name]; twice {
			p.warn(i.at, "VRRP instance %s is there twice, first on line %d of %s: only that one was taken", i.name, first.at.line, first.at.file)
			return true
		}
		seen[i.name] = i
		return i.off
	})
}

// makeGroups makes one of each sync group, and one of each instance without.
func (p *plan) makeGroups() {
	byName := map[string]*instance{}
	for _, i := range p.instances {
		byName[i.name] = i
	}
	in := map[*instance]*syncGroup{}
	names := map[string]bool{}
	for _, from := range p.syncGroups {
		g := &groupPlan{from: from.at, what: "sync group " + from.name}
		for _, name := range from.members {
			i := byName[name]
			switch {
			case i == nil:
				p.warn(from.at, "sync group %s: there is no VRRP instance %s here: add its VRID and VIPs by hand", from.name, name)
			case in[i] != nil:
				p.warn(from.at, "sync group %s: %s is in %s already", from.name, name, in[i].name)
			default:
				in[i] = from
				g.members = append(g.members, i)
			}
		}
		if len(g.members) > 0 {
			g.name = p.unique(names, from.name, policy.GroupNameMax, isNameRune, from.at)
			p.groups = append(p.groups, g)
		}
	}
	for _, i := range p.instances {
		if in[i] == nil {
			name := p.unique(names, i.name, policy.GroupNameMax, isNameRune, i.at)
			p.groups = append(p.groups, &groupPlan{from: i.at, what: "VRRP instance " + i.name, name: name, members: []*instance{i}})
		}
	}
}

func isNameRune(c rune) bool {
	return c != unicode.ReplacementChar && !unicode.IsSpace(c) && unicode.IsPrint(c)
}

func isPinNameRune(c rune) bool {
	return c != unicode.ReplacementChar && (unicode.IsLetter(c) || unicode.IsDigit(c) || strings.ContainsRune("._-", c))
}

// unique makes a name that fits and that nothing else has.
func (p *plan) unique(taken map[string]bool, name string, limit int, fits func(rune) bool, at place) string {
	good := strings.Map(func(c rune) rune {
		if fits(c) {
			return c
		}
		return '-'
	}, name)
	if good == "" {
		good = "unnamed"
	}
	good = cutTo(good, limit)
	for n := 2; taken[good]; n++ {
		suffix := fmt.Sprintf("-%d", n)
		good = cutTo(strings.TrimSuffix(good, fmt.Sprintf("-%d", n-1)), limit-len(suffix)) + suffix
	}
	taken[good] = true
	if good != name && at.line > 0 {
		p.explain(inGroups, at, name, fmt.Sprintf("is called %s here", good))
	}
	return good
}

// cutTo shortens to so many octets, between characters.
func cutTo(text string, octets int) string {
	for len(text) > octets {
		runes := []rune(text)
		text = string(runes[:len(runes)-1])
	}
	return text
}

// makeVRIDs says which adverts speak for which group.
func (p *plan) makeVRIDs() {
	speaks := map[string]*groupPlan{}
	for _, g := range p.groups {
		for _, i := range g.members {
			if i.vrid == 0 {
				p.todo(inGroups, i.at, "VRRP instance %s has no VRID here: add it to vrids of group %s", i.name, g.name)
				continue
			}
			text := fmt.Sprint(i.vrid)
			if i.iface != "" {
				text += "@" + i.iface
			}
			other, taken := speaks[text]
			switch {
			case taken && other == g: // two families, one number
				continue
			case taken:
				p.explain(inGroups, i.at, fmt.Sprintf("VRID %s of %s", text, i.name),
					"the VRID is listed once, in the group of the first instance that has it: the other one's role goes by its VIPs. "+
						"A number of its own for each would be better")
				continue
			}
			speaks[text] = g
			g.vrids = append(g.vrids, vridPlan{text, i})
		}
	}
}

// addSites notes where an instance's VIPs are.
func (p *plan) addSites(g *groupPlan, i *instance) {
	if len(i.vips) == 0 {
		p.todo(inPins, i.at, "VRRP instance %s has no virtual address here: add the pin by hand", i.name)
	}
	for _, v := range i.vips {
		iface := v.dev
		if below, is := p.base[iface]; is {
			iface = below
		}
		if iface == "" {
			iface = i.iface
		}
		if iface == "" {
			p.todo(inPins, v.at, "virtual address %s of %s: on which interface is it? Add the pin by hand", v.addr, i.name)
			continue
		}
		at := slices.IndexFunc(g.sites, func(s *site) bool { return s.iface == iface })
		if at < 0 {
			at = len(g.sites)
			g.sites = append(g.sites, &site{group: g, iface: iface, at: i.at})
		}
		here := g.sites[at]
		if !slices.Contains(here.names, i.name) {
			here.names = append(here.names, i.name)
		}
		if !slices.Contains(here.vips, v.addr) {
			here.vips = append(here.vips, v.addr)
		}
	}
	// A pin needs an address that can be a source.
	g.sites = slices.DeleteFunc(g.sites, func(s *site) bool {
		only := !slices.ContainsFunc(s.vips, func(a netip.Addr) bool { return !a.IsLinkLocalUnicast() })
		if only {
			p.explain(inPins, s.at, s.iface+" of "+i.name, "link-local addresses alone can be no source: no pin was made")
		}
		return only
	})
}

// makePins makes them where source NAT leaves, or, where that is not known,
// everywhere.
func (p *plan) makePins() {
	p.checkOutside()
	for _, g := range p.groups {
		var outside []*site
		for _, s := range g.sites {
			if p.isOutside(s) {
				outside = append(outside, s)
			}
		}
		off := ""
		if len(outside) == 0 { // the group's role is known by its VIPs
			outside, off = g.sites, "no source NAT with its VIP leaves here: the pin tells who is MASTER"
		}
		for _, s := range g.sites {
			if !slices.Contains(outside, s) {
				p.explain(inPins, s.at, s.iface+" of "+strings.Join(s.names, ", "), "inside: its VRID speaks for the group, and needs no pin")
			}
		}
		for _, s := range outside {
			p.pinsOf(s, off)
		}
	}
	for _, r := range p.nat {
		p.explainRule(r)
	}
	if len(p.pins) > 0 && !p.natKnown() {
		p.todo(inPins, place{}, "where source NAT leaves is not in these files: take pins of inside interfaces out, or migrate again with --outside INTERFACE,…")
	}
}

func (p *plan) checkOutside() {
	for _, iface := range p.options.Outside {
		found := slices.ContainsFunc(p.groups, func(g *groupPlan) bool {
			return slices.ContainsFunc(g.sites, func(s *site) bool { return s.iface == iface })
		})
		if !found {
			p.warn(place{}, "--outside: no virtual address is on %q", iface)
		}
	}
}

// natKnown says whether it is told where source NAT leaves.
func (p *plan) natKnown() bool { return len(p.options.Outside) > 0 || len(p.rules) > 0 }

func (p *plan) isOutside(s *site) bool {
	if len(p.options.Outside) > 0 {
		return slices.Contains(p.options.Outside, s.iface)
	}
	return len(p.rules) == 0 || slices.ContainsFunc(p.rules, func(r *natRule) bool {
		_, toVIP := r.to(s)
		return r.serves(s) && (r.translation == masquerade || toVIP)
	})
}

// nameAmong is what tells a pin from others: its interface, else its group, and
// the rule if there are several on its site.
func (p *pinPlan) nameAmong(others []*pinPlan) string {
	alone, everywhere := true, true
	for _, other := range others {
		alone = alone && (other.site == p.site || other.iface != p.iface)
		everywhere = everywhere && other.site == p.site
	}
	name := p.iface
	switch {
	case everywhere:
		return p.name
	case !alone:
		name = p.group.name
	}
	if p.name != "" {
		name += "-" + p.name
	}
	return name
}

// nameVLANs tells pins that share a VLAN apart.
func (p *plan) nameVLANs() {
	sharing := map[policy.VLAN][]*pinPlan{}
	for _, pin := range p.pins {
		pin.vlan = vlanOf(pin.iface)
		sharing[pin.vlan] = append(sharing[pin.vlan], pin)
	}
	for _, pins := range sharing {
		if len(pins) == 1 {
			pins[0].name = ""
			continue
		}
		taken := map[string]bool{}
		for _, pin := range pins {
			pin.name = p.unique(taken, pin.nameAmong(pins), policy.PinNameMax, isPinNameRune, place{})
		}
	}
}
