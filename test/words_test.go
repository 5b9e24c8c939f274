// SPDX-License-Identifier: Apache-2.0

package test

import (
	"strings"
	"testing"

	"vippin/policy"
	"vippin/test/lab"
)

// awaitConflict waits until the router's first group has a conflict that says what is
// wanted; "" = none.
func (s *scene) awaitConflict(r *lab.Router, want string) {
	s.t.Helper()
	last := ""
	err := lab.Await(s.ctx, "conflict "+want+" on "+r.Name, func() (bool, error) {
		last = s.status(r).Groups[0].Conflict
		return strings.Contains(last, want) && (want != "" || last == ""), nil
	})
	if err != nil {
		s.t.Fatalf("%v; last %q\n%s", err, last, s.Describe())
	}
}

// Adverts are blocked between the routers, and both are MASTER: each learns it by
// the other's word over the sync link. A healthy takeover is no such conflict.
func TestPeersWordOfMastership(t *testing.T) {
	t.Parallel()
	p := setPair(t, "words", lab.Options{Hosts: 1}, "")
	var watchers []*lab.Proc
	for _, r := range p.Routers() {
		w, err := p.StartCommand(r, "monitor")
		p.must(err)
		watchers = append(watchers, w)
	}
	p.must(p.RA.Keepalived().Stop())
	p.awaitRole(p.RB, policy.RoleMaster)
	p.wantWord(p.RB, "ra says")
	p.must(p.RA.Keepalived().Restart()) // preempts
	p.awaitRole(p.RA, policy.RoleMaster)
	p.awaitRole(p.RB, policy.RoleBackup)
	p.wantWord(p.RB, "ra says MASTER")
	p.wantWord(p.RA, "rb says BACKUP")
	p.vippin(p.RA, "vrrp-notify", "RouterCore", "MASTER")
	p.wantWord(p.RA, "a transition script said MASTER (GROUP, priority 0)")
	if _, complaint, exit := p.Vippin(p.RA, "vrrp-notify", "Core", "MASTER"); exit != 1 || !strings.Contains(complaint, "there are: RouterCore") {
		t.Errorf("exit %d, %s", exit, complaint)
	}
	for i, w := range watchers {
		if log := w.Log(); strings.Contains(log, "conflict") || !strings.Contains(log, "role") {
			t.Errorf("a takeover, as router %d saw it:\n%s", i, log)
		}
	}
	p.must(p.BlockAdverts(p.ctx, p.RA, p.RB))
	p.must(p.BlockAdverts(p.ctx, p.RB, p.RA))
	p.awaitRole(p.RB, policy.RoleMaster)
	p.awaitConflict(p.RA, "rb says that it is MASTER over the sync link, though no adverts of another router are heard: adverts are blocked between the routers")
	p.awaitConflict(p.RB, "ra says that it is MASTER over the sync link, though no adverts of another router are heard: adverts are blocked between the routers")
	p.must(p.UnblockAdverts(p.ctx))
	p.awaitConflict(p.RA, "")
	p.awaitConflict(p.RB, "")
	p.must(p.CutSync(p.RA))
	p.wantWord(p.RA, "rb: no word (not connected)")
}

// wantWord waits for a line of evidence that begins with a text.
func (s *scene) wantWord(r *lab.Router, begins string) {
	s.t.Helper()
	var last []string
	err := lab.Await(s.ctx, begins+" on "+r.Name, func() (bool, error) {
		last = s.status(r).Groups[0].Evidence
		for _, line := range last {
			if strings.HasPrefix(line, begins) {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		s.t.Fatalf("%v; last %q\n%s", err, last, s.Describe())
	}
}
