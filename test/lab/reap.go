// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
)

// open are the labs of this process that are not closed.
var open struct {
	sync.Mutex
	labs []*Lab
}

func register(l *Lab) {
	open.Lock()
	defer open.Unlock()
	open.labs = append(open.labs, l)
}

func unregister(l *Lab) {
	open.Lock()
	defer open.Unlock()
	open.labs = slices.DeleteFunc(open.labs, func(other *Lab) bool { return other == l })
}

// CloseAll closes every lab of this process.
func CloseAll() error {
	open.Lock()
	labs := slices.Clone(open.labs)
	open.Unlock()
	var errs []error
	for _, l := range labs {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(binDir()))...)
}

// Main is for TestMain: os.Exit(lab.Main(m)). It removes what dead processes
// left, runs the tests, closes every lab and looks for goroutines left over. On
// SIGINT or SIGTERM it closes the labs and exits with status 130 from within.
func Main(m interface{ Run() int }) int {
	if Root() == nil {
		if err := Reap(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ended:
		case <-ctx.Done():
			fmt.Fprintln(os.Stderr, "interrupted: removing the labs")
			if err := CloseAll(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			os.Exit(130)
		}
	}()
	code := m.Run()
	close(ended)
	<-watched
	stop()
	if err := errors.Join(CloseAll(), goleak.Find()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// Guard is Main for a program: it calls f with a context that ends on SIGINT
// or SIGTERM, and closes every lab afterwards, also after a panic.
func Guard(f func(ctx context.Context) error) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer func() { err = errors.Join(err, CloseAll()) }()
	if err := Reap(); err != nil {
		return err
	}
	return f(ctx)
}

var ours = regexp.MustCompile(`^vp([0-9]+)-`)

// Reap removes the namespaces, the processes in them, the bpffs folders and
// the files that labs of dead processes left behind.
func Reap() error {
	var errs []error
	for _, ns := range leftovers(netnsRoot) {
		errs = append(errs, killInside(ns))
	}
	for _, dir := range leftovers(bpfRoot) {
		errs = append(errs, removePins(filepath.Join(bpfRoot, dir)))
	}
	for _, ns := range leftovers(netnsRoot) {
		err := netns.DeleteNamed(ns)
		if errors.Is(err, syscall.EINVAL) { // never mounted: its maker died in between
			err = os.Remove(filepath.Join(netnsRoot, ns))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // another reaper was quicker
			errs = append(errs, fmt.Errorf("remove namespace %s: %w", ns, err))
		}
	}
	for _, dir := range leftovers(os.TempDir()) {
		errs = append(errs, os.RemoveAll(filepath.Join(os.TempDir(), dir)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what dead labs left: %w", err)
	}
	return nil
}

// leftovers lists the entries of a folder that carry the prefix of a process
// that is dead.
func leftovers(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // no such folder: nothing was left there
	}
	var names []string
	for _, e := range entries {
		match := ours.FindStringSubmatch(e.Name())
		if match == nil {
			continue
		}
		if pid, err := strconv.Atoi(match[1]); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			names = append(names, e.Name())
		}
	}
	return names
}
