// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"vippin/policy"
)

// word is what a peer said last over the sync link, a witness beside the adverts:
// it comes another way.
type word struct {
	connected bool // while not, nothing it said counts
	at        time.Duration
	roles     map[string]policy.Role   // by group
	both      map[string]time.Duration // groups that it and this router are MASTER of: since when
}

// SetPeers says which peers there are, in the order in which they are told of.
func (t *Tracker) SetPeers(now time.Duration, names []string) []Change {
	words := make(map[string]*word, len(names))
	for _, name := range names {
		if words[name] = t.words[name]; words[name] == nil {
			words[name] = &word{both: make(map[string]time.Duration)}
		}
	}
	t.peers, t.words = slices.Clone(names), words
	return t.decideAll(now)
}

// PeerWord takes what a peer said at a time: its role in every group that it knows.
// It repeats that as a sign of life, and every one is to be told: that two routers
// are MASTER is a conflict only if it goes on saying so.
func (t *Tracker) PeerWord(now time.Duration, peer string, at time.Duration, roles map[string]policy.Role) []Change {
	w := t.words[peer]
	if w == nil {
		return nil
	}
	same := w.connected && maps.Equal(w.roles, roles)
	if !same {
		w.connected, w.roles = true, maps.Clone(roles)
	}
	w.at = min(at, now)
	var changes []Change
	for _, g := range t.order {
		if !same || g.role == policy.RoleMaster && roles[g.Name] == policy.RoleMaster {
			changes = append(changes, t.decide(now, g)...)
		}
	}
	return changes
}

// PeerGone says that a peer cannot be heard over the sync link any more.
func (t *Tracker) PeerGone(now time.Duration, peer string) []Change {
	w := t.words[peer]
	if w == nil || !w.connected {
		return nil
	}
	*w = word{both: make(map[string]time.Duration)}
	return t.decideAll(now)
}

// contenders lists the peers that have gone on saying for the grace that they are
// MASTER while this router is, and tells whether some peer says anything else, and
// none that it is MASTER.
func (t *Tracker) contenders(now time.Duration, g *group) (contend []string, denied bool) {
	for _, name := range t.peers {
		w := t.words[name]
		role, knows := w.roles[g.Name]
		switch {
		case !w.connected || !knows:
		case g.role != policy.RoleMaster || role != policy.RoleMaster:
			delete(w.both, g.Name)
			denied = true
		default:
			since, lasts := w.both[g.Name]
			if !lasts {
				since = now
				w.both[g.Name] = now
			}
			if w.at-since >= t.cfg.Grace {
				contend = append(contend, name)
			}
		}
	}
	for _, name := range t.peers {
		if t.words[name].roles[g.Name] == policy.RoleMaster {
			denied = false
		}
	}
	return contend, denied
}

// wordConflict weighs what peers say against the adverts, which may say (said) that
// another router is MASTER beside this one.
func (t *Tracker) wordConflict(now time.Duration, g *group, said bool) string {
	contend, denied := t.contenders(now, g)
	alone := t.lasts(now, g, &g.deniedSince, said && denied && g.role == policy.RoleMaster)
	switch {
	case len(contend) > 0 && said:
		return fmt.Sprintf("%s over the sync link, too: both witnesses agree, there are two masters, and this router hears the other one", claimsToBe(contend))
	case len(contend) > 0:
		return fmt.Sprintf("both masters: %s here, and %s over the sync link, though no adverts of another router are heard: "+
			"adverts are blocked between the routers", t.whereText(g), claimsToBe(contend))
	case alone:
		return "no peer says over the sync link that it is MASTER: the other advertiser is not a peer, or its vippin sees it differently"
	}
	return ""
}

func claimsToBe(names []string) string {
	verb := "says that it is MASTER"
	if len(names) > 1 {
		verb = "say that they are MASTER"
	}
	return strings.Join(names, " and ") + " " + verb
}

// wordEvidence states what each peer says.
func (t *Tracker) wordEvidence(now time.Duration, g *group) (lines []string) {
	for _, name := range t.peers {
		w := t.words[name]
		role, knows := w.roles[g.Name]
		switch {
		case !w.connected:
			lines = append(lines, name+": no word (not connected)")
		case !knows:
			lines = append(lines, fmt.Sprintf("%s knows no group %s", name, g.Name))
		default:
			lines = append(lines, fmt.Sprintf("%s says %s over the sync link, %s ago", name, role, ago(now, w.at)))
		}
	}
	return lines
}

// HearsMaster tells whether another router's adverts for a group are heard.
func (t *Tracker) HearsMaster(now time.Duration, name string) bool {
	for _, g := range t.order {
		if g.Name == name {
			return t.hears(now, g)
		}
	}
	return false
}
