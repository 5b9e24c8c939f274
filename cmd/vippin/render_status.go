// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strconv"
	"time"

	"vippin/policy"
)

func fillStatus(s policy.Status) policy.Status {
	s.Groups = slices.Clone(filled(s.Groups))
	for i := range s.Groups {
		s.Groups[i].Evidence = filled(s.Groups[i].Evidence)
	}
	s.Pins = fillPins(s.Pins)
	s.Peers = filled(s.Peers)
	s.Warnings = filled(s.Warnings)
	s.UnpinnedWithoutPin = filledMap(s.UnpinnedWithoutPin)
	s.ConnectionsRefused = filledMap(s.ConnectionsRefused)
	if s.Fastpath != nil {
		state := fillFastpath(*s.Fastpath)
		s.Fastpath = &state
	}
	return s
}

// degraded says whether "status" exits with 3: a warning stands, the witnesses
// of a group disagree, a group can be neither MASTER nor BACKUP, or a peer is
// not up.
func degraded(s policy.Status) bool {
	return len(s.Warnings) > 0 ||
		slices.ContainsFunc(s.Groups, func(g policy.GroupStatus) bool {
			return g.Conflict != "" || g.Role == policy.RoleFault
		}) ||
		slices.ContainsFunc(s.Peers, func(p policy.PeerStatus) bool { return p.State != "up" })
}

// showStatus writes what needs a look first.
func showStatus(o *output, s policy.Status, now time.Time) error {
	for _, warning := range s.Warnings {
		if err := o.printf("%s %s\n", o.painted(red, "warning:"), clean(warning)); err != nil {
			return err
		}
	}
	for _, g := range s.Groups {
		if g.Conflict == "" {
			continue
		}
		if err := o.printf("%s group %s: %s\n", o.painted(red, "conflict:"), clean(g.Name), clean(g.Conflict)); err != nil {
			return err
		}
	}
	err := o.printf("%s: vippin %s, dataplane %s, up %s\n\n", clean(s.Node), s.Version, orDash(s.Tier), span(seconds(s.Uptime)))
	if err != nil {
		return err
	}
	if err := showGroups(o, s.Groups, now); err != nil {
		return err
	}
	if err := showPins(o, s.Pins); err != nil {
		return err
	}
	if len(s.UnpinnedWithoutPin) > 0 {
		if err := o.printf("\npackets that no pin answers for: %s\n", reasons(s.UnpinnedWithoutPin)); err != nil {
			return err
		}
	}
	if s.Fastpath != nil {
		if err := o.printf("\n%s\n", fastpathInWords(o, *s.Fastpath)); err != nil {
			return err
		}
	}
	if err := showPeers(o, s.Peers, now); err != nil {
		return err
	}
	if text := reasons(s.ConnectionsRefused); text != "-" {
		return o.printf("\nconnections to sync.listen that were refused: %s\n", text)
	}
	return nil
}

func showGroups(o *output, groups []policy.GroupStatus, now time.Time) error {
	for _, g := range groups {
		since := "since the start"
		if !g.Since.IsZero() {
			since = "for " + span(now.Sub(g.Since)) + ", since " + g.Since.Format(time.DateTime)
		}
		if err := o.printf("group %s: %s %s\n", clean(g.Name), o.role(g.Role), since); err != nil {
			return err
		}
		for _, witness := range g.Evidence {
			if err := o.printf("  %s\n", clean(witness)); err != nil {
				return err
			}
		}
	}
	if len(groups) == 0 {
		return nil
	}
	return o.printf("\n")
}

func showPeers(o *output, peers []policy.PeerStatus, now time.Time) error {
	if len(peers) == 0 {
		return nil
	}
	if err := o.printf("\n"); err != nil {
		return err
	}
	t := o.table("PEER", "STATE", "LAG", "SENT", "RECEIVED", "LAST BULK")
	for _, p := range peers {
		bulk := "-"
		if p.LastBulk != nil {
			bulk = span(now.Sub(*p.LastBulk)) + " ago"
		}
		t.row(p.Name, o.peerState(p.State), number(p.LagFlows), number(p.FlowsSent), number(p.FlowsReceived), bulk)
	}
	return t.flush()
}

func fillVRRP(routers []policy.VRRPStatus) []policy.VRRPStatus {
	routers = slices.Clone(filled(routers))
	for i := range routers {
		routers[i].Routers = filled(routers[i].Routers)
		if routers[i].Ignored == nil {
			routers[i].Ignored = map[string]uint64{}
		}
	}
	return routers
}

// showVRRP writes one row for every router that advertises, below its virtual
// router, and what is wrong after the table.
func showVRRP(o *output, list []policy.VRRPStatus) error {
	if len(list) == 0 {
		return o.printf("no VRRP seen\n")
	}
	t := o.table("INTERFACE", "VLAN", "VRID", "FAMILY", "VRRP", "CHECKSUM", "ROLE", "ROUTER", "PRIORITY", "INTERVAL", "LAST SEEN")
	for _, v := range list {
		version := "-"
		if v.Version != 0 {
			version = "v" + strconv.Itoa(int(v.Version))
		}
		head := []string{v.Interface, v.VLAN.String(), strconv.Itoa(int(v.VRID)), v.Family, version, orDash(v.Checksum), o.role(v.Role)}
		if len(v.Routers) == 0 {
			t.row(append(head, "none heard", "-", "-", "-")...)
		}
		for _, r := range v.Routers {
			t.row(append(slices.Clone(head), routerCells(r, v.VirtualMAC)...)...)
			head = []string{"", "", "", "", "", "", ""}
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, v := range list {
		if err := showVRRPNotes(o, v); err != nil {
			return err
		}
	}
	return nil
}

func routerCells(r policy.RouterStatus, virtualMAC bool) []string {
	address := "-"
	if r.Address.IsValid() {
		address = r.Address.String()
	}
	switch {
	case r.Self && virtualMAC:
		address += " (this router, virtual MAC)"
	case r.Self:
		address += " (this router)"
	}
	return []string{address, strconv.Itoa(int(r.Priority)), span(milliseconds(r.Interval)), span(milliseconds(r.LastSeen)) + " ago"}
}

func showVRRPNotes(o *output, v policy.VRRPStatus) error {
	if v.Conflict != "" {
		err := o.printf("%s %s VRID %d %s: %s\n", o.painted(red, "conflict:"), v.Interface, v.VRID, v.Family, clean(v.Conflict))
		if err != nil {
			return err
		}
	}
	if text := reasons(v.Ignored); text != "-" {
		err := o.printf("%s %s VRID %d %s: adverts not believed: %s\n", o.painted(yellow, "ignored:"), v.Interface, v.VRID, v.Family, text)
		if err != nil {
			return err
		}
	}
	return nil
}
