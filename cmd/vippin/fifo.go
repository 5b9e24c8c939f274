// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy/vrrp"
)

// fifoNotice is one line of keepalived's notify FIFO.
type fifoNotice struct {
	Kind, Name string // GROUP or INSTANCE, and which
	State      string // as keepalived wrote it
	Priority   uint8
	Script     bool // a transition script said so, not the FIFO
}

const (
	fifoLineMax = 512             // keepalived's own limit for a name is far below
	fifoLook    = 2 * time.Second // how often it is looked whether the FIFO is still the one at its path
)

// fifoReader listens to keepalived's notify FIFO (vrrp_notify_fifo). It is a
// witness, not the trigger: keepalived writes without blocking, so lines can
// be lost, and it must be the FIFO's only reader.
type fifoReader struct {
	path    string
	log     *slog.Logger
	garbage atomic.Uint64 // lines that were none

	buffer   []byte
	skipping bool // in the middle of a line that is too long
}

// Run makes the FIFO if there is none (0600: keepalived is root), and calls
// handle for every line until ctx ends. A keepalived that made the FIFO itself
// removes it when it ends: then it is made and opened again.
func (r *fifoReader) Run(ctx context.Context, handle func(fifoNotice)) error {
	for {
		f, err := openFIFO(r.path)
		if err != nil {
			return err
		}
		err = r.read(ctx, f, handle)
		f.Close()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read keepalived's FIFO: %w", err)
		}
		r.log.Info("keepalived's FIFO was replaced, opening it again", "path", r.path)
	}
}

// openFIFO opens for reading and writing, so that there is never an end of
// file when keepalived closes its end (fifo(7)).
func openFIFO(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make keepalived's FIFO %s: %w", path, err)
	}
	info, err := os.Lstat(path) // opening anything else could have effects
	if err != nil {
		return nil, fmt.Errorf("look at keepalived's FIFO: %w", err)
	}
	if info.Mode().Type() != fs.ModeNamedPipe {
		return nil, fmt.Errorf("%s is not a FIFO: remove it, or set another vrrp.keepalived_fifo", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open keepalived's FIFO: %w", err)
	}
	return f, nil
}

// read returns nil when another file is at the path, or ctx has ended.
func (r *fifoReader) read(ctx context.Context, f *os.File, handle func(fifoNotice)) error {
	r.buffer, r.skipping = nil, false
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var chunk [4096]byte
	for ctx.Err() == nil {
		if err := f.SetReadDeadline(time.Now().Add(fifoLook)); err != nil {
			return err
		}
		if ctx.Err() != nil { // it may have ended before the deadline was set again
			return nil
		}
		n, err := f.Read(chunk[:])
		r.feed(chunk[:n], handle)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !r.isAtPath(f) {
				return nil
			}
		case err != nil:
			return err
		}
	}
	return nil
}

func (r *fifoReader) isAtPath(f *os.File) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	current, err := os.Lstat(r.path)
	return err == nil && os.SameFile(opened, current)
}

// feed cuts what was read into lines, of which one read may hold several or
// only a part.
func (r *fifoReader) feed(chunk []byte, handle func(fifoNotice)) {
	for len(chunk) > 0 {
		line, rest, ended := bytes.Cut(chunk, []byte("\n"))
		chunk = rest
		if !r.skipping {
			r.buffer = append(r.buffer, line...)
		}
		if len(r.buffer) > fifoLineMax {
			r.buffer, r.skipping = r.buffer[:0], true
			r.refuse(errors.New("the line is too long"))
		}
		if !ended {
			return
		}
		if r.skipping {
			r.skipping = false
			continue
		}
		r.line(string(r.buffer), handle)
		r.buffer = r.buffer[:0]
	}
}

func (r *fifoReader) line(text string, handle func(fifoNotice)) {
	var n fifoNotice
	var err error
	if n.Kind, n.Name, n.State, n.Priority, err = vrrp.ParseFIFO(text); err != nil {
		r.refuse(err)
		return
	}
	handle(n)
}

// refuse counts every bad line and logs the first, the second, the fourth …
func (r *fifoReader) refuse(err error) {
	count := r.garbage.Add(1)
	if count&(count-1) == 0 {
		r.log.Warn("keepalived's FIFO: ignored a line", "error", err, "ignored", count)
	}
}

// Garbage says how many lines were not understood.
func (r *fifoReader) Garbage() uint64 { return r.garbage.Load() }
