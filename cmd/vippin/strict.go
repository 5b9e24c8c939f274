// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"vippin/loader"
	"vippin/policy"
)

// gate holds first answers back until they may pass: *loader.Gate.
type gate interface {
	Run(ctx context.Context) error
	SetHolding(on bool) error
	Acked([]policy.Flow)
	Release([]policy.Flow)
	Counts() (loader.GateCounts, error)
	Close() error
}

// strictness keeps a gate open while sync.mode is strict, and says when it holds:
// while there is a peer that is up.
type strictness struct {
	log  *slog.Logger
	open func(policy.SyncConfig) (gate, error)

	wake chan struct{} // the configuration, or whether to hold, changed

	mu     sync.Mutex
	config policy.SyncConfig
	hold   bool // a peer is up
	gate   gate // nil: none is open
	holds  bool // the gate does
	failed string
	before loader.GateCounts // of gates that are closed
}

func newStrictness(log *slog.Logger, open func(policy.SyncConfig) (gate, error), config policy.SyncConfig) *strictness {
	return &strictness{log: log, open: open, config: config, wake: make(chan struct{}, 1)}
}

// Set takes a changed configuration.
func (s *strictness) Set(config policy.SyncConfig) {
	s.mu.Lock()
	s.config = config
	s.mu.Unlock()
	s.rouse()
}

// Hold says whether a peer is there for whose word answers can wait.
func (s *strictness) Hold(on bool) {
	s.mu.Lock()
	changed := s.hold != on
	s.hold = on
	s.mu.Unlock()
	if changed {
		s.rouse()
	}
}

func (s *strictness) rouse() {
	poke(s.wake)
}

// Run keeps the gate as it is wanted, until ctx ends. One that cannot be opened is
// tried again: answers pass meanwhile.
func (s *strictness) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		config := s.wanted()
		if config.Mode != policy.SyncStrict {
			s.pause(ctx, 0)
			continue
		}
		if err := s.guard(ctx, config); err != nil {
			s.fails(err)
			s.pause(ctx, replicaWait)
		}
	}
	return nil
}

func (s *strictness) wanted() policy.SyncConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config
}

// pause waits until something changes, or for some time at most.
func (s *strictness) pause(ctx context.Context, most time.Duration) {
	var over <-chan time.Time
	if most > 0 {
		timer := time.NewTimer(most)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-ctx.Done():
	case <-s.wake:
	case <-over:
	}
}

// errOther ends a gate in whose place another one is wanted, or none.
var errOther = errors.New("the configuration changed")

// guard runs one gate until ctx ends, it fails, or another one is wanted.
func (s *strictness) guard(ctx context.Context, config policy.SyncConfig) error {
	g, err := s.open(config)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.gate, s.failed = g, ""
	s.mu.Unlock()
	tasks, running := errgroup.WithContext(ctx)
	tasks.Go(func() error { return g.Run(running) })
	tasks.Go(func() error { return s.steer(running, g, config) })
	err = tasks.Wait()
	s.mu.Lock()
	s.gate, s.holds = nil, false
	s.mu.Unlock()
	err = errors.Join(err, g.SetHolding(false), g.Close())
	s.mu.Lock()
	s.before = addCounts(s.before, g)
	s.mu.Unlock()
	if ctx.Err() != nil || errors.Is(err, errOther) {
		return nil
	}
	return err
}

// steer has the gate hold or not, as the peers come and go.
func (s *strictness) steer(ctx context.Context, g gate, config policy.SyncConfig) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		hold, other := s.hold, !sameGate(s.config, config)
		s.mu.Unlock()
		if other {
			return errOther
		}
		if err := s.setHolding(g, hold); err != nil {
			return err
		}
		s.pause(ctx, 0)
	}
	return nil
}

func (s *strictness) setHolding(g gate, hold bool) error {
	s.mu.Lock()
	same := s.holds == hold
	s.mu.Unlock()
	if same {
		return nil
	}
	if err := g.SetHolding(hold); err != nil {
		return err
	}
	s.mu.Lock()
	s.holds = hold
	s.mu.Unlock()
	s.log.Info("sync.mode strict", "holding", hold)
	return nil
}

// sameGate tells whether one gate serves two configurations.
func sameGate(a, b policy.SyncConfig) bool {
	return a.Mode == b.Mode && a.StrictQueue == b.StrictQueue && a.StrictMark == b.StrictMark && a.StrictTimeout == b.StrictTimeout
}

// fails notes why there is no gate.
func (s *strictness) fails(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != err.Error() {
		s.log.Error("no answer is held for sync.mode strict, trying again", "error", err)
	}
	s.failed = err.Error()
}

// Acked lets the answers of flows pass that the peers have.
func (s *strictness) Acked(flows []policy.Flow) {
	if g := s.current(); g != nil && len(flows) > 0 {
		g.Acked(flows)
	}
}

// Release lets the answers of flows pass that no peer will have.
func (s *strictness) Release(flows []policy.Flow) {
	if g := s.current(); g != nil && len(flows) > 0 {
		g.Release(flows)
	}
}

func (s *strictness) current() gate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gate
}

// Strict tells whether peers are to acknowledge at once.
func (s *strictness) Strict() bool { return s.wanted().Mode == policy.SyncStrict }

// addCounts adds a gate's counts to those of earlier ones.
func addCounts(sum loader.GateCounts, g gate) loader.GateCounts {
	counts, err := g.Counts()
	if err != nil {
		return sum
	}
	sum.Held += counts.Held
	sum.Acked += counts.Acked
	sum.TimedOut += counts.TimedOut
	sum.Released += counts.Released
	sum.PassedBy += counts.PassedBy
	sum.Waited += counts.Waited
	sum.Waiting = counts.Waiting
	return sum
}

// Status is nil unless sync.mode is strict.
func (s *strictness) Status() *policy.StrictStatus {
	s.mu.Lock()
	g, counts, strict := s.gate, s.before, s.config.Mode == policy.SyncStrict
	status := policy.StrictStatus{Holding: s.holds, Failed: s.failed}
	s.mu.Unlock()
	if !strict {
		return nil
	}
	if g != nil {
		counts = addCounts(counts, g)
	}
	status.Waiting, status.Held, status.Acked = counts.Waiting, counts.Held, counts.Acked
	status.TimedOut, status.Released, status.PassedBy = counts.TimedOut, counts.Released, counts.PassedBy
	if counts.Acked > 0 {
		status.Waited = float64(counts.Waited.Microseconds()) / float64(counts.Acked) / 1000
	}
	return &status
}

// Warning is what an owner should look at, "" = nothing.
func (s *strictness) Warning() string {
	status := s.Status()
	switch {
	case status == nil:
		return ""
	case status.Failed != "":
		return fmt.Sprintf("sync.mode strict: no answer is held, the youngest connections may break at a failover: %s", status.Failed)
	}
	return ""
}
