// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const masquerade = "masquerade"

// rulesMax is more than any honest router has.
const rulesMax = 10000

// rulesInForce are those of source NAT that count, in the order of their numbers.
func (s *setup) rulesInForce() []*natRule {
	var rules []*natRule
	for _, r := range s.nat {
		if addr, ok := parseVIP(r.translation); ok {
			r.target = addr
		}
		if !r.off && r.translation != "" {
			rules = append(rules, r)
		}
	}
	slices.SortStableFunc(rules, func(a, b *natRule) int {
		x, _ := strconv.Atoi(a.number)
		y, _ := strconv.Atoi(b.number)
		return cmp.Compare(x, y)
	})
	return rules
}

// to is the VIP of a site that the rule translates to.
func (r *natRule) to(s *site) (netip.Addr, bool) {
	return r.target, r.target.IsValid() && slices.Contains(s.vips, r.target)
}

// serves says whether packets that leave by a site may meet the rule.
func (r *natRule) serves(s *site) bool {
	family := slices.ContainsFunc(s.vips, func(a netip.Addr) bool { return a.Is6() == r.v6 && !a.IsLinkLocalUnicast() })
	return family && r.reaches(s.iface)
}

// share is the inside hosts that rules translate to one VIP.
type share struct {
	vip     netip.Addr
	sources []netip.Prefix // none = every host
	rule    string         // the first one
	every   bool           // a rule says every host, or what no list of prefixes can say
}

// pinsOf makes the pin of a site, or several where rules choose between VIPs.
func (p *plan) pinsOf(s *site, off string) {
	shares := p.shares(s)
	if len(shares) < 2 {
		vips := s.vips
		if len(shares) == 1 { // the first one becomes the source
			vips = append([]netip.Addr{shares[0].vip}, without(vips, shares)...)
		}
		p.pins = append(p.pins, &pinPlan{site: s, vips: vips, off: off})
		return
	}
	for _, share := range shares {
		p.pins = append(p.pins, &pinPlan{
			site: s, name: "rule" + share.rule, vips: []netip.Addr{share.vip}, sources: share.sources, off: off,
		})
	}
	rest := without(s.vips, shares)
	if slices.ContainsFunc(rest, func(a netip.Addr) bool { return !a.IsLinkLocalUnicast() }) {
		p.pins = append(p.pins, &pinPlan{site: s, name: "rest", vips: rest, off: off})
	}
}

// without leaves out the VIPs that are shared out.
func without(vips []netip.Addr, shares []share) (rest []netip.Addr) {
	for _, vip := range vips {
		if !slices.ContainsFunc(shares, func(s share) bool { return s.vip == vip }) {
			rest = append(rest, vip)
		}
	}
	return rest
}

// shares says which hosts the rules translate to which VIP of a site, in the
// order of the rules. VIPs of both families make one share each, so that a site
// with one of each has one pin.
func (p *plan) shares(s *site) []share {
	var all []share
	for _, r := range p.rules {
		addr, is := r.to(s)
		if !is || !r.serves(s) || addr.IsLinkLocalUnicast() {
			continue
		}
		i := slices.IndexFunc(all, func(known share) bool { return known.vip == addr })
		if i < 0 {
			i = len(all)
			all = append(all, share{vip: addr, rule: r.number})
		}
		source, ok := parseNetwork(r.source)
		switch {
		case !ok || source.Addr().Is6() != addr.Is6():
			all[i].every = true
		case !slices.Contains(all[i].sources, source):
			all[i].sources = append(all[i].sources, source)
		}
	}
	for i := range all {
		if all[i].every {
			all[i].sources = nil
		}
	}
	if len(all) == 2 && all[0].vip.Is6() != all[1].vip.Is6() {
		return nil // one of each family is no choice
	}
	return all
}

// explainRule says what becomes of a rule of source NAT.
func (p *plan) explainRule(r *natRule) {
	name := "source rule " + r.number
	if r.v6 {
		name = "nat66 " + name
	}
	if r.translation != "" {
		name += " to " + r.translation
	}
	switch {
	case r.group:
		name += " by the interfaces of " + r.iface
	case r.iface != "":
		name += " by " + r.iface
	}
	if len(r.narrow) > 0 {
		name += fmt.Sprintf(" (with conditions on %s)", strings.Join(slices.Compact(slices.Sorted(slices.Values(r.narrow))), ", "))
	}
	p.explain(inPins, r.at, name, p.ruleText(r))
}

func (p *plan) ruleText(r *natRule) string {
	var served, holding []*site
	for _, g := range p.groups {
		for _, s := range g.sites {
			if r.serves(s) {
				served = append(served, s)
			}
			if _, is := r.to(s); is {
				holding = append(holding, s)
			}
		}
	}
	switch {
	case r.off:
		return "keep it: it is switched off, or an exception"
	case r.translation == "":
		return "keep it: it has no translation address, and vippin pins what is masqueraded"
	case r.translation == masquerade && len(served) > 0 && r.group:
		return "keep it: vippin puts the VIP on what it has masqueraded. Which interfaces are in the group was not looked at: all with VIPs were taken"
	case r.translation == masquerade && len(served) > 0:
		return "keep it: vippin puts the VIP on what it has masqueraded"
	case r.translation == masquerade:
		return "keep it: no VIP is on this interface, so its connections have the router's own address and end with it"
	case len(holding) > 0 && slices.ContainsFunc(holding, r.serves):
		return "may be kept: its connections have the VIP by themselves and are replicated, but on the BACKUP too, and \"vippin pin\" cannot switch them. " +
			"Replaced by masquerade (set … translation address masquerade) vippin puts the VIP there"
	case len(holding) > 0:
		return fmt.Sprintf("keep it: the VIP is on %s, and the rule's packets leave elsewhere. vippin pins where the VIP is; these connections are replicated all the same",
			holding[0].iface)
	}
	return "keep it: this is no address of VRRP's. Its connections survive only if the other router can have the address, too"
}
