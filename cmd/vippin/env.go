// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader"
	"vippin/loader/bench"
	"vippin/policy"
)

// env is everything a verb takes from the world, so that tests run the whole
// command line in their own process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	monotonic      func() time.Duration // CLOCK_MONOTONIC, as in the BPF maps
	euid           int
	pid            int
	columns        func() int // width of the terminal on stdout; 0 = no terminal

	dial      func(ctx context.Context, path string) (net.Conn, error) // the control socket
	observe   func() (policy.Observed, error)
	machine   func(loader.MachineOptions) policy.Machine
	likeness  func(interfaces []string) policy.Likeness
	btf       func() bool
	open      func(bpffs string) (dataplane, error)
	load      func(loader.Options) (dataplane, error)
	conntrack func(context.Context) (conntrackView, error)
	bench     func(context.Context, bench.Options) (policy.BenchReport, error)
	costs     func(ctx context.Context, iface string) ([]policy.ProgramCost, error)
}

// dataplane is what the verbs need of *loader.Dataplane.
type dataplane interface {
	Close() error
	Tier() string
	Planned() (policy.Plan, error)
	Apply(policy.Plan) error
	SetSettings(loader.Settings) error
	Switch([]policy.PlanPin) error
	SetRole(pin uint32, role policy.Role, fixed bool) error
	PinStates() ([]policy.PinState, error)
	PinStatus() ([]policy.PinStatus, error)
	Flows(yield func(policy.Mapping) bool) error
	Sweep() (removed int, err error)
	Unload(force bool) (loader.UnloadReport, error)
	OpenFastpath() (fastReader, error)
}

// fastReader is a fast path that is only read: *loader.Fastpath.
type fastReader interface {
	State() (policy.FastpathState, error)
	Flows() (map[policy.FlowKey]policy.FastpathFlow, error)
	Close() error
}

// pinnedPlane is *loader.Dataplane as the verbs take it.
type pinnedPlane struct{ *loader.Dataplane }

func (p pinnedPlane) OpenFastpath() (fastReader, error) {
	table, err := p.Dataplane.OpenFastpath()
	if err != nil {
		return nil, err
	}
	return table, nil
}

// newEnv is the real world.
func newEnv() *env {
	return &env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, now: time.Now, monotonic: loader.Monotonic,
		euid: os.Geteuid(), pid: os.Getpid(),
		columns: func() int { return terminalColumns(int(os.Stdout.Fd())) },
		dial: func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		observe:   loader.Observe,
		machine:   loader.Machine,
		likeness:  loader.Likeness,
		btf:       loader.HasBTF,
		open:      openDataplane,
		load:      loadDataplane,
		conntrack: dumpConntrack,
		bench:     bench.Run,
		costs:     bench.Costs,
	}
}

// openDataplane keeps a nil *loader.Dataplane from becoming a non-nil
// interface.
func openDataplane(bpffs string) (dataplane, error) {
	d, err := loader.Open(bpffs)
	if err != nil {
		return nil, err
	}
	return pinnedPlane{d}, nil
}

func loadDataplane(opts loader.Options) (dataplane, error) {
	d, err := loader.Load(opts)
	if err != nil {
		return nil, err
	}
	return pinnedPlane{d}, nil
}

// terminalColumns says how wide the terminal behind fd is, 0 if it is none.
func terminalColumns(fd int) int {
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if size.Col == 0 {
		return 80 // a serial console that never learned its size
	}
	return int(size.Col)
}

// colour says whether roles and warnings are coloured: on a terminal that can,
// unless NO_COLOR (https://no-color.org) is set to anything.
func (e *env) colour() bool {
	return e.columns() > 0 && e.getenv("NO_COLOR") == "" && e.getenv("TERM") != "dumb"
}

// logger writes to stderr. Below systemd the journal adds the time itself.
func (e *env) logger(level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if e.getenv("JOURNAL_STREAM") != "" {
		opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(e.stderr, opts))
}
