// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vippin/policy"
)

// Source NAT: vippin works behind masquerade.

// unmasked lists the virtual MACs over a pin's interface that routes of a family
// lead by, and no rule for the interface below reaches: what leaves there leaves
// with the inside hosts' addresses.
func (v *view) unmasked(p pin, v4 bool) (names []string) {
	ways := v.Machine.Ways6
	if v4 {
		ways = v.Machine.Ways4
	}
	for _, link := range p.vmacs {
		reaches := func(rule policy.NATRule) bool {
			return (rule.IPv4 && v4 || rule.IPv6 && !v4) && rule.Reaches(link)
		}
		if ways[link.Index] && !slices.ContainsFunc(v.Machine.NAT.Rules, reaches) {
			names = append(names, link.Name)
		}
	}
	return names
}

// passedOver lists the virtual MACs over a pin's interface that IPv6 routes lead by,
// and whose VIP masquerade does not choose: it is deprecated, and addresses of
// other interfaces are not (RFC 6724 section 5, rule 3 comes before rule 5).
func (v *view) passedOver(p pin) (found []Finding) {
	for _, link := range p.vmacs {
		preferred := func(a policy.Addr) bool {
			return !is4(a.Prefix.Addr()) && !a.Prefix.Addr().IsLinkLocalUnicast() && !a.Deprecated
		}
		alone := "net/ipv6/conf/" + link.Name + "/use_oif_addrs_only"
		if v.Machine.Ways6[link.Index] && holds(link, p.VIP6) && !slices.ContainsFunc(link.Addrs, preferred) && v.sysctl(alone) != "1" {
			found = append(found, fault(lines(setting(alone, "1"),
				fmt.Sprintf("# lasting: write the VIP with its prefix length in keepalived.conf, %s/64 say: only as a /128 keepalived adds it as deprecated", p.VIP6)),
				"routes of IPv6 lead by %s, where masquerade passes the VIP %s over, since it is deprecated, and takes an address of another interface: "+
					"what leaves there is not pinned", link.Name, p.VIP6))
		}
	}
	return found
}

// rulesFor lists the rules of a family that reach a pin's interface or a
// virtual MAC over it.
func (v *view) rulesFor(p pin, v4 bool) (rules []policy.NATRule) {
	for _, rule := range v.Machine.NAT.Rules {
		if v4 && !rule.IPv4 || !v4 && !rule.IPv6 {
			continue
		}
		if rule.Reaches(*p.link) || slices.ContainsFunc(p.vmacs, func(link policy.Link) bool { return rule.Reaches(link) }) {
			rules = append(rules, rule)
		}
	}
	return rules
}

func checkMasquerade(v *view) []Finding {
	if !v.Machine.NAT.Known {
		return nil
	}
	var found, notes []Finding
	seen := make(map[string]bool)
	for _, p := range v.present() {
		if !p.enabled() || seen[p.link.Name] || p.link.Name == "" {
			continue
		}
		seen[p.link.Name] = true
		var lacking, unmasked []string
		wanted := 0
		for _, family := range []struct {
			name string
			vip  netip.Addr
		}{{"IPv4", p.VIP4}, {"IPv6", p.VIP6}} {
			if !family.vip.IsValid() {
				continue
			}
			wanted++
			masquerades := func(rule policy.NATRule) bool { return rule.Masquerade || rule.Covers(family.vip) }
			if !slices.ContainsFunc(v.rulesFor(p, is4(family.vip)), masquerades) {
				lacking = append(lacking, family.name)
			} else if !v.legacy([]string{family.name}) {
				unmasked = append(unmasked, v.unmasked(p, is4(family.vip))...)
			}
		}
		if len(lacking) == 0 && len(unmasked) == 0 {
			found = append(found, v.passedOver(p)...)
		}
		for _, name := range distinct(unmasked) {
			found = append(found, fault(masquerade(name), "a rule masquerades to %s and none to %s above it, by which routes lead: "+
				"what leaves there has the inside hosts' own addresses", p.name(), name))
		}
		switch legacy := v.legacy(lacking); {
		case len(lacking) == 0:
		case legacy:
			notes = append(notes, ok("no nf_tables rule masquerades %s to %s; there are rules of legacy iptables, which are not looked at (iptables-legacy -t nat -S)",
				strings.Join(lacking, " and "), p.name()))
		case len(lacking) == wanted || lacking[0] == "IPv4":
			found = append(found, fault(masquerade(p.link.Name), "no rule masquerades %s to %s: nothing is pinned there",
				strings.Join(lacking, " or "), p.name()))
		default: // routed IPv6 beside masqueraded IPv4 is usual
			notes = append(notes, ok("no rule masquerades %s to %s: there is nothing to pin of it", lacking[0], p.name()))
		}
	}
	if len(found) > 0 || len(notes) > 0 {
		return append(found, notes...)
	}
	if len(seen) == 0 {
		return nil
	}
	return only(ok("a rule masquerades to every pinned interface"))
}

// legacy says whether some of the families have a nat table of legacy iptables.
func (v *view) legacy(families []string) bool {
	return slices.ContainsFunc(v.Machine.NAT.Legacy, func(family string) bool { return slices.Contains(families, family) })
}

func masquerade(ifname string) string {
	return lines("# keep it where your other rules are, too",
		"nft add table inet nat",
		"nft add chain inet nat postrouting '{ type nat hook postrouting priority srcnat; }'",
		fmt.Sprintf("nft add rule inet nat postrouting oifname %q masquerade", ifname))
}

// checkSNAT looks for rules that do by themselves what a pin does.
func checkSNAT(v *view) []Finding {
	var found []Finding
	for _, p := range v.present() {
		for _, vip := range []netip.Addr{p.VIP4, p.VIP6} {
			if !vip.IsValid() {
				continue
			}
			for _, rule := range v.rulesFor(p, is4(vip)) {
				if !rule.Covers(vip) {
					continue
				}
				table, _, _ := strings.Cut(rule.Where, ", ")
				found = append(found, warning(lines("# let it say \"masquerade\" and vippin put the VIP there, or take the pin away; this is the rule:",
					"nft -a list "+table),
					"a rule translates to the VIP %s of %s by itself (%s): these connections get it also while this router is BACKUP, whatever the pin says",
					vip, p.name(), rule.Where))
			}
		}
	}
	return found
}
