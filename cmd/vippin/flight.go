// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/flight"
)

// flightPlane is what the flight recorder looks at in *loader.Dataplane.
type flightPlane interface {
	Flows(yield func(policy.Mapping) bool) error
	Passages(pin uint32) (out, in time.Duration, err error)
	PinCounters() (map[uint32]loader.PinCounters, error)
}

// flightLog is the flight recorder among the daemon's tasks. The loop and the
// peers' sessions tell it what happens, which takes no longer than a lock does;
// Run looks at maps and writes to the disk.
type flightLog struct {
	log        *slog.Logger
	clock      func() flight.Clock
	plane      flightPlane
	resetsHeld func() (uint64, error)
	publish    func(policy.Event)
	store      failoverStore
	feed       flightFeed    // the loop's alone
	wake       chan struct{} // a record was opened

	mu       sync.Mutex
	recorder *flight.Recorder
	pins     map[string][]uint32 // of each group
	begun    bool                // roles of before are known

	looking  sync.Mutex // guards what is below, and is held while maps are read
	held     uint64     // by sync.no_rst, when it was looked at last
	heldRead bool
}

func newFlightLog(e *env, log *slog.Logger, plane flightPlane, publish func(policy.Event), dir string) *flightLog {
	return &flightLog{
		log: log, plane: plane, publish: publish, store: failoverStore{dir: dir}, resetsHeld: loaderResets.held,
		clock:    func() flight.Clock { return flight.Clock{Mono: e.monotonic(), Wall: e.now()} },
		recorder: flight.New(nil), wake: make(chan struct{}, 1),
	}
}

// load takes the records of before. A file that cannot be read is moved aside: a
// record of the past must not keep the router from working.
func (l *flightLog) load() error {
	records, err := l.store.Take()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recorder = flight.New(records)
	return err
}

// tell hands the recorder something that happened. A nil log takes nothing.
func (l *flightLog) tell(what func(*flight.Recorder)) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.begun {
		what(l.recorder)
	}
}

// records is what is known now, looked at anew as far as it is still being
// written.
func (l *flightLog) records(ctx context.Context) []policy.Failover {
	l.look(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recorder.Records(l.clock())
}

// Failovers tells of the role changes that are remembered.
func (d *daemon) Failovers(ctx context.Context) ([]policy.Failover, error) {
	return d.flight.records(ctx), nil
}
