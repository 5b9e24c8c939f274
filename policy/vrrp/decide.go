// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"vippin/policy"
)

// ownAdverts is what the adverts that this router sends for a group say.
type ownAdverts uint8

const (
	neverSent ownAdverts = iota // VIPs set by hand, or VRRP without VIPs here yet
	leaving
	awaited   // the VIPs have just come
	resigning // the last one had priority 0
	stopped
)

func (t *Tracker) decideAll(now time.Duration) []Change {
	var changes []Change
	for _, g := range t.order {
		changes = append(changes, t.decide(now, g)...)
	}
	for _, vr := range t.routers {
		if vr.group == nil {
			changes = append(changes, t.judgeUnbound(now, vr)...)
		}
	}
	return changes
}

// decide weighs the witnesses of one group and says what differs from before.
func (t *Tracker) decide(now time.Duration, g *group) []Change {
	if !t.observed {
		return nil
	}
	g.next, g.decided = 0, now
	t.lookAtPins(now, g)
	own := t.ownAdverts(now, g)
	if own == resigning && !g.anyHeld {
		g.sent = false // stopped in good order: VIPs that come now may be set by hand
	}
	role := t.groupRole(now, g, own)
	var changes []Change
	for _, p := range g.pins {
		was := p.role
		p.role = pinRole(p, role, own)
		if p.role == was && p.known {
			continue
		}
		p.known = true
		changes = append(changes, Change{
			Pin: p.ID, Group: g.ID, Name: pinName(p), Role: p.role, RoleChanged: true, Was: was,
		})
	}
	c := Change{Group: g.ID, Name: g.Name, Role: role, RoleChanged: role != g.role || !g.known, Was: g.role}
	if c.RoleChanged {
		g.since = now
	}
	g.role, g.known = role, true
	c.Conflict = strings.Join(t.conflicts(now, g, own), "; ")
	c.ConflictChanged = c.Conflict != g.conflict
	g.conflict = c.Conflict
	if c.RoleChanged || c.ConflictChanged {
		changes = append(changes, c)
	}
	if len(changes) == 0 {
		return nil
	}
	evidence := t.evidence(now, g)
	for i := range changes {
		changes[i].Evidence, changes[i].Conflict = evidence, g.conflict
	}
	return changes
}

// wait asks for a decision at a point of time, if it is still to come.
func (g *group) wait(now, at time.Duration) {
	if at > now {
		g.next = earlier(g.next, at)
	}
}

// lookAtPins finds which VIPs are here and since when.
func (t *Tracker) lookAtPins(now time.Duration, g *group) {
	hadAny := g.anyHeld
	g.allHeld, g.anyHeld = len(g.pins) > 0, false
	for _, p := range g.pins {
		had := p.held
		t.lookAtPin(now, p)
		if p.held && !had {
			g.heldSince = now
		}
		g.allHeld = g.allHeld && p.held
		g.anyHeld = g.anyHeld || len(p.have) > 0
	}
	if !hadAny || g.anyHeld {
		return
	}
	// The last VIP left: we are no master any more, whoever advertises what.
	for _, vr := range g.routers {
		if vr.self != nil {
			vr.self.gone = true
		}
		for _, r := range vr.others {
			r.manual = 0
		}
	}
}

func (t *Tracker) lookAtPin(now time.Duration, p *pin) {
	link, ok := t.links[p.Ifindex]
	switch {
	case !ok || p.Ifindex == 0:
		p.fault = p.Interface + " is missing"
	case !link.Up:
		p.fault = p.Interface + " is down"
	default:
		p.fault = ""
	}
	p.have, p.missing = p.have[:0], p.missing[:0]
	hadAll := p.held
	decisive, lacking := 0, 0
	for _, vip := range p.VIPs {
		_, here := t.held[place{p.Ifindex, vip}]
		if here {
			p.have = append(p.have, vip)
		} else {
			p.missing = append(p.missing, vip)
		}
		if !vip.IsLinkLocalUnicast() {
			decisive++
			if !here {
				lacking++
			}
		}
	}
	if decisive == 0 { // link-local VIPs alone: there is nothing else to go by
		lacking, decisive = len(p.missing), len(p.VIPs)
	}
	p.held = lacking == 0 && decisive > 0
	if !p.held && (hadAll || !p.known) {
		p.lackSince = now
	}
}

// ownAdverts weighs what leaves for a group. Any virtual router of it will do:
// one whose VRID was changed is silent for ever.
func (t *Tracker) ownAdverts(now time.Duration, g *group) ownAdverts {
	live, resigned := now < g.seedUntil, false
	if live {
		g.wait(now, g.seedUntil)
	}
	for _, vr := range g.routers {
		switch {
		case vr.self == nil:
		case vr.self.resigned:
			resigned = resigned || vr.self.last == g.resignedAt
		case now < t.downAt(vr.self):
			live = true
			g.wait(now, t.downAt(vr.self))
		}
	}
	switch {
	case live:
		return leaving
	case !g.sent:
		return neverSent
	case resigned && (!g.anyHeld || g.resignedAt >= g.heldSince):
		return resigning
	}
	// VIPs that came a moment ago: the first advert is on its way.
	if due := g.heldSince + g.down + t.cfg.Slack; g.anyHeld && now < due {
		g.wait(now, due)
		return awaited
	}
	return stopped
}

// hears says whether another router is master.
func (t *Tracker) hears(now time.Duration, g *group) bool {
	heard := false
	for _, vr := range g.routers {
		for _, r := range vr.others {
			if !r.resigned && now < t.downAt(r) {
				heard = true
				g.wait(now, t.downAt(r))
			}
		}
	}
	return heard
}

// groupRole is the decision: addresses first, then what takes them back.
func (t *Tracker) groupRole(now time.Duration, g *group, own ownAdverts) policy.Role {
	notice, told := t.notice(g)
	if len(g.pins) == 0 { // VRRP that is only watched
		switch {
		case own == leaving:
			return policy.RoleMaster
		case told:
			return notice.role
		}
		return policy.RoleBackup
	}
	for _, p := range g.pins {
		if p.fault != "" {
			return policy.RoleFault
		}
	}
	switch {
	case g.allHeld && own == resigning && now < g.resignedAt+g.down+t.cfg.Slack:
		g.wait(now, g.resignedAt+g.down+t.cfg.Slack)
		return policy.RoleBackup // keepalived is about to take the VIPs away
	case g.allHeld && (own == resigning || own == stopped):
		if t.hears(now, g) {
			return policy.RoleBackup
		}
		return policy.RoleFault
	case g.allHeld:
		return policy.RoleMaster
	case told && notice.role == policy.RoleFault:
		return policy.RoleFault
	}
	return policy.RoleBackup
}

// pinRole: a pin needs its own VIPs only, and whatever takes the role from the
// group's VIPs takes it from the pin's.
func pinRole(p *pin, group policy.Role, own ownAdverts) policy.Role {
	switch {
	case p.fault != "":
		return policy.RoleFault
	case group == policy.RoleMaster:
		return policy.RoleMaster
	case p.held && own != resigning && own != stopped:
		return policy.RoleMaster
	}
	return group
}

// conflicts lists what the witnesses disagree on. The texts name no times, so
// that they stay the same for as long as the conflict does.
func (t *Tracker) conflicts(now time.Duration, g *group, own ownAdverts) []string {
	var texts []string
	said := false // that there are two masters, by adverts
	if t.lasts(now, g, &g.partialSince, g.anyHeld && t.lacksAny(g)) {
		texts = append(texts, t.partialText(g))
	}
	for _, vr := range g.routers {
		if text := t.advertsWithoutVIP(now, vr); text != "" {
			texts = append(texts, text)
		}
		t.judge(now, vr)
		g.wait(now, vr.next)
		if vr.conflict != "" {
			said = true
			texts = append(texts, vr.conflict)
		}
		if text := t.manualOverlap(now, vr); text != "" {
			said = true
			texts = append(texts, text)
		}
	}
	if g.allHeld && own == stopped && len(g.pins) > 0 {
		texts = append(texts, fmt.Sprintf("%s here, but this router's adverts have stopped", t.whereText(g)))
	}
	texts = append(texts, t.claimConflicts(now, g, own, said)...)
	if text := t.wordConflict(now, g, said); text != "" {
		texts = append(texts, text)
	}
	notice, told := t.notice(g)
	disagrees := told && len(g.pins) > 0 && (notice.role == policy.RoleMaster) != (g.role == policy.RoleMaster)
	if t.lasts(now, g, &g.fifoSince, disagrees) {
		texts = append(texts, fmt.Sprintf("%s says %s, the addresses and adverts say %s", notice.by(), notice.state, g.role))
	}
	return texts
}

// lasts says whether something has been so for longer than the grace.
func (t *Tracker) lasts(now time.Duration, g *group, since *time.Duration, is bool) bool {
	switch {
	case !is:
		*since = 0
		return false
	case *since == 0:
		*since = max(now, 1)
	}
	g.wait(now, *since+t.cfg.Grace)
	return now >= *since+t.cfg.Grace
}

func (t *Tracker) lacksAny(g *group) bool {
	for _, p := range g.pins {
		if len(p.missing) > 0 {
			return true
		}
	}
	return false
}

// advertsWithoutVIP: adverts of a VRID leave, the VIPs they announce are not
// here. Adverts precede the VIPs at a takeover, and nothing is said of those
// that left before the VIPs did.
func (t *Tracker) advertsWithoutVIP(now time.Duration, vr *virtualRouter) string {
	if vr.self == nil || vr.self.resigned || now >= t.downAt(vr.self) {
		return ""
	}
	var lacking []netip.Addr
	for _, p := range vr.group.pins {
		if p.Ifindex != vr.ifindex || vr.self.last-max(p.lackSince, vr.self.runStart) < t.cfg.Grace {
			continue
		}
		for _, vip := range p.missing {
			for _, announced := range vr.vips {
				if vip == announced {
					lacking = append(lacking, vip)
				}
			}
		}
	}
	if len(lacking) == 0 {
		return ""
	}
	return fmt.Sprintf("adverts of VRID %d leave %s, but %s not there", vr.vrid, t.linkName(vr.ifindex), are(lacking))
}

// manualOverlap: VIPs set by hand here, and another router advertises them.
func (t *Tracker) manualOverlap(now time.Duration, vr *virtualRouter) string {
	g := vr.group
	if !g.allHeld || g.sent {
		return ""
	}
	for _, r := range vr.others {
		if r.manual >= overlapAdverts && !r.resigned && now < t.silentAt(r) {
			g.wait(now, t.silentAt(r))
			return fmt.Sprintf("both masters: %s here without adverts, and %s advertises VRID %d on %s",
				t.whereText(g), r.addr, vr.vrid, t.linkName(vr.ifindex))
		}
	}
	return ""
}
