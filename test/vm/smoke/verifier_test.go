// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"cmp"
	"slices"
	"testing"

	"vippin/test/vm/internal/figures"
)

// TestKernelVerifier: this kernel's verifier takes every program there is, the ones
// that wait for a BTF that is missing, and the benchmark's, included, and walks
// through less than nine tenths of what it allows itself for each. The figures in
// docs/kernels.md are the same ones.
func TestKernelVerifier(t *testing.T) {
	if err := run("modprobe", "-a", "nf_conntrack", "nf_nat"); err != nil {
		t.Fatal(err)
	}
	programs, err := figures.Measure()
	if err != nil {
		t.Error(err)
	}
	names, err := figures.Names()
	if err != nil || len(programs) != len(names) || len(names) == 0 {
		t.Fatalf("%d programs are taken, want %d: %v (%v)", len(programs), len(names), names, err)
	}
	for _, p := range programs {
		t.Logf("%s/%s: %d verified, %d translated, stack %s", p.Object, p.Name, p.Verified, p.Translated, p.Stack)
		if p.Verified == 0 || p.Translated == 0 {
			t.Errorf("%s/%s has no figures", p.Object, p.Name)
		}
	}
	largest := slices.MaxFunc(programs, func(a, b figures.Program) int { return cmp.Compare(a.Verified, b.Verified) })
	const most = figures.Limit * 9 / 10
	if largest.Verified >= most {
		t.Errorf("%s/%s takes %d instructions to verify, want less than %d", largest.Object, largest.Name, largest.Verified, most)
	}
	t.Logf("the largest is %s/%s with %d", largest.Object, largest.Name, largest.Verified)
}
