// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fifoRig runs a reader until the test ends.
type fifoRig struct {
	t      *testing.T
	path   string
	reader *fifoReader
	heard  chan fifoNotice
}

func newFIFORig(t *testing.T) *fifoRig {
	t.Helper()
	f := &fifoRig{t: t, path: filepath.Join(t.TempDir(), "keepalived.fifo"), heard: make(chan fifoNotice, 64)}
	f.reader = &fifoReader{path: f.path, log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.reader.Run(ctx, func(n fifoNotice) { f.heard <- n }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	waitFor(t, func() bool { _, err := os.Stat(f.path); return err == nil })
	return f
}

// write opens the FIFO once somebody reads it (before, what is written is lost
// with the writer) and writes without blocking.
func (f *fifoRig) write(chunks ...string) {
	f.t.Helper()
	var w *os.File
	waitFor(f.t, func() (open bool) {
		var err error
		w, err = os.OpenFile(f.path, os.O_WRONLY|unix.O_NONBLOCK, 0)
		return err == nil
	})
	defer w.Close()
	for _, chunk := range chunks {
		if _, err := w.WriteString(chunk); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fifoRig) names(count int) (names []string) {
	f.t.Helper()
	for range count {
		select {
		case n := <-f.heard:
			names = append(names, n.Name)
		case <-time.After(10 * time.Second):
			f.t.Fatalf("heard only %v", names)
		}
	}
	return names
}

func TestFIFO(t *testing.T) {
	f := newFIFORig(t)
	info, err := os.Stat(f.path)
	if err != nil || info.Mode() != os.ModeNamedPipe|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// Several lines a write, and one in parts.
	f.write("INSTANCE \"a\" MASTER 1\nGROUP \"b\" MASTER 0\nINSTANCE \"c\" BACK", "UP 1\n")
	if got := f.names(3); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("heard %v", got)
	}
	// The writer leaves and comes back: no end of file in between.
	f.write("nonsense\n", strings.Repeat("x", 3*fifoLineMax)+"\n", "INSTANCE \"d\" FAULT 1\n")
	if got := f.names(1); got[0] != "d" {
		t.Errorf("heard %v", got)
	}
	if got := f.reader.Garbage(); got != 2 {
		t.Errorf("%d bad lines, want 2", got)
	}
	// Everything on the way is read before a long line without an end ends.
	f.write(strings.Repeat("y", 5000), "\nINSTANCE \"e\" STOP 1\n")
	if got := f.names(1); got[0] != "e" || f.reader.Garbage() != 3 {
		t.Errorf("heard %v, %d bad lines", got, f.reader.Garbage())
	}
}

// TestFIFOReplaced: keepalived removes a FIFO that it made.
func TestFIFOReplaced(t *testing.T) {
	f := newFIFORig(t)
	f.write("INSTANCE \"a\" MASTER 1\n")
	f.names(1)
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { _, err := os.Stat(f.path); return err == nil }) // made again
	f.write("INSTANCE \"b\" MASTER 1\n")
	if got := f.names(1); got[0] != "b" {
		t.Errorf("heard %v", got)
	}
}

func TestFIFOIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, link, filepath.Join(path, "below")} {
		r := &fifoReader{path: p, log: slog.New(slog.DiscardHandler)}
		if err := r.Run(t.Context(), nil); err == nil {
			t.Errorf("%s was read", p)
		}
	}
}

func FuzzFIFO(f *testing.F) {
	f.Add([]byte("INSTANCE \"a\" MASTER 1\nGROUP \"b\" STOP 0\n"), 3)
	f.Add([]byte(strings.Repeat("x", 2*fifoLineMax)+"\nINSTANCE \"a\" FAULT 9\n"), 100)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		// However the bytes are cut into reads, the same lines come out.
		whole := &fifoReader{log: slog.New(slog.DiscardHandler)}
		parts := &fifoReader{log: slog.New(slog.DiscardHandler)}
		var want, got []fifoNotice
		whole.feed(data, func(n fifoNotice) { want = append(want, n) })
		for chunk := range slices.Chunk(data, max(1, size%4096)) {
			parts.feed(chunk, func(n fifoNotice) { got = append(got, n) })
			if len(parts.buffer) > fifoLineMax {
				t.Fatalf("%d bytes are kept", len(parts.buffer))
			}
		}
		if !slices.Equal(got, want) || parts.Garbage() != whole.Garbage() {
			t.Errorf("%v (%d bad) and %v (%d bad)", got, parts.Garbage(), want, whole.Garbage())
		}
	})
}
