// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"slices"
	"time"

	"vippin/policy"
)

// Config is what the tracker may be told. The zero value means the defaults.
type Config struct {
	// Grace is how long witnesses may disagree before it is a conflict: VIPs
	// come and go one by one, keepalived's FIFO follows some ms later. Default 1 s.
	Grace time.Duration
	// Slack is added to every "silent for 3 intervals", for events that are
	// late on their way from the kernel. Default 100 ms.
	Slack time.Duration
	// Memory is how long a silent router is still listed. Default 10 min.
	Memory time.Duration
}

const (
	defaultGrace  = time.Second
	defaultSlack  = 100 * time.Millisecond
	defaultMemory = 10 * time.Minute
)

// Change is one decision that differs from the one before. The changes of one
// event come pins first, then their groups.
type Change struct {
	Pin             uint32 // 0: about a group or a virtual router
	Group           uint32 // 0: about a virtual router that belongs to no group
	Name            string // of the pin or group, or "VRID 10 on eth0.2"
	Role            policy.Role
	RoleChanged     bool
	Was             policy.Role // before; RoleFault at the first decision
	Evidence        []string    // of the group, one witness a line
	Conflict        string      // of the group or virtual router, "" while the witnesses agree
	ConflictChanged bool
}

// Tracker decides who is master. It belongs to one goroutine. Times are
// CLOCK_MONOTONIC, as in policy.AdvertSeen. Nothing is decided before both
// Update and Observe were called once; the first decision about a pin or group
// is always a Change, so that a caller who applies changes needs nothing else.
type Tracker struct {
	cfg      Config
	observed bool
	links    map[int]policy.Link
	held     map[place]struct{}      // the VIPs that are here
	local    map[netip.Addr]struct{} // every address of this router but VIPs; nil: to be built

	trunked   map[trunkKey]bool  // VLANs of a trunk that are watched on an interface of their own
	watched   map[int]bool       // interfaces that carry the programs
	vrids     map[vridKey]uint32 // plan's VRIDs: which group
	vipGroups map[place]uint32   // where a VIP belongs: which group
	vips      map[netip.Addr]bool
	pins      map[uint32]*pin
	groups    map[uint32]*group
	order     []*group // by number
	routers   map[routerKey]*virtualRouter
	fifo      map[fifoKey]notice
	claims    map[place]*claim        // of others, on VIPs that are here
	macs      map[policy.MAC]struct{} // of this router's interfaces; nil: to be built
	peers     []string                // those of the configuration, in its order
	words     map[string]*word        // of each of them
	overflow  uint64
	forgotAt  time.Duration
}

// place is an address on an interface.
type place struct {
	ifindex int
	addr    netip.Addr
}

// trunkKey is a VLAN on a trunk.
type trunkKey struct {
	ifindex int
	vlan    policy.VLAN
}

type vridKey struct {
	ifindex int
	vrid    uint8
}

type pin struct {
	policy.PlanPin
	known     bool // decided about once
	role      policy.Role
	fault     string       // why its interface cannot carry anything, or ""
	missing   []netip.Addr // VIPs that are not here
	have      []netip.Addr
	held      bool          // all VIPs that decide are here
	lackSince time.Duration // since when not
}

type group struct {
	policy.PlanGroup
	pins    []*pin
	routers []*virtualRouter

	known    bool
	role     policy.Role
	since    time.Duration
	conflict string

	allHeld, anyHeld bool          // VIPs that are here: all that decide, any at all
	heldSince        time.Duration // when a pin's VIPs came last
	sent             bool          // own adverts left before: without them VIPs prove nothing
	down             time.Duration // how long own adverts may be missing
	seedUntil        time.Duration // see OwnAdvert
	resignedAt       time.Duration

	partialSince, fifoSince, deniedSince time.Duration // since when witnesses disagree; 0 = they do not
	next                                 time.Duration // 0 = nothing changes by time alone
	decided                              time.Duration // when it was decided last
}

// NewTracker makes a tracker that knows nothing yet.
func NewTracker(cfg Config) *Tracker {
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.Slack == 0 {
		cfg.Slack = defaultSlack
	}
	if cfg.Memory == 0 {
		cfg.Memory = defaultMemory
	}
	return &Tracker{
		cfg:     cfg,
		links:   map[int]policy.Link{},
		held:    map[place]struct{}{},
		pins:    map[uint32]*pin{},
		groups:  map[uint32]*group{},
		routers: map[routerKey]*virtualRouter{},
		fifo:    map[fifoKey]notice{},
		claims:  map[place]*claim{},
	}
}

// Update takes a new plan. What stays in it keeps its state. Call Observe
// afterwards when interfaces changed too.
func (t *Tracker) Update(now time.Duration, plan policy.Plan) []Change {
	oldPins, oldGroups := t.pins, t.groups
	t.watched = map[int]bool{}
	t.vrids = map[vridKey]uint32{}
	t.vipGroups = map[place]uint32{}
	t.vips = map[netip.Addr]bool{}
	t.pins = map[uint32]*pin{}
	t.groups = map[uint32]*group{}
	t.order = nil
	t.local = nil
	for _, planned := range plan.Groups {
		t.addGroup(oldGroups[planned.ID], planned)
	}
	for _, planned := range plan.Pins {
		if planned.Retired {
			continue
		}
		if t.groups[planned.Group] == nil { // a plan that does not list the pin's group
			t.addGroup(oldGroups[planned.Group], policy.PlanGroup{ID: planned.Group, Name: planned.VLAN.String()})
		}
		t.addPin(oldPins[planned.ID], planned)
	}
	for _, planned := range plan.Interfaces {
		t.watched[planned.Index] = true
		for _, v := range planned.VRIDs {
			t.vrids[vridKey{planned.Index, v.VRID}] = v.Group
		}
	}
	slices.SortFunc(t.order, func(a, b *group) int { return int(a.ID) - int(b.ID) })
	for _, vr := range t.routers {
		vr.group = nil
		t.bind(now, vr)
	}
	t.forgetClaims()
	t.index()
	return t.decideAll(now)
}

func (t *Tracker) addGroup(old *group, planned policy.PlanGroup) {
	g := &group{}
	if old != nil && old.Name == planned.Name {
		g = old
	}
	g.PlanGroup, g.pins, g.routers = planned, nil, nil
	t.groups[g.ID] = g
	t.order = append(t.order, g)
}

func (t *Tracker) addPin(old *pin, planned policy.PlanPin) {
	p := &pin{}
	if old != nil && old.VLAN == planned.VLAN && old.Name == planned.Name && old.Interface == planned.Interface {
		p = old
	}
	p.PlanPin = planned
	t.pins[p.ID] = p
	g := t.groups[p.Group]
	g.pins = append(g.pins, p)
	for _, vip := range p.VIPs {
		t.vips[vip] = true
		t.vipGroups[place{p.Ifindex, vip}] = p.Group
	}
}

// Observe takes what the kernel says of all interfaces. It finds out itself
// what changed; telling the same again does nothing. The tracker keeps obs: the
// caller must not write to it afterwards.
func (t *Tracker) Observe(now time.Duration, obs policy.Observed) []Change {
	clear(t.links)
	for _, link := range obs.Links {
		t.links[link.Index] = link
	}
	t.observed = true
	t.local, t.macs = nil, nil
	t.index()
	return t.decideAll(now)
}

// index finds where VIPs are (on an interface, or on a macvlan over it) and
// which VLANs have a watched interface.
func (t *Tracker) index() {
	clear(t.held)
	t.trunked = map[trunkKey]bool{}
	for _, link := range t.links {
		if link.Kind == "vlan" && t.watched[link.Index] {
			t.trunked[trunkKey{link.Parent, link.VLAN}] = true
			t.trunked[trunkKey{t.links[link.Parent].Parent, link.VLAN}] = true // QinQ
		}
		for _, a := range link.Addrs {
			addr := a.Prefix.Addr().Unmap().WithZone("")
			if !t.vips[addr] {
				continue
			}
			t.held[place{link.Index, addr}] = struct{}{}
			if isVMAC(link) {
				t.held[place{link.Parent, addr}] = struct{}{}
			}
		}
	}
}

// isVMAC says whether a link lends its lower device another MAC address:
// keepalived's use_vmac and use_ipvlan.
func isVMAC(link policy.Link) bool {
	return link.Parent != 0 && (link.Kind == "macvlan" || link.Kind == "ipvlan")
}

// OwnAdvert says that, before this tracker began, an advert of a group left at
// last and announced the next one within interval. The dataplane's maps outlive
// the daemon and know; without it, VIPs that a dead keepalived left behind look
// like VIPs set by hand after a restart.
func (t *Tracker) OwnAdvert(now time.Duration, id uint32, last, interval time.Duration) []Change {
	g := t.groups[id]
	if g == nil || last == 0 {
		return nil
	}
	g.sent = true
	g.down = max(g.down, masterDown(3, 0, interval))
	g.seedUntil = last + masterDown(3, 0, interval) + t.cfg.Slack
	return t.decide(now, g)
}

// Tick lets time pass: call it when Next has come.
func (t *Tracker) Tick(now time.Duration) []Change {
	t.forget(now)
	return t.decideAll(now)
}

// Next says when Tick must be called if nothing else happens: a point of
// CLOCK_MONOTONIC, or 0 when time alone changes nothing. Ask after every event.
func (t *Tracker) Next() time.Duration {
	var next time.Duration
	for _, g := range t.order {
		next = earlier(next, g.next)
	}
	for _, vr := range t.routers {
		if vr.group == nil {
			next = earlier(next, vr.next)
		}
	}
	return next
}

// earlier of two points of time, where 0 is never.
func earlier(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
