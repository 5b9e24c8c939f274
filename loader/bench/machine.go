// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// processor names it, with how many of them there are.
func processor() string {
	name := runtime.GOARCH
	file, err := os.Open("/proc/cpuinfo")
	if err == nil {
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if key, value, found := strings.Cut(lines.Text(), ":"); found && strings.TrimSpace(key) == "model name" {
				name = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s", runtime.NumCPU(), name)
}

// slowing are settings that make BPF programs slower than they are elsewhere.
var slowing = []struct{ file, fast, says string }{
	{"kernel/bpf_stats_enabled", "0", "kernel.bpf_stats_enabled is on: every run of a BPF program is timed, which costs"},
	{"net/core/bpf_jit_enable", "1", "net.core.bpf_jit_enable is not 1: BPF programs are interpreted, or logged"},
	{"net/core/bpf_jit_harden", "0", "net.core.bpf_jit_harden is on: BPF programs are larger and slower"},
}

// slowingNotes say which of them are in force.
func slowingNotes() (list []string) {
	for _, s := range slowing {
		if text, err := os.ReadFile("/proc/sys/" + s.file); err == nil && strings.TrimSpace(string(text)) != s.fast {
			list = append(list, s.says)
		}
	}
	return list
}
