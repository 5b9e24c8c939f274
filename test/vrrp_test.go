// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
)

var (
	advertInterval = lab.AdvertInterval // keepalived's in the lab
	// soon bounds what should take 3 advert intervals on a machine that has
	// nothing else to do.
	soon = 20 * advertInterval
)

// await is lab.Await for what takes a moment if all is well.
func (s *scene) await(what string, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	return lab.Await(ctx, what, holds)
}

// watcher follows "vippin monitor -j" of one router.
type watcher struct {
	s    *scene
	r    *lab.Router
	proc *lab.Proc
}

// watch starts the monitor beside a running daemon and returns when it has
// shown an event: from then on it misses none.
func (s *scene) watch(r *lab.Router) *watcher {
	s.t.Helper()
	proc, err := s.StartCommand(r, "monitor", "-j")
	s.must(err)
	w := &watcher{s: s, r: r, proc: proc}
	s.must(s.await("the first event of "+r.Name, func() (bool, error) {
		s.vippin(r, "pin", "reset", "2") // tells, and changes nothing
		return len(w.events()) > 0, nil
	}))
	return w
}

// startWatched runs vippin on a router and follows its events.
func (s *scene) startWatched(r *lab.Router, config string) *watcher {
	s.t.Helper()
	s.start(r, config)
	return s.watch(r)
}

// events are those so far; a line that is still being written is left out.
func (w *watcher) events() (events []policy.Event) {
	for line := range strings.Lines(w.proc.Log()) {
		var event policy.Event
		if json.Unmarshal([]byte(line), &event) == nil && event.Kind != "" {
			events = append(events, event)
		}
	}
	return events
}

// await returns the first event after the given number of them that matches.
func (w *watcher) await(after int, what string, match func(policy.Event) bool) (found policy.Event) {
	w.s.t.Helper()
	w.s.must(w.s.await(what+" in the monitor of "+w.r.Name, func() (bool, error) {
		for _, event := range w.events()[after:] {
			if match(event) {
				found = event
				return true, nil
			}
		}
		return false, nil
	}))
	return found
}

func isRole(role policy.Role) func(policy.Event) bool {
	return func(e policy.Event) bool { return e.Kind == "role" && e.Role != nil && *e.Role == role }
}

func isConflict(e policy.Event) bool { return e.Kind == "conflict" && !e.Over }

func isConflictOver(e policy.Event) bool { return e.Kind == "conflict" && e.Over }

// conflicts are the conflicts that a router shows: of its first group in
// "status", of the WAN's virtual routers in "vrrp".
func (s *scene) conflicts(r *lab.Router) (group string, routers []string) {
	s.t.Helper()
	for _, vr := range s.vrrp(r) {
		if vr.VRID == lab.WAN.VRID && vr.Conflict != "" {
			routers = append(routers, vr.Conflict)
		}
	}
	return s.status(r).Groups[0].Conflict, routers
}

// awaitPeace waits until ra is MASTER, rb BACKUP, and neither shows a conflict.
func (s *scene) awaitPeace() {
	s.t.Helper()
	s.awaitRole(s.RA, policy.RoleMaster)
	s.awaitRole(s.RB, policy.RoleBackup)
	for _, r := range s.Routers() {
		s.must(s.await("no conflict on "+r.Name, func() (bool, error) {
			group, routers := s.conflicts(r)
			return group == "" && len(routers) == 0, nil
		}))
	}
}

// dropAdverts makes a router's own firewall keep adverts from its keepalived.
func (s *scene) dropAdverts(r *lab.Router) {
	s.t.Helper()
	s.must(r.NFT(s.ctx, `
table inet deaf {
	chain input {
		type filter hook input priority filter; policy accept;
		meta l4proto { 51, 112 } drop
	}
}
`))
}

func (s *scene) hearAdverts(r *lab.Router) {
	s.t.Helper()
	s.must(r.NFT(s.ctx, "delete table inet deaf"))
}

// split is a way to make rb a second master beside ra.
type split struct {
	name   string
	force  func(s *scene)
	mend   func(s *scene)
	seenBy func(s *scene) []*lab.Router
}

func onlyRA(s *scene) []*lab.Router { return []*lab.Router{s.RA} }
func onlyRB(s *scene) []*lab.Router { return []*lab.Router{s.RB} }
func bothOf(s *scene) []*lab.Router { return s.Routers() }
func nobody(*scene) []*lab.Router   { return nil }
func (s *scene) unblock()           { s.t.Helper(); s.must(s.UnblockAdverts(s.ctx)) }
func (s *scene) block(from, to *lab.Router) {
	s.t.Helper()
	s.must(s.BlockAdverts(s.ctx, from, to))
}

var splits = []split{
	{
		name:   "the switch loses ra's adverts",
		force:  func(s *scene) { s.block(s.RA, s.RB) },
		mend:   (*scene).unblock,
		seenBy: onlyRA,
	},
	{
		name: "the switch loses rb's adverts, and rb is the better one",
		force: func(s *scene) {
			s.block(s.RB, s.RA)
			_, err := s.StartKeepalived(s.RB, lab.Keepalived{Priority: 200})
			s.must(err)
		},
		mend: func(s *scene) {
			s.unblock()
			s.must(s.RA.AwaitBackup(s.ctx))
			_, err := s.StartKeepalived(s.RB, lab.Keepalived{})
			s.must(err)
		},
		seenBy: onlyRB,
	},
	{
		name:   "rb's firewall drops adverts",
		force:  func(s *scene) { s.dropAdverts(s.RB) },
		mend:   func(s *scene) { s.hearAdverts(s.RB) },
		seenBy: bothOf,
	},
	{
		name:   "both firewalls drop adverts",
		force:  func(s *scene) { s.dropAdverts(s.RA); s.dropAdverts(s.RB) },
		mend:   func(s *scene) { s.hearAdverts(s.RA); s.hearAdverts(s.RB) },
		seenBy: bothOf,
	},
	{
		// No advert reaches the other router: adverts bear no witness. What is
		// asked here is that it heals.
		name:   "the switch loses all adverts",
		force:  func(s *scene) { s.block(s.RA, s.RB); s.block(s.RB, s.RA) },
		mend:   (*scene).unblock,
		seenBy: nobody,
	},
}

// Two routers that are MASTER at once are shown by everyone who hears both,
// with their names, and the conflict goes when one gives in. Neither router's
// role or pinning follows from it.
func TestTwoMasters(t *testing.T) {
	s := setScene(t, "twomasters", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	watchers := map[*lab.Router]*watcher{}
	for _, r := range s.Routers() {
		watchers[r] = s.startWatched(r, onWAN)
	}
	s.awaitPeace()
	for _, how := range splits {
		s.run(how.name, func(s *scene) {
			before := map[*lab.Router]int{}
			for r, w := range watchers {
				before[r] = len(w.events())
			}
			how.force(s)
			master := watchers[s.RB].await(before[s.RB], "MASTER", isRole(policy.RoleMaster))
			for _, r := range how.seenBy(s) {
				s.wantConflict(watchers[r], before[r], master.Time)
			}
			s.awaitRole(s.RA, policy.RoleMaster)
			s.awaitRole(s.RB, policy.RoleMaster)
			how.mend(s)
			s.awaitPeace()
			for _, r := range how.seenBy(s) {
				over := watchers[r].await(before[r], "the end of the conflict", isConflictOver)
				s.t.Logf("%s: over %s after the second MASTER", r.Name, over.Time.Sub(master.Time).Round(time.Millisecond))
			}
		})
	}
}

// tellsOfTwo says whether these are all conflicts of this router with one that it
// hears. A router whose keepalived gets no processor for a while has other ones.
func tellsOfTwo(conflicts ...string) bool {
	return !slices.ContainsFunc(conflicts, func(text string) bool {
		return !strings.Contains(text, "both masters: ") || !strings.Contains(text, "(this router)")
	})
}

// wantConflict wants a conflict shown by every command, soon after the second
// router became MASTER.
func (s *scene) wantConflict(w *watcher, after int, since time.Time) {
	s.t.Helper()
	event := w.await(after, "a conflict", func(e policy.Event) bool { return isConflict(e) && tellsOfTwo(e.Detail) })
	delay := event.Time.Sub(since)
	s.t.Logf("%s: shown %s after the second MASTER (%.1f advert intervals): %s", w.r.Name,
		delay.Round(time.Millisecond), float64(delay)/float64(advertInterval), event.Detail)
	if delay > soon {
		s.t.Errorf("%s showed the conflict only after %s", w.r.Name, delay)
	}
	if event.Group != lab.SyncGroup {
		s.t.Errorf("the conflict is about %q", event.Group)
	}
	var group string
	s.must(s.await("the conflict of both families on "+w.r.Name, func() (bool, error) {
		var routers []string
		group, routers = s.conflicts(w.r)
		return len(routers) == 2 && tellsOfTwo(append(routers, group)...), nil
	}))
	for _, own := range []lab.Ends{lab.WAN.RA, lab.WAN.RB} {
		if !strings.Contains(group, own.V4.String()) {
			s.t.Errorf("%s does not name %s: %q", w.r.Name, own.V4, group)
		}
	}
	if _, _, exit := s.Vippin(w.r, "status"); exit != 3 {
		s.t.Errorf("status on %s: exit %d, want 3 (degraded)", w.r.Name, exit)
	}
}
