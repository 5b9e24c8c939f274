// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"vippin/loader"
	"vippin/policy"
)

// The rhythm of the fast path's keeper.
const (
	fastAgain = 30 * time.Second      // before what failed is tried again, unless something changes
	fastPause = 50 * time.Millisecond // between two attachings that links alone ask for
)

// fastTable is a fast path that is loaded: *loader.Fastpath.
type fastTable interface {
	Attach(interfaces []string) ([]policy.FastpathDevice, error)
	SetOpen(open bool) error
	Bump() error
	Run(ctx context.Context) error
	State() (policy.FastpathState, error)
	Remove() error
	Close() error
}

// fastLoader is where fast paths come from: planeLoader outside tests.
type fastLoader interface {
	// Load takes over what an earlier daemon left.
	Load(policy.FastpathConfig) (fastTable, error)
	// Remove takes away what an earlier daemon left.
	Remove() error
}

// fastKeeper keeps the fast path as it is wanted: loaded, on its interfaces and
// open, or away. Where it cannot be had the router goes on without it.
type fastKeeper struct {
	log  *slog.Logger
	load fastLoader
	wake chan struct{} // something is wanted that may not be so yet

	mu     sync.Mutex
	want   fastWish
	done   uint64        // the number of the last wish that was fulfilled, or failed
	news   chan struct{} // closed when done changes
	table  fastTable     // nil: none
	shown  []policy.FastpathDevice
	failed string // why it is not loaded, or not open; "": it is, or is not wanted

	using sync.RWMutex // read: while a table is read from; it is not closed then

	run      *fastRun // Run's alone, as is what follows
	attached time.Time
}

// fastWish is how the fast path should be.
type fastWish struct {
	number uint64
	config policy.FastpathConfig
	toggle *bool  // nil: the configuration decides
	attach uint64 // number of the last wish to attach
	hurry  uint64 // to attach at once
}

func (w *fastWish) decide() (on bool, by policy.EnabledBy) {
	return policy.DecideFastpath(w.toggle, w.config.Enabled)
}

// fastRun is a table that is kept up to date.
type fastRun struct {
	table  fastTable
	config policy.FastpathConfig
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // of ended
	attach uint64
	open   bool
}

func newFastKeeper(log *slog.Logger, load fastLoader, config policy.FastpathConfig) *fastKeeper {
	return &fastKeeper{log: log, load: load, wake: make(chan struct{}, 1), news: make(chan struct{}),
		want: fastWish{number: 1, config: config, attach: 1, hurry: 1}}
}

// Set takes a changed configuration.
func (k *fastKeeper) Set(config policy.FastpathConfig) {
	k.wish(true, func(w *fastWish) { w.config = config })
}

// SetToggle takes the word of whoever switched it by hand; nil: the
// configuration decides again.
func (k *fastKeeper) SetToggle(toggle *bool) {
	k.wish(true, func(w *fastWish) { w.toggle = toggle })
}

// Attach says that interfaces changed, or the programs on them.
func (k *fastKeeper) Attach() { k.wish(false, func(*fastWish) {}) }

func (k *fastKeeper) wish(hurry bool, what func(*fastWish)) {
	k.mu.Lock()
	what(&k.want)
	k.want.number++
	k.want.attach = k.want.number
	if hurry {
		k.want.hurry = k.want.number
	}
	k.mu.Unlock()
	poke(k.wake)
}

// Bump has every flow judged anew: a pin or a role changed.
func (k *fastKeeper) Bump() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.table == nil {
		return
	}
	if err := k.table.Bump(); err != nil {
		k.log.Error("have the fast path learn anew", "error", err)
	}
}

// Settle waits until all that was wished is so, or has failed.
func (k *fastKeeper) Settle(ctx context.Context) error {
	k.mu.Lock()
	number := k.want.number
	for k.done < number {
		news := k.news
		k.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		k.mu.Lock()
	}
	k.mu.Unlock()
	return nil
}

// Run keeps the fast path until ctx ends. It stays attached then, and passes
// every packet to the stack.
func (k *fastKeeper) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer func() { k.end(false) }()
	if on, _ := k.wanted().decide(); !on { // of an earlier daemon, which had it
		k.report(k.load.Remove())
	}
	for ctx.Err() == nil {
		wish := k.wanted()
		next := k.fulfil(ctx, wish)
		timer.Stop()
		if next > 0 {
			timer.Reset(next)
		}
		var ended chan struct{}
		if k.run != nil {
			ended = k.run.ended
		}
		select {
		case <-ctx.Done():
		case <-k.wake:
		case <-timer.C:
		case <-ended:
		}
	}
	return nil
}

func (k *fastKeeper) wanted() *fastWish {
	k.mu.Lock()
	defer k.mu.Unlock()
	wish := k.want
	return &wish
}

// fulfil makes a wish so, and says when to look again, 0: not by time alone.
func (k *fastKeeper) fulfil(ctx context.Context, wish *fastWish) (next time.Duration) {
	on, _ := wish.decide()
	if !on {
		k.report(k.end(true))
		k.fulfilled(wish.number)
		return 0
	}
	if r := k.run; r != nil && (r.broke() || r.config.All != wish.config.All || r.config.Force != wish.config.Force) {
		err := r.err
		k.end(false)
		if err != nil {
			k.report(fmt.Errorf("it ended: %w", err))
			k.fulfilled(wish.number)
			return fastAgain
		}
	}
	if wait := fastPause - time.Since(k.attached); k.run != nil && k.run.attach >= wish.hurry && k.run.attach < wish.attach && wait > 0 {
		return wait
	}
	err := k.begin(ctx, wish.config)
	if err == nil {
		err = k.attach(wish)
	}
	k.report(err)
	k.fulfilled(wish.number)
	if err != nil {
		return fastAgain
	}
	return 0
}

func (k *fastKeeper) fulfilled(number uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.done = number
	close(k.news)
	k.news = make(chan struct{})
}

// report notes why there is no fast path, and tells it once.
func (k *fastKeeper) report(err error) {
	failed := ""
	if err != nil {
		failed = err.Error()
	}
	k.mu.Lock()
	told := k.failed == failed
	k.failed = failed
	k.mu.Unlock()
	if !told && err != nil {
		k.log.Warn("no fast path, every packet takes the stack", "why", err)
	}
}

// broke tells whether what follows the kernel's events has ended: nobody would
// notice changes.
func (r *fastRun) broke() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// begin loads a fast path, unless there is one.
func (k *fastKeeper) begin(ctx context.Context, config policy.FastpathConfig) error {
	if k.run != nil {
		return nil
	}
	table, err := k.load.Load(config)
	if err != nil {
		return err
	}
	r := &fastRun{table: table, config: config, ended: make(chan struct{})}
	ctx, r.cancel = context.WithCancel(ctx)
	go func() {
		defer close(r.ended)
		if r.err = table.Run(ctx); r.err == nil && ctx.Err() == nil {
			r.err = errors.New("nothing follows the kernel's changes any more")
		}
	}()
	k.run, k.attached = r, time.Time{}
	k.mu.Lock()
	k.table = table
	k.mu.Unlock()
	return nil
}

// attach has the wanted interfaces take the fast path, if it was wished since
// the last time.
func (k *fastKeeper) attach(wish *fastWish) error {
	r := k.run
	if r.attach >= wish.attach && r.open {
		return nil
	}
	devices, err := r.table.Attach(wish.config.Interfaces)
	k.attached = time.Now()
	k.mu.Lock()
	k.shown = devices
	k.mu.Unlock()
	if err != nil {
		return errors.Join(fmt.Errorf("attach: %w", err), k.setOpen(false))
	}
	r.attach = wish.attach
	some := false
	for _, device := range devices {
		some = some || device.Mode != ""
	}
	return k.setOpen(some)
}

func (k *fastKeeper) setOpen(open bool) error {
	if k.run.open == open {
		return nil
	}
	if err := k.run.table.SetOpen(open); err != nil {
		return err
	}
	k.run.open = open
	k.log.Info("fast path", "open", open)
	return nil
}

// end closes the fast path and lets go of it, or removes it.
func (k *fastKeeper) end(remove bool) error {
	r := k.run
	if r == nil {
		return nil
	}
	closing := r.table.SetOpen(false)
	r.cancel()
	<-r.ended
	k.mu.Lock()
	k.table, k.shown = nil, nil
	k.mu.Unlock()
	k.run = nil
	k.using.Lock()
	defer k.using.Unlock()
	if remove {
		closing = r.table.Remove() // whatever became of SetOpen
	}
	return errors.Join(closing, r.table.Close())
}

// planeLoader loads fast paths beside a dataplane.
type planeLoader struct {
	plane *loader.Dataplane
	flows uint32
	log   *slog.Logger
}

func (p planeLoader) Load(config policy.FastpathConfig) (fastTable, error) {
	table, err := p.plane.NewFastpath(loader.FastpathOptions{Flows: p.flows, All: config.All, Force: config.Force, Log: p.log})
	if err != nil {
		return nil, err
	}
	return table, nil
}

func (p planeLoader) Remove() error {
	table, err := p.plane.OpenFastpath()
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the fast path of an earlier daemon: %w", err)
	}
	return errors.Join(table.Remove(), table.Close())
}
