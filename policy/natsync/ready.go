// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"maps"
	"slices"
	"time"

	"vippin/policy"
)

// readyGrace is how long a router waits to hear at all that somebody is MASTER.
const readyGrace = 5 * time.Second

// Standing is how a group stands: whether this router may take it over by its own
// choice, and why.
type Standing uint8

// The standings. Those up to StandMissing are ready.
const (
	StandMaster   Standing = iota // this router is MASTER
	StandAlone                    // no other MASTER is known
	StandComplete                 // everything that the MASTER had is here
	StandGivenUp                  // something is missing, and that took too long
	StandMissing                  // a peer is MASTER, and its bulk is not complete
	StandApart                    // a MASTER is heard by its adverts, and no peer says that it is the one
	StandUnknown                  // nobody has been heard yet
)

// Ready tells whether the router may take over.
func (s Standing) Ready() bool { return s < StandMissing }

// Readiness knows which groups this router may take over by its own choice: all but
// those that a MASTER elsewhere has flows of that may be missing here. It holds
// this router back for a bounded time only, and never at the moment of a crash: a
// session that ends takes no readiness away. It belongs to one goroutine; every
// event says what time it is, on any monotonic clock.
type Readiness struct {
	limit  time.Duration // sync.ready_timeout: how long a group may be held back at a stretch
	peers  map[string]*peerBulks
	groups map[string]*groupReadiness
}

// peerBulks is what is known of a configured peer.
type peerBulks struct {
	spoken bool            // it has said what it is since the session began
	whole  map[string]bool // groups whose bulk was finished since then
}

func newPeerBulks() *peerBulks { return &peerBulks{whole: make(map[string]bool)} }

// groupReadiness is one group. While behind is false the router is ready.
type groupReadiness struct {
	role    policy.Role
	behind  bool          // flows of a MASTER elsewhere may be missing
	since   time.Duration // behind: when that began
	grace   time.Duration // behind: until when a MASTER may yet be heard of
	gaveUp  bool          // behind: it took longer than the limit
	master  string        // the peer that is believed to be MASTER, "" = none
	heard   bool          // adverts of another MASTER
	settled Standing      // not behind: how that came
}

// NewReadiness is that of a router without groups and peers.
func NewReadiness(limit time.Duration) *Readiness {
	return &Readiness{limit: limit, peers: make(map[string]*peerBulks), groups: make(map[string]*groupReadiness)}
}

// SetLimit changes how long a group may be held back.
func (r *Readiness) SetLimit(limit time.Duration) { r.limit = limit }

// SetPeers says which peers there are. Without any, nothing can be missing.
func (r *Readiness) SetPeers(now time.Duration, names []string) {
	maps.DeleteFunc(r.peers, func(name string, _ *peerBulks) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		if r.peers[name] == nil {
			r.peers[name] = newPeerBulks()
		}
	}
	r.Tick(now)
}

// SetRole says what this router is for a group. The first word of a group begins
// its time: who is not MASTER then knows nothing yet.
func (r *Readiness) SetRole(now time.Duration, group string, role policy.Role) {
	g, known := r.groups[group]
	if !known {
		g = &groupReadiness{role: policy.RoleFault}
		r.groups[group] = g
	}
	was := g.role
	g.role = role
	switch {
	case role == policy.RoleMaster:
		g.settle(StandMaster)
	case !known, was == policy.RoleFault && role == policy.RoleBackup:
		g.fallBehind(now)
	case g.settled == StandMaster:
		g.settled = StandAlone
	}
	r.look(now, group, g)
}

// Keep forgets the groups that are not in names.
func (r *Readiness) Keep(names []string) {
	maps.DeleteFunc(r.groups, func(group string, _ *groupReadiness) bool { return !slices.Contains(names, group) })
}

// Joined says that a session with a peer has begun. What the peer had to tell
// before is to be told again.
func (r *Readiness) Joined(now time.Duration, peer string) {
	r.begin(now, peer)
}

// Left says that it has ended: the peer is MASTER of nothing that is known.
func (r *Readiness) Left(now time.Duration, peer string) {
	for _, g := range r.groups {
		if g.master == peer {
			g.master = ""
		}
	}
	r.begin(now, peer)
}

// begin forgets what a peer has said.
func (r *Readiness) begin(now time.Duration, peer string) {
	if r.peers[peer] != nil {
		r.peers[peer] = newPeerBulks()
	}
	r.Tick(now)
}

// Spoken says that a peer has told of its roles.
func (r *Readiness) Spoken(now time.Duration, peer string) {
	if p := r.peers[peer]; p != nil && !p.spoken {
		p.spoken = true
		r.Tick(now)
	}
}

// Believed says which peer with a session is MASTER of a group as far as this
// router can know, "" = none.
func (r *Readiness) Believed(now time.Duration, group, peer string) {
	if g := r.groups[group]; g != nil && g.master != peer {
		g.master = peer
		r.look(now, group, g)
	}
}

// Whole says that a peer's bulk of a group is finished: everything that it told of
// is in the kernel.
func (r *Readiness) Whole(now time.Duration, peer, group string) {
	if p := r.peers[peer]; p != nil {
		p.whole[group] = true
	}
	if g := r.groups[group]; g != nil {
		r.look(now, group, g)
	}
}

// Heard says whether adverts of another MASTER of a group are heard.
func (r *Readiness) Heard(now time.Duration, group string, heard bool) {
	if g := r.groups[group]; g != nil && g.heard != heard {
		g.heard = heard
		r.look(now, group, g)
	}
}

// Tick lets time pass.
func (r *Readiness) Tick(now time.Duration) {
	for name, g := range r.groups {
		r.look(now, name, g)
	}
}

// Next says when time alone makes a group ready; 0: never.
func (r *Readiness) Next() (next time.Duration) {
	for _, g := range r.groups {
		if !g.behind || g.gaveUp {
			continue
		}
		at := g.since + r.limit
		if g.master == "" && !g.heard {
			at = min(at, g.grace)
		}
		if next == 0 || at < next {
			next = max(at, 1)
		}
	}
	return next
}

// Behind lists the groups that are held back.
func (r *Readiness) Behind() (groups []string) {
	for _, name := range slices.Sorted(maps.Keys(r.groups)) {
		if g := r.groups[name]; g.behind && !g.gaveUp {
			groups = append(groups, name)
		}
	}
	return groups
}

// Standing is how a group stands, which peer it is about ("" = none), and since when
// it has been held back (0 = it is not). Who asks for an unknown group hears
// StandAlone.
func (r *Readiness) Standing(group string) (s Standing, peer string, since time.Duration) {
	g := r.groups[group]
	switch {
	case g == nil:
		return StandAlone, "", 0
	case !g.behind:
		return g.settled, g.master, 0
	case g.gaveUp:
		return StandGivenUp, g.master, 0
	case g.master != "":
		return StandMissing, g.master, g.since
	case g.heard:
		return StandApart, "", g.since
	}
	return StandUnknown, "", g.since
}

// look decides on a group.
func (r *Readiness) look(now time.Duration, name string, g *groupReadiness) {
	if g.role == policy.RoleMaster {
		return
	}
	if p := r.peers[g.master]; g.master != "" && p != nil {
		if p.whole[name] {
			g.settle(StandComplete)
			return
		}
		g.fallBehind(now)
	}
	switch {
	case g.behind && len(r.peers) == 0:
		g.settle(StandAlone)
	case !g.behind:
	case now >= g.since+r.limit:
		g.gaveUp = true
	case g.master == "" && !g.heard && (now >= g.grace || r.allSpoken()):
		g.settle(StandAlone)
	}
}

// fallBehind begins a time of being held back, unless one lasts.
func (g *groupReadiness) fallBehind(now time.Duration) {
	if !g.behind {
		g.behind, g.since, g.grace = true, now, now+readyGrace
	}
}

func (g *groupReadiness) settle(s Standing) {
	g.behind, g.gaveUp, g.settled = false, false, s
}

// allSpoken tells whether every peer has said what it is.
func (r *Readiness) allSpoken() bool {
	for _, p := range r.peers {
		if !p.spoken {
			return false
		}
	}
	return true
}
