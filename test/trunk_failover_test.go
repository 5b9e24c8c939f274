// SPDX-License-Identifier: Apache-2.0

package test

import (
	"testing"

	"vippin/policy"
	"vippin/test/lab"
)

// One router has a trunk, its peer a cable for each VLAN. 504 living flows go from the
// one to the other and back, in good order and by crashes of either, and none notices.
func TestTrunkFailover(t *testing.T) {
	const each = 168 // of TCP, UDP and ICMP echo
	s := setScene(t, "trunkfall", lab.Options{Firewall: true, Trunk: lab.TrunkTagged, TrunkAlone: true, TrunkNames: true})
	s.must(s.AddSyncLink())
	p := &pair{scene: s}
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	s.start(s.RA, p.config(s.RA, byTag(s.RA)))
	s.start(s.RB, p.config(s.RB, onWAN))
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitRole(s.RB, policy.RoleBackup)
	p.awaitSync()
	troop := p.muster(each, 20000, false)
	p.awaitAgreement(troop.count)

	goesOver := func(what string, how func() error, to *lab.Router) {
		t.Helper()
		p.must(how())
		p.awaitRole(to, policy.RoleMaster)
		troop.allAnswered()
		t.Logf("%s: %d flows live on %s", what, troop.count, to.Name)
	}
	agree := func() {
		t.Helper()
		p.awaitSync()
		p.awaitAgreement(troop.count)
	}
	goesOver("keepalived of the trunk's router stops", s.RA.Keepalived().Stop, s.RB)
	agree()
	goesOver("it preempts", s.RA.Keepalived().Restart, s.RA)
	agree()
	goesOver("the trunk's router crashes", func() error { return s.Crash(s.RA) }, s.RB)

	s.must(s.PlugSync(s.RA))
	s.must(s.PowerOn(s.ctx, s.RA))
	s.start(s.RA, p.config(s.RA, byTag(s.RA)))
	agree()
	_, err := s.StartKeepalived(s.RA, lab.Keepalived{NoPreempt: true})
	s.must(err)
	s.must(s.RA.Keepalived().AwaitLog(s.ctx, "Entering BACKUP STATE"))
	p.awaitRole(s.RA, policy.RoleBackup)
	goesOver("the router with a cable for each VLAN crashes", func() error { return s.Crash(s.RB) }, s.RA)
}
