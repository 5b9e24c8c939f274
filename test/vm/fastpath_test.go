// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"testing"

	"vippin/test/vm"
)

// TestFastpath: the fast path's programs load, learn flows of every kind of
// translation, with VLAN tags and without, and forward them; and pass their packet
// tests (see package bpf).
func TestFastpath(t *testing.T) {
	forEachKernel(t, func(t *testing.T, kernel vm.Kernel) {
		program, err := vm.BuildTest(t.Context(), "bpf.test", "./bpf")
		if err != nil {
			t.Fatal(err)
		}
		// The programs need the types of what are modules here.
		const script = `modprobe -a nf_conntrack nf_nat && "$1" -test.run '^TestLearn|^TestFast' -test.v -test.timeout 6m`
		said := run(t, kernel, "sh", "-c", script, "sh", program)
		wantPassed(t, said, "TestLearns", "TestLearnsBulk", "TestLearnsTagged", "TestLearnsFullSize", "TestLearnsVirtual", "TestLearnsVirtualTagged",
			"TestLearnsTCP", "TestLearnsAnew", "TestLearnRefuses",
			"TestLearnRefusesGeneration", "TestLearnRefusesFragments", "TestLearnRefusesHelpers", "TestLearnRefusesDecrypted", "TestLearnUntold", "TestLearnVoids", "TestLearnFar",
			"TestLearnHops", "TestLearnDeadline", "TestLearnTakesOver",
			"TestFastForwards", "TestFastExits", "TestFastEntryExits", "TestFastChecksums", "TestFastFlags", "TestFastVirtual")
	})
}
