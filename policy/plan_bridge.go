// SPDX-License-Identifier: Apache-2.0

package policy

// bridgeBelow returns the Linux bridge that a link is, or stands on; nil: none.
func (p *planner) bridgeBelow(link *Link) *Link {
	for range len(p.links) {
		if link == nil || link.Kind == "bridge" {
			return link
		}
		link = p.linkAt(link.Parent)
	}
	return nil
}

func (p *planner) linkAt(index int) *Link {
	for _, link := range p.links {
		if index != 0 && link.Index == index {
			return link
		}
	}
	return nil
}

// seenOnPort has a pin make no new mapping in families whose answers netfilter sees
// on the port of a bridge: they find their way, but not past every rule in prerouting,
// nor in IPv6 fragments. What has tags there netfilter sees if it is told to.
func (p *planner) seenOnPort(pin *PlanPin, link *Link) {
	bridge := p.bridgeBelow(link)
	if bridge == nil || bridge != link && !p.onPort.Tagged {
		return
	}
	pin.OnPort4 = p.onPort.IPv4 && pin.VIP4.IsValid()
	pin.OnPort6 = p.onPort.IPv6 && pin.VIP6.IsValid()
	for _, family := range []struct {
		seen       bool
		name, call string
	}{{pin.OnPort4, "IPv4", "iptables"}, {pin.OnPort6, "IPv6", "ip6tables"}} {
		if family.seen {
			p.warn("pin %s: new %s flows keep the router's own address, since netfilter sees answers on the ports of the bridge %s: sysctl -w net.bridge.bridge-nf-call-%s=0",
				pin.Key(), family.name, bridge.Name, family.call)
		}
	}
}
