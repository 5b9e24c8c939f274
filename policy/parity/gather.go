// SPDX-License-Identifier: Apache-2.0

package parity

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vippin/policy"
)

// Sources is where a router's facts come from.
type Sources struct {
	Version  string
	Protocol [2]uint32
	Tier     string
	Config   *policy.Config
	Fastpath bool // it is switched on
	Plan     policy.Plan
	Observed policy.Observed
	Routers  []policy.VRRPStatus
	Likeness policy.Likeness
}

// Gather makes facts.
func Gather(s Sources) Facts {
	f := Facts{
		Format: Format, Node: s.Config.Node, Version: s.Version, Protocol: s.Protocol, Tier: s.Tier,
		Kernel: s.Likeness.Kernel, Clock: s.Likeness.Clock, NAT: s.Likeness.NAT, Unread: s.Likeness.Unread,
		Options: options(s), Sysctls: make(map[string]string),
	}
	for name, value := range s.Likeness.Sysctls {
		if !strings.Contains(name, "/conf/") || name == "net/ipv6/conf/all/forwarding" {
			f.Sysctls[name] = value
		}
	}
	groups := s.Plan.GroupNames()
	for _, group := range s.Plan.Groups {
		f.Groups = append(f.Groups, group.Name)
	}
	sources := make(map[policy.PinKey][]netip.Prefix)
	for _, pin := range s.Config.Pins {
		sources[pin.Key()] = pin.Sources
	}
	for _, pin := range s.Plan.Pins {
		if !pin.Retired {
			f.Pins = append(f.Pins, Pin{
				VLAN: pin.VLAN, Name: pin.Name, Interface: pin.Interface, Present: pin.Ifindex != 0, VIPs: pin.VIPs,
				Group: groups[pin.Group], Enabled: pin.Enabled, EnabledBy: pin.EnabledBy, Sources: sources[pin.Key()],
			})
		}
	}
	for _, face := range s.Plan.Interfaces {
		for _, v := range face.VRIDs {
			f.VRIDs = append(f.VRIDs, adverts(s.Routers, VRID{Interface: face.Name, VRID: v.VRID, Group: groups[v.Group]})...)
		}
	}
	f.Interfaces = interfaces(s)
	return f
}

// options are those whose values both routers should have.
func options(s Sources) map[string]string {
	c := s.Config
	prefixes := slices.Clone(c.Sync.Ignore)
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	protocols := slices.Sorted(slices.Values(c.Sync.Protocols))
	all := map[string]string{
		"sync.mode": string(c.Sync.Mode), "sync.scope": string(c.Sync.Scope), "sync.protocols": strings.Join(protocols, ", "),
		"sync.ignore": joined(prefixes), "sync.expect": fmt.Sprint(c.Sync.Expect),
		"dataplane.max_flows": fmt.Sprint(c.Dataplane.MaxFlows), "fastpath": onOff(s.Fastpath),
	}
	for name, d := range map[string]time.Duration{
		"sync.standby_timeout": c.Sync.StandbyTimeout, "sync.delete_hold": c.Sync.DeleteHold, "sync.strict_timeout": c.Sync.StrictTimeout,
		"sync.ready_timeout": c.Sync.ReadyTimeout, "sync.no_rst": c.Sync.NoRST, "vrrp.lease": c.VRRP.Lease,
	} {
		all[name] = d.String()
	}
	return all
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func joined[T interface{ String() string }](list []T) string {
	words := make([]string, len(list))
	for i, one := range list {
		words[i] = one.String()
	}
	return strings.Join(words, ", ")
}

// adverts completes a VRID by what this router's own adverts said, one a family.
func adverts(routers []policy.VRRPStatus, v VRID) (list []VRID) {
	for _, vr := range routers {
		if vr.Interface != v.Interface || vr.VRID != v.VRID {
			continue
		}
		for _, r := range vr.Routers {
			if r.Self {
				said := v
				said.Family, said.Version, said.Interval = vr.Family, vr.Version, r.Interval
				list = append(list, said)
			}
		}
	}
	if len(list) == 0 {
		return []VRID{v}
	}
	return list
}

// interfaces lists those that a pin is on, that are tagged or that have an
// address, but not the virtual MACs over them.
func interfaces(s Sources) (list []Interface) {
	vips := make(map[netip.Addr]bool)
	pinned := make(map[string]bool)
	for _, pin := range s.Plan.Pins {
		pinned[pin.Interface] = true
		for _, vip := range pin.VIPs {
			vips[vip] = true
		}
	}
	for _, link := range s.Observed.Links {
		if link.Name == "lo" || slices.Contains([]string{"macvlan", "macvtap", "ipvlan", "ipvtap"}, link.Kind) {
			continue
		}
		face := Interface{Name: link.Name, Tag: link.VLAN, MTU: s.Likeness.MTU[link.Index], Settings: settings(s.Likeness.Sysctls, link.Name)}
		for _, addr := range link.Addrs {
			face.addAddress(addr, vips)
		}
		if pinned[link.Name] || link.VLAN != (policy.VLAN{}) || len(face.Networks) > 0 {
			list = append(list, face)
		}
	}
	return list
}

// addAddress tells own addresses from virtual ones as far as one can: VIPs of no
// pin are deprecated, or alone in their prefix, or second in one.
func (f *Interface) addAddress(addr policy.Addr, vips map[netip.Addr]bool) {
	ip := addr.Prefix.Addr().Unmap().WithZone("")
	switch {
	case vips[ip] || ip.IsLinkLocalUnicast():
	case addr.Deprecated || addr.Prefix.IsSingleIP():
		f.Perhaps = append(f.Perhaps, ip)
	default:
		f.Own = append(f.Own, ip)
		if network := addr.Prefix.Masked(); !slices.Contains(f.Networks, network) {
			f.Networks = append(f.Networks, network)
		}
	}
}

// settings are those of one interface; of rp_filter the kernel takes the larger of
// its own and that of all.
func settings(all map[string]string, name string) map[string]string {
	own := make(map[string]string)
	for key, path := range map[string]string{
		"forwarding": "net/ipv4/conf/" + name + "/forwarding", "rp_filter": "net/ipv4/conf/" + name + "/rp_filter",
		"disable_ipv6": "net/ipv6/conf/" + name + "/disable_ipv6",
	} {
		if value, there := all[path]; there {
			own[key] = value
		}
	}
	if value, there := own["rp_filter"]; there {
		own["rp_filter"] = max(value, all["net/ipv4/conf/all/rp_filter"])
	}
	return own
}

// Names lists the interfaces whose settings are facts.
func Names(observed policy.Observed) (names []string) {
	for _, link := range observed.Links {
		if len(link.Addrs) > 0 {
			names = append(names, link.Name)
		}
	}
	return names
}
