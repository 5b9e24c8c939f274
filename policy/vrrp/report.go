// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vippin/policy"
)

// shownAddresses is how many addresses a text names before it only counts.
const shownAddresses = 4

// Groups is the state of every group, by number. Wall is what the wall clock
// says at now.
func (t *Tracker) Groups(now time.Duration, wall time.Time) []policy.GroupStatus {
	status := make([]policy.GroupStatus, 0, len(t.order))
	for _, g := range t.order {
		status = append(status, policy.GroupStatus{
			Name: g.Name, Role: g.role, Since: wall.Add(g.since - now), Evidence: t.evidence(now, g), Conflict: g.conflict,
		})
	}
	return status
}

// Pins is the role of every pin that is not retired, by number.
func (t *Tracker) Pins() map[uint32]policy.Role {
	roles := make(map[uint32]policy.Role, len(t.pins))
	for id, p := range t.pins {
		roles[id] = p.role
	}
	return roles
}

// Overflow counts events that were not remembered because there are too many
// virtual routers, routers or names.
func (t *Tracker) Overflow() uint64 { return t.overflow }

// Routers lists every virtual router heard or sent on a watched interface,
// those of no group too, by interface, VLAN, VRID and family. VRID 0 stands for
// packets that name none.
func (t *Tracker) Routers(now time.Duration) []policy.VRRPStatus {
	status := make([]policy.VRRPStatus, 0, len(t.routers))
	for key, vr := range t.routers {
		s := policy.VRRPStatus{
			Interface: t.linkName(key.ifindex), VLAN: key.tags(t.links[key.ifindex]), VRID: key.vrid,
			Family: key.family, Version: vr.version, Checksum: vr.checksum,
			Role: t.roleIn(now, vr), VirtualMAC: t.hasVirtualMAC(vr),
			Routers: []policy.RouterStatus{}, Ignored: map[string]uint64{}, Conflict: cmp.Or(vr.conflict, vr.claimed),
		}
		for _, r := range vr.all() {
			s.Routers = append(s.Routers, policy.RouterStatus{
				Address: r.addr, Priority: r.priority, Interval: millis(r.interval),
				LastSeen: millis(max(0, now-r.last)), Self: r == vr.self,
			})
		}
		for reason, count := range vr.ignored {
			s.Ignored[reason] = count
		}
		status = append(status, s)
	}
	slices.SortFunc(status, func(a, b policy.VRRPStatus) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.VLAN.Outer, b.VLAN.Outer),
			cmp.Compare(a.VLAN.Inner, b.VLAN.Inner), cmp.Compare(a.VRID, b.VRID), cmp.Compare(a.Family, b.Family))
	})
	return status
}

// roleIn is this router's role in one virtual router.
func (t *Tracker) roleIn(now time.Duration, vr *virtualRouter) policy.Role {
	if vr.group != nil {
		return vr.group.role
	}
	if vr.self != nil && !vr.self.resigned && now < t.downAt(vr.self) {
		return policy.RoleMaster
	}
	if !t.links[vr.ifindex].Up {
		return policy.RoleFault
	}
	return policy.RoleBackup
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// evidence states one witness a line.
func (t *Tracker) evidence(now time.Duration, g *group) []string {
	var lines []string
	for _, p := range g.pins {
		if p.fault != "" {
			lines = append(lines, p.fault)
		}
		if len(p.have) > 0 {
			lines = append(lines, fmt.Sprintf("%s on %s%s", are(p.have), p.Interface, t.lent(p)))
		}
		if len(p.missing) > 0 {
			lines = append(lines, fmt.Sprintf("%s not on %s%s", are(p.missing), p.Interface, t.elsewhere(p)))
		}
	}
	for _, vr := range g.routers {
		lines = append(lines, t.advertEvidence(now, vr)...)
	}
	lines = append(lines, t.claimEvidence(now, g)...)
	if n, told := t.notice(g); told {
		lines = append(lines, fmt.Sprintf("%s said %s (%s, priority %d) %s ago", n.by(), n.state, n.kind, n.priority, ago(now, n.at)))
	}
	if len(lines) == 0 {
		lines = []string{"neither pins nor adverts seen"}
	}
	return append(lines, t.wordEvidence(now, g)...)
}

// lent names the interfaces that hold VIPs of a pin with MAC addresses of their own.
func (t *Tracker) lent(p *pin) string {
	var names []string
	for _, link := range t.links {
		if isVMAC(link) && link.Parent == p.Ifindex && slices.ContainsFunc(p.have, func(vip netip.Addr) bool {
			_, here := t.held[place{link.Index, vip}]
			return here
		}) {
			names = append(names, fmt.Sprintf("%s by %s", link.MAC, link.Name))
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return " (MAC " + strings.Join(names, ", ") + ")"
}

func (t *Tracker) advertEvidence(now time.Duration, vr *virtualRouter) []string {
	var lines []string
	name := t.linkName(vr.ifindex)
	if r := vr.self; r != nil {
		switch {
		case r.resigned:
			lines = append(lines, fmt.Sprintf("this router resigned VRID %d on %s (%s) %s ago", vr.vrid, name, vr.family, ago(now, r.last)))
		case now < t.downAt(r):
			lines = append(lines, fmt.Sprintf("own adverts of VRID %d leave %s (%s), priority %d, the last %s ago",
				vr.vrid, name, vr.family, r.priority, ago(now, r.last)))
		default:
			lines = append(lines, fmt.Sprintf("own adverts of VRID %d on %s (%s) stopped %s ago", vr.vrid, name, vr.family, ago(now, r.last)))
		}
	}
	for _, r := range vr.others {
		if r.resigned {
			lines = append(lines, fmt.Sprintf("%s resigned VRID %d on %s %s ago", r.addr, vr.vrid, name, ago(now, r.last)))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s advertises VRID %d on %s, priority %d, heard %s ago",
			r.addr, vr.vrid, name, r.priority, ago(now, r.last)))
	}
	return lines
}

func ago(now, then time.Duration) time.Duration {
	return max(0, now-then).Round(time.Millisecond)
}

// elsewhere tells where a missing VIP is instead.
func (t *Tracker) elsewhere(p *pin) string {
	for _, vip := range p.missing {
		for at := range t.held {
			if at.addr == vip && at.ifindex != p.Ifindex {
				return fmt.Sprintf(" (%s is on %s)", vip, t.linkName(at.ifindex))
			}
		}
	}
	return ""
}

// partialText names the VIPs that are here and those that are not.
func (t *Tracker) partialText(g *group) string {
	var missing []string
	for _, p := range g.pins {
		if len(p.missing) > 0 {
			missing = append(missing, fmt.Sprintf("%s not on %s", are(p.missing), p.Interface))
		}
	}
	return fmt.Sprintf("%s here, but %s", t.whereText(g), strings.Join(missing, " and "))
}

// whereText names the VIPs of a group that are here, with their verb.
func (t *Tracker) whereText(g *group) string {
	var have []netip.Addr
	for _, p := range g.pins {
		have = append(have, p.have...)
	}
	return are(have)
}

// are lists addresses with the verb: "10.10.10.2 is", "10.10.10.2 and 2 more are".
func are(addrs []netip.Addr) string {
	names := make([]string, 0, shownAddresses+1)
	for i, a := range addrs {
		if i == shownAddresses {
			names = append(names, fmt.Sprintf("%d more", len(addrs)-i))
			break
		}
		names = append(names, a.String())
	}
	verb := "is"
	if len(addrs) > 1 {
		verb = "are"
	}
	if last := len(names) - 1; last > 0 {
		return strings.Join(names[:last], ", ") + " and " + names[last] + " " + verb
	}
	return strings.Join(names, "") + " " + verb
}

// pinName is how the toggling commands name a pin: 2, or 2/voip.
func pinName(p *pin) string {
	if p.Name != "" {
		return p.VLAN.String() + "/" + p.Name
	}
	return p.VLAN.String()
}

func (t *Tracker) linkName(ifindex int) string {
	if link, ok := t.links[ifindex]; ok {
		return link.Name
	}
	return fmt.Sprintf("interface %d", ifindex)
}
