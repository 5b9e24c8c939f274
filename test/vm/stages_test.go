// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The script runs every stage, whatever became of the others, and each one's output
// is found again.
func TestStagesScript(t *testing.T) {
	dir := t.TempDir()
	stages := []Stage{
		{Program: "/bin/echo", Tests: []string{"TestA", "TestB"}, Env: []string{"UNUSED=it's quoted"}, Flags: []string{"-x=two words"}},
		{Program: filepath.Join(dir, "missing"), Tests: []string{"TestC"}},
		{Program: "/bin/echo", Tests: []string{"TestD"}},
	}
	said, err := exec.Command("sh", "-c", stagesScript(dir, stages)).CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"-test.v=test2json -test.run ^(TestA|TestB)$ -x=two words\n", "missing", "-test.v=test2json -test.run ^(TestD)$\n",
	} {
		if got := string(stageOutput(said, i)); !strings.Contains(got, want) || strings.Contains(got, "@@") {
			t.Errorf("stage %d wrote %q, want %q", i, got, want)
		}
	}
	if got := stageOutput(said, 3); got != nil {
		t.Errorf("a stage that was not run wrote %q", got)
	}
}

// What a test program writes is read as it is meant: results, logs of subtests, and a
// program that dies in a test.
func TestOutcomes(t *testing.T) {
	const mark = "\x16"
	said := strings.ReplaceAll(`#=== RUN   TestGood
#=== RUN   TestGood/part
    good_test.go:1: all is well
#--- PASS: TestGood (1.50s)
#    --- PASS: TestGood/part (1.00s)
#=== RUN   TestBad
    bad_test.go:1: all is not
#--- FAIL: TestBad (0.00s)
#=== RUN   TestLacking
    lacking_test.go:1: no VLANs here
#--- SKIP: TestLacking (0.00s)
#=== RUN   TestHollow
#=== RUN   TestHollow/part
    hollow_test.go:1: no VLANs here
#--- PASS: TestHollow (0.00s)
#    --- SKIP: TestHollow/part (0.00s)
#=== RUN   TestDying
panic: out of time
`, "#", mark)
	outcomes, err := outcomesIn(t.Context(), []byte(said))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]string{
		"TestGood": {"pass", "all is well"}, "TestBad": {"fail", "all is not"},
		"TestLacking": {"skip", "no VLANs here"}, "TestHollow": {"skip", "no VLANs here"}, "TestDying": {"", "out of time"},
	} {
		got, there := outcomes[name]
		if !there || got.Result != want[0] || !strings.Contains(got.Log, want[1]) {
			t.Errorf("%s: %+v, want %q", name, got, want)
		}
		for other, words := range map[string]string{"TestGood": "all is well", "TestBad": "all is not"} {
			if other != name && strings.Contains(got.Log, words) {
				t.Errorf("%s has the log of %s: %q", name, other, got.Log)
			}
		}
	}
	if took := outcomes["TestGood"].Took.Seconds(); took != 1.5 {
		t.Errorf("TestGood took %v s, want 1.5", took)
	}
	var names []string
	for name := range outcomes {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"TestBad", "TestDying", "TestGood", "TestHollow", "TestLacking"}; !slices.Equal(names, want) {
		t.Errorf("outcomes of %v, want %v", names, want)
	}
}
