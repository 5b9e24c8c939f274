// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vippin/policy"
)

// view is the facts, sorted so that checks can ask simple questions.
type view struct {
	Facts
	links map[int]policy.Link
	pins  []pin
}

// pin is one pin with everything that is known of it.
type pin struct {
	policy.PlanPin
	group  string
	link   *policy.Link      // nil while its interface is absent
	vmacs  []policy.Link     // virtual MAC interfaces over it
	status *policy.PinStatus // nil: not in force, or not known
}

func newView(facts Facts) *view {
	v := &view{Facts: facts, links: make(map[int]policy.Link)}
	for _, link := range facts.Observed.Links {
		v.links[link.Index] = link
	}
	groups := facts.Plan.GroupNames()
	for _, planned := range facts.Plan.Pins {
		if planned.Retired {
			continue
		}
		p := pin{PlanPin: planned, group: groups[planned.Group]}
		if link, there := v.links[planned.Ifindex]; there && planned.Ifindex != 0 {
			p.link, p.vmacs = &link, v.vmacsOver(link.Index)
		}
		for i := range facts.Pins {
			if facts.Pins[i].Key() == planned.Key() {
				p.status = &facts.Pins[i]
			}
		}
		if p.Interface == "" && p.status != nil {
			p.Interface = p.status.Interface // the one it had
		}
		v.pins = append(v.pins, p)
	}
	return v
}

// enabled is by the word of what is in force, where that is known.
func (p pin) enabled() bool {
	if p.status != nil {
		return p.status.Enabled
	}
	return p.Enabled
}

func (p pin) role() policy.Role {
	if p.status != nil {
		return p.status.Role
	}
	return policy.RoleFault
}

// name is how messages call the pin's VLAN and interface.
func (p pin) name() string {
	if p.VLAN == (policy.VLAN{}) {
		return p.Interface
	}
	return p.Interface + " (VLAN " + p.VLAN.String() + ")"
}

// held says which of its VIPs are on the interface or a virtual MAC over it.
func (p pin) held() (here, missing []netip.Addr) {
	if p.link == nil {
		return nil, p.VIPs
	}
	on := append([]policy.Link{*p.link}, p.vmacs...)
	for _, vip := range p.VIPs {
		if slices.ContainsFunc(on, func(link policy.Link) bool { return holds(link, vip) }) {
			here = append(here, vip)
		} else {
			missing = append(missing, vip)
		}
	}
	return here, missing
}

func holds(link policy.Link, addr netip.Addr) bool {
	return slices.ContainsFunc(link.Addrs, func(a policy.Addr) bool {
		return a.Prefix.Addr().Unmap().WithZone("") == addr.WithZone("")
	})
}

// present are the pins whose interface is there.
func (v *view) present() []pin {
	return slices.DeleteFunc(slices.Clone(v.pins), func(p pin) bool { return p.link == nil })
}

// isVirtualMAC tells the MAC of RFC 9568 section 7.3: 00:00:5e:00:01:VRID, for
// IPv6 00:00:5e:00:02:VRID.
func isVirtualMAC(mac policy.MAC) bool {
	return mac[0] == 0 && mac[1] == 0 && mac[2] == 0x5e && mac[3] == 0 && (mac[4] == 1 || mac[4] == 2)
}

// vmacsOver lists the interfaces with a virtual MAC on a lower one.
func (v *view) vmacsOver(index int) []policy.Link {
	var over []policy.Link
	for _, link := range v.Observed.Links {
		if link.Kind == "macvlan" && link.Parent == index && isVirtualMAC(link.MAC) {
			over = append(over, link)
		}
	}
	return over
}

// watched lists the interfaces on which something happens: with a pin or VRRP,
// and every virtual MAC, since inside ones carry the same connections.
func (v *view) watched() []policy.Link {
	var list []policy.Link
	for _, planned := range v.Plan.Interfaces {
		if link, there := v.links[planned.Index]; there {
			list = append(list, link)
		}
	}
	for _, link := range v.Observed.Links {
		if link.Kind == "macvlan" && isVirtualMAC(link.MAC) {
			list = append(list, link)
		}
	}
	return list
}

// below lists an interface and those it stands on, down to the wire.
func (v *view) below(index int) []policy.Link {
	var list []policy.Link
	for link, there := v.links[index]; there && len(list) < 8; link, there = v.links[link.Parent] {
		list = append(list, link)
	}
	return list
}

// sysctl returns a setting, "" where there is none.
func (v *view) sysctl(name string) string { return v.Machine.Sysctls[name] }

// number reads a setting that is a number.
func (v *view) number(name string) (n uint64, known bool) {
	n, err := strconv.ParseUint(v.sysctl(name), 10, 64)
	return n, err == nil
}

// dotted writes a setting as sysctl(8) takes it: with dots, unless a part of it
// has one itself.
func dotted(name string) string {
	if strings.Contains(name, ".") {
		return name
	}
	return strings.ReplaceAll(name, "/", ".")
}

func setting(name, value string) string { return "sysctl -w " + dotted(name) + "=" + value }

// virtualRouters are those on an interface.
func (v *view) virtualRouters(ifname string) []policy.VRRPStatus {
	if v.Daemon == nil {
		return nil
	}
	var list []policy.VRRPStatus
	for _, vr := range v.Daemon.VRRP {
		if vr.Interface == ifname && vr.VRID != 0 {
			list = append(list, vr)
		}
	}
	return list
}

// advertSlack covers a skew and an event that is late (milliseconds).
const advertSlack = 1000

// alive says whether a router advertises now (RFC 9568 section 6.1: three
// intervals and a skew make it dead; priority 0 resigns).
func alive(r policy.RouterStatus) bool {
	return r.Priority > 0 && r.LastSeen <= 3*r.Interval+advertSlack
}

// masters sorts those that advertise now into this router and others.
func masters(vr policy.VRRPStatus) (self *policy.RouterStatus, others []policy.RouterStatus) {
	for i, r := range vr.Routers {
		switch {
		case !alive(r):
		case r.Self:
			self = &vr.Routers[i]
		default:
			others = append(others, r)
		}
	}
	return self, others
}

func joined[T interface{ String() string }](list []T) string {
	var words []string
	for _, one := range list {
		words = append(words, one.String())
	}
	return strings.Join(words, ", ")
}

// distinct sorts and leaves out what is there twice.
func distinct[T cmp.Ordered](list []T) []T {
	slices.Sort(list)
	return slices.Compact(list)
}

// is4 tells an address of IPv4.
func is4(addr netip.Addr) bool { return addr.Unmap().Is4() }

// release reads the first two numbers of a kernel's release.
func release(text string) (major, minor int) {
	parts := strings.SplitN(text, ".", 3)
	if len(parts) < 2 {
		return 0, 0
	}
	digits, _, _ := strings.Cut(parts[1], "-")
	major, _ = strconv.Atoi(parts[0])
	minor, _ = strconv.Atoi(digits)
	return major, minor
}
