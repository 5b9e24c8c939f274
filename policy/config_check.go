// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
)

// check finds the faults that no value has by itself.
func (r *configReader) check(cfg *Config) {
	if cfg.Node == "" {
		r.faultAt("node", "node: the host name is unknown: give this router a name")
	}
	r.checkGroups(cfg)
	r.checkPins(cfg)
	r.checkSync(cfg)
}

// pinAt is the place of a pin, or of something in it.
func pinAt(i int, key string) string {
	if key == "" {
		return fmt.Sprintf("pins[%d]", i)
	}
	return fmt.Sprintf("pins[%d].%s", i, key)
}

// keyed says whether it was read what a pin is known by.
func (r *configReader) keyed(i int) bool {
	return r.has(pinAt(i, "vlan")) && !r.faultyIn(pinAt(i, "vlan")) && !r.faultyIn(pinAt(i, "name"))
}

// label is what a pin is called in messages.
func (r *configReader) label(i int, p PinConfig) string {
	if r.keyed(i) {
		return p.Key().String()
	}
	return "?"
}

func (r *configReader) checkGroups(cfg *Config) {
	if len(cfg.Groups) > GroupsMax {
		r.faultAt("groups", "groups: there are %d: remove some, %d fit", len(cfg.Groups), GroupsMax)
	}
	lines := map[string]int{}
	speaks := map[VRIDConfig]string{} // of those with an interface: which group for
	for i, g := range cfg.Groups {
		at := fmt.Sprintf("groups[%d]", i)
		if g.Name == "" {
			if g.Line != 0 && r.missing(at, "name") {
				r.faultAt(at, "groups: a group has no name: add \"name\"")
			}
			continue
		}
		if line, twice := lines[g.Name]; twice {
			r.faultAt(at, "group %q is there twice, first on line %d: rename one or join them", g.Name, line)
		} else {
			lines[g.Name] = g.Line
		}
		own := map[VRIDConfig]bool{}
		for _, v := range g.VRIDs {
			other, taken := speaks[v]
			switch {
			case own[v]:
				r.faultAt(at+".vrids", "group %q: VRID %s is there twice: remove one", g.Name, v)
			case taken && v.Interface != "":
				r.faultAt(at+".vrids", "group %q: VRID %s speaks for group %q already: one VRRP instance belongs to one group", g.Name, v, other)
			}
			own[v], speaks[v] = true, g.Name
		}
	}
}

// String writes the VRID as the configuration does: 10 or 11@eth0.101.
func (v VRIDConfig) String() string {
	if v.Interface == "" {
		return fmt.Sprint(v.VRID)
	}
	return fmt.Sprintf("%d@%s", v.VRID, v.Interface)
}

func (r *configReader) checkPins(cfg *Config) {
	if len(cfg.Pins) > PinsMax {
		r.faultAt("pins", "pins: there are %d: remove some, %d fit", len(cfg.Pins), PinsMax)
	}
	vips, sources := 0, 0
	for i, p := range cfg.Pins {
		if p.Line == 0 { // it was no mapping
			continue
		}
		if r.missing(pinAt(i, ""), "vlan") {
			r.faultAt(pinAt(i, ""), "pins: a pin has no VLAN: add \"vlan\" (0 = untagged)")
		}
		r.checkVIPs(i, p)
		r.checkSources(i, p)
		vips += len(p.VIPs)
		sources += max(len(p.Sources), 2)
	}
	if vips > VIPsMax {
		r.faultAt("pins", "pins: they have %d VIPs together: remove some, %d fit", vips, VIPsMax)
	}
	if sources > SourcesMax {
		r.faultAt("pins", "pins: they have %d source prefixes together: join some, %d fit", sources, SourcesMax)
	}
	r.checkPinKeys(cfg.Pins)
	r.checkPinGroups(cfg)
}

// checkPinKeys looks for pins that could not be told apart, and interfaces
// that would belong to two VLANs.
func (r *configReader) checkPinKeys(pins []PinConfig) {
	sharing := map[VLAN]int{}
	for i, p := range pins {
		if r.keyed(i) {
			sharing[p.VLAN]++
		}
	}
	lines := map[PinKey]int{}
	firstOn := map[string]PinConfig{} // by interface
	for i, p := range pins {
		if !r.keyed(i) {
			continue
		}
		line, twice := lines[p.Key()]
		switch {
		case p.Name == "" && sharing[p.VLAN] > 1:
			r.faultAt(pinAt(i, ""), "pin %s: %d pins share VLAN %s: give each of them a \"name\" of its own", r.label(i, p), sharing[p.VLAN], p.VLAN)
		case twice:
			r.faultAt(pinAt(i, ""), "pin %s is there twice, first on line %d: rename or remove one", r.label(i, p), line)
		default:
			lines[p.Key()] = p.Line
		}
		if p.Interface == "" {
			continue
		}
		if first, seen := firstOn[p.Interface]; !seen {
			firstOn[p.Interface] = p
		} else if first.VLAN != p.VLAN {
			r.faultAt(pinAt(i, "interface"), "pin %s: interface %s is VLAN %s on line %d: correct one of them", r.label(i, p), p.Interface, first.VLAN, first.Line)
		}
	}
}

// checkPinGroups looks for groups that are not there, and for groups that are
// called like a pin with a group of its own.
func (r *configReader) checkPinGroups(cfg *Config) {
	known := map[string]bool{}
	var names []string
	for _, g := range cfg.Groups {
		known[g.Name] = true
		names = append(names, g.Name)
	}
	for i, p := range cfg.Pins {
		switch {
		case p.Group != "" && !known[p.Group] && len(names) == 0:
			r.faultAt(pinAt(i, "group"), "pin %s: group %q is not there: add it under \"groups\"", r.label(i, p), p.Group)
		case p.Group != "" && !known[p.Group]:
			r.faultAt(pinAt(i, "group"), "pin %s: group %q is not there: did you mean %q? Or add it under \"groups\"", r.label(i, p), p.Group, nearest(p.Group, names))
		case p.Group == "" && known[p.GroupName()] && r.keyed(i) && !r.faultyIn(pinAt(i, "group")):
			r.faultAt(pinAt(i, ""), "pin %s has no group and would get one of its own called %q, but that is there already: rename the group, or put the pin in it", r.label(i, p), p.GroupName())
		}
	}
}

func (r *configReader) checkVIPs(i int, p PinConfig) {
	vips := pinAt(i, "vips")
	seen := map[netip.Addr]bool{}
	for j, vip := range p.VIPs {
		if seen[vip] {
			r.faultAt(fmt.Sprintf("%s[%d]", vips, j), "pin %s: VIP %s is there twice: remove one", r.label(i, p), vip)
		}
		seen[vip] = true
	}
	switch {
	case len(p.VIPs) == 0 && !r.faultyIn(vips) && (r.has(vips) || r.missing(pinAt(i, ""), "vips")):
		r.faultAt(vips, "pin %s has no VIP: add the address that VRRP moves, \"vips: [ADDRESS]\"", r.label(i, p))
	case len(p.VIPs) > 0 && !p.VIP4().IsValid() && !p.VIP6().IsValid() && !r.faultyIn(vips):
		r.faultAt(vips, "pin %s has link-local VIPs only, which can witness the role but be no source: add a routable one", r.label(i, p))
	}
}

func (r *configReader) checkSources(i int, p PinConfig) {
	sources := pinAt(i, "sources")
	seen := map[netip.Prefix]bool{}
	for j, source := range p.Sources {
		at := fmt.Sprintf("%s[%d]", sources, j)
		if seen[source] {
			r.faultAt(at, "pin %s: source %s is there twice: remove one", r.label(i, p), source)
		}
		seen[source] = true
		vip, family := p.VIP4(), "IPv4"
		if source.Addr().Is6() {
			vip, family = p.VIP6(), "IPv6"
		}
		if !vip.IsValid() && len(p.VIPs) > 0 && !r.faultyIn(pinAt(i, "vips")) {
			r.faultAt(at, "pin %s: source %s is %s, but the pin has no %s VIP: add one or remove the source", r.label(i, p), source, family, family)
		}
	}
	if len(p.Sources) == 0 && r.has(sources) && !r.faultyIn(sources) {
		r.faultAt(sources, "pin %s: sources is empty: list inside prefixes, or remove the line to take every inside host", r.label(i, p))
	}
}

func (r *configReader) checkSync(cfg *Config) {
	s := cfg.Sync
	if overlap := s.StrictMark.Mask & cfg.VRRP.Tag.Mark.Mask; overlap != 0 {
		at := "sync.strict_mark"
		if !r.has(at) {
			at = "vrrp.tag.mark"
		}
		r.faultAt(at, "sync.strict_mark and vrrp.tag.mark share the mask bits %#x: give each bits of its own", overlap)
	}
	if len(s.Protocols) == 0 && !r.faultyIn("sync.protocols") {
		r.faultAt("sync.protocols", "sync.protocols is empty: list some, or remove the line for all")
	}
	if len(s.Peers) > 0 && !s.Listen.IsValid() && !r.faultyIn("sync.listen") && !r.bad["sync"+misnamed] {
		r.faultAt("sync.peers", "sync.peers: there are peers, but sync.listen is missing: add this router's ADDRESS:PORT")
	}
	r.checkPeers(cfg)
}

func (r *configReader) checkPeers(cfg *Config) {
	lines, keys := map[string]int{}, map[string]string{}
	for i, p := range cfg.Sync.Peers {
		at := fmt.Sprintf("sync.peers[%d]", i)
		if p.Line == 0 { // it was no mapping
			continue
		}
		if r.missing(at, "name") {
			r.faultAt(at, "sync.peers: a peer has no name: add \"name\"")
		}
		if r.missing(at, "address") {
			r.faultAt(at, "sync.peers: peer %q has no address: add \"address\", its ADDRESS:PORT", p.Name)
		}
		if p.Name == "" {
			continue
		}
		if p.Name == cfg.Node {
			r.faultAt(at, "sync.peers: peer %q is called like this node: rename one", p.Name)
		}
		if line, twice := lines[p.Name]; twice {
			r.faultAt(at, "sync.peers: peer %q is there twice, first on line %d: rename one", p.Name, line)
		}
		lines[p.Name] = p.Line
		if owner, taken := keys[p.Key]; taken && p.Key != "" {
			r.faultAt(at, "sync.peers: peer %q has the key of peer %q: each router has its own, \"vippin keygen\" prints it", p.Name, owner)
		}
		keys[p.Key] = p.Name
	}
}
