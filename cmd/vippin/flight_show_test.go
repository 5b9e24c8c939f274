// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/policy/flight"
)

func sampleFailovers() []policy.Failover {
	step := func(what string, offset time.Duration, detail string) policy.FailoverStep {
		return policy.FailoverStep{What: what, Time: testNow.Add(offset), Offset: float64(offset.Microseconds()) / 1000, Detail: detail}
	}
	const ms, us = time.Millisecond, time.Microsecond
	return []policy.Failover{{
		Time: testNow.Add(-26 * time.Hour), Group: "Guests", Role: policy.RoleMaster, Was: policy.RoleBackup, Complete: true,
		Cause: "began as the only router: nobody else was heard",
		Note:  "the daemon ended before the record was complete",
	}, {
		Time: testNow.Add(362 * ms), Group: "RouterCore", Role: policy.RoleMaster, Was: policy.RoleBackup, Other: "router-b", Complete: true,
		Cause: "the adverts of router-b (198.51.100.4) stopped: it crashed, or was cut off",
		Steps: []policy.FailoverStep{
			step(flight.LastAdvert, 0, "198.51.100.4, VRID 10 on eth0.2, priority 150, every 100ms"),
			step(flight.FirstOwnAdvert, 361200*us, "198.51.100.3, VRID 10 on eth0.2, priority 100, every 100ms"),
			step(flight.VIPAdded, 361900*us, "198.51.100.2, 2001:db8:2::2 on eth0.2"),
			step(flight.RoleDecided, 362150*us, "MASTER, was BACKUP"),
			step(flight.RoleInForce, 362210*us, "MASTER"),
			step(flight.TakenOver, 362400*us, "30 flows stood ready"),
			step(flight.FirstPinned, 363*ms, ""),
			step(flight.FirstReply, 364*ms, ""),
			step(flight.PeerLost, 3*time.Second, "router-b"),
			step("unheard_of", 4*time.Second, ""),
		},
		Flows: policy.FailoverFlows{TakenOver: 30, SpokeAgain: 28, Lost: 1, Normalised: 12, Resets: 2, ResetsHeld: 3},
	}, {
		Time: testNow.Add(time.Hour), Group: "RouterCore", Role: policy.RoleBackup, Was: policy.RoleMaster, Other: "router-b",
		Cause: "preempted by router-b (198.51.100.4): priority 150 over 100",
		Steps: []policy.FailoverStep{
			step(flight.FirstAdvert, 0, "198.51.100.4, VRID 10 on eth0.2, priority 150, every 100ms"),
			step(flight.RoleDecided, 2*ms, "BACKUP, was MASTER"),
		},
	}}
}

func sampleRehearsals() []policy.Rehearsal {
	return []policy.Rehearsal{
		{Peer: "router-b", Flows: 1200, Fit: 1200, Took: 34.567, Complete: true},
		{
			Peer: "router-c", Flows: 100, Fit: 97, Took: 2100, Note: "it ended in the midst",
			Failures: []policy.RehearsalFault{{What: "clash", Why: "the port is a service's here", Flows: 3, Example: []string{"tcp 198.51.100.2:443", "udp 198.51.100.2:53"}}},
			Missing:  []policy.RehearsalFault{{What: "route", Why: "no way to 203.0.113.0/24", Flows: 2}, {What: "vip", Why: "198.51.100.9 is in no pin"}},
		},
	}
}

func TestShowingFailovers(t *testing.T) {
	told, empty := sampleController(), &fakeController{}
	told.failovers, told.rehearsals = sampleFailovers(), sampleRehearsals()
	fit := &fakeController{rehearsals: sampleRehearsals()[:1]}
	for _, c := range []struct {
		name    string
		control *fakeController
		args    []string
		width   int
		code    int
	}{
		{"failovers", told, nil, 0, exitDone},
		{"failovers-json", told, []string{"-j"}, 0, exitDone},
		{"failovers-terminal", told, nil, 72, exitDone},
		{"failovers-last", told, []string{"-n", "1"}, 0, exitDone},
		{"failovers-group", told, []string{"--group", "Guests"}, 0, exitDone},
		{"failovers-empty", empty, nil, 0, exitDone},
		{"failovers-empty-json", empty, []string{"-j"}, 0, exitDone},
		{"rehearse", told, []string{"--rehearse"}, 0, exitFailed},
		{"rehearse-json", told, []string{"--rehearse", "-j"}, 0, exitFailed},
		{"rehearse-fit", fit, []string{"--rehearse"}, 0, exitDone},
		{"rehearse-empty", empty, []string{"--rehearse"}, 0, exitDone},
		{"rehearse-empty-json", empty, []string{"--rehearse", "-j"}, 0, exitDone},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newRig(t)
			b.width = c.width
			b.serve(c.control)
			code, stdout, stderr := b.run(append([]string{"failovers"}, c.args...)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d (%s)", code, c.code, stderr)
			}
			golden(t, c.name, []byte(stdout+stderr))
		})
	}
}

// Without a daemon the file tells; a rehearsal needs one.
func TestFailoversWithoutDaemon(t *testing.T) {
	b := newRig(t)
	if code, stdout, _ := b.run("failovers"); code != exitDone || !strings.Contains(stdout, "no failover since") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	data, err := encodeFailovers(sampleFailovers())
	if err != nil {
		t.Fatal(err)
	}
	store := failoverStore{dir: filepath.Join(b.dir, "state")}
	if err := store.Save(data); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := b.run("failovers", "-n", "1")
	if code != exitDone || !strings.Contains(stdout, "preempted by router-b") || !strings.Contains(stdout, "the daemon ended before the record was complete") {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
	if err := os.WriteFile(store.path(), []byte("["), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := b.run("failovers"); code != exitFailed || !strings.Contains(stderr, failoversName+" is damaged") {
		t.Errorf("of a damaged file: exit code %d, %q", code, stderr)
	}
	if code, _, stderr := b.run("failovers", "--rehearse"); code != exitFailed || !strings.Contains(stderr, "no daemon runs") {
		t.Errorf("a rehearsal: exit code %d, %q", code, stderr)
	}
	if code, _, stderr := b.run("failovers", "-n", "0"); code != exitUsage || !strings.Contains(stderr, "at least one") {
		t.Errorf("the last 0: exit code %d, %q", code, stderr)
	}
}

// Every step has words for people.
func TestStepsHaveWords(t *testing.T) {
	for _, what := range []string{
		flight.LastAdvert, flight.FirstAdvert, flight.FirstOwnAdvert, flight.LastOwnAdvert, flight.LinkDown, flight.LinkUp, flight.VIPAdded,
		flight.VIPRemoved, flight.RoleDecided, flight.RoleInForce, flight.FirstPinned, flight.FirstReply, flight.TakenOver, flight.Normalised,
		flight.ConflictSeen, flight.ConflictOver, flight.PeerUp, flight.PeerLost,
	} {
		if stepWords[what] == "" {
			t.Errorf("%s has none", what)
		}
	}
}
