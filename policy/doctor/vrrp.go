// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vippin/policy"
)

// What VRRP says: VIPs, adverts, roles.

func checkVIPs(v *view) []Finding {
	var found []Finding
	states := []string{}
	for _, p := range v.present() {
		here, missing := p.held()
		if p.status != nil {
			states = append(states, fmt.Sprintf("%s %s", p.role(), p.name()))
		}
		for _, vip := range missing {
			remedy := lines(fmt.Sprintf("# add %s to the virtual_ipaddress of the vrrp_instance on %s, on both routers, or take it out of the pin; then:", vip, p.link.Name),
				"systemctl reload keepalived")
			if at := v.elsewhere(p, vip); at != "" {
				found = append(found, fault(remedy, "VIP %s of pin %s is on %s instead of %s: the pin is not MASTER", vip, p.Key(), at, p.name()))
				continue
			}
			switch {
			case p.role() == policy.RoleMaster:
				found = append(found, fault(remedy, "pin %s is MASTER, and its VIP %s is nowhere", p.Key(), vip))
			case len(here) > 0:
				found = append(found, fault(remedy, "VIP %s of pin %s is nowhere, although %s is on %s: the pin is not MASTER", vip, p.Key(), joined(here), p.name()))
			case v.advertises(p, vip):
				found = append(found, fault(remedy, "VIP %s of pin %s is nowhere, although this router advertises its virtual router on %s", vip, p.Key(), p.name()))
			}
		}
	}
	if len(states) == 0 {
		return found
	}
	return unless(found, "the VIPs are where they belong: %s", strings.Join(states, ", "))
}

// elsewhere finds a VIP on an interface that is not the pin's.
func (v *view) elsewhere(p pin, vip netip.Addr) string {
	if vip.IsLinkLocalUnicast() {
		return "" // may be on several
	}
	for _, link := range v.Observed.Links {
		if link.Index != p.link.Index && holds(link, vip) {
			return link.Name
		}
	}
	return ""
}

// advertises says whether this router's own adverts leave a pin's interface for
// the VIP's family and the pin's group.
func (v *view) advertises(p pin, vip netip.Addr) bool {
	for _, vr := range v.virtualRouters(p.link.Name) {
		if (vr.Family == "ipv4") != is4(vip) || !slices.Contains(v.vridsOf(p.link.Index, p.Group), vr.VRID) {
			continue
		}
		if self, _ := masters(vr); self != nil {
			return true
		}
	}
	return false
}

// vridsOf lists the virtual routers of a group that are watched on an interface.
func (v *view) vridsOf(ifindex int, group uint32) (vrids []uint8) {
	for _, planned := range v.Plan.Interfaces {
		for _, vrid := range planned.VRIDs {
			if planned.Index == ifindex && vrid.Group == group {
				vrids = append(vrids, vrid.VRID)
			}
		}
	}
	return vrids
}

// listenFor is how long a daemon must have run before silence means something
// (seconds).
const listenFor = 5

// checkAdverts looks, while this router is BACKUP, where the MASTER is not
// heard.
func checkAdverts(v *view) []Finding {
	if v.Daemon == nil || v.Daemon.Status.Uptime < listenFor {
		return nil
	}
	var found []Finding
	told := make(map[int]bool)
	var heard []string
	for _, group := range v.Plan.Groups {
		if v.groupRole(group.Name) != policy.RoleBackup {
			continue
		}
		for _, planned := range v.Plan.Interfaces {
			link, there := v.links[planned.Index]
			silent, watched := v.silent(group, planned)
			if !there || !link.Up || !watched {
				continue
			}
			if len(silent) == 0 {
				heard = append(heard, link.Name)
				continue
			}
			found = append(found, v.unheard(group, link, silent))
			told[link.Index] = true
		}
	}
	for _, p := range v.present() {
		if !told[p.link.Index] {
			told[p.link.Index] = true
			found = append(found, v.deaf(p)...)
		}
	}
	if len(found) == 0 && len(heard) == 0 {
		return nil
	}
	return unless(found, "the MASTER is heard on %s", strings.Join(distinct(heard), ", "))
}

func (v *view) groupRole(name string) policy.Role {
	for _, group := range v.Daemon.Status.Groups {
		if group.Name == name {
			return group.Role
		}
	}
	return policy.RoleFault
}

// silent lists the VRIDs of a group that should be heard from another router
// on an interface and are not: those that the configuration places there, or
// that were heard or sent there before. One that nothing ties to the interface
// need be heard on any one of the group's: keepalived may move the VIPs of
// several interfaces with one virtual router.
func (v *view) silent(group policy.PlanGroup, on policy.PlanInterface) (silent []uint8, watched bool) {
	placed := v.placed(group.Name, on)
	var nowhere []uint8
	heard := false
	for _, vrid := range v.vridsOf(on.Index, group.ID) {
		watched = true
		spoken := slices.ContainsFunc(v.virtualRouters(on.Name), func(vr policy.VRRPStatus) bool { return vr.VRID == vrid })
		switch {
		case v.hears(on.Name, vrid):
			heard = true
		case spoken || slices.Contains(placed, vrid):
			silent = append(silent, vrid)
		case !v.heardInGroup(group, vrid):
			nowhere = append(nowhere, vrid)
		}
	}
	if !heard && len(silent) == 0 {
		silent = nowhere
	}
	return silent, watched
}

func (v *view) heardInGroup(group policy.PlanGroup, vrid uint8) bool {
	return slices.ContainsFunc(v.Plan.Interfaces, func(planned policy.PlanInterface) bool {
		return slices.Contains(v.vridsOf(planned.Index, group.ID), vrid) && v.hears(planned.Name, vrid)
	})
}

// placed lists the VRIDs that the configuration names on an interface.
func (v *view) placed(group string, on policy.PlanInterface) (vrids []uint8) {
	if v.Config == nil {
		return nil
	}
	for _, g := range v.Config.Groups {
		for _, vrid := range g.VRIDs {
			if g.Name == group && vrid.Interface == on.Name {
				vrids = append(vrids, vrid.VRID)
			}
		}
	}
	for _, p := range v.Config.Pins {
		i := slices.IndexFunc(v.pins, func(q pin) bool { return q.Key() == p.Key() })
		if p.VRID != 0 && p.GroupName() == group && i >= 0 && v.pins[i].Ifindex == on.Index {
			vrids = append(vrids, p.VRID)
		}
	}
	return vrids
}

func (v *view) hears(ifname string, vrid uint8) bool {
	for _, vr := range v.virtualRouters(ifname) {
		if _, others := masters(vr); vr.VRID == vrid && len(others) > 0 {
			return true
		}
	}
	return false
}

// unheard says why adverts may be lost, by where others are heard.
func (v *view) unheard(group policy.PlanGroup, link policy.Link, vrids []uint8) Finding {
	name := link.Name
	if link.VLAN != (policy.VLAN{}) {
		name += " (VLAN " + link.VLAN.String() + ")"
	}
	missing := fmt.Sprintf("group %s is BACKUP, and no advert of VRID %s is heard on %s", group.Name, numbers(vrids), name)
	look := "tcpdump -c 5 -eni " + link.Name + " 'ip proto 112 or ip6 proto 112'"
	notSpoken := fmt.Sprintf("# is no VRRP spoken there? Then say where it is: vrids: [\"%d@INTERFACE\"]", vrids[0])
	if sibling := v.heardOnTrunk(link); sibling != "" {
		return fault(lines(append([]string{
			fmt.Sprintf("# let VLAN %s pass, tagged, on every switch port between the routers, as for %s; this shows what arrives:", link.VLAN, sibling),
			look, notSpoken}, v.settings()...)...),
			"%s, while %s on the same trunk hears some: VLAN %s is missing from the trunk", missing, sibling, link.VLAN)
	}
	if other := v.heardElsewhere(link); other != "" {
		return fault(lines(append([]string{
			"# look at the switches between the routers on this segment: VLAN of the ports, IGMP and MLD snooping (224.0.0.18, ff02::12);",
			"# or let keepalived use unicast_peer; this shows what arrives:", look, notSpoken}, v.settings()...)...),
			"%s, while %s hears some: the segment is cut, or filters multicast", missing, other)
	}
	return fault(lines(append([]string{
		"# does keepalived run on the other router? If it does, look at the switches: IGMP and MLD snooping (224.0.0.18, ff02::12);",
		"# or let keepalived use unicast_peer; this shows what arrives:", look, notSpoken}, v.settings()...)...),
		"%s: nobody is MASTER, or its multicast is filtered", missing)
}

func numbers(vrids []uint8) string {
	var words []string
	for _, vrid := range vrids {
		words = append(words, fmt.Sprint(vrid))
	}
	return strings.Join(words, " and ")
}

// heardOnTrunk names another VLAN interface over the same device that hears
// somebody.
func (v *view) heardOnTrunk(link policy.Link) string {
	if link.Kind != "vlan" {
		return ""
	}
	for _, other := range v.watched() {
		if other.Index != link.Index && other.Kind == "vlan" && other.Parent == link.Parent && v.hearsAny(other) {
			return other.Name
		}
	}
	return ""
}

func (v *view) heardElsewhere(link policy.Link) string {
	for _, other := range v.watched() {
		if other.Index != link.Index && v.hearsAny(other) {
			return other.Name
		}
	}
	return ""
}

func (v *view) hearsAny(link policy.Link) bool {
	return slices.ContainsFunc(v.virtualRouters(link.Name), func(vr policy.VRRPStatus) bool {
		_, others := masters(vr)
		return len(others) > 0
	})
}

// deafAfter is how many packets must have left before it means something that
// none has come.
const deafAfter = 10

// deaf finds a VLAN on which nothing at all has arrived while its neighbours on
// the trunk receive.
func (v *view) deaf(p pin) []Finding {
	c, counted := v.Machine.Counters[p.link.Index]
	if !counted || p.link.Kind != "vlan" || !p.link.Up || c.In > 0 || c.Out < deafAfter {
		return nil
	}
	for _, other := range v.Observed.Links {
		if other.Kind == "vlan" && other.Parent == p.link.Parent && v.Machine.Counters[other.Index].In > 0 {
			return only(warning(lines(append([]string{
				fmt.Sprintf("# let VLAN %s pass, tagged, on the switch ports on the way; this shows what arrives:", p.VLAN),
				"tcpdump -c 5 -eni " + p.link.Name}, v.settings()...)...),
				"nothing has arrived on %s since it was made (%d packets left), while %s on the same trunk receives: VLAN %s is missing from the trunk",
				p.name(), c.Out, other.Name, p.VLAN))
		}
	}
	return nil
}

// ignoredRemedies say what to do about adverts that are not believed.
var ignoredRemedies = map[string]string{
	"ttl":      "# somebody routes or forges adverts: VRRP never leaves its segment with a TTL of 255 (RFC 9568 section 7.1); let the firewall drop them at its edge",
	"version":  "# give both routers the same vrrp_version",
	"auth":     "# give both routers the same authentication block (VRRPv2), or none",
	"checksum": "# damaged on the way, or another way of counting: compare the routers' versions and checksum options",
	"echo":     "# a loop, or a team of NICs that hands multicast back to its sender",
}

func checkIgnored(v *view) []Finding {
	if v.Daemon == nil {
		return nil
	}
	var found []Finding
	for _, vr := range v.Daemon.VRRP {
		for _, reason := range distinct(keys(vr.Ignored)) {
			if vr.Ignored[reason] == 0 {
				continue
			}
			remedy := []string{ignoredRemedies[reason], "tcpdump -vv -c 5 -eni " + vr.Interface + " 'ip proto 112 or ip6 proto 112'"}
			if reason == "echo" && v.hypervisor() == vmware {
				remedy = append(remedy, "# on the ESXi host, which has several uplinks:", esxiEcho)
			}
			remedy = slices.DeleteFunc(remedy, func(line string) bool { return line == "" })
			found = append(found, warning(lines(remedy...), "%d adverts of VRID %d on %s (%s) are not believed: %s",
				vr.Ignored[reason], vr.VRID, vr.Interface, vr.Family, reason))
		}
	}
	return found
}

func keys(m map[string]uint64) (list []string) {
	for key := range m {
		list = append(list, key)
	}
	return list
}

// bothMasters is how the tracker's texts about two masters begin.
const bothMasters = "both masters"

func checkMasters(v *view) []Finding {
	if v.Daemon == nil {
		return nil
	}
	var found []Finding
	var said strings.Builder
	for _, group := range v.Daemon.Status.Groups {
		if strings.Contains(group.Conflict, bothMasters) {
			found = append(found, fault(v.mastersRemedy(), "group %s: %s", group.Name, group.Conflict))
			said.WriteString(group.Conflict)
		}
	}
	for _, vr := range v.Daemon.VRRP {
		if vr.Conflict != "" && !strings.Contains(said.String(), vr.Conflict) {
			found = append(found, fault(v.mastersRemedy(), "VRID %d on %s (%s): %s", vr.VRID, vr.Interface, vr.Family, vr.Conflict))
		}
	}
	return unless(found, "no second MASTER is seen")
}

func (v *view) mastersRemedy() string {
	return lines(append([]string{"# run this on both routers: each must see the other's adverts",
		"tcpdump -c 20 -eni any 'ip proto 112 or ip6 proto 112'"}, v.settings()...)...)
}

// checkRoles shows where the witnesses of a role disagree otherwise.
func checkRoles(v *view) []Finding {
	if v.Daemon == nil {
		return nil
	}
	var found []Finding
	for _, group := range v.Daemon.Status.Groups {
		remedy := lines("# who says what?", "vippin status", "systemctl status keepalived")
		switch {
		case group.Role == policy.RoleFault:
			found = append(found, fault(remedy, "group %s is in FAULT: %s", group.Name, strings.Join(group.Evidence, "; ")))
		case group.Conflict != "" && !strings.Contains(group.Conflict, bothMasters):
			found = append(found, fault(remedy, "group %s: %s", group.Name, group.Conflict))
		}
	}
	return found
}

// checkOneWay tells, of two masters, who does not hear whom. A router that
// hears a better one resigns (RFC 9568 section 6.4.3); one that does not
// resign does not hear it.
func checkOneWay(v *view) []Finding {
	if v.Daemon == nil {
		return nil
	}
	var found []Finding
	for _, vr := range v.Daemon.VRRP {
		self, others := masters(vr)
		if self == nil || vr.Conflict == "" && (len(others) > 0 || !v.contradicted(vr)) {
			continue
		}
		where := fmt.Sprintf("VRID %d on %s (%s)", vr.VRID, vr.Interface, vr.Family)
		if len(others) == 0 {
			found = append(found, fault(lines(append([]string{"# look here for what arrives from the other router, and at the switches between:",
				"tcpdump -c 20 -eni " + vr.Interface + " 'ip proto 112 or ip6 proto 112 or arp'"}, v.lettingOut(vr)...)...),
				"%s: the other MASTER's adverts do not arrive here", where))
		}
		for _, other := range others {
			if better(other, *self) {
				found = append(found, fault(lines("# keepalived is behind this router's firewall, the programs of vippin before it; let adverts in, for instance:",
					"nft insert rule inet filter input meta l4proto vrrp accept", "iptables -I INPUT -p vrrp -j ACCEPT", "journalctl -u keepalived -n 20"),
					"%s: adverts of %s with priority %d arrive, and keepalived here goes on with %d: it does not get them", where, other.Address, other.Priority, self.Priority))
				continue
			}
			found = append(found, fault(lines(append([]string{fmt.Sprintf("# run this on %s: do adverts of %s arrive? If they do, its firewall has them", other.Address, self.Address),
				"tcpdump -c 20 -eni " + vr.Interface + " 'ip proto 112 or ip6 proto 112'"}, v.lettingOut(vr)...)...),
				"%s: %s goes on as MASTER with priority %d although this router advertises %d: our adverts do not arrive there", where, other.Address, other.Priority, self.Priority))
		}
	}
	return found
}

// unheardText is what the tracker says of a group when only a peer's word tells of
// the other MASTER.
const unheardText = "no adverts of another router are heard"

// contradicted says that a peer claims to be MASTER of a virtual router's group,
// and no adverts show it.
func (v *view) contradicted(vr policy.VRRPStatus) bool {
	for _, group := range v.Plan.Groups {
		link := slices.IndexFunc(v.Plan.Interfaces, func(planned policy.PlanInterface) bool { return planned.Name == vr.Interface })
		if link < 0 || !slices.Contains(v.vridsOf(v.Plan.Interfaces[link].Index, group.ID), vr.VRID) {
			continue
		}
		return slices.ContainsFunc(v.Daemon.Status.Groups, func(status policy.GroupStatus) bool {
			return status.Name == group.Name && strings.Contains(status.Conflict, unheardText)
		})
	}
	return false
}

// lettingOut are the settings that let a virtual router's adverts through. Those
// from a virtual MAC need more than others.
func (v *view) lettingOut(vr policy.VRRPStatus) []string {
	if !vr.VirtualMAC {
		return v.settings()
	}
	return append([]string{"# a virtual MAC is in use, which a hypervisor or switch may eat (keepalived's vmac_xmit_base sends adverts from the interface's",
		"# own MAC, which alone does not let in what hosts send to the virtual one):"}, v.allSettings()...)
}

// better compares as RFC 9568 section 6.4.3 does.
func better(a, b policy.RouterStatus) bool {
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	return a.Address.Compare(b.Address) > 0
}
