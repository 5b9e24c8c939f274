// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"strings"
	"testing"
	"time"

	"vippin/policy"
)

func TestGroups(t *testing.T) {
	settings := policy.BenchPlan(policy.BenchLists{Flows: []int{1, 10}, Families: []string{ipv4, ipv6}, Sizes: []int{64, 512}}, false)
	all := groups(settings)
	if len(all) != 4 {
		t.Fatalf("%d groups: %+v", len(all), all)
	}
	for _, g := range all {
		if len(g.settings) != 2 || g.perRouter() != g.flows+3*freshFlows {
			t.Errorf("group %+v of %d flows in the end", g, g.perRouter())
		}
	}
}

// TestNewFlowsFit: a small machine's conntrack has room for fewer new flows, and for
// one that is full there are none.
func TestNewFlowsFit(t *testing.T) {
	for limit, want := range map[int]int{1 << 20: freshFlows, 8192: 2727, 11: 0, 10: 0, 9: 3} {
		g := groups(policy.BenchPlan(policy.BenchLists{Flows: []int{10}, Sizes: []int{64, 512}}, false))[0].within(limit)
		if g.fresh != want || g.flows <= limit && g.perRouter() > limit {
			t.Errorf("limit %d: %d new flows at a time, want %d; %d in the end", limit, g.fresh, want, g.perRouter())
		}
	}
}

// TestRoom reads the machine's limits, and changes nothing.
func TestRoom(t *testing.T) {
	needRoot(t)
	r, err := makeRoom(1, false)
	if err != nil || len(r.undo) > 0 || !r.fits(1) || r.fits(r.limit+1) || r.crowded(r.buckets/2) || !r.crowded(r.buckets/2+1) {
		t.Errorf("room %+v, %v", r, err)
	}
	const many = 1 << 30
	if r, err := makeRoom(many, false); err != nil || len(r.undo) > 0 || r.fits(many) {
		t.Errorf("room %+v for 2^30 flows: %v", r, err)
	}
	opts := Options{Cases: []policy.BenchCase{policy.BenchRedirect, policy.BenchSNAT}, Rounds: 1, Time: time.Millisecond}
	opts.Settings = policy.BenchPlan(policy.BenchLists{Flows: []int{r.limit + 1}}, false)
	if _, err := Run(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "--raise-limits") {
		t.Errorf("more flows than conntrack has room for: %v", err)
	}
	if got := tracked(policy.BenchCases()); got != 7 {
		t.Errorf("%d cases track flows, want 7", got)
	}
}

func TestJourney(t *testing.T) {
	var last Progress
	j := journey{tell: func(p Progress) { last = p }}
	j.plan(1)
	j.plan(3)
	j.at("the first part")
	if last != (Progress{What: "the first part"}) {
		t.Errorf("at the start %+v", last)
	}
	j.begun = time.Now().Add(-time.Minute)
	j.done(1)
	if last.Done != 0.25 || last.Left < 3*time.Minute || last.Left > 4*time.Minute {
		t.Errorf("after a quarter in a minute %+v", last)
	}
	j.done(5)
	if last.Done != 1 || last.Left != 0 {
		t.Errorf("in the end %+v", last)
	}
}

// TestClosedFastPath: packets that take the stack give no rate of the fast path.
func TestClosedFastPath(t *testing.T) {
	onBed(t, policy.BenchFast, asItIs, func(b *bed) error {
		if err := b.establish(10); err != nil {
			return err
		}
		if err := b.fast.path.SetOpen(false); err != nil {
			return err
		}
		m, err := b.begin(policy.BenchSetting{Direction: policy.BenchOut, Flows: 10, Size: 64, Family: ipv4})
		if err != nil {
			return err
		}
		if err := m.goOn(time.Millisecond); err != nil {
			return err
		}
		if err := m.prove(); err == nil || !strings.Contains(err.Error(), "took the fast path") {
			t.Errorf("closed: %v", err)
		}
		return nil
	})
}
