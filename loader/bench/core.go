// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// core is the core that the calling thread is pinned to.
type core struct {
	cpu       int
	ksoftirqd string // the schedstat file of its softirq thread, "" when that is out of sight
	apart     bool   // the kernel takes softirqs off the time of the thread that they run in
	begun     time.Time
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
	return core{cpu: last, ksoftirqd: findKsoftirqd(last), apart: softirqsApart(), begun: time.Now()}, nil
}

// softirqsApart tells whether the kernel was built with IRQ_TIME_ACCOUNTING. A
// kernel without BTF does not say; those were built without.
func softirqsApart() bool {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return false
	}
	var runqueue *btf.Struct
	if kernel.TypeByName("rq", &runqueue) != nil {
		return false
	}
	return slices.ContainsFunc(runqueue.Members, func(m btf.Member) bool { return m.Name == "prev_irq_time" })
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
	own, err := c.threadTime()
	if err != nil || c.ksoftirqd == "" {
		return own, err
	}
	ran, _, err := readSchedstat(c.ksoftirqd)
	if err != nil {
		return 0, fmt.Errorf("read ksoftirqd's CPU time: %w", err)
	}
	return own + ran, nil
}

// threadTime is the calling thread's, softirqs within it included: where the
// kernel takes them off it is the time on the wall without that in which the
// thread waited for the core. It never sleeps while it is measured.
func (c core) threadTime() (time.Duration, error) {
	if c.apart {
		_, waited, err := readSchedstat("/proc/thread-self/schedstat")
		if err != nil {
			return 0, fmt.Errorf("read this thread's waiting time: %w", err)
		}
		return time.Since(c.begun) - waited, nil
	}
	var own unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &own); err != nil {
		return 0, fmt.Errorf("read this thread's CPU time: %w", err)
	}
	return time.Duration(own.Nano()), nil
}

// readSchedstat reads how long a thread has been on a CPU, and waited for one.
func readSchedstat(file string) (ran, waited time.Duration, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(string(text), (*int64)(&ran), (*int64)(&waited)); err != nil {
		return 0, 0, fmt.Errorf("read %s: %w", file, err)
	}
	return ran, waited, nil
}
