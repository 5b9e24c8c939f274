// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// findLink finds a pin's interface: the one it names, or the one that carries
// its tags. Without one it warns and returns the best name it knows, the one
// before included.
func (p *planner) findLink(pin PinConfig, before string) (*Link, string) {
	if pin.Interface != "" {
		return p.findNamed(pin), pin.Interface
	}
	candidates := p.candidates(pin)
	if len(candidates) == 1 {
		return candidates[0], candidates[0].Name
	}
	what := "carries VLAN " + pin.VLAN.String()
	if pin.VLAN == (VLAN{}) {
		what = "is untagged"
	}
	if len(candidates) == 0 {
		p.warn("pin %s: no interface %s: create one, or give the pin the one that is meant with \"interface\"; the pin waits for it", pin.Key(), what)
		return nil, before
	}
	names := make([]string, len(candidates))
	for i, link := range candidates {
		names[i] = link.Name
	}
	list := strings.Join(names, ", ")
	if i := slices.Index(names, before); i >= 0 {
		p.warn("pin %s: more than one interface %s (%s): it stays on %s; give the pin the one that is meant with \"interface\"", pin.Key(), what, list, before)
		return candidates[i], before
	}
	p.warn("pin %s: more than one interface %s (%s): give the pin the one that is meant with \"interface\"; the pin waits for it", pin.Key(), what, list)
	return nil, before
}

// findNamed finds the interface that a pin names, and warns if its tags are
// those of another VLAN. An untagged interface may be any VLAN's: the switch
// port decides.
func (p *planner) findNamed(pin PinConfig) *Link {
	link := p.links[pin.Interface]
	if link == nil {
		p.warn("pin %s: interface %s does not exist: create it or correct \"interface\"; the pin waits for it", pin.Key(), pin.Interface)
		return nil
	}
	if link.VLAN != pin.VLAN && link.VLAN != (VLAN{}) {
		p.warn("pin %s: interface %s carries VLAN %s: correct \"vlan\" or \"interface\"", pin.Key(), link.Name, link.VLAN)
	}
	return link
}

// candidates are the interfaces that a pin without one may mean: those with
// its tags. Where there are no tags that is every port of the router, so that
// the addresses must tell which.
func (p *planner) candidates(pin PinConfig) []*Link {
	var links, onNet []*Link
	for _, link := range p.tagged[pin.VLAN] {
		if isUpper(link.Kind) {
			continue
		}
		if pin.VLAN == (VLAN{}) && (link.Name == "lo" || !link.HasL2) {
			continue
		}
		links = append(links, link)
		if onNetOf(link, pin.VIPs) {
			onNet = append(onNet, link)
		}
	}
	if pin.VLAN == (VLAN{}) && len(links) > 1 && len(onNet) == 1 {
		return onNet
	}
	return links
}

// isUpper names the kinds of interfaces that sit on another one with the same
// tags, as keepalived's virtual MAC interfaces do: a pin goes to the lower one,
// which every packet passes.
func isUpper(kind string) bool {
	return slices.Contains([]string{"macvlan", "macvtap", "ipvlan", "ipvtap"}, kind)
}

// onNetOf says whether one of the link's networks contains one of the VIPs.
func onNetOf(link *Link, vips []netip.Addr) bool {
	for _, vip := range vips {
		for _, addr := range link.Addrs {
			if !vip.IsLinkLocalUnicast() && addr.Prefix.Contains(vip) {
				return true
			}
		}
	}
	return false
}
