// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vippin/policy"
)

// Bounds on what others can make the tracker remember.
const (
	maxVirtualRouters = 1024
	maxRouters        = 16 // in one virtual router, besides this one
)

// overlapAdverts is how many adverts of a router must fall between another's
// before both are masters: at a normal takeover one of the old master may be
// late.
const overlapAdverts = 2

// ignoredEcho counts, beside the reasons, own adverts that came back.
const ignoredEcho = "echo"

// routerKey names a virtual router. The families are separate virtual routers
// (RFC 9568 section 1). VRID 0 collects what names no VRID.
type routerKey struct {
	ifindex int
	vlan    policy.VLAN // tags still in the frame
	family  string
	vrid    uint8
}

type virtualRouter struct {
	routerKey
	group      *group // nil: nobody's
	version    uint8
	checksum   string
	virtualMAC bool
	vips       []netip.Addr
	self       *router
	others     []*router
	ignored    map[string]uint64
	touched    time.Duration
	both       bool // two masters, until one is silent
	conflict   string
	claimed    string // the conflict over its VIPs that claims show
	next       time.Duration
}

// router is one that advertises a VRID.
type router struct {
	addr     netip.Addr
	priority uint8
	version  uint8
	interval time.Duration
	last     time.Duration
	previous time.Duration // the one before the last
	runStart time.Duration // since when it advertises without a pause
	overlap  int           // adverts in a row between which another router sent
	manual   int           // adverts heard while we held the VIPs and never sent
	resigned bool          // its last advert had priority 0
	gone     bool          // ours, and the VIPs have left: no master any more
}

// masterDown is how long adverts may be missing: RFC 9568 section 6.1,
// Active_Down_Interval, and RFC 3768 section 6.1, Master_Down_Interval.
func masterDown(version, priority uint8, interval time.Duration) time.Duration {
	interval = known(interval)
	unit := interval
	if version == 2 {
		unit = time.Second
	}
	return 3*interval + unit*(256-time.Duration(priority))/256
}

// known puts the RFCs' default of a second where an advert has interval 0.
func known(interval time.Duration) time.Duration {
	if interval <= 0 {
		return time.Second
	}
	return interval
}

// downAt is when the others take over from a router that stays silent.
func (t *Tracker) downAt(r *router) time.Duration {
	return r.last + masterDown(r.version, r.priority, r.interval) + t.cfg.Slack
}

// silentAt is when a router has been silent for 3 intervals.
func (t *Tracker) silentAt(r *router) time.Duration {
	return r.last + 3*known(r.interval) + t.cfg.Slack
}

// masters are the routers that advertise at the same time, ourselves first.
func (t *Tracker) masters(now time.Duration, vr *virtualRouter) []*router {
	var live []*router
	for _, r := range vr.all() {
		if !r.resigned && !r.gone && now < t.silentAt(r) {
			live = append(live, r)
		}
	}
	return live
}

func (vr *virtualRouter) all() []*router {
	if vr.self == nil {
		return vr.others
	}
	return append([]*router{vr.self}, vr.others...)
}

// Advert takes one VRRP packet, valid or not. What is not valid is counted and
// goes no further.
func (t *Tracker) Advert(now time.Duration, seen policy.AdvertSeen) []Change {
	key := routerKey{ifindex: t.base(seen.Ifindex), vlan: seen.VLAN, family: familyOf(seen.Src)}
	if t.seenOnVLAN(key) {
		return nil // counted there
	}
	advert, reason := read(seen)
	if len(seen.Payload) >= 2 && reason != policy.AdvertFragment {
		key.vrid = seen.Payload[1]
	}
	vr := t.virtualRouter(now, key, seen.Direction)
	if vr == nil {
		return nil
	}
	if reason != policy.AdvertValid {
		vr.ignored[reason.String()]++
		return nil
	}
	if seen.Direction == policy.In && t.isOwn(now, vr, seen.Src) {
		vr.ignored[ignoredEcho]++
		return nil
	}
	vr.version, vr.checksum, vr.vips = advert.Version, advert.Checksum, advert.VIPs
	vr.virtualMAC = seen.SrcMAC == virtualMACOf(advert.Family, advert.VRID)
	t.bind(now, vr)
	r := t.router(now, vr, seen)
	if r == nil {
		return nil
	}
	at := now
	if seen.Time > 0 && seen.Time < now {
		at = seen.Time
	}
	// It may have been on its way when its absence was decided on.
	missed := vr.group != nil && vr.group.decided >= t.silentAt(r)
	news := t.note(max(at, r.last), vr, r, advert) || missed
	switch {
	case vr.group == nil:
		return t.judgeUnbound(now, vr)
	case news || len(t.claims) > 0:
		return t.decide(now, vr.group)
	}
	return nil
}

// read believes the dataplane where it found a fault, and looks itself where
// it found none.
func read(seen policy.AdvertSeen) (Advert, policy.AdvertReason) {
	if seen.Reason != policy.AdvertValid {
		return Advert{}, seen.Reason
	}
	advert, reason := Parse(seen.Payload, seen.Src, seen.Dst)
	if reason == policy.AdvertValid && (advert.AuthType == AuthAH) != seen.AH {
		return Advert{}, policy.AdvertAuth
	}
	return advert, reason
}

// note writes an advert down. It is news when more than deadlines may follow
// from it; a late deadline only makes Tick look in vain.
func (t *Tracker) note(at time.Duration, vr *virtualRouter, r *router, advert Advert) (news bool) {
	news = r.priority != advert.Priority || r.interval != advert.Interval
	silent := r.last == 0 || r.resigned || r.gone || at >= t.silentAt(r)
	between := slices.ContainsFunc(vr.all(), func(other *router) bool {
		return other != r && other.last > r.last && !other.resigned
	})
	r.priority, r.version, r.interval = advert.Priority, advert.Version, advert.Interval
	r.previous, r.last = r.last, at
	r.gone, r.resigned = false, advert.Priority == 0
	switch {
	case r.resigned:
		r.overlap, r.manual = 0, 0
	case silent:
		r.overlap, r.manual, r.runStart = 0, 0, at
	case between:
		r.overlap++
	default:
		r.overlap = 0
	}
	if r.overlap >= overlapAdverts {
		vr.both = true
	}
	g := vr.group
	switch {
	case g == nil:
	case r != vr.self:
		r.manual++
		if !g.allHeld || g.sent || r.resigned {
			r.manual = 0
		}
	case r.resigned:
		g.resignedAt = at
	default:
		news = news || !g.sent || !g.allHeld
		g.sent = true
		g.down = masterDown(r.version, r.priority, r.interval)
	}
	return news || silent || vr.both || r.manual > 0
}

// bind finds the group that a virtual router speaks for: by VRID where the
// plan names one, else by the addresses it announces.
func (t *Tracker) bind(now time.Duration, vr *virtualRouter) {
	var g *group
	if vr.vlan == (policy.VLAN{}) {
		if id, ok := t.vrids[vridKey{vr.ifindex, vr.vrid}]; ok {
			g = t.groups[id]
		} else {
			for _, vip := range vr.vips {
				if id, ok := t.vipGroups[place{vr.ifindex, vip}]; ok {
					g = t.groups[id]
					break
				}
			}
		}
	}
	if g == vr.group {
		return
	}
	if vr.group != nil {
		old := vr.group
		old.routers = slices.DeleteFunc(old.routers, func(other *virtualRouter) bool { return other == vr })
	}
	vr.group, vr.claimed = g, ""
	if g == nil {
		return
	}
	g.routers = append(g.routers, vr)
	slices.SortFunc(g.routers, compareRouters)
	if vr.self != nil && !vr.self.resigned && now < t.downAt(vr.self) {
		g.sent = true
		g.down = masterDown(vr.self.version, vr.self.priority, vr.self.interval)
	}
}

// virtualRouter finds or makes one; nil when there are too many. Those that the
// plan names or that we advertise are always taken in.
func (t *Tracker) virtualRouter(now time.Duration, key routerKey, direction policy.Direction) *virtualRouter {
	vr := t.routers[key]
	if vr == nil {
		_, planned := t.vrids[vridKey{key.ifindex, key.vrid}]
		planned = planned && key.vlan == policy.VLAN{}
		if !planned && direction == policy.In && t.full(now) {
			t.overflow++
			return nil
		}
		vr = &virtualRouter{routerKey: key, ignored: map[string]uint64{}}
		t.routers[key] = vr
		t.bind(now, vr)
	}
	vr.touched = now
	return vr
}

// full says whether there is no room for another virtual router, after having
// forgotten what can be, at most once in a second.
func (t *Tracker) full(now time.Duration) bool {
	if len(t.routers) >= maxVirtualRouters && now >= t.forgotAt+time.Second {
		t.forget(now)
	}
	return len(t.routers) >= maxVirtualRouters
}

// router finds or makes the sender; nil when there are too many. A silent one
// makes room.
func (t *Tracker) router(now time.Duration, vr *virtualRouter, seen policy.AdvertSeen) *router {
	addr := seen.Src.Unmap().WithZone("")
	if seen.Direction == policy.Out {
		if vr.self == nil {
			vr.self = &router{}
		}
		vr.self.addr = addr
		return vr.self
	}
	for _, r := range vr.others {
		if r.addr == addr {
			return r
		}
	}
	if len(vr.others) >= maxRouters {
		oldest := slices.MinFunc(vr.others, func(a, b *router) int { return int(a.last - b.last) })
		if now < t.silentAt(oldest) {
			t.overflow++
			return nil
		}
		*oldest = router{}
		oldest.addr = addr
		return oldest
	}
	r := &router{addr: addr}
	vr.others = append(vr.others, r)
	slices.SortFunc(vr.others, func(a, b *router) int { return a.addr.Compare(b.addr) })
	return r
}

// base is the interface that an advert counts for: a macvlan's lower device,
// unless the macvlan itself is watched.
func (t *Tracker) base(ifindex int) int {
	if link, ok := t.links[ifindex]; ok && isVMAC(link) && !t.watched[ifindex] {
		return link.Parent
	}
	return ifindex
}

// seenOnVLAN says whether a tagged frame on a trunk is seen a second time on
// its VLAN's own interface.
func (t *Tracker) seenOnVLAN(key routerKey) bool {
	return key.vlan != policy.VLAN{} && t.trunked[trunkKey{key.ifindex, key.tags(t.links[key.ifindex])}]
}

// tags are those between the wire and the virtual router.
func (key routerKey) tags(link policy.Link) policy.VLAN {
	if link.VLAN.Outer != 0 && key.vlan.Outer != 0 {
		return policy.VLAN{Outer: link.VLAN.Outer, Inner: key.vlan.Outer}
	}
	if key.vlan.Outer != 0 {
		return key.vlan
	}
	return link.VLAN
}

// isOwn says whether an advert heard is one of ours that came back: it has an
// address of ours, and we send. Who does not send hears somebody else, who has
// the same address (a link-local one made from the virtual MAC). VIPs do not
// count: an address owner (RFC 9568 section 1.7) sends from one.
func (t *Tracker) isOwn(now time.Duration, vr *virtualRouter, src netip.Addr) bool {
	src = src.Unmap().WithZone("")
	if t.vips[src] || vr.self == nil || now >= t.silentAt(vr.self) {
		return false
	}
	if t.local == nil {
		t.local = map[netip.Addr]struct{}{}
		for _, link := range t.links {
			for _, a := range link.Addrs {
				t.local[a.Prefix.Addr().Unmap().WithZone("")] = struct{}{}
			}
		}
	}
	_, own := t.local[src]
	return own || vr.self.addr == src
}

// virtualMACOf is the MAC address of a virtual router: RFC 9568 section 7.3.
func virtualMACOf(family string, vrid uint8) policy.MAC {
	kind := byte(1)
	if family == FamilyIPv6 {
		kind = 2
	}
	return policy.MAC{0, 0, 0x5e, 0, kind, vrid}
}

// hasVirtualMAC says whether a virtual router has its own MAC address here: its
// adverts come from it, or an interface lends it. BACKUP has that too, and with
// keepalived's vmac_xmit_base the adverts come from the interface below.
func (t *Tracker) hasVirtualMAC(vr *virtualRouter) bool {
	if vr.virtualMAC {
		return true
	}
	mac := virtualMACOf(vr.family, vr.vrid)
	for _, link := range t.links {
		if isVMAC(link) && link.MAC == mac && vr.vlan == (policy.VLAN{}) && (link.Parent == vr.ifindex || link.Index == vr.ifindex) {
			return true
		}
	}
	return false
}

// judgeUnbound looks for two masters where no group is concerned.
func (t *Tracker) judgeUnbound(now time.Duration, vr *virtualRouter) []Change {
	was := vr.conflict
	t.judge(now, vr)
	if vr.conflict == was {
		return nil
	}
	return []Change{{
		Name: fmt.Sprintf("VRID %d on %s", vr.vrid, t.linkName(vr.ifindex)), Role: t.roleIn(now, vr),
		Conflict: vr.conflict, ConflictChanged: true,
	}}
}

// judge says in vr.conflict whether two routers are masters of one VRID, and in
// vr.next when to ask again.
func (t *Tracker) judge(now time.Duration, vr *virtualRouter) {
	vr.conflict, vr.next = "", 0
	masters := t.masters(now, vr)
	if len(masters) < 2 {
		vr.both = false
	}
	if !vr.both {
		return
	}
	names := make([]string, len(masters))
	for i, r := range masters {
		vr.next = earlier(vr.next, t.silentAt(r))
		names[i] = r.addr.String()
		if r == vr.self {
			names[i] += " (this router)"
		}
	}
	vr.conflict = fmt.Sprintf("both masters: %s advertise VRID %d on %s; seen before: adverts filtered in one direction, "+
		"a hypervisor that drops the virtual MAC or multicast", strings.Join(names, " and "), vr.vrid, t.linkName(vr.ifindex))
}

// forget drops what has been silent for long.
func (t *Tracker) forget(now time.Duration) {
	t.forgotAt = now
	for key, vr := range t.routers {
		vr.others = slices.DeleteFunc(vr.others, func(r *router) bool { return now > r.last+t.cfg.Memory })
		if vr.group == nil && now > vr.touched+t.cfg.Memory {
			delete(t.routers, key)
		}
	}
}

func compareRouters(a, b *virtualRouter) int {
	switch {
	case a.ifindex != b.ifindex:
		return a.ifindex - b.ifindex
	case a.vrid != b.vrid:
		return int(a.vrid) - int(b.vrid)
	}
	return strings.Compare(a.family, b.family)
}
