// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"vippin/test/vm"
)

// slowness is how many times longer the scenarios wait in the machine than natively
// (see package lab).
const slowness = "5"

// TestScenarios: the project's own scenarios, with keepalived, over real VLANs (see
// package test), and those of trunks, which run nowhere else. With VIPPIN_FULL set
// every one runs on every kernel; else each on one, to be done within minutes.
func TestScenarios(t *testing.T) {
	var (
		mu      sync.Mutex
		kernels int
		passed  = make(map[string]int) // kernels, by stage and test
	)
	forEachKernel(t, func(t *testing.T, kernel vm.Kernel) {
		mu.Lock()
		kernels++
		mu.Unlock()
		stages := stagesOn(t, kernel.Series)
		result, outcomes, err := vm.RunStages(t.Context(), kernel,
			vm.Options{Timeout: 150 * time.Minute, MemMB: 2048, Output: liveLog(t, kernel.Series)}, stages)
		t.Logf("%s: started after %.1f s, off after %.1f s", kernel.Package, result.Boot.Seconds(), result.Total.Seconds())
		for i, stage := range stages {
			t.Run(stage.Name, func(t *testing.T) {
				for _, name := range stage.Tests {
					t.Run(name, func(t *testing.T) {
						if i >= len(outcomes) {
							t.Fatal("was never begun")
						}
						if report(t, outcomes[i], name) {
							mu.Lock()
							passed[stage.Name+"/"+name]++
							mu.Unlock()
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
	for _, c := range conditions {
		for _, s := range c.scenarios {
			if passed[c.name+"/"+s.test] == 0 && (full() || s.kernel != "") {
				t.Errorf("%s: %s passed on no kernel", c.name, s.test)
			}
		}
	}
}

// liveLog is the file that takes a machine's output as it comes, for whoever waits:
// scenarios-6.1.log in the cache.
func liveLog(t *testing.T, series string) *os.File {
	t.Helper()
	cache, err := vm.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(cache, "scenarios-"+series+".log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
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

// full tells whether all scenarios are wanted: make test-vm FULL=1.
func full() bool { return os.Getenv("VIPPIN_FULL") != "" }

// scenario is a test of package test. Kernel is where it runs when not every scenario
// is wanted on every kernel, "" for nowhere.
type scenario struct{ test, kernel string }

// on are scenarios that run on the same kernels.
func on(kernel string, tests ...string) (scenarios []scenario) {
	for _, test := range tests {
		scenarios = append(scenarios, scenario{test, kernel})
	}
	return scenarios
}

// Tests that find VLANs where they have cables elsewhere, on the kernels where each runs:
// what the server sees of whom, bulk data, living flows; errors, fragments, protocols.
var core = slices.Concat(
	on("6.1", "TestServerSeesTheVIP", "TestClash", "TestNotMasqueraded", "TestBulk", "TestTraceroute", "TestPathMTUInside",
		"TestFragments", "TestFTP"),
	on("6.12", "TestSamePort", "TestUntouched", "TestUnpinned", "TestPathMTUBeyond", "TestReject"),
	on("", "TestLivingFlowsAreLeftAlone"),
)

// Full maps, late events, tunnels; masters, bad adverts, and how adverts are told.
var further = slices.Concat(
	on("6.1", "TestFullMap", "TestOwnTunnels", "TestWrongTTL", "TestDeadDaemonHandsOutNoVIP"),
	on("6.12", "TestTupleReusedFromTimeWait", "TestTunnels", "TestNFTEgressSeesTheTag"),
	on("", "TestTwoMasters", "TestKeepalivedModes"),
)

// wanted are scenarios of which only those named run when not every one is wanted.
func wanted(scenarios []scenario, names ...string) (chosen []scenario) {
	for _, s := range scenarios {
		if !slices.Contains(names, s.test) {
			s.kernel = ""
		}
		chosen = append(chosen, s)
	}
	return chosen
}

// conditions are those under which the scenarios run, a stage each.
var conditions = []struct {
	name      string
	env       []string
	scenarios []scenario
}{
	// The tests that make trunks themselves.
	{"trunk", nil, slices.Concat(
		on("6.1", "TestTrunkFailover", "TestTrunkMany", "TestTrunkScripts"),
		on("6.12", "TestBridgeNetfilterVLAN", "TestTrunk", "TestTrunkComesAndGoes", "TestTrunkFastpath", "TestTrunkLists", "TestTrunkVMAC"),
		on("", "TestTrunkVMACFastpath", "TestTrunkDeletedInSync"),
	)},
	// Those of flow tables, which need the module nf_flow_table.
	{"flow tables", nil, slices.Concat(
		on("6.1", "TestFlowtableFailover"),
		on("6.12", "TestFlowtableStrict"),
		on("", "TestFlowtableBack", "TestFlowtablePause", "TestFlowtableUnload", "TestFlowtableBridge", "TestFlowtableFastpath"),
	)},
	{"tagged", []string{"VIPPIN_LAB_TRUNK=tagged"}, slices.Concat(core, further)},
	{"tagged without BTF", []string{"VIPPIN_LAB_TRUNK=tagged", "VIPPIN_LAB_NO_BTF=1"},
		wanted(slices.Concat(core, further), "TestServerSeesTheVIP", "TestClash", "TestSamePort", "TestUnpinned")},
	{"native", []string{"VIPPIN_LAB_TRUNK=native"}, wanted(core)},
	{"qinq", []string{"VIPPIN_LAB_TRUNK=qinq"}, wanted(core)},
}

// before readies the machine: the kernel loads nf_nat_ftp by itself only when its
// helper is not built in, br_netfilter never; a slow processor needs longer queues; and
// grace periods of RCU, one with each program of tcx, take a tenth of a second there
// unless they are hurried.
const before = "modprobe -a nf_nat_ftp br_netfilter && echo 20000 > /proc/sys/net/core/netdev_max_backlog && " +
	"echo 8388608 > /proc/sys/net/core/rmem_max && echo 1 > /sys/kernel/rcu_expedited"

// stagesOn are the stages of one boot.
func stagesOn(t *testing.T, series string) (stages []vm.Stage) {
	t.Helper()
	program, err := vm.Build(t.Context(), "vippin", "./cmd/vippin")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := vm.BuildTest(t.Context(), "test.test", "./test")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range conditions {
		stage := vm.Stage{
			Name: c.name, Before: before, Program: tests, Package: "./test",
			Flags: []string{"-test.short", "-test.timeout=30m", "-test.parallel=1"},
			Env:   append(slices.Clone(c.env), "VIPPIN_BIN="+program, "VIPPIN_LAB_SLOWNESS="+slowness, "VIPPIN_BULK=1m", "VIPPIN_LIVING=100"),
		}
		for _, s := range c.scenarios {
			if full() || s.kernel == series {
				stage.Tests = append(stage.Tests, s.test)
			}
		}
		if len(stage.Tests) > 0 {
			stages = append(stages, stage)
		}
	}
	return stages
}
