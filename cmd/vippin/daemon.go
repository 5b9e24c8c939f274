// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"vippin/loader"
	"vippin/policy"
)

// runDaemon is "vippin run": the tasks of the daemon, until ctx ends or one of
// them fails. What it has attached stays in force when it ends.
func runDaemon(ctx context.Context, e *env, opts runOptions) error {
	config, err := readConfig(opts.ConfigFile)
	if err != nil {
		return err
	}
	if opts.RunDir != "" {
		config.RunDir = opts.RunDir
	}
	log := e.logger(config.Log.Level)
	unlock, err := lockRunDir(ctx, config.RunDir, e.pid)
	if err != nil {
		return whileRunning(err, `one per run_dir is enough: "vippin reload" makes it read its configuration again`)
	}
	defer unlock()
	plane, err := loader.Load(loader.Options{BPFFS: config.BPFFS, MaxFlows: config.Dataplane.MaxFlows, Log: log})
	if err != nil {
		return err
	}
	defer plane.Close()
	listener, err := listenControl(config.RunDir)
	if err != nil {
		return err
	}
	defer listener.Close() // if nobody is served
	d := newDaemon(e, opts, config, plane, log)
	if err := d.flight.load(); err != nil {
		d.state.trouble = append(d.state.trouble, err.Error())
		log.Warn("the failovers of before are not known", "error", err)
	}
	if d.prober, err = loader.NewProber(); err != nil {
		return err
	}
	defer d.prober.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tasks, ctx := errgroup.WithContext(ctx)
	d.tasks, d.ctx = tasks, ctx
	d.attend()
	if err := d.start(); err != nil {
		cancel()
		return errors.Join(err, tasks.Wait())
	}
	tasks.Go(func() error { return plane.Collect(ctx, log) })
	tasks.Go(func() error { return d.followFIFO(ctx) })
	tasks.Go(func() error { return d.loop(ctx) })
	tasks.Go(func() error { return d.ready.Run(ctx, d.heardMasters) })
	tasks.Go(func() error { return d.hush.Run(ctx) })
	tasks.Go(func() error { return d.flight.Run(ctx) })
	tasks.Go(func() error { return d.fast.Run(ctx) })
	tasks.Go(func() error { return d.hup(ctx) })
	d.alike.gather, d.alike.tell = d.facts, d.tellFacts
	tasks.Go(func() error { return d.alike.Run(ctx) })
	control := &server{control: d, access: newAccess(config.Control.Group), log: log}
	tasks.Go(func() error { return control.Serve(ctx, listener) })
	tasks.Go(func() error { return d.notify.Watchdog(ctx, d.healthy) })
	d.notify.Ready(fmt.Sprintf("%d pins", len(config.Pins)))
	log.Info("running", "node", config.Node, "version", version, "tier", plane.Tier(), "pins", len(config.Pins))
	err = tasks.Wait()
	d.notify.Stopping()
	if err == nil || errors.Is(err, context.Canceled) {
		log.Info("ended; what is attached stays in force, living connections stay pinned")
		return nil
	}
	return err
}

// attend begins to hear what roles depend on. The start follows it already: to attach
// many programs takes seconds.
func (d *daemon) attend() {
	d.tasks.Go(func() error { return loader.Watch(d.ctx, d.links) })
	d.tasks.Go(func() error { return d.plane.Adverts(d.ctx, handTo(d.ctx, d.adverts)) })
	d.tasks.Go(func() error { return d.plane.Claims(d.ctx, handTo(d.ctx, d.claims)) })
}

// daemon is the core: one goroutine, loop, owns configuration, plan and
// tracker; everything that happens is handed to it.
type daemon struct {
	env    *env
	opts   runOptions
	plane  *loader.Dataplane
	log    *slog.Logger
	notify notifier
	hub    *eventHub
	began  time.Time
	store  toggleStore
	flight *flightLog
	ready  *readyKeeper
	hush   *hush
	words  *peerWords
	alike  *alike
	fast   *fastKeeper
	toggle sync.Mutex     // of the fast path: one at a time
	prober *loader.Prober // the loop's
	tasks  *errgroup.Group
	ctx    context.Context // of tasks

	links   chan loader.LinkEvent
	adverts chan policy.AdvertSeen
	claims  chan policy.ClaimSeen
	notices chan fifoNotice
	asked   chan func() // run by the loop
	lacking chan []int  // interfaces without their programs

	state coreState // the loop's alone
}

func newDaemon(e *env, opts runOptions, config *policy.Config, plane *loader.Dataplane, log *slog.Logger) *daemon {
	hub := newEventHub(e.now)
	d := &daemon{
		env: e, opts: opts, plane: plane, log: log,
		notify: notifier{log: log}, hub: hub, began: e.now(),
		store:   toggleStore{dir: config.StateDir},
		flight:  newFlightLog(e, log, plane, hub.Publish, config.StateDir),
		ready:   newReadyKeeper(e, log, hub.Publish, config),
		hush:    newHush(log, e.monotonic, loaderResets, config.Sync.NoRST),
		words:   newPeerWords(),
		alike:   newAlike(e, log),
		links:   make(chan loader.LinkEvent, 64),
		adverts: make(chan policy.AdvertSeen, 1024),
		claims:  make(chan policy.ClaimSeen, 64),
		notices: make(chan fifoNotice, 64),
		asked:   make(chan func()),
		lacking: make(chan []int),
		state:   newCoreState(config),
	}
	flows := config.Dataplane.MaxFlows
	d.fast = newFastKeeper(log, planeLoader{plane: plane, flows: flows, log: log}, hub.Publish, config.Fastpath)
	plane.TellEnds(loader.Ends{Ended: d.fast.Forget, Lost: d.fast.Bump})
	d.ready.behind, d.flight.resetsHeld = d.hush.SetBehind, d.hush.Held
	return d
}

// handTo hands what a ring buffer holds to the loop. It waits for room: the
// ring buffer counts what it cannot hold.
func handTo[T any](ctx context.Context, loop chan<- T) func(T) error {
	return func(what T) error {
		select {
		case loop <- what:
		case <-ctx.Done():
		}
		return nil
	}
}

func (d *daemon) followFIFO(ctx context.Context) error {
	path := d.state.config.VRRP.KeepalivedFIFO
	if path == "" {
		return nil
	}
	reader := &fifoReader{path: path, log: d.log}
	return reader.Run(ctx, func(n fifoNotice) {
		select {
		case d.notices <- n:
		case <-ctx.Done():
		}
	})
}

// hup reloads on SIGHUP.
func (d *daemon) hup(ctx context.Context) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			report, err := d.Reload(ctx)
			switch {
			case err != nil:
				d.log.Error("reload", "error", err)
			case !report.OK:
				d.log.Error("reload: the configuration has errors, nothing changed", "errors", report.Errors)
			}
		}
	}
}

// ask runs what in the loop and waits for it.
func (d *daemon) ask(ctx context.Context, what func()) error {
	done := make(chan struct{})
	select {
	case d.asked <- func() { defer close(done); what() }:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	<-done // the loop has taken it and does not leave it half done
	return nil
}

// healthy goes through the loop: a loop that is stuck is not healthy.
func (d *daemon) healthy(ctx context.Context) error {
	return d.ask(ctx, func() {})
}

// poke wakes who waits on c, now or when it comes to wait. c has room for one.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
