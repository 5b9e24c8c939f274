// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"net/netip"

	"vippin/policy"
)

// checkBridgeNetfilter looks for pinned bridges whose frames netfilter sees on the
// ports: new flows on them are not pinned (policy's plan).
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
			found = append(found, fault(lines(kept(family.name, "0"), "# who needs it (docker, Kubernetes) sets it again"),
				"netfilter sees what comes in by the bridge %s before vippin does: %s is 1, so new connections of %s do not get %s but the router's own address",
				bridge.Name, family.name, p.name(), family.vip))
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
