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
		if link.Kind != "vlan" {
			continue
		}
		device := "the one that it is on"
		if below := slices.IndexFunc(observed.Links, func(l Link) bool { return l.Index == link.Parent }); below >= 0 {
			device = observed.Links[below].Name
		}
		warnings = append(warnings, fmt.Sprintf("fastpath.interfaces: %s is a VLAN, the fast path is for its device, with all VLANs on it: name %s", name, device))
	}
	return warnings
}
