// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// listenNotify stands in for systemd.
func listenNotify(t *testing.T) func() string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		var buffer [512]byte
		n, err := conn.Read(buffer[:])
		if err != nil {
			t.Error(err)
		}
		return string(buffer[:n])
	}
}

func TestNotify(t *testing.T) {
	next := listenNotify(t)
	n := notifier{log: slog.New(slog.DiscardHandler)}
	n.Ready("2 pins")
	if got := next(); got != "READY=1\nSTATUS=2 pins" {
		t.Errorf("%q", got)
	}
	n.Reloading()
	if got := next(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("%q", got)
	}
	n.Stopping()
	if got := next(); got != "STOPPING=1" {
		t.Errorf("%q", got)
	}
}

func TestWatchdog(t *testing.T) {
	next := listenNotify(t)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "20000")
	var logged lockedBuffer
	n := notifier{log: slog.New(slog.NewTextHandler(&logged, nil))}
	ctx, stop := context.WithCancel(t.Context())
	asked := make(chan error)
	done := make(chan error, 1)
	go func() { done <- n.Watchdog(ctx, func(context.Context) error { return <-asked }) }()
	asked <- nil
	if got := next(); got != "WATCHDOG=1" {
		t.Errorf("%q", got)
	}
	asked <- errors.New("the loop is stuck")
	asked <- nil // the next notice is this one's
	if got := next(); got != "WATCHDOG=1" {
		t.Errorf("%q", got)
	}
	wantIn(t, logged.String(), "the loop is stuck")
	n.Stopping()
	if got := next(); got != "STOPPING=1" {
		t.Errorf("a stuck daemon patted the watchdog: %q", got)
	}
	stop()
	select {
	case asked <- nil:
		<-done
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	}
}

func TestNoSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	n := notifier{log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	n.Ready("")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := n.Watchdog(ctx, nil); err != nil {
		t.Error(err)
	}
}
