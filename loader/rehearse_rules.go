// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"vippin/policy"
)

// served is the flows of one pin and family.
type served struct {
	pin *replicaPin
	v4  bool
}

// rules looks whether new connections of the pins' inside hosts would be
// translated here, in the families in which the peer translates some.
func (x *rehearsal) rules(context.Context) error {
	flows, examples := make(map[served]uint64), make(map[served]*policy.Flow)
	for i := range x.Flows[:x.tried] {
		f := &x.Flows[i]
		if pin := x.plan.named[f.Pin]; pin != nil && f.To.IP() != f.Src.IP() {
			key := served{pin, f.To.Is4()}
			if flows[key]++; examples[key] == nil {
				examples[key] = f
			}
		}
	}
	if len(flows) == 0 {
		return nil
	}
	rules, _, err := readRuleset()
	if err != nil {
		return err
	}
	legacy := machineReader{root: osRoot()}.legacyNAT()
	for key, n := range flows {
		family := "IPv6"
		if key.v4 {
			family = "IPv4"
		}
		switch {
		case x.translates(rules, key, examples[key].To.IP()):
		case slices.Contains(legacy, family):
			x.note("rules of legacy iptables were not looked at")
		default:
			fault := x.missing.put("rule", fmt.Sprintf("no rule masquerades %s to %s (VLAN %v): new connections leave untranslated", family, key.pin.Interface, key.pin.VLAN), n)
			fault.Example = append(fault.Example, flowText(examples[key]))
		}
	}
	return nil
}

// translates tells whether a rule gives flows of a pin an address that vippin
// makes the VIP, or the VIP itself.
func (x *rehearsal) translates(rules []policy.NATRule, key served, vip netip.Addr) bool {
	var uppers []int
	for _, face := range x.Plan.Interfaces {
		if face.Index == key.pin.Ifindex {
			uppers = face.Uppers
		}
	}
	for _, rule := range rules {
		if key.v4 && !rule.IPv4 || !key.v4 && !rule.IPv6 || !rule.Masquerade && !rule.Covers(vip) {
			continue
		}
		for _, link := range x.Seen.Links {
			if (link.Index == key.pin.Ifindex || slices.Contains(uppers, link.Index)) && rule.Reaches(link) {
				return true
			}
		}
	}
	return !slices.ContainsFunc(x.Seen.Links, func(link policy.Link) bool { return link.Index == key.pin.Ifindex }) // said elsewhere
}

// pins lists those of the peer that this router does not have.
func (x *rehearsal) pins() {
	flows := make(map[policy.PinName]uint64)
	for i := range x.Flows {
		flows[x.Flows[i].Pin]++
	}
	for _, name := range x.Pins {
		if x.plan.named[name] == nil {
			fault := x.missing.put("vip", fmt.Sprintf("no pin of VLAN %v has the VIP %v here", name.VLAN, name.VIP), flows[name])
			fault.Example = []string{fmt.Sprintf("%v on VLAN %v", name.VIP, name.VLAN)}
		}
	}
}
