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
	fastAgain  = 10 * time.Second      // before what failed is tried again, unless something changes
	fastPause  = 50 * time.Millisecond // between two attachings that changed links alone ask for
	fastFailed = 2 * time.Second       // the same, while it cannot be loaded
	fastSettle = 15 * time.Second      // to wait for what was wished, at most
)

// fastTable is a fast path that is loaded: *loader.Fastpath.
type fastTable interface {
	Attach(interfaces []string) ([]policy.FastpathDevice, error)
	SetOpen(open bool) error
	Bump() error
	Run(ctx context.Context) error
	State() (policy.FastpathState, error)
	Forget(flows []policy.FlowKey) error
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
	log     *slog.Logger
	load    fastLoader
	publish func(policy.Event)
	wake    chan struct{} // something is wanted that may not be so yet

	mu     sync.Mutex
	want   fastWish
	done   uint64        // the number of the last wish that was fulfilled, or failed
	news   chan struct{} // closed when done changes
	table  fastTable     // nil: none
	shown  []policy.FastpathDevice
	failed string // why it is not loaded, or not open; "": it is, or is not wanted

	using sync.RWMutex // read: while a table is read from; it is not closed then

	// Of Run alone:
	run   *fastRun
	left  bool      // something of an earlier daemon may be in the kernel
	tried uint64    // the number of the last wish that was tried to fulfil
	when  time.Time // and when that was
}

// fastWish is how the fast path should be.
type fastWish struct {
	number uint64
	hurry  uint64 // the number of the last one that does not wait for others
	config policy.FastpathConfig
	toggle *bool // nil: the configuration decides
}

func (w *fastWish) decide() (on bool, by policy.EnabledBy) {
	return policy.DecideFastpath(w.toggle, w.config.Enabled)
}

// fastRun is a table that is kept up to date.
type fastRun struct {
	table  fastTable
	config policy.FastpathConfig // it was loaded for
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // why it ended
	open   bool
}

func newFastKeeper(log *slog.Logger, load fastLoader, publish func(policy.Event), config policy.FastpathConfig) *fastKeeper {
	return &fastKeeper{log: log, load: load, publish: publish, wake: make(chan struct{}, 1), news: make(chan struct{}), left: true,
		want: fastWish{number: 1, hurry: 1, config: config}}
}

// Set takes a changed configuration. A changed vrrp.lease takes effect, too, once
// the dataplane has it: whatever attaches reads that.
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

// Settle waits until all that was wished is so, or has failed; within reason: the
// state says how far it is.
func (k *fastKeeper) Settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, fastSettle)
	defer cancel()
	k.mu.Lock()
	defer k.mu.Unlock()
	for number := k.want.number; k.done < number && ctx.Err() == nil; {
		news := k.news
		k.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
		}
		k.mu.Lock()
	}
}

// Forget has the flow's packets take the stack: conntrack does not know it any
// more.
func (k *fastKeeper) Forget(flow policy.FlowKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.table == nil {
		return
	}
	if err := k.table.Forget([]policy.FlowKey{flow}); err != nil {
		k.log.Debug("have the fast path forget a connection", "error", err)
	}
}

// Run keeps the fast path until ctx ends. It stays attached then, and passes
// every packet to the stack.
func (k *fastKeeper) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		next := k.fulfil(ctx, k.wanted())
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
	k.report(k.end((*fastRun).leave))
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
	broken := k.run != nil && k.run.broke()
	if wait := k.rest() - time.Since(k.when); wait > 0 && k.tried >= wish.hurry && !broken {
		return wait
	}
	if on, _ := wish.decide(); on {
		next = k.switchOn(ctx, wish, broken)
	} else {
		next = k.switchOff()
	}
	k.tried, k.when = wish.number, time.Now()
	k.mu.Lock()
	k.done = wish.number
	close(k.news)
	k.news = make(chan struct{})
	k.mu.Unlock()
	return next
}

// rest is how long links may change until it is looked at them again.
func (k *fastKeeper) rest() time.Duration {
	if k.run == nil {
		return fastFailed
	}
	return fastPause
}

func (k *fastKeeper) switchOff() (next time.Duration) {
	var err error
	switch {
	case k.run != nil:
		err = k.end((*fastRun).remove)
	case k.left:
		err = k.load.Remove()
	}
	k.left = err != nil
	k.report(err)
	if err != nil {
		return fastAgain
	}
	return 0
}

func (k *fastKeeper) switchOn(ctx context.Context, wish *fastWish, broken bool) (next time.Duration) {
	k.left = true
	var err error
	switch r := k.run; {
	case broken:
		err = errors.Join(fmt.Errorf("follow what changes: %w", r.err), k.end((*fastRun).leave))
	case r != nil && (r.config.All != wish.config.All || r.config.Force != wish.config.Force):
		err = k.end((*fastRun).leave)
	}
	if err == nil && k.run == nil {
		err = k.begin(ctx, wish.config)
	}
	if err == nil {
		err = k.attach(wish.config.Interfaces)
	}
	k.report(err)
	if err != nil {
		return fastAgain
	}
	return 0
}

// report notes why there is no fast path, or why it is still there, and tells it
// once.
func (k *fastKeeper) report(err error) {
	failed := ""
	if err != nil {
		failed = err.Error()
	}
	k.mu.Lock()
	told := k.failed == failed
	k.failed = failed
	k.mu.Unlock()
	if err != nil && !told {
		k.log.Warn("fast path, trying again", "error", err)
		k.publish(policy.Event{Kind: "warning", Detail: "fast path: " + failed})
	}
}

// begin loads a fast path and follows what changes.
func (k *fastKeeper) begin(ctx context.Context, config policy.FastpathConfig) error {
	table, err := k.load.Load(config)
	if err != nil {
		return err
	}
	r := &fastRun{table: table, config: config, ended: make(chan struct{})}
	ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx)) // until it is closed
	go func() {
		defer close(r.ended)
		if r.err = table.Run(ctx); r.err == nil {
			r.err = errors.New("it ended")
		}
	}()
	k.run = r
	k.mu.Lock()
	k.table = table
	k.mu.Unlock()
	return nil
}

// attach has the wanted interfaces take the fast path.
func (k *fastKeeper) attach(interfaces []string) error {
	devices, err := k.run.table.Attach(interfaces)
	k.mu.Lock()
	k.shown = devices
	k.mu.Unlock()
	if err != nil {
		return errors.Join(fmt.Errorf("attach: %w", err), k.setOpen(false))
	}
	return k.setOpen(anyAttached(devices))
}

func (k *fastKeeper) setOpen(open bool) error {
	r := k.run
	if r.open == open {
		return nil
	}
	if err := r.table.SetOpen(open); err != nil {
		return err
	}
	r.open = open
	k.log.Info("fast path", "open", open)
	detail := "open"
	if !open {
		detail = "closed"
	}
	k.publish(policy.Event{Kind: "fastpath", Detail: detail})
	return nil
}

// end lets go of the fast path in some way, if there is one.
func (k *fastKeeper) end(how func(*fastRun) error) error {
	r := k.run
	if r == nil {
		return nil
	}
	k.run = nil
	k.mu.Lock()
	k.table, k.shown = nil, nil
	k.mu.Unlock()
	k.using.Lock()
	defer k.using.Unlock()
	return how(r)
}

// leave closes it. It stays attached, so that a daemon that comes takes it over.
func (r *fastRun) leave() error {
	err := r.table.SetOpen(false)
	r.cancel()
	<-r.ended
	return errors.Join(err, r.table.Close())
}

func (r *fastRun) remove() error {
	_ = r.table.SetOpen(false) // if it fails, removing it closes it too
	r.cancel()
	<-r.ended
	return errors.Join(r.table.Remove(), r.table.Close())
}

// broke tells whether what follows the kernel's changes has ended.
func (r *fastRun) broke() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
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

func (p planeLoader) Remove() error { return p.plane.RemoveFastpath() }
