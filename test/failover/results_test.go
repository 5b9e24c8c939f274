// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A run goes on where another was interrupted, be it in the middle of a line;
// what failed is measured again.
func TestJournalResumes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.jsonl")
	cases := selection{
		kinds: []kind{survive}, arms: []string{"vippin", "direct"}, faults: []string{hard}, firewalls: []string{open},
		families: []string{"ipv4"}, ages: []string{young}, only: []string{""}, flows: []int{100}, adverts: []int{100}, rounds: 2,
	}.cases()
	j, err := openJournal(path, true)
	if err != nil {
		t.Fatal(err)
	}
	for i, failure := range []string{"", "the machine was busy"} {
		if err := j.add(Result{Case: cases[i], OutageMs: 300, Error: failure}); err != nil {
			t.Fatal(err)
		}
	}
	if left := j.remaining(cases); !slices.Equal(left, cases[1:]) {
		t.Errorf("left over in this run: %v", left)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"kind":"survive","arm":"dir`); err != nil {
		t.Fatal(err)
	}
	file.Close()

	again, err := openJournal(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if left := again.remaining(cases); !slices.Equal(left, cases[1:]) {
		t.Errorf("left over after the interruption: %v", left)
	}
	if err := again.add(Result{Case: cases[1]}); err != nil {
		t.Fatal(err)
	}
	third, err := openJournal(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if left := third.remaining(cases); !slices.Equal(left, cases[2:]) || len(third.results) != 2 || third.results[0].OutageMs != 300 {
		t.Errorf("left over in the third run: %v; results %+v", left, third.results)
	}
	fresh, err := openJournal(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if left := fresh.remaining(cases); len(left) != len(cases) {
		t.Errorf("a fresh run has %d cases left of %d", len(left), len(cases))
	}
}

// No two cases share a key, neither of the plans has a case twice, and the arms
// of a setting stand beside each other, so that they see the same machine.
func TestPlans(t *testing.T) {
	for name, plan := range map[string][]Case{"default": defaults(), "full": full()} {
		keys := make(map[string]Case)
		last := make(map[string]int)
		for i, c := range plan {
			if other, twice := keys[c.Key()]; twice {
				t.Errorf("%s: %+v and %+v share the key %s", name, c, other, c.Key())
			}
			keys[c.Key()] = c
			setting := c.setting()
			setting.Round = c.Round
			if at, seen := last[setting.Key()]; seen && at != i-1 {
				t.Errorf("%s: the arms of %s are apart", name, setting.Key())
			}
			last[setting.Key()] = i
			compared := c.Kind == survive || c.Kind == newborn || c.Kind == latency
			if !compared && !armNamed(c.Arm).replicates() {
				t.Errorf("%s: %s replicates nothing", name, c.Key())
			}
			if armNamed(c.Arm).strict && !slices.Contains([]kind{newborn, latency, trials}, c.Kind) {
				t.Errorf("%s: strict mode makes no difference to %s", name, c.Key())
			}
		}
		if !slices.IsSortedFunc(plan, func(a, b Case) int { return a.Round - b.Round }) {
			t.Errorf("%s: the rounds are mixed", name)
		}
	}
}

// Old flows of all arms age together, latency is compared in turns, everything
// else is alone.
func TestCompanions(t *testing.T) {
	one := Case{Kind: survive, Arm: "vippin", Age: old, Flows: 1000}
	two, other, fresh := one, one, one
	two.Arm, other.Flows, fresh.Age = "direct", 100, young
	if got := companions([]Case{one, two, other}); len(got) != 2 {
		t.Errorf("%d are measured together, want 2", len(got))
	}
	if got := companions([]Case{fresh, two}); len(got) != 1 {
		t.Errorf("%d young ones are measured together", len(got))
	}
	near, also := Case{Kind: latency, Arm: "vippin", Flows: 1000}, Case{Kind: latency, Arm: "strict", Flows: 1000}
	again := near
	again.Round = 1
	if got := companions([]Case{near, also, again}); len(got) != 2 {
		t.Errorf("%d arms take turns, want 2", len(got))
	}
}

func TestCommandLine(t *testing.T) {
	for args, want := range map[string]string{
		"":                         "docs/bench/failover",
		"-full":                    "docs/bench/failover-full",
		"-arms vippin -out /tmp":   "/tmp/failover-chosen",
		"-flows 10,x":              `"x" is no number`,
		"-arms vipin":              `"vipin" is none of`,
		"-full -arms vippin":       "-full is everything",
		"vippin":                   "flags only",
		"-kinds cpu -flows 0":      `"0" is no number`,
		"-faults hard -families 4": `"4" is none of`,
	} {
		o, err := parse(strings.Fields(args), new(strings.Builder))
		got := o.file
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", args, got, want)
		}
	}
	o, err := parse(strings.Fields("-arms direct,masquerade -kinds survive,cpu -flows 7"), new(strings.Builder))
	if err != nil || len(o.cases) != 3 {
		t.Errorf("%d cases (%v), want 3: %v", len(o.cases), err, o.cases)
	}
}
