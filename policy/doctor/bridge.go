// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"net/netip"

	"vippin/policy"
)

// checkBridgeNetfilter looks for pinned bridges whose frames netfilter sees on the
// ports. Answers find their way all the same, behind the rules that see them there.
func checkBridgeNetfilter(v *view) []Finding {
	var found []Finding
	for _, p := range v.present() {
		bridge, bridged := v.bridgeOf(p.link)
		// The ports' frames have the tags of what stands on the bridge.
		if !bridged || p.link.Index != bridge.Index && v.sysctl("net/bridge/bridge-nf-filter-vlan-tagged") != "1" {
			continue
		}
		for _, family := range []struct {
			vip  netip.Addr
			name string
		}{{p.VIP4, "net.bridge.bridge-nf-call-iptables"}, {p.VIP6, "net.bridge.bridge-nf-call-ip6tables"}} {
			if !family.vip.IsValid() || v.sysctl("net/bridge/"+family.name[len("net.bridge."):]) != "1" {
				continue
			}
			found = append(found, warning(lines(kept(family.name, "0"),
				"# who needs it (docker, Kubernetes) sets it again: then have no rule in prerouting that drops what is invalid on "+bridge.Name+", or translates the VIP's ports"),
				"netfilter sees what comes in by the bridge %s before vippin does (%s is 1): connections of %s work, but a rule in prerouting that drops "+
					"invalid packets, or translates ports of %s, takes answers to them", bridge.Name, family.name, p.name(), family.vip))
		}
	}
	return found
}

// bridgeOf returns the bridge that a link is, or stands on.
func (v *view) bridgeOf(link *policy.Link) (bridge policy.Link, there bool) {
	for _, below := range v.below(link.Index) {
		if below.Kind == "bridge" {
			return below, true
		}
	}
	return policy.Link{}, false
}
