// SPDX-License-Identifier: Apache-2.0

// Package flight keeps the record of every failover: what this router saw and
// heard before, during and after it became MASTER of a group, or ceased to be. It
// does no I/O: events come in with their times, records go out in the words of
// package policy. Times of events are CLOCK_MONOTONIC; what they are on the clock on
// the wall is worked out once a record, so that a clock that is set meanwhile
// does not tear a story apart.
package flight

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vippin/policy"
)

const (
	completeAfter = 60 * time.Second // a role change is told to its end
	lookBack      = 10 * time.Second // what happened before it belongs to it, at most
	aftermath     = 5 * time.Second  // what happened after it does not belong to the next one
	advertBack    = 3 * time.Minute  // how old a last advert may be: 3 of the longest intervals, RFC 9568 section 5.2.7
	keptRecords   = 200
	ringSize      = 64
	mostEvents    = 128 // in one record
)

// Clock is one moment on both clocks.
type Clock struct {
	Mono time.Duration // CLOCK_MONOTONIC
	Wall time.Time
}

// Advert is one valid VRRP advert of a group, heard or sent.
type Advert struct {
	At        time.Duration
	Source    netip.Addr
	Interface string
	VRID      uint8
	Priority  uint8         // 0: the sender resigns
	Interval  time.Duration // as advertised
}

// Recorder writes records. It belongs to one goroutine at a time.
type Recorder struct {
	groups    map[string]*group
	kept      []policy.Failover // complete, or cut off, in order of time
	completed []policy.Failover // to be told of
}

// group is what is known of one group: enough of what happened of late to tell how
// a role change came about.
type group struct {
	name       string
	known      bool // its role is
	role       policy.Role
	changed    time.Duration // when its role did, MASTER to something else or back
	inForce    time.Duration // when the programs were told last
	heard, own speaker
	ring       []event
	conflict   conflict
	boss       string // the peer that said last that it is MASTER
	resets     reading
	open       *record
}

// event is what has a place of its own in a timeline.
type event struct {
	at     time.Duration
	what   string
	detail string
}

// conflict is the last time that two routers seemed to be MASTER.
type conflict struct {
	since, until time.Duration // until 0: it goes on
}

func (c conflict) during(at time.Duration) bool {
	return c.since != 0 && c.since <= at && (c.until == 0 || at <= c.until+aftermath)
}

// reading is a counter that goes up.
type reading struct {
	total uint64
	read  bool
}

// speaker is what the adverts in one direction say.
type speaker struct {
	last     Advert
	first    Advert        // of those without a pause until last
	resigned time.Duration // the first with priority 0 since; 0: none
	name     netip.Addr    // of the sender; a link-local one says little
}

func (s *speaker) take(a Advert) {
	if a.At < s.last.At {
		return
	}
	pause := a.At - s.last.At
	silent := s.last.At == 0 || pause > silence(s.last.Interval)
	resumed := s.last.Priority == 0 && a.Priority != 0
	if silent || resumed {
		s.first = a
	}
	if silent {
		s.name = a.Source
	}
	switch { // of several virtual routers one resigns a moment after the other
	case silent || resumed && pause > known(a.Interval):
		s.resigned = 0
	case a.Priority == 0 && s.resigned == 0:
		s.resigned = a.At
	}
	if !a.Source.IsLinkLocalUnicast() {
		s.name = a.Source
	}
	s.last = a
}

// silence is longer than a router's adverts ever pause, and shorter than the others
// wait (3 intervals, RFC 9568 section 6.1).
func silence(interval time.Duration) time.Duration { return known(interval) * 5 / 2 }

// known puts the RFCs' default of a second where an advert has interval 0.
func known(interval time.Duration) time.Duration {
	if interval <= 0 {
		return time.Second
	}
	return interval
}

// New begins with the records of before. Those that were not complete say that
// they were cut off.
func New(kept []policy.Failover) *Recorder {
	return &Recorder{groups: make(map[string]*group), kept: Bounded(CutOff(kept), keptRecords)}
}

// CutOff marks the records whose daemon ended before they were complete.
func CutOff(records []policy.Failover) []policy.Failover {
	records = slices.Clone(records)
	for i := range records {
		if r := &records[i]; !r.Complete && r.Note == "" {
			r.Note = "the daemon ended before the record was complete"
		}
	}
	return records
}

// Bounded is the last records, at most so many.
func Bounded(records []policy.Failover, most int) []policy.Failover {
	return records[max(0, len(records)-most):]
}

func (r *Recorder) group(name string) *group {
	g := r.groups[name]
	if g == nil {
		g = &group{name: name}
		r.groups[name] = g
	}
	return g
}

// note puts an event where it belongs: into the record that is open, and into the
// ring for the next one.
func (g *group) note(e event) {
	if len(g.ring) >= ringSize {
		g.ring = g.ring[1:]
	}
	g.ring = append(g.ring, e)
	if g.open != nil {
		g.open.note(e)
	}
}

// Heard takes another router's advert.
func (r *Recorder) Heard(name string, a Advert) {
	g := r.group(name)
	g.heard.take(a)
	if g.open != nil {
		g.open.heardAdvert(a)
	}
}

// Sent takes an advert that left this router.
func (r *Recorder) Sent(name string, a Advert) {
	g := r.group(name)
	g.own.take(a)
	if g.open != nil {
		g.open.sentAdvert(a)
	}
}

// Link says that an interface of a group went down or came up.
func (r *Recorder) Link(name string, at time.Duration, ifname string, up bool) {
	what := LinkDown
	if up {
		what = LinkUp
	}
	r.group(name).note(event{at: at, what: what, detail: ifname})
}

// VIPs says that VIPs of a group were added to an interface, or removed.
func (r *Recorder) VIPs(name string, at time.Duration, ifname string, added bool, vips []netip.Addr) {
	what := VIPRemoved
	if added {
		what = VIPAdded
	}
	words := make([]string, len(vips))
	for i, vip := range vips {
		words[i] = vip.String()
	}
	r.group(name).note(event{at: at, what: what, detail: strings.Join(words, ", ") + " on " + ifname})
}

// Conflict says that two routers seem to be MASTER, or, with an empty text, that
// this is over.
func (r *Recorder) Conflict(name string, at time.Duration, text string) {
	g := r.group(name)
	if text == "" {
		g.conflict.until = at
		g.note(event{at: at, what: ConflictOver, detail: "the witnesses agree again"})
		return
	}
	if g.conflict.since == 0 || g.conflict.until != 0 {
		g.conflict = conflict{since: at}
	}
	g.note(event{at: at, what: ConflictSeen, detail: text})
}

// Peer says that a peer's session began or ended. It concerns every group.
func (r *Recorder) Peer(at time.Duration, peer string, up bool) {
	what := PeerLost
	if up {
		what = PeerUp
	}
	for _, g := range r.groups {
		g.note(event{at: at, what: what, detail: peer})
	}
}

// PeerRole says what a peer says of itself.
func (r *Recorder) PeerRole(peer, name string, role policy.Role) {
	g := r.group(name)
	switch {
	case role == policy.RoleMaster:
		g.boss = peer
		if g.open != nil && g.open.role != policy.RoleMaster {
			g.open.peer = peer
		}
	case g.boss == peer && g.role == policy.RoleMaster:
		g.boss = ""
	}
}

// InForce says that the programs were told of a role.
func (r *Recorder) InForce(name string, at time.Duration) { r.group(name).inForce = at }

// Role takes a decision about a group: at is when it fell. The first one about a
// group is compared with what the records say.
func (r *Recorder) Role(now Clock, name string, at time.Duration, role policy.Role) {
	g := r.group(name)
	was := g.role
	g.role = role
	if !g.known {
		g.known = true
		r.missed(now, g)
		return
	}
	if (was == policy.RoleMaster) == (role == policy.RoleMaster) {
		if was != role {
			g.note(event{at: at, what: RoleDecided, detail: fmt.Sprintf("%s, was %s", role, was)})
		}
		return
	}
	if g.open != nil {
		g.open.note(event{at: at, what: RoleDecided, detail: fmt.Sprintf("%s, was %s", role, was)})
		g.open.end = fmt.Sprintf("the role changed again after %s", (at - g.open.at).Round(time.Millisecond))
		r.close(now, g)
	}
	g.open = newRecord(now, g, at, was)
	g.changed = at
	if role == policy.RoleMaster {
		g.boss = ""
	}
}

// missed makes a record of a role change that happened while no daemon ran.
func (r *Recorder) missed(now Clock, g *group) {
	i := len(r.kept) - 1
	for ; i >= 0 && r.kept[i].Group != g.name; i-- {
	}
	if i < 0 || (r.kept[i].Role == policy.RoleMaster) == (g.role == policy.RoleMaster) {
		return
	}
	cause := "it happened while vippin did not run"
	if booted := now.Wall.Add(-now.Mono); r.kept[i].Time.Before(booted) {
		cause = "this router was booted, or it happened while vippin did not run"
	}
	r.finish(policy.Failover{
		Time: stamp(now.Wall), Group: g.name, Role: g.role, Was: r.kept[i].Role, Cause: cause, Complete: true,
		Note:  "found at the start of the daemon: when and how it happened is not known",
		Steps: []policy.FailoverStep{{What: RoleDecided, Time: stamp(now.Wall), Detail: fmt.Sprintf("%s, was %s", g.role, r.kept[i].Role)}},
	})
}

// close completes the open record of a group.
func (r *Recorder) close(now Clock, g *group) {
	record := g.open.view(now)
	g.open = nil
	record.Complete = true
	r.finish(record)
}

func (r *Recorder) finish(record policy.Failover) {
	r.kept = Bounded(append(r.kept, record), keptRecords)
	r.completed = append(r.completed, record)
}

// Tick completes what is due.
func (r *Recorder) Tick(now Clock) {
	for _, g := range r.groups {
		if g.open != nil && now.Mono >= g.open.at+completeAfter {
			r.close(now, g)
		}
	}
	slices.SortStableFunc(r.kept, func(a, b policy.Failover) int { return a.Time.Compare(b.Time) })
}

// Completed returns each record once that has become complete.
func (r *Recorder) Completed() []policy.Failover {
	completed := r.completed
	r.completed = nil
	return completed
}

// Records is all of them in order of time, as they are now.
func (r *Recorder) Records(now Clock) []policy.Failover {
	records := slices.Clone(r.kept)
	for _, g := range r.groups {
		if g.open != nil {
			records = append(records, g.open.view(now))
		}
	}
	slices.SortStableFunc(records, func(a, b policy.Failover) int { return a.Time.Compare(b.Time) })
	return Bounded(records, keptRecords)
}

// Open is a record that is being written.
type Open struct {
	Group  string
	Master bool          // this router became MASTER
	At     time.Duration // when
	Since  time.Duration // when it began to act as one
	Passed bool          // first packet and first answer are known
}

// Open lists the records that are being written, by group.
func (r *Recorder) Open() []Open {
	var open []Open
	for _, g := range r.groups {
		if rec := g.open; rec != nil {
			open = append(open, Open{
				Group: g.name, Master: rec.role == policy.RoleMaster, At: rec.at, Since: rec.began(), Passed: rec.out != 0 && rec.in != 0,
			})
		}
	}
	slices.SortFunc(open, func(a, b Open) int { return strings.Compare(a.Group, b.Group) })
	return open
}
