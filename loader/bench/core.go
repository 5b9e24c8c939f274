// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// core is the core that the calling thread is pinned to.
type core struct {
	cpu       int
	ksoftirqd string // the schedstat file of its softirq thread, "" when that is out of sight
}

// onOwnCore calls do on a thread that ends with it: pinned to the last of its
// CPUs, undisturbed by signals, in a mount namespace of its own. What do mounts
// there, and network namespaces without names, end with it however it ends.
func onOwnCore(do func(core) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		c, err := secludeThread()
		if err != nil {
			done <- err
			return
		}
		done <- do(c)
	}()
	return <-done
}

func secludeThread() (core, error) {
	if unix.Geteuid() != 0 {
		return core{}, errors.New("measure rates: making network namespaces and loading BPF programs needs root: run it with sudo")
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return core{}, fmt.Errorf("ask for this thread's CPUs: %w", err)
	}
	last := 0
	for cpu := range 64 * len(cpus) {
		if cpus.IsSet(cpu) {
			last = cpu
		}
	}
	cpus.Zero()
	cpus.Set(last)
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return core{}, fmt.Errorf("pin this thread to CPU %d: %w", last, err)
	}
	var all unix.Sigset_t // a signal would end a run of the generator early
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		return core{}, fmt.Errorf("block this thread's signals: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return core{}, fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return core{}, fmt.Errorf("make the mounts private: %w", err)
	}
	return core{cpu: last, ksoftirqd: findKsoftirqd(last)}, nil
}

// findKsoftirqd finds the thread that does what a core's softirqs left undone.
func findKsoftirqd(cpu int) string {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return ""
	}
	want := fmt.Sprintf("ksoftirqd/%d\n", cpu)
	for _, name := range names {
		if comm, err := os.ReadFile(name); err == nil && string(comm) == want {
			return filepath.Join(filepath.Dir(name), "schedstat")
		}
	}
	return ""
}

// busy is the time that the core has spent on the calling thread and on
// softirqs so far. The packets' way through the router is softirqs, most of
// which run within the thread that made the packets; when they take long the
// kernel leaves them to ksoftirqd.
func (c core) busy() (time.Duration, error) {
	var own unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &own); err != nil {
		return 0, fmt.Errorf("read this thread's CPU time: %w", err)
	}
	total := time.Duration(own.Nano())
	if c.ksoftirqd == "" {
		return total, nil
	}
	text, err := os.ReadFile(c.ksoftirqd) // nanoseconds on the CPU, waiting, slices
	if err != nil {
		return 0, fmt.Errorf("read ksoftirqd's CPU time: %w", err)
	}
	ran, _, _ := strings.Cut(string(text), " ")
	ns, err := strconv.ParseInt(ran, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read ksoftirqd's CPU time in %s: %w", c.ksoftirqd, err)
	}
	return total + time.Duration(ns), nil
}
