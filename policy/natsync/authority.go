// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"cmp"
	"maps"
	"slices"

	"vippin/policy"
)

// reign is what a router is for a group. Of two that are MASTER the one with the
// later epoch is right: a new MASTER counts one more than all it knows of.
type reign struct {
	role  policy.Role
	epoch uint64
}

// Authority knows which router is MASTER of which group, and so whose word counts
// when flows are removed. Groups are known by name.
type Authority struct {
	node  string // this router's public key, which decides between equal epochs
	own   map[string]reign
	peers map[string]map[string]reign // by peer and group
	keys  map[string]string           // public keys of peers
}

// NewAuthority is that of a router with this public key, which is MASTER of
// nothing.
func NewAuthority(node string) *Authority {
	return &Authority{
		node: node, own: make(map[string]reign),
		peers: make(map[string]map[string]reign), keys: make(map[string]string),
	}
}

// SetRole says what this router is for a group from now on, and returns what it
// was.
func (a *Authority) SetRole(group string, role policy.Role) (was policy.Role) {
	now := a.own[group]
	was = now.role
	if role == policy.RoleMaster && was != policy.RoleMaster {
		now.epoch = a.latest(group) + 1
	}
	now.role = role
	a.own[group] = now
	return was
}

// Role is what this router is for a group, FAULT for one that it does not know.
func (a *Authority) Role(group string) policy.Role { return a.own[group].role }

// IsMaster tells whether this router is MASTER of some group.
func (a *Authority) IsMaster() bool { return len(a.Mastered()) > 0 }

// Mastered lists the groups that this router is MASTER of.
func (a *Authority) Mastered() []string {
	var groups []string
	for _, group := range slices.Sorted(maps.Keys(a.own)) {
		if a.own[group].role == policy.RoleMaster {
			groups = append(groups, group)
		}
	}
	return groups
}

// latest is the latest epoch of a group that was heard of.
func (a *Authority) latest(group string) uint64 {
	latest := a.own[group].epoch
	for _, groups := range a.peers {
		latest = max(latest, groups[group].epoch)
	}
	return latest
}

// Heard notes what a peer with this public key says of its groups. It tells
// whether the state of this router's own groups has changed: who is MASTER alone
// while a peer remembers a later epoch reigns since after that one. So the side
// that is MASTER after a split brain wins, whichever counted further.
func (a *Authority) Heard(peer, key string, states []GroupState) (changed bool) {
	groups := make(map[string]reign, len(states))
	for _, s := range states {
		groups[s.Name] = reign{role: s.Role, epoch: s.Epoch}
	}
	a.peers[peer], a.keys[peer] = groups, key
	for group, own := range a.own {
		if own.role != policy.RoleMaster || len(a.masters(group)) > 0 {
			continue
		}
		if latest := a.latest(group); latest > own.epoch {
			own.epoch = latest + 1
			a.own[group] = own
			changed = true
		}
	}
	return changed
}

// Gone notes that a peer cannot be heard: it is MASTER of nothing, but what it
// said of epochs stays known.
func (a *Authority) Gone(peer string) {
	for group, r := range a.peers[peer] {
		r.role = policy.RoleFault
		a.peers[peer][group] = r
	}
}

// masters lists the peers that say they are MASTER of a group, the one to believe
// first.
func (a *Authority) masters(group string) []string {
	var list []string
	for peer, groups := range a.peers {
		if groups[group].role == policy.RoleMaster {
			list = append(list, peer)
		}
	}
	slices.SortFunc(list, func(x, y string) int {
		return cmp.Or(cmp.Compare(a.peers[y][group].epoch, a.peers[x][group].epoch), cmp.Compare(a.keys[x], a.keys[y]))
	})
	return list
}

// Believes tells whether a peer is the MASTER of a group as far as this router
// can know, so that it may have flows removed here.
func (a *Authority) Believes(peer, group string) bool {
	if a.own[group].role == policy.RoleMaster {
		return false
	}
	masters := a.masters(group)
	return len(masters) > 0 && masters[0] == peer && a.peers[peer][group].epoch >= a.latest(group)
}

// MasterOf is the peer that is believed to be MASTER of a group, "" if none is.
func (a *Authority) MasterOf(group string) string {
	if masters := a.masters(group); len(masters) > 0 && a.Believes(masters[0], group) {
		return masters[0]
	}
	return ""
}

// States is what this router says of its groups, by name.
func (a *Authority) States() []GroupState {
	states := make([]GroupState, 0, len(a.own))
	for _, group := range slices.Sorted(maps.Keys(a.own)) {
		states = append(states, GroupState{Name: group, Role: a.own[group].role, Epoch: a.own[group].epoch})
	}
	return states
}

// Keep forgets the groups of this router that are not in names. It tells whether
// there were any.
func (a *Authority) Keep(names []string) (forgot bool) {
	had := len(a.own)
	maps.DeleteFunc(a.own, func(group string, _ reign) bool { return !slices.Contains(names, group) })
	return len(a.own) < had
}
