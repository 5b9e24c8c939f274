// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"
	"time"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/flight"
	"vippin/policy/vrrp"
)

// What the daemon's loop tells the flight recorder, group by group.

// flightFeed knows which group an interface, a VRID or a VIP belongs to, as the
// plan has it. The loop owns it.
type flightFeed struct {
	faces  map[int]flightFace
	vrids  map[vridAt]string
	vips   map[vipAt]string
	events map[linkChange]time.Duration // when the kernel told of changes since the last look
}

type flightFace struct {
	name   string
	own    map[netip.Addr]bool // this router's own addresses
	groups []string
}

type vridAt struct {
	ifindex int
	vrid    uint8
}

type vipAt struct {
	ifindex int
	addr    netip.Addr
}

type linkChange struct {
	kind    loader.LinkEventKind
	ifindex int
}

// planned takes a new plan.
func (l *flightLog) planned(plan policy.Plan) {
	f := flightFeed{
		faces: make(map[int]flightFace), vrids: make(map[vridAt]string), vips: make(map[vipAt]string), events: l.feed.events,
	}
	names := plan.GroupNames()
	pins := make(map[string][]uint32)
	groups := make(map[int][]string)
	for _, pin := range plan.Pins {
		name := names[pin.Group]
		pins[name] = append(pins[name], pin.ID)
		if pin.Retired || pin.Ifindex == 0 {
			continue
		}
		groups[pin.Ifindex] = append(groups[pin.Ifindex], name)
		for _, vip := range pin.VIPs {
			f.vips[vipAt{pin.Ifindex, vip}] = name
		}
	}
	for _, planned := range plan.Interfaces {
		face := flightFace{name: planned.Name, own: make(map[netip.Addr]bool), groups: groups[planned.Index]}
		for _, addr := range planned.Uniques {
			face.own[addr] = true
		}
		for _, v := range planned.VRIDs {
			f.vrids[vridAt{planned.Index, v.VRID}] = names[v.Group]
			face.groups = append(face.groups, names[v.Group])
		}
		slices.Sort(face.groups)
		face.groups = slices.Compact(face.groups)
		f.faces[planned.Index] = face
	}
	l.feed = f
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pins = pins
}

// begin takes the roles at the daemon's start. What was said before was said while
// it did not know all.
func (l *flightLog) begin(groups []policy.GroupStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun = true
	now := l.clock()
	for _, group := range groups {
		l.recorder.Role(now, group.Name, now.Mono, group.Role)
	}
	l.rouse() // it may have been another one before
}

// advert takes an advert that was heard, or left.
func (l *flightLog) advert(seen policy.AdvertSeen) {
	face, known := l.feed.faces[seen.Ifindex]
	if !known || seen.Reason != policy.AdvertValid || seen.VLAN != (policy.VLAN{}) {
		return
	}
	advert, reason := vrrp.Parse(seen.Payload, seen.Src, seen.Dst)
	if reason != policy.AdvertValid {
		return
	}
	group, bound := l.feed.vrids[vridAt{seen.Ifindex, advert.VRID}]
	for i := 0; !bound && i < len(advert.VIPs); i++ {
		group, bound = l.feed.vips[vipAt{seen.Ifindex, advert.VIPs[i]}]
	}
	source := seen.Src.Unmap().WithZone("")
	if !bound || seen.Direction == policy.In && face.own[source] { // one of ours that came back
		return
	}
	a := flight.Advert{
		At: seen.Time, Source: source, Interface: face.name, VRID: advert.VRID, Priority: advert.Priority, Interval: advert.Interval,
	}
	l.tell(func(r *flight.Recorder) {
		if seen.Direction == policy.Out {
			r.Sent(group, a)
		} else {
			r.Heard(group, a)
		}
	})
}

// linkEvent notes when the kernel told of a change. What changed, the next look
// finds out.
func (l *flightLog) linkEvent(event loader.LinkEvent) {
	if l.feed.events == nil {
		l.feed.events = make(map[linkChange]time.Duration)
	}
	what := linkChange{event.Kind, event.Ifindex}
	if _, known := l.feed.events[what]; !known {
		l.feed.events[what] = event.Time
	}
}

// changedAt is when the kernel told of a change: of an address as of one, else as of
// the link.
func (f *flightFeed) changedAt(ifindex int, now time.Duration, kinds ...loader.LinkEventKind) time.Duration {
	for _, kind := range kinds {
		if at, ok := f.events[linkChange{kind, ifindex}]; ok {
			return at
		}
	}
	return now
}

// observed tells of the links that went down or came up between two looks, and of
// the VIPs that came or went.
func (l *flightLog) observed(was, is policy.Observed) {
	f, now := &l.feed, l.clock().Mono
	before, after := upLinks(was), upLinks(is)
	for ifindex, face := range f.faces {
		if before[ifindex] == after[ifindex] {
			continue
		}
		at := f.changedAt(ifindex, now, loader.LinkChanged)
		l.tell(func(r *flight.Recorder) {
			for _, group := range face.groups {
				r.Link(group, at, face.name, after[ifindex])
			}
		})
	}
	had, has := f.heldVIPs(was), f.heldVIPs(is)
	l.tellVIPs(now, has, had, true)
	l.tellVIPs(now, had, has, false)
	clear(f.events)
}

// upLinks is the links that can carry something.
func upLinks(seen policy.Observed) map[int]bool {
	up := make(map[int]bool, len(seen.Links))
	for _, link := range seen.Links {
		if link.Up {
			up[link.Index] = true
		}
	}
	return up
}

// heldVIPs is the VIPs that are here, each with the link that has it: the pin's
// interface, or one with a virtual MAC on it.
func (f *flightFeed) heldVIPs(seen policy.Observed) map[vipAt]int {
	held := make(map[vipAt]int)
	for _, link := range seen.Links {
		for _, addr := range link.Addrs {
			ip := addr.Prefix.Addr().Unmap().WithZone("")
			for _, ifindex := range []int{link.Index, link.Parent} {
				at := vipAt{ifindex, ip}
				if _, planned := f.vips[at]; planned && (ifindex == link.Index || link.Kind == "macvlan" || link.Kind == "ipvlan") {
					held[at] = link.Index
				}
			}
		}
	}
	return held
}

// tellVIPs tells of the VIPs in some that are not in others: one event for those of
// one group on one link.
func (l *flightLog) tellVIPs(now time.Duration, some, others map[vipAt]int, added bool) {
	type on struct {
		group         string
		ifindex, link int
	}
	found := make(map[on][]netip.Addr)
	for at, link := range some {
		if _, both := others[at]; !both {
			where := on{l.feed.vips[at], at.ifindex, link}
			found[where] = append(found[where], at.addr)
		}
	}
	for where, vips := range found {
		slices.SortFunc(vips, netip.Addr.Compare)
		at := l.feed.changedAt(where.link, now, loader.AddrChanged, loader.LinkChanged)
		l.tell(func(r *flight.Recorder) { r.VIPs(where.group, at, l.feed.faces[where.ifindex].name, added, vips) })
	}
}

// decided takes the tracker's decisions, made at a time; the programs know of
// them now.
func (l *flightLog) decided(at time.Duration, changes []vrrp.Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun {
		return
	}
	now := l.clock()
	opened := false
	for _, change := range changes {
		if change.Pin != 0 && change.RoleChanged {
			l.recorder.InForce(l.groupOf(change.Pin), now.Mono)
		}
	}
	for _, change := range changes {
		if change.Group == 0 || change.Pin != 0 {
			continue
		}
		if change.RoleChanged {
			l.recorder.Role(now, change.Name, at, change.Role)
			opened = true
		}
		if change.ConflictChanged {
			l.recorder.Conflict(change.Name, at, change.Conflict)
		}
	}
	if opened {
		l.rouse()
	}
}

// groupOf is a pin's group. Called with mu.
func (l *flightLog) groupOf(pin uint32) string {
	for group, pins := range l.pins {
		if slices.Contains(pins, pin) {
			return group
		}
	}
	return ""
}

func (l *flightLog) rouse() {
	poke(l.wake)
}

// peerSession tells of a peer that came or went.
func (l *flightLog) peerSession(at time.Duration, peer string, up bool) {
	l.tell(func(r *flight.Recorder) { r.Peer(at, peer, up) })
}

// peerRole tells what a peer says of itself for a group.
func (l *flightLog) peerRole(peer, group string, role policy.Role) {
	l.tell(func(r *flight.Recorder) { r.PeerRole(peer, group, role) })
}

// taken tells how many flows of a group stood ready, and how many did not of which
// peers had told.
func (l *flightLog) taken(at time.Duration, group string, taken, lost int) {
	l.tell(func(r *flight.Recorder) { r.Taken(group, at, taken, lost) })
}

// normalised tells how many flows of each group got their ordinary timeouts.
func (l *flightLog) normalised(at time.Duration, flows map[string]int) {
	l.tell(func(r *flight.Recorder) {
		for group, n := range flows {
			r.Normalised(group, at, n)
		}
	})
}
