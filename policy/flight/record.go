// SPDX-License-Identifier: Apache-2.0

package flight

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"vippin/policy"
)

// The steps of a record (policy.FailoverStep.What); docs/JSON.md explains them.
const (
	LastAdvert     = "last_advert"
	FirstAdvert    = "first_advert"
	FirstOwnAdvert = "first_own_advert"
	LastOwnAdvert  = "last_own_advert"
	LinkDown       = "link_down"
	LinkUp         = "link_up"
	VIPAdded       = "vip_added"
	VIPRemoved     = "vip_removed"
	RoleDecided    = "role"
	RoleInForce    = "role_in_force"
	FirstPinned    = "first_pinned"
	FirstReply     = "first_reply"
	TakenOver      = "taken_over"
	Normalised     = "normalised"
	ConflictSeen   = "conflict"
	ConflictOver   = "conflict_over"
	PeerUp         = "peer_up"
	PeerLost       = "peer_lost"
)

// record is one role change that is being told.
type record struct {
	group       string
	clock       Clock // what time it was when it was opened
	at          time.Duration
	inForce     time.Duration // 0: not before it was complete
	role, was   policy.Role
	peer        string  // who was MASTER before, or is now
	heard, own  speaker // until at
	after       Advert  // the first one of another router since
	ownAfter    Advert  // of this router's since: the first as MASTER, else the last
	previous    time.Duration
	contested   bool
	events      []event
	dropped     int
	out, in     time.Duration // first packet with a VIP, first answer
	taken       time.Duration // when the flows were taken over
	normalised  time.Duration
	flows       policy.FailoverFlows
	resets      reading // before it
	end         string  // why it ended before its time
	clockJumped time.Duration
}

func newRecord(now Clock, g *group, at time.Duration, was policy.Role) *record {
	rec := &record{
		group: g.name, clock: now, at: at, role: g.role, was: was, peer: g.boss, heard: g.heard, own: g.own,
		previous: g.changed, contested: g.conflict.during(at), inForce: g.inForce,
		resets: g.resets, // nobody sends from VIPs that are elsewhere: it does not matter how old this is
	}
	since := at - lookBack
	if g.changed != 0 {
		since = max(since, g.changed+min(aftermath, (at-g.changed)/2))
	}
	for _, e := range g.ring {
		if e.at >= since && e.what != PeerUp { // that a peer came tells nothing of how the role changed
			rec.note(e)
		}
	}
	return rec
}

func (rec *record) note(e event) {
	if len(rec.events) >= mostEvents {
		rec.dropped++
		return
	}
	rec.events = append(rec.events, e)
}

// heardAdvert takes an advert that may have waited behind what changed the role.
func (rec *record) heardAdvert(a Advert) {
	switch {
	case a.At <= rec.at:
		rec.heard.take(a)
	case rec.after.At == 0:
		rec.after = a
	}
}

func (rec *record) sentAdvert(a Advert) {
	switch {
	case a.At <= rec.at:
		rec.own.take(a)
	case rec.role == policy.RoleMaster && rec.ownAfter.At == 0, rec.role != policy.RoleMaster && rec.goesOn(a):
		rec.ownAfter = a
	}
}

// goesOn tells an own advert that is late from one of the next time as MASTER.
func (rec *record) goesOn(a Advert) bool {
	last, _ := rec.lastOwn()
	return a.Priority == 0 || last.Priority != 0 && a.At-last.At <= silence(last.Interval)
}

// lastHeard is the last advert of another router before the role changed, if it
// has to do with that.
func (rec *record) lastHeard() (Advert, bool) {
	a := rec.heard.last
	return a, a.At != 0 && a.At >= rec.at-advertBack && a.At > rec.previous
}

// firstHeard is the first one of another router that advertises from then on.
func (rec *record) firstHeard() (Advert, bool) {
	a := rec.heard.first
	if last := rec.heard.last; last.At != 0 && last.Priority != 0 && rec.at-last.At <= silence(last.Interval) {
		return a, a.At >= rec.at-lookBack
	}
	return rec.after, rec.after.At != 0
}

// firstOwn is where this router began to advertise.
func (rec *record) firstOwn() (Advert, bool) {
	a, last := rec.own.first, rec.own.last
	if last.At == 0 || last.Priority == 0 || rec.at-last.At > silence(last.Interval) {
		a = rec.ownAfter
	}
	return a, a.At != 0 && a.Priority != 0 && a.At >= rec.at-lookBack && a.At > rec.previous
}

// lastOwn is where it ended.
func (rec *record) lastOwn() (Advert, bool) {
	a := rec.own.last
	if rec.ownAfter.At != 0 {
		a = rec.ownAfter
	}
	return a, a.At != 0 && a.At >= rec.at-advertBack
}

// began is when this router began to act as what it became.
func (rec *record) began() time.Duration {
	began := rec.at
	if a, ok := rec.firstOwn(); ok && rec.role == policy.RoleMaster {
		began = min(began, a.At)
	}
	return began
}

// wall is what time it was, by the clock as it was when the record was opened.
func (rec *record) wall(at time.Duration) time.Time {
	return stamp(rec.clock.Wall.Add(at - rec.clock.Mono))
}

func stamp(t time.Time) time.Time { return t.Round(0).Truncate(time.Microsecond) }

// view is the record in policy's words.
func (rec *record) view(now Clock) policy.Failover {
	if jump := now.Wall.Sub(rec.clock.Wall.Add(now.Mono - rec.clock.Mono)); jump.Abs() > time.Second {
		rec.clockJumped = jump
	}
	inForce := rec.inForce
	if inForce < rec.at-lookBack {
		inForce = 0
	}
	view := policy.Failover{
		Time: rec.wall(cmp.Or(inForce, rec.at)), Group: rec.group, Role: rec.role, Was: rec.was, Other: rec.other(), Cause: rec.cause(),
		Note: rec.noteText(), Flows: rec.flows, Steps: []policy.FailoverStep{},
	}
	events := rec.timeline(inForce)
	for _, e := range events {
		view.Steps = append(view.Steps, policy.FailoverStep{
			What: e.what, Time: rec.wall(e.at), Offset: milliseconds(e.at - events[0].at), Detail: e.detail,
		})
	}
	return view
}

func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}

// timeline is the steps in order.
func (rec *record) timeline(inForce time.Duration) []event {
	events := slices.Clone(rec.events)
	add := func(at time.Duration, what, detail string) {
		if at != 0 {
			events = append(events, event{at, what, detail})
		}
	}
	advert := func(what string, find func() (Advert, bool)) {
		if a, ok := find(); ok {
			add(a.At, what, a.words())
		}
	}
	if rec.role == policy.RoleMaster {
		advert(LastAdvert, rec.lastHeard)
		advert(FirstOwnAdvert, rec.firstOwn)
	} else {
		advert(FirstAdvert, rec.firstHeard)
		advert(LastOwnAdvert, rec.lastOwn)
	}
	add(rec.at, RoleDecided, fmt.Sprintf("%s, was %s", rec.role, rec.was))
	add(inForce, RoleInForce, rec.role.String())
	add(rec.out, FirstPinned, "")
	add(rec.in, FirstReply, "")
	add(rec.taken, TakenOver, fmt.Sprintf("%d flows stood ready", rec.flows.TakenOver))
	add(rec.normalised, Normalised, fmt.Sprintf("%d flows have their ordinary timeouts", rec.flows.Normalised))
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	return events
}

func (a Advert) words() string {
	text := fmt.Sprintf("%s, VRID %d on %s, ", a.Source, a.VRID, a.Interface)
	if a.Priority == 0 {
		return text + "priority 0: resigns"
	}
	return text + fmt.Sprintf("priority %d, every %s", a.Priority, known(a.Interval))
}

func (rec *record) noteText() string {
	var notes []string
	if rec.end != "" {
		notes = append(notes, rec.end)
	}
	if jump := rec.clockJumped; jump != 0 {
		way := "forward"
		if jump < 0 {
			way = "back"
		}
		notes = append(notes, fmt.Sprintf("the clock was set %s by %s meanwhile: the times are of the clock before", way, jump.Abs().Round(time.Millisecond)))
	}
	if rec.dropped > 0 {
		notes = append(notes, fmt.Sprintf("%d more events", rec.dropped))
	}
	return joined(notes)
}
