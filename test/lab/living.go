// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processes lists the ids of all processes for which keep says yes. What ends
// meanwhile is left out.
func processes(keep func(pid int) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && keep(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// livingInGroup lists the processes of a group that are not zombies.
func livingInGroup(group int) ([]int, error) {
	return processes(func(pid int) bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		// pid (name) state ppid pgrp …; the name may contain anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		return len(fields) > 2 && fields[0] != "Z" && fields[2] == strconv.Itoa(group)
	})
}

// livingInside lists the processes in a namespace below /run/netns; zombies
// are in none.
func livingInside(ns string) ([]int, error) {
	var want unix.Stat_t
	if err := unix.Stat(filepath.Join(netnsRoot, ns), &want); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		return nil, fmt.Errorf("look at namespace %s: %w", ns, err)
	}
	return processes(func(pid int) bool {
		var have unix.Stat_t
		err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &have)
		return err == nil && have.Ino == want.Ino && have.Dev == want.Dev
	})
}

// killInside kills every process in a namespace of a lab, also those that its
// processes start meanwhile.
func killInside(ns string) error {
	return awaitEnd(func() ([]int, error) {
		pids, err := livingInside(ns)
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
		}
		return pids, err
	})
}

// signalInside sends a signal to every process in a namespace of a lab.
func signalInside(ns string, signal syscall.Signal) error {
	pids, err := livingInside(ns)
	for _, pid := range pids {
		_ = syscall.Kill(pid, signal)
	}
	return err
}

// awaitEnd waits until nothing of what was killed lives.
func awaitEnd(living func() ([]int, error)) error {
	deadline := time.Now().Add(Slowly(5 * time.Second))
	for {
		pids, err := living()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for the end of killed processes %v: still there after 5 s", pids)
		}
		time.Sleep(pollInterval)
	}
}
