// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"vippin/test/vm"
	"vippin/test/vm/internal/figures"
)

// TestKernels: vippin is there before conntrack and NAT, which come as modules; the
// verifier takes every program; and flows keep their source in a flow table (see
// package smoke).
func TestKernels(t *testing.T) {
	forEachKernel(t, func(t *testing.T, kernel vm.Kernel) {
		program, err := vm.Build(t.Context(), "vippin", "./cmd/vippin")
		if err != nil {
			t.Fatal(err)
		}
		smoke, err := vm.BuildTest(t.Context(), "smoke.test", "./test/vm/smoke", "-tags", "vmsmoke")
		if err != nil {
			t.Fatal(err)
		}
		// The first one wants a kernel that nobody has asked for anything yet.
		const script = `export VIPPIN_BIN="$1"
			"$2" -test.run '^TestKernelModulesLate$' -test.v -test.timeout 2m; late=$?
			"$2" -test.run '^TestKernel' -test.skip '^TestKernelModulesLate$' -test.v -test.timeout 4m && exit $late`
		said := run(t, kernel, "sh", "-c", script, "sh", program, smoke)
		wantPassed(t, said, "TestKernelModulesLate", "TestKernelVerifier", "TestKernelFlowtable")
	})
}

// TestKernelsDocument: docs/kernels.md has the figures of every program there is, for
// each kernel.
func TestKernelsDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	names, err := figures.Names()
	if err != nil {
		t.Fatal(err)
	}
	kernels := len(vm.Series) + 1 // and the machine that wrote it
	for _, name := range names {
		object, program, _ := strings.Cut(name, "/")
		row := regexp.MustCompile(fmt.Sprintf("(?m)^\\| %s \\| `%s` \\| \\w+ \\|( [0-9,]+ · [0-9,]+ · [0-9+]+ \\|){%d}$",
			object, program, kernels))
		if !row.Match(text) {
			t.Errorf("docs/kernels.md has no figures of %s on %d kernels: run make verifier", name, kernels)
		}
	}
}
