// SPDX-License-Identifier: Apache-2.0

package test

import (
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
)

// fall is a way for the master to go.
type fall struct {
	name string
	of   func(p *pair) error
}

var falls = []fall{
	{"hard", func(p *pair) error { return p.LinksDown(p.RA) }},
	{"crash", func(p *pair) error { return p.Crash(p.RA) }},
	{"graceful", func(p *pair) error { return p.RA.Keepalived().Stop() }},
}

// Every flow outlives the master, behind a firewall that lets nothing else in.
func TestFailoverKeepsEveryFlow(t *testing.T) {
	for _, fall := range falls {
		t.Run(fall.name, func(t *testing.T) {
			t.Parallel()
			p := setPair(t, "fall"+fall.name, lab.Options{Firewall: true}, "")
			four, six := p.muster(120, 20000, false), p.muster(120, 20000, true)
			p.awaitAgreement(four.count + six.count)
			p.awaitSync()
			p.must(fall.of(p))
			p.awaitRole(p.RB, policy.RoleMaster)
			four.allAnswered()
			six.allAnswered()
		})
	}
}

// When the master's links are set down its kernel removes every masqueraded
// entry, and says so. The standby keeps them all.
func TestLinkSetDownRemovesNothingAtThePeer(t *testing.T) {
	t.Parallel()
	p := setPair(t, "flush", lab.Options{Hosts: 2}, "  delete_hold: 1s\n")
	troop := p.muster(60, 20000, false)
	p.awaitAgreement(troop.count)
	before := p.mappings(p.RB)
	p.must(p.RB.Keepalived().Stop()) // nobody takes over: only what ra says counts
	p.ip(p.RA.Node, "link set wan0 down")
	gone := time.Now()
	for time.Since(gone) < 3*time.Second { // three times the hold
		if lost := missingIn(before, p.mappings(p.RB)); len(lost) > 0 {
			t.Fatalf("rb lost %d mappings: %.5q\n%s", len(lost), first(lost, 5), p.Describe())
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// A link that goes down and up again while nobody takes over breaks no flow: the
// router puts back what its kernel removed.
func TestLinkFlapBreaksNothing(t *testing.T) {
	t.Parallel()
	s := setScene(t, "flap", lab.Options{Firewall: true})
	s.must(s.AddSyncLink())
	p := &pair{scene: s}
	s.must(s.RA.AddVIPs())
	for _, r := range s.Routers() {
		s.start(r, p.config(r, onWAN))
	}
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitSync()
	troop := p.muster(60, 20000, false)
	p.awaitAgreement(troop.count)
	p.ip(p.RA.Node, "link set wan0 down")
	time.Sleep(time.Second)
	p.ip(p.RA.Node, "link set wan0 up", routes("wan0")[0])
	troop.allAnswered()
	p.awaitAgreement(troop.count)
}

// What an administrator removes is removed at the peer.
func TestFlushByHandReachesThePeer(t *testing.T) {
	t.Parallel()
	p := setPair(t, "byhand", lab.Options{}, "  delete_hold: 500ms\n")
	troop := p.muster(30, 20000, false)
	p.awaitAgreement(troop.count)
	troop.dismiss()
	p.forgetAll(p.RA)
	p.must(lab.Await(p.ctx, "no mapping on rb", func() (bool, error) { return len(p.mappings(p.RB)) == 0, nil }))
}

// Over and back, again and again: no flow is lost, and both routers hold the same
// afterwards.
func TestFailoverAndBack(t *testing.T) {
	t.Parallel()
	rounds, each := 4, 60
	if full() {
		rounds, each = 20, 340
	}
	p := setPair(t, "overandback", lab.Options{Firewall: true}, "")
	troop := p.muster(each, 20000, false)
	p.awaitAgreement(troop.count)
	for round := range rounds {
		r := p.Routers()[round%2]
		p.must(r.Keepalived().Stop())
		p.awaitRole(p.other(r), policy.RoleMaster)
		troop.allAnswered()
		p.awaitSync()
		p.awaitAgreement(troop.count)
		p.must(r.Keepalived().Restart())
		if r == p.RA { // preempts
			p.awaitRole(p.RA, policy.RoleMaster)
			troop.allAnswered()
			p.awaitSync()
			p.awaitAgreement(troop.count)
		}
	}
}

// Both routers are MASTER while they hear nothing of each other. Joined again,
// the one that stays MASTER keeps its flows, and both have one table. (What becomes
// of flows that began meanwhile depends on which router each packet went to.)
func TestSplitBrainEnds(t *testing.T) {
	for _, first := range []string{"adverts", "sync"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			splitBrain(setPair(t, "split"+first, lab.Options{Firewall: true}, ""), first == "sync")
		})
	}
}

func splitBrain(p *pair, syncFirst bool) {
	apart := 3 * time.Second
	if full() {
		apart = 30 * time.Second
	}
	troop := p.muster(60, 20000, false)
	p.awaitAgreement(troop.count)
	p.must(p.CutSync(p.RA))
	p.must(p.BlockAdverts(p.ctx, p.RA, p.RB))
	p.must(p.BlockAdverts(p.ctx, p.RB, p.RA))
	p.awaitRole(p.RB, policy.RoleMaster) // and has drawn the hosts and the server to it
	p.awaitRole(p.RA, policy.RoleMaster)
	p.muster(60, 30000, false)
	time.Sleep(apart)
	if syncFirst {
		p.must(p.PlugSync(p.RA))
		p.awaitSync()
	}
	p.must(p.UnblockAdverts(p.ctx))
	p.awaitRole(p.RA, policy.RoleMaster)
	p.awaitRole(p.RB, policy.RoleBackup)
	if !syncFirst {
		p.must(p.PlugSync(p.RA))
		p.awaitSync()
	}
	troop.allAnswered()
	p.awaitAgreement(troop.count)
}

// A daemon that is killed loses nothing: neither the standby's nor the master's.
func TestDaemonsMayDie(t *testing.T) {
	t.Parallel()
	p := setPair(t, "daemons", lab.Options{Firewall: true}, "")
	troop := p.muster(60, 20000, false)
	p.awaitAgreement(troop.count)
	for _, r := range []*lab.Router{p.RB, p.RA} {
		p.start(r, p.config(r, onWAN)) // restarts it
		p.awaitSync()
		p.awaitAgreement(troop.count)
	}
	more := p.muster(30, 30000, false)
	p.awaitAgreement(troop.count + more.count)
	p.must(p.Crash(p.RA))
	p.awaitRole(p.RB, policy.RoleMaster)
	troop.allAnswered()
	more.allAnswered()
}
