// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"vippin/test/vm"
)

// fetch returns a kernel, or skips where no machine was asked for. With VIPPIN_VM
// set whatever is missing is a failure.
func fetch(t *testing.T, series string) vm.Kernel {
	t.Helper()
	if os.Getenv("VIPPIN_VM") == "" {
		t.Skip("boots emulated machines: set VIPPIN_VM=1, or run make test-vm")
	}
	kernel, err := vm.Fetch(t.Context(), series)
	if err != nil {
		t.Fatal(err)
	}
	return kernel
}

// forEachKernel runs a test on every kernel, side by side as far as there are
// processors: a machine has one, and more on the same one only slow each other down.
func forEachKernel(t *testing.T, test func(*testing.T, vm.Kernel)) {
	var machines sync.WaitGroup
	places := make(chan struct{}, runtime.NumCPU())
	for _, series := range vm.Series {
		machines.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			t.Run(series, func(t *testing.T) { test(t, fetch(t, series)) })
		})
	}
	machines.Wait()
}

// run runs a command in a machine, shows what it said, and wants exit code 0.
func run(t *testing.T, kernel vm.Kernel, command ...string) string {
	t.Helper()
	result, err := vm.Run(t.Context(), kernel, vm.Options{Command: command, Timeout: 7 * time.Minute})
	t.Logf("%s: command started after %.1f s, off after %.1f s\n%s",
		kernel.Package, result.Boot.Seconds(), result.Total.Seconds(), result.Output)
	if err != nil {
		t.Fatal(err)
	}
	if result.ExitCode != 0 {
		t.Fatalf("exit code %d, want 0", result.ExitCode)
	}
	return string(result.Output)
}

// TestSmoke: every program of the dataplane loads, on a kernel where nothing has
// asked for conntrack yet; nf_tables' own expression queues what strict mode
// marks; a pin found by its VLAN tag is toggled and seen to work, and a queue
// discipline obeys the tag on adverts (see package smoke).
func TestSmoke(t *testing.T) {
	forEachKernel(t, func(t *testing.T, kernel vm.Kernel) {
		program, err := vm.Build(t.Context(), "vippin", "./cmd/vippin")
		if err != nil {
			t.Fatal(err)
		}
		loader, err := vm.BuildTest(t.Context(), "loader.test", "./loader")
		if err != nil {
			t.Fatal(err)
		}
		smoke, err := vm.BuildTest(t.Context(), "smoke.test", "./test/vm/smoke", "-tags", "vmsmoke")
		if err != nil {
			t.Fatal(err)
		}
		// One boot for all; the others run also when the first fails.
		const script = `
			"$1" -test.run '^TestLoad$' -test.v -test.timeout 2m; load=$?
			"$1" -test.run '^TestHoldExpression[46]$' -test.v -test.timeout 2m || load=$?
			VIPPIN_BIN="$2" "$3" -test.skip '^TestKernel' -test.v -test.timeout 4m && exit $load`
		said := run(t, kernel, "sh", "-c", script, "sh", loader, program, smoke)
		wantPassed(t, said, "TestLoad", "TestHoldExpression4", "TestHoldExpression6", "TestGround", "TestVLAN", "TestVLANWithoutBTF", "TestVRRPTag", "TestBench")
	})
}

// wantPassed wants these tests to have run and passed: a test binary that finds
// none to run, or skips, ends with 0 too.
func wantPassed(t *testing.T, said string, names ...string) {
	t.Helper()
	for _, name := range names {
		if !strings.Contains("\n"+said, "\n--- PASS: "+name+" (") {
			t.Errorf("%s did not pass in the machine", name)
		}
	}
}

// TestRun: the right kernel, modules on demand, a root that may be written, no
// network, output and exit code as the command has them.
func TestRun(t *testing.T) {
	forEachKernel(t, func(t *testing.T, kernel vm.Kernel) {
		result, err := vm.Run(t.Context(), kernel, vm.Options{Command: []string{"sh", "-c", `
			uname -r
			ls /sys/class/net
			cat go.mod | head -1
			echo written > /etc/vippin-was-here && cat /etc/vippin-was-here
			ip link add d0 type dummy && ip link add link d0 name d0.2 type vlan id 2 && ls /sys/kernel/btf/8021q
			stat -f -c %T /sys/fs/bpf
			echo to standard error >&2
			sleep 60 & until [ "$(cat /proc/$!/comm)" = sleep ]; do :; done # it may be loaded still when all ends
			exit 7`}})
		if err != nil {
			t.Fatal(err)
		}
		want := kernel.Release + "\nlo\nmodule vippin\nwritten\n/sys/kernel/btf/8021q\nbpf_fs\nto standard error\n"
		if string(result.Output) != want || result.ExitCode != 7 {
			t.Errorf("output %q, exit code %d; want %q, 7", result.Output, result.ExitCode, want)
		}
		if !strings.HasPrefix(kernel.Release, kernel.Series+".") {
			t.Errorf("release %s is not of series %s", kernel.Release, kernel.Series)
		}
		if _, err := os.Stat("/etc/vippin-was-here"); err == nil {
			t.Error("what was written in the machine is on the host")
		}
		if result.Boot <= 0 || result.Total < result.Boot {
			t.Errorf("started after %v, off after %v", result.Boot, result.Total)
		}
	})
}

// TestRunEnds: whatever goes wrong, Run returns, says so, and leaves no emulator.
func TestRunEnds(t *testing.T) {
	kernel := fetch(t, "6.12")
	var heard cancelOnWrite
	ctx, cancel := context.WithCancel(t.Context())
	heard.cancel = cancel
	for _, c := range []struct {
		name string
		ctx  context.Context
		opts vm.Options
		want string
	}{
		{"no such command", t.Context(), vm.Options{Command: []string{"no-such-command"}}, "no-such-command"},
		{"time over", t.Context(), vm.Options{Command: []string{"sleep", "600"}, Timeout: 8 * time.Second}, "8s are over"},
		{"panic", t.Context(), vm.Options{Command: []string{"sh", "-c", "echo c > /proc/sysrq-trigger"}}, "sysrq triggered crash"},
		{"interrupted", ctx, vm.Options{Command: []string{"sh", "-c", "echo up; sleep 600"}, Output: &heard}, "canceled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			_, err := vm.Run(c.ctx, kernel, c.opts)
			if !errors.Is(err, vm.ErrNotRun) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want ErrNotRun with %q", err, c.want)
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("took %v", took)
			}
			if left := emulators(t); len(left) > 0 {
				t.Errorf("emulators left behind: %v", left)
			}
		})
	}
	if !bytes.Contains(heard.said, []byte("up\n")) {
		t.Errorf("the live output was %q", heard.said)
	}
}

// cancelOnWrite ends the run at the first output.
type cancelOnWrite struct {
	said   []byte
	cancel context.CancelFunc
}

func (c *cancelOnWrite) Write(piece []byte) (int, error) {
	c.said = append(c.said, piece...)
	c.cancel()
	return len(piece), nil
}

// emulators lists the process numbers of this process's emulators.
func emulators(t *testing.T) []string {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			if strings.HasPrefix(string(name), "qemu-system") {
				left = append(left, pid)
			}
		}
	}
	return left
}
