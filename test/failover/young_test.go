// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"testing"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

// The harness counts the connections that were made before the crash, and sees
// that masquerade loses every one of them.
func TestMasqueradeLosesTheYoungest(t *testing.T) {
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	result, err := measure(ctx, "young", Case{
		Kind: newborn, Arm: "masquerade", Fault: crash, Firewall: stateful, Family: "ipv4", Only: "tcp", Flows: 200, Adverts: 100,
	}, (*bed).measureYoung)
	if err != nil {
		t.Fatal(err)
	}
	s := result.Survival["tcp"]
	if s.Survived != 0 || s.Flows < 100 || s.Flows+s.Lucky+result.Unmade != 200 {
		t.Errorf("%+v, and %d were not made", s, result.Unmade)
	}
}

// What counts in a phase is what was begun in it.
func TestPhase(t *testing.T) {
	at := func(seconds float64) time.Time {
		return time.Unix(1000, 0).Add(time.Duration(seconds * float64(time.Second)))
	}
	p := Phase{Name: "a phase", from: at(1), to: at(3)}
	p.judge([]swarm.Attempt{
		{Begun: at(0.9), Took: time.Millisecond},
		{Begun: at(1), Took: 2 * time.Millisecond},
		{Begun: at(2), Took: 1010 * time.Millisecond},
		{Begun: at(2.5)}, // not made
		{Begun: at(3), Took: time.Millisecond},
	})
	if p.Begun != 3 || p.Made != 2 || p.Failed != 1 || p.Late != 1 || p.Seconds != 2 || p.Max != 1010 || p.P50 != 506 {
		t.Errorf("%+v", p)
	}
}

// Counters are told since the last look, unless a daemon has begun anew.
func TestExceptions(t *testing.T) {
	before := Exceptions{Held: 10, Acked: 6, TimedOut: 3, Released: 1, PassedBy: 2}
	now := Exceptions{Held: 110, Acked: 96, TimedOut: 8, Released: 6, PassedBy: 9}
	if got, want := now.since(before), (Exceptions{Held: 100, Acked: 90, TimedOut: 5, Released: 5, PassedBy: 7}); got != want {
		t.Errorf("%v, want %v", &got, &want)
	}
	if got := before.since(now); got != before {
		t.Errorf("after a restart: %v, want %v", &got, &before)
	}
}

// Blocks are compared with those measured beside them, of the same round.
func TestMoreThan(t *testing.T) {
	run := func(round int, blocks ...float64) Result {
		return Result{Case: Case{Kind: latency, Round: round}, Latency: &Latency{Blocks: blocks}}
	}
	one := row{Case: Case{Arm: "strict"}, runs: []Result{run(0, 2, 3), run(1, 10)}}
	other := row{Case: Case{Arm: "vippin"}, runs: []Result{run(1, 8), run(0, 1.5, 3, 9)}}
	if got := one.moreThan(other); len(got) != 3 || got[0] != 0.5 || got[1] != 0 || got[2] != 2 {
		t.Errorf("differences %v", got)
	}
	if got := other.moreThan(other); got != nil {
		t.Errorf("of itself: %v", got)
	}
}
