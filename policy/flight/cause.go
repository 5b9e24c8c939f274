// SPDX-License-Identifier: Apache-2.0

package flight

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vippin/policy"
)

func joined(texts []string) string { return strings.Join(texts, "; ") }

// other names the router that was MASTER before, or is now.
func (rec *record) other() string {
	find := rec.firstHeard
	if rec.role == policy.RoleMaster {
		find = rec.lastHeard
	}
	a, heard := find()
	switch {
	case rec.peer != "":
		return rec.peer
	case heard:
		return rec.addressOf(a).String()
	}
	return ""
}

// addressOf is the address to name an advert's sender by.
func (rec *record) addressOf(a Advert) netip.Addr {
	if a == rec.heard.last || a == rec.heard.first {
		return rec.heard.name
	}
	return a.Source
}

// cause says in words how it came about.
func (rec *record) cause() string {
	if rec.role == policy.RoleMaster {
		return rec.causeOfRise()
	}
	return rec.causeOfFall()
}

// named is a router as its adverts name it, and as the configuration does.
func (rec *record) named(a Advert) string {
	if rec.peer == "" {
		return rec.addressOf(a).String()
	}
	return fmt.Sprintf("%s (%s)", rec.peer, rec.addressOf(a))
}

func (rec *record) causeOfRise() string {
	last, heard := rec.lastHeard()
	own, sends := rec.firstOwn()
	began := rec.began()
	switch {
	case !heard && sends:
		return "began as the only router: nobody else was heard" + rec.cameUp()
	case !heard:
		return "the VIPs were added without VRRP, by hand or by another program: no advert of this router left"
	case last.Priority == 0:
		return fmt.Sprintf("%s resigned (priority 0)", rec.named(last))
	case !sends:
		return fmt.Sprintf("the VIPs were added without VRRP, by hand or by another program: no advert of this router left, %s was heard last",
			rec.named(last))
	case began-last.At > 2*known(last.Interval) && rec.since(ConflictSeen):
		return fmt.Sprintf("the adverts of %s stopped, and yet it was MASTER: they did not get through", rec.named(last))
	case began-last.At > 2*known(last.Interval):
		return fmt.Sprintf("the adverts of %s stopped: it crashed, or was cut off", rec.named(last))
	case own.Priority > last.Priority:
		return fmt.Sprintf("this router preempted %s: priority %d over %d", rec.named(last), own.Priority, last.Priority)
	}
	return fmt.Sprintf("this router began to advertise although %s does, with priority %d over %d", rec.named(last), last.Priority, own.Priority)
}

// cameUp names the interface that came up before, if one did.
func (rec *record) cameUp() string {
	if e, ok := rec.before(LinkUp); ok {
		return ", " + e.detail + " had come up"
	}
	return ""
}

// since tells whether something happened after the role changed.
func (rec *record) since(what string) bool {
	return slices.ContainsFunc(rec.events, func(e event) bool { return e.what == what && e.at > rec.at })
}

// before is the last event of a kind until the role changed.
func (rec *record) before(what string) (found event, ok bool) {
	for _, e := range rec.events {
		if e.what == what && e.at <= rec.at && (!ok || e.at >= found.at) {
			found, ok = e, true
		}
	}
	return found, ok
}

func (rec *record) causeOfFall() string {
	down, isDown := rec.before(LinkDown)
	if up, isUp := rec.before(LinkUp); isUp && up.at > down.at {
		isDown = false
	}
	removed, isRemoved := rec.before(VIPRemoved)
	own, _ := rec.lastOwn()
	rival, beaten := rec.rival()
	switch {
	case isDown:
		return fmt.Sprintf("interface %s went down", down.detail)
	case beaten && rec.contested:
		return fmt.Sprintf("two routers were MASTER, and %s stays: %s", rec.named(rival), rec.compared(rival))
	case beaten:
		return fmt.Sprintf("preempted by %s: %s", rec.named(rival), rec.compared(rival))
	case own.At != 0 && own.Priority == 0 && rec.lostFirst():
		return fmt.Sprintf("%s, removed by hand or by another program: the VRRP daemon here resigned for it (priority 0)", removed.detail)
	case own.At != 0 && own.Priority == 0:
		return "this router resigned (priority 0): its VRRP daemon was stopped, or gave up"
	case isRemoved:
		return fmt.Sprintf("%s, removed by hand or by another program: this router did not resign, and nobody preempted it", removed.detail)
	case own.At != 0 && rec.at-own.At > silence(own.Interval):
		return "this router's adverts stopped: its VRRP daemon died or hangs"
	}
	return "not known"
}

// lostFirst tells whether a VIP went just before this router resigned: who resigns
// in good order takes the VIPs away afterwards.
func (rec *record) lostFirst() bool {
	resigned := cmp.Or(rec.own.resigned, rec.ownAfter.At)
	return slices.ContainsFunc(rec.events, func(e event) bool {
		return e.what == VIPRemoved && e.at < resigned && e.at >= resigned-time.Second
	})
}

// rival is the better router that was heard just before.
func (rec *record) rival() (Advert, bool) {
	a, heard := rec.lastHeard()
	own := rec.own.last
	if !heard || a.Priority == 0 || rec.at-a.At > silence(a.Interval) {
		return a, false
	}
	better := a.Priority > own.Priority || a.Priority == own.Priority && own.Source.Less(a.Source)
	return a, own.At == 0 || own.Priority == 0 || better
}

func (rec *record) compared(rival Advert) string {
	own := rec.own.last
	if own.At == 0 || own.Priority == rival.Priority {
		return fmt.Sprintf("priority %d, higher address", rival.Priority)
	}
	return fmt.Sprintf("priority %d over %d", rival.Priority, own.Priority)
}

// Headline is a record in one line.
func Headline(f policy.Failover) string {
	text := fmt.Sprintf("%s: MASTER", f.Group)
	switch {
	case f.Role != policy.RoleMaster && f.Other != "":
		text = fmt.Sprintf("%s: %s, %s took over", f.Group, f.Role, f.Other)
	case f.Role != policy.RoleMaster:
		text = fmt.Sprintf("%s: %s, no MASTER any more", f.Group, f.Role)
	case f.Other != "":
		text += ", took over from " + f.Other
	}
	return text + "; " + f.Cause
}
