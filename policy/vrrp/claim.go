// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vippin/policy"
)

// How somebody is asked whether he still has a VIP.
const (
	probeEvery = 500 * time.Millisecond
	probeTries = 4 // unanswered in a row: nobody else has it
)

// claim is what is known of somebody else who says, while we hold a VIP, that
// it is his. A normal takeover looks the same for a moment: a claim is
// suspected until we still hold the VIP and still advertise, then he is asked, and
// his answer makes a conflict of it.
type claim struct {
	stage      claimStage
	mac        policy.MAC    // zero while nobody has said more than a question
	since      time.Duration // heard first
	last       time.Duration // heard last
	askedAt    time.Duration // when asking began: what came before is no answer
	probeAt    time.Duration // when to ask again
	unanswered int
	due        bool // to be asked now
}

type claimStage uint8

const (
	suspected claimStage = iota
	asked                // not shown yet
	contested            // answered
)

// Claim takes what somebody else says of a VIP by ARP or a neighbour
// advertisement. It counts while we hold the VIP; there is one claim a VIP, so
// what others send cannot make the tracker remember more than the plan has VIPs.
func (t *Tracker) Claim(now time.Duration, seen policy.ClaimSeen) []Change {
	at := place{t.base(seen.Ifindex), seen.VIP.Unmap().WithZone("")}
	g := t.groups[t.vipGroups[at]]
	if _, held := t.held[at]; g == nil || !held || t.isOwnMAC(seen.MAC) {
		return nil
	}
	when := now
	if seen.Time > 0 {
		when = min(seen.Time, now)
	}
	c := t.claims[at]
	switch {
	case c == nil:
		c = &claim{since: when}
		t.claims[at] = c
	case seen.Kind == policy.ClaimAsks:
		return nil // it has made us suspicious before
	}
	if seen.Kind == policy.ClaimAsks {
		// Who asks has been patient: what counts is how long we have had the VIP.
		c.since = min(c.since, g.heldSince)
		return t.decide(now, g)
	}
	c.last = max(when, c.last)
	if c.mac == (policy.MAC{}) {
		c.mac = seen.MAC
	}
	switch {
	case c.stage == asked && seen.Kind == policy.ClaimAnswers && when > c.askedAt:
		c.stage, c.mac, c.unanswered = contested, seen.MAC, 0
	case c.stage == contested:
		c.unanswered = 0
		return nil // the text keeps the first one's MAC
	}
	return t.decide(now, g)
}

// Probes lists the questions that are to be sent now, each once. They are due
// only while somebody else claims a VIP that we hold. Ask after every event.
func (t *Tracker) Probes() []policy.Probe {
	var probes []policy.Probe
	for at, c := range t.claims {
		if !c.due {
			continue
		}
		c.due = false
		link := t.links[at.ifindex]
		probe := policy.Probe{Ifindex: at.ifindex, VIP: at.addr, MAC: link.MAC}
		if at.addr.Is6() {
			if probe.From = t.askFrom(link); !probe.From.IsValid() {
				continue
			}
		}
		probes = append(probes, probe)
	}
	slices.SortFunc(probes, func(a, b policy.Probe) int {
		return cmp.Or(cmp.Compare(a.Ifindex, b.Ifindex), a.VIP.Compare(b.VIP))
	})
	return probes
}

// askFrom is an IPv6 address that the link has for itself, a link-local one if
// possible. A VIP will not do: whoever has it too would answer to himself.
func (t *Tracker) askFrom(link policy.Link) (from netip.Addr) {
	for _, a := range link.Addrs {
		addr := a.Prefix.Addr().WithZone("")
		if !addr.Is6() || t.vips[addr] {
			continue
		}
		if addr.IsLinkLocalUnicast() {
			return addr
		}
		if !from.IsValid() {
			from = addr
		}
	}
	return from
}

// isOwnMAC says whether a MAC belongs to an interface of this router: the
// network sends our own frames back, or the kernel answers for an address of
// another interface. A macvlan's does not count: with keepalived's use_vmac
// both routers have it, and what it sends does not come back.
func (t *Tracker) isOwnMAC(mac policy.MAC) bool {
	if t.macs == nil {
		t.macs = map[policy.MAC]struct{}{}
		for _, link := range t.links {
			if !isVMAC(link) {
				t.macs[link.MAC] = struct{}{}
			}
		}
	}
	_, own := t.macs[mac]
	return own
}

// forgetClaims drops what is said of addresses that are no VIPs any more.
func (t *Tracker) forgetClaims() {
	for at := range t.claims {
		if _, planned := t.vipGroups[at]; !planned {
			delete(t.claims, at)
		}
	}
}

// claimed calls do for every VIP of a group that others claim, in the plan's
// order. A VIP that is not here any more is nobody's concern.
func (t *Tracker) claimed(g *group, do func(at place, c *claim)) {
	if len(t.claims) == 0 {
		return
	}
	for _, p := range g.pins {
		for _, vip := range p.VIPs {
			at := place{p.Ifindex, vip}
			c := t.claims[at]
			if c == nil {
				continue
			}
			if _, held := t.held[at]; !held {
				delete(t.claims, at)
				continue
			}
			do(at, c)
		}
	}
}

// claimConflicts weighs the claims of a group's VIPs and says which are a
// conflict. While adverts tell the same (said), or this router gives the VIPs
// away, claims only wait.
func (t *Tracker) claimConflicts(now time.Duration, g *group, own ownAdverts, said bool) []string {
	wait := said || own == resigning || own == stopped
	ripe := false
	t.claimed(g, func(at place, c *claim) {
		switch {
		case wait:
			c.stage, c.due = suspected, false
		case c.stage != contested && t.hearsOthers(now, g, at):
			c.stage, c.due = suspected, false // they will tell more
		case c.stage == suspected:
			ripe = t.isRipe(now, g, own, at, c) || ripe
		}
	})
	t.claimed(g, func(at place, c *claim) {
		if ripe && c.stage == suspected && !t.hearsOthers(now, g, at) { // of all at once: one change to tell instead of many
			c.stage, c.askedAt, c.probeAt, c.unanswered = asked, now, now, 0
		}
		if c.stage != suspected {
			t.keepAsking(now, g, at, c)
		}
	})
	return t.claimTexts(g, own)
}

// isRipe says whether a claim has outlived what a normal takeover looks like:
// two of our own adverts have left since. VIPs without adverts have the grace
// instead.
func (t *Tracker) isRipe(now time.Duration, g *group, own ownAdverts, at place, c *claim) bool {
	if own == neverSent {
		g.wait(now, c.since+t.cfg.Grace)
		return now >= c.since+t.cfg.Grace
	}
	return slices.ContainsFunc(g.speakers(at), func(vr *virtualRouter) bool {
		return vr.self != nil && !vr.self.resigned && !vr.self.gone && vr.self.previous > c.since
	})
}

// hearsOthers says whether another router's adverts for a VIP are heard.
func (t *Tracker) hearsOthers(now time.Duration, g *group, at place) (heard bool) {
	for _, vr := range g.speakers(at) {
		for _, r := range vr.others {
			if !r.resigned && now < t.silentAt(r) {
				heard = true
				g.wait(now, t.silentAt(r))
			}
		}
	}
	return heard
}

// speakers are the virtual routers that announce a VIP, or all of the group
// when none does (keepalived's virtual_ipaddress_excluded).
func (g *group) speakers(at place) []*virtualRouter {
	var speakers []*virtualRouter
	for _, vr := range g.routers {
		if vr.ifindex == at.ifindex && slices.Contains(vr.vips, at.addr) {
			speakers = append(speakers, vr)
		}
	}
	if speakers == nil {
		return g.routers
	}
	return speakers
}

// keepAsking asks when it is time, and gives up when nobody answers any more.
func (t *Tracker) keepAsking(now time.Duration, g *group, at place, c *claim) {
	if now >= c.probeAt {
		if c.unanswered >= probeTries {
			delete(t.claims, at)
			return
		}
		c.due = true
		c.unanswered++
		c.probeAt = now + probeEvery
	}
	g.wait(now, c.probeAt)
}

// claimTexts has one text for every claimant on every interface, and leaves it
// with the virtual routers concerned.
func (t *Tracker) claimTexts(g *group, own ownAdverts) []string {
	for _, vr := range g.routers {
		vr.claimed = ""
	}
	type claimant struct {
		ifindex int
		mac     policy.MAC
	}
	var order []claimant
	places := map[claimant][]place{}
	t.claimed(g, func(at place, c *claim) {
		if c.stage != contested {
			return
		}
		who := claimant{at.ifindex, c.mac}
		if places[who] == nil {
			order = append(order, who)
		}
		places[who] = append(places[who], at)
	})
	var texts []string
	for _, who := range order {
		var vips []netip.Addr
		for _, at := range places[who] {
			vips = append(vips, at.addr)
		}
		text := fmt.Sprintf("both masters: %s here, and %s on %s claims the same; %s",
			are(vips), who.mac, t.linkName(who.ifindex), claimCauses(own))
		texts = append(texts, text)
		for _, at := range places[who] {
			for _, vr := range g.speakers(at) {
				vr.claimed = cmp.Or(vr.claimed, text)
			}
		}
	}
	return texts
}

func claimCauses(own ownAdverts) string {
	if own == neverSent {
		return "seen before: set by hand on two routers, or taken by a host"
	}
	return "its adverts do not get through; seen before: multicast or IGMP snooping, a VLAN missing on one side"
}

// claimEvidence states who claims what.
func (t *Tracker) claimEvidence(now time.Duration, g *group) []string {
	var lines []string
	t.claimed(g, func(at place, c *claim) {
		if c.mac != (policy.MAC{}) {
			lines = append(lines, fmt.Sprintf("%s claims %s on %s, heard %s ago", c.mac, at.addr, t.linkName(at.ifindex), ago(now, c.last)))
		}
	})
	return lines
}
