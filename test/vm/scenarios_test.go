// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"testing"
	"time"

	"vippin/test/vm"
)

// slowness is how many times longer the scenarios wait in the machine than natively
// (see package lab).
const slowness = "5"

// TestScenarios: the project's own scenarios, with keepalived, over real VLANs (see
// package test), and those of trunks, which run nowhere else.
func TestScenarios(t *testing.T) {
	passed := make(map[string]int) // kernels, by stage and test
	kernels := 0
	forEachKernel(t, func(t *testing.T, kernel vm.Kernel) {
		kernels++
		stages := scenarios(t)
		result, outcomes, err := vm.RunStages(t.Context(), kernel, vm.Options{Timeout: 12 * time.Minute, MemMB: 2048}, stages)
		t.Logf("%s: started after %.1f s, off after %.1f s", kernel.Package, result.Boot.Seconds(), result.Total.Seconds())
		for i, stage := range stages {
			t.Run(stage.Name, func(t *testing.T) {
				for _, name := range stage.Tests {
					t.Run(name, func(t *testing.T) {
						if i >= len(outcomes) {
							t.Fatal("was never begun")
						}
						if report(t, outcomes[i], name) {
							passed[stage.Name+"/"+name]++
						}
					})
				}
			})
		}
		if err != nil {
			t.Fatalf("%v\nthe last words in the machine:\n%s", err, last(result.Output))
		}
		if t.Failed() {
			t.Logf("the kernel said:\n%s", last(result.Console))
		}
	})
	if kernels < len(vm.Series) {
		return // somebody has chosen
	}
	for _, stage := range scenarios(t) {
		for _, name := range stage.Tests {
			if passed[stage.Name+"/"+name] == 0 {
				t.Errorf("%s: %s passed on no kernel", stage.Name, name)
			}
		}
	}
}

// report makes a test of the machine this one's, with its log unless it passed, and
// says whether it did.
func report(t *testing.T, outcomes map[string]vm.Outcome, name string) bool {
	t.Helper()
	outcome, begun := outcomes[name]
	switch {
	case !begun:
		t.Fatal("was never begun")
	case outcome.Result == "pass":
		t.Logf("passed in %.1f s", outcome.Took.Seconds())
		return true
	case outcome.Result == "skip":
		t.Skipf("cannot run on this kernel:\n%s", outcome.Log)
	case outcome.Result == "":
		t.Fatalf("did not come to its end:\n%s", outcome.Log)
	}
	t.Fatalf("failed after %.1f s:\n%s", outcome.Took.Seconds(), outcome.Log)
	return false
}

// last is the end of a long text.
func last(text []byte) []byte { return text[max(0, len(text)-8000):] }

// scenarios are the stages of one boot.
func scenarios(t *testing.T) []vm.Stage {
	t.Helper()
	program, err := vm.Build(t.Context(), "vippin", "./cmd/vippin")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := vm.BuildTest(t.Context(), "test.test", "./test")
	if err != nil {
		t.Fatal(err)
	}
	stage := func(name string, names []string, env ...string) vm.Stage {
		return vm.Stage{
			Name: name, Program: tests, Package: "./test", Tests: names,
			Flags: []string{"-test.short", "-test.timeout=10m", "-test.parallel=1"},
			Env:   append(env, "VIPPIN_BIN="+program, "VIPPIN_LAB_SLOWNESS="+slowness, "VIPPIN_BULK=1m"),
		}
	}
	return []vm.Stage{
		stage("trunk", onTrunk),
		stage("tagged", onVLANs, "VIPPIN_LAB_TRUNK=tagged"),
		stage("tagged without BTF", onVLANsNoBTF, "VIPPIN_LAB_TRUNK=tagged", "VIPPIN_LAB_NO_BTF=1"),
	}
}

// onTrunk are the tests that make trunks themselves.
var onTrunk = []string{"TestTrunk", "TestTrunkLists", "TestTrunkFastpath", "TestTrunkFailover"}

// onVLANs are tests that find VLANs where they have cables elsewhere: what the server
// sees, bulk data, living flows, two masters and bad adverts (issue A), errors,
// fragments, protocols (issue B).
var onVLANs = []string{
	"TestServerSeesTheVIP", "TestSamePort", "TestClash", "TestFullMap", "TestUntouched", "TestNotMasqueraded", "TestUnpinned",
	"TestBulk",
	"TestLivingFlowsAreLeftAlone", "TestTupleReusedFromTimeWait",
	"TestTwoMasters", "TestWrongTTL", "TestNFTEgressSeesTheTag",
	"TestTraceroute", "TestPathMTUBeyond", "TestPathMTUInside", "TestFragments", "TestReject", "TestTunnels", "TestOwnTunnels", "TestFTP",
}

// onVLANsNoBTF are those of them that a kernel without BTF must pass as well.
var onVLANsNoBTF = []string{"TestServerSeesTheVIP", "TestSamePort", "TestClash", "TestUntouched", "TestUnpinned", "TestBulk", "TestLivingFlowsAreLeftAlone"}
