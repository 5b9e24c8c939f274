// SPDX-License-Identifier: Apache-2.0

package test

import (
	"testing"

	"vippin/policy"
	"vippin/test/lab"
)

// A flow table comes and goes under flows that vippin's own fast path carries: each takes
// them from the other, no packet leaves with another source, and they outlive the master.
func TestFlowtableFastpath(t *testing.T) {
	needFlowtable(t)
	p := setPair(t, "ftfast", lab.Options{Firewall: true, Fastpath: true}, "")
	p.watchLeaks(p.RA, p.RB)
	p.watchOwn()
	p.awaitFast(p.RA)
	troop, drives, line := p.muster(12, 20000, false), p.drives(4000), p.openLine(25000)
	inTable := troop.count*2/3 + len(drives) + 1
	live := func(r *lab.Router, what string) {
		t.Helper()
		w := p.fastWays(r, func() {
			troop.allAnswered()
			p.answers(100, drives...)
		})
		flows, offloaded := p.offloaded(r)
		t.Logf("%s: %d packets by XDP, %d past it; %d of %d flows in the flow table", what, w.forwarded, w.passed, offloaded, flows)
		_, err := line.Get(bulkOctets())
		p.must(err)
		p.unmoved(drives)
	}
	p.settle(p.RA, drives...)
	live(p.RA, "no flow table")
	p.addFlowtable(p.RA)
	p.awaitOffloaded(p.RA, inTable)
	live(p.RA, "a flow table")
	p.must(p.RA.NFT(p.ctx, "delete table inet ft"))
	p.settle(p.RA, drives...)
	live(p.RA, "no flow table again")
	p.addFlowtable(p.RA)
	p.addFlowtable(p.RB)
	p.awaitOffloaded(p.RA, inTable)
	p.awaitAgreement(troop.count + len(drives) + 1)
	p.must(p.Crash(p.RA))
	p.awaitRole(p.RB, policy.RoleMaster)
	live(p.RB, "a flow table of the peer's")
	p.awaitOffloaded(p.RB, inTable)
	live(p.RB, "later")
}
