// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// onFastpath are the tests that a router with the fast path on must pass as well:
// what the server sees, errors and fragments, protocols, living flows, toggles,
// interfaces that move, takeovers and replication. Of those that take long, some
// are left out that are like others here; and the ones that measure the size of the
// packets which the tc programs see, or that rename an interface of the fast path.
var onFastpath = []string{
	"TestServerSeesTheVIP", "TestSamePort", "TestClash", "TestFullMap", "TestUntouched", "TestNotMasqueraded",
	"TestUnpinned", "TestBackupStaysUnpinned",
	"TestErrorsOfTheRouter", "TestErrorsOfExplicitSNAT", "TestErrorsWithThePinOff", "TestReject", "TestTraceroute",
	"TestPathMTUBeyond", "TestPathMTUInside", "TestFragments", "TestFragmentsUntouched",
	"TestSCTP", "TestFTP",
	"TestLivingFlowsAreLeftAlone", "TestRemovedPinKeepsItsFlows", "TestTupleReusedFromTimeWait",
	"TestRestartLosesNothing", "TestVLANAddedLive", "TestUnload", "TestLoadFollowsAdverts",
	"TestInterfaceMadeAnew", "TestNumberReusedByAnotherDevice", "TestDownAndUp", "TestCarrierLost", "TestMovedToAnotherNamespace",
	"TestMastersWithoutAdverts", "TestNewFlowsDuringTakeover", "TestStrictAnswersWait",
}

// With the fast path on everything else is as it is without: the same tests run
// once more.
func TestWithFastpath(t *testing.T) {
	if os.Getenv("VIPPIN_LAB_FASTPATH") == "1" {
		t.Skip("the fast path is on already")
	}
	runAgain(t, "the fast path on", onFastpath, "VIPPIN_LAB_FASTPATH=1", "-test.timeout=8m", "-test.parallel=4")
}

// runAgain runs tests of this program once more, with a variable in their
// environment that the lab reads, and returns what they wrote. Each must pass.
func runAgain(t *testing.T, with string, tests []string, variable string, flags ...string) (output string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	flags = append(flags, "-test.v", "-test.short", "-test.run=^("+strings.Join(tests, "|")+")$")
	again := exec.CommandContext(t.Context(), self, flags...)
	again.Env = append(os.Environ(), variable)
	written, err := again.CombinedOutput()
	output = string(written)
	for _, name := range tests {
		if !strings.Contains(output, "\n--- PASS: "+name+" ") {
			t.Errorf("%s: not passed", name)
		}
	}
	if err != nil || t.Failed() {
		t.Fatalf("%v; the tests with %s wrote:\n%s", err, with, output)
	}
	return output
}
