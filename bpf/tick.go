// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Tick is the program that returns the lower half of jiffies64, which only a program
// can read.
func Tick() *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Name: "vippin_tick", Type: ebpf.SocketFilter, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.FnJiffies64.Call(), asm.Return()},
	}
}
