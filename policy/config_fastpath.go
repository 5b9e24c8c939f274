// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
)

// InterfaceWarnings says which of the interfaces cannot take the fast path, as far
// as one sees without trying.
func (f FastpathConfig) InterfaceWarnings(observed Observed) (warnings []string) {
	if len(f.Interfaces) == 0 {
		return []string{"fastpath.interfaces names no interface: nothing takes the fast path"}
	}
	for _, name := range f.Interfaces {
		i := slices.IndexFunc(observed.Links, func(link Link) bool { return link.Name == name })
		if i < 0 {
			warnings = append(warnings, fmt.Sprintf("fastpath.interfaces: there is no interface %s", name))
			continue
		}
		link := observed.Links[i]
		switch link.Kind {
		case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap":
			device := "the device that it is on"
			if below, there := observed.below(link); there {
				device = below.Name
			}
			warnings = append(warnings, fmt.Sprintf("fastpath.interfaces: %s is a %s: name %s, and all VLANs on it take the fast path", name, link.Kind, device))
		case "bridge", "bond", "team", "vrf":
			warnings = append(warnings, fmt.Sprintf("fastpath.interfaces: %s is a %s: the fast path runs on physical interfaces that are in none", name, link.Kind))
		}
	}
	return warnings
}

// below is the device that a link is on at the bottom, if it is here.
func (o Observed) below(link Link) (Link, bool) {
	for range 8 {
		i := slices.IndexFunc(o.Links, func(l Link) bool { return l.Index == link.Parent })
		if link.Parent == 0 || i < 0 {
			break
		}
		link = o.Links[i]
	}
	return link, link.Parent == 0
}
