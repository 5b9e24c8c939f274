// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The files in run_dir.
const (
	socketName = "control.sock"
	lockName   = "control.lock"
)

// runningError says that a daemon owns this run_dir.
type runningError struct {
	RunDir string
	PID    int // 0 = it has not said
}

func (e *runningError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("a vippin daemon runs with run_dir %s", e.RunDir)
	}
	return fmt.Sprintf("a vippin daemon runs with run_dir %s (pid %d)", e.RunDir, e.PID)
}

// lockRunDir makes run_dir and takes its lock, which the kernel drops with the
// process, however that ends. Whoever changes the dataplane holds it: the
// daemon for life, load, unload and a toggle without a daemon for a moment. So
// it waits a little before it says *runningError.
func lockRunDir(ctx context.Context, runDir string, pid int) (unlock func(), err error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, fmt.Errorf("make run_dir: %w", err)
	}
	path := filepath.Join(runDir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock of run_dir: %w", err)
	}
	for try := 0; ; try++ {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || try == 20 {
			defer f.Close()
			return nil, lockError(err, f, runDir)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(25 * time.Millisecond):
		}
	}
	// The number only makes messages better; the lock does not need it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(pid)+"\n"), 0)
	}
	return func() { f.Close() }, nil
}

func lockError(err error, f *os.File, runDir string) error {
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	var text [16]byte
	n, _ := f.ReadAt(text[:], 0)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	return &runningError{RunDir: runDir, PID: pid}
}
