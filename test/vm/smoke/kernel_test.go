// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// TestGround: what the other tests stand on, without vippin. VLANs carry traffic,
// masquerade chooses the unique address although the VIP is there, a tc program
// loads, and conntrack's types and functions are found.
func TestGround(t *testing.T) {
	l := newLab(t)
	l.serveSources(t)
	l.openAll(t, uniqueOf).unmoved(t, "with nothing done")

	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		t.Fatalf("load a tc program: %v", err)
	}
	program.Close()

	if _, err := os.Stat("/sys/kernel/btf/nf_conntrack"); err != nil {
		t.Fatalf("conntrack is a module here and must have BTF of its own: %v", err)
	}
	types, err := btf.LoadKernelModuleSpec("nf_conntrack")
	if err != nil {
		t.Fatalf("read the module's BTF: %v", err)
	}
	if _, err := types.AnyTypeByName("bpf_skb_ct_lookup"); err != nil {
		t.Errorf("conntrack's look-up for tc programs: %v", err)
	}
}
