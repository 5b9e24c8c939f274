// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"slices"
	"time"

	"vippin/policy"
	"vippin/policy/flight"
)

// The rhythm of a record that is being written.
const (
	passageSoon = 100 * time.Millisecond // how often first packets are looked for
	soonFor     = 2 * time.Second        // at first
	saveEvery   = time.Second            // at most, after the record was opened, and how often anything is looked at
	saveAgain   = 10 * time.Second       // after the disk would not take it
)

// flowLooks is when flows and counters are looked at, after the role change: that
// reads a whole map.
var flowLooks = []time.Duration{time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second, 58 * time.Second}

// Run writes records down until ctx ends.
func (l *flightLog) Run(ctx context.Context) error {
	w := &flightWriter{l: l, looks: make(map[flightLook]bool)}
	l.countResets()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		opened := false
		select {
		case <-ctx.Done():
			w.save(true)
			return nil
		case <-l.wake:
			opened = true
		case <-timer.C:
		}
		w.turn(ctx, opened)
		timer.Reset(w.next())
	}
}

// flightWriter is what Run knows.
type flightWriter struct {
	l       *flightLog
	looks   map[flightLook]bool // that were done, of the open records
	written []byte              // what the file holds
	savedAt time.Duration
	trouble string // of the last attempt to save
}

type flightLook struct {
	group string
	at    time.Duration
	look  int
}

// turn looks at what is due, completes records, and saves what is new.
func (w *flightWriter) turn(ctx context.Context, opened bool) {
	l := w.l
	open := l.open()
	now := l.clock().Mono
	if opened {
		l.countResets()
	}
	l.lookForPassages(open)
	if w.flowsDue(now, open) {
		l.countFlows(ctx, open)
		l.countResets()
	}
	completed := l.complete()
	for i := range completed {
		l.publish(policy.Event{Kind: "failover", Group: completed[i].Group, Role: &completed[i].Role, Detail: flight.Headline(completed[i])})
	}
	w.save(opened || len(completed) > 0)
}

// flowsDue tells whether one of the looks of an open record is due.
func (w *flightWriter) flowsDue(now time.Duration, open []flight.Open) (due bool) {
	for look := range w.looks {
		if !slices.ContainsFunc(open, func(o flight.Open) bool { return o.Group == look.group && o.At == look.at }) {
			delete(w.looks, look)
		}
	}
	for _, o := range open {
		for i, after := range flowLooks {
			look := flightLook{o.Group, o.At, i}
			if now >= o.At+after && !w.looks[look] {
				w.looks[look], due = true, true
			}
		}
	}
	return due
}

// next is how long nothing is to be done.
func (w *flightWriter) next() time.Duration {
	now := w.l.clock().Mono
	pause := time.Duration(1<<63 - 1)
	if w.trouble != "" {
		pause = saveAgain
	}
	for _, o := range w.l.open() {
		pause = min(pause, saveEvery)
		if o.Master && !o.Passed && now < o.At+soonFor {
			pause = passageSoon
		}
	}
	return pause
}

// save writes the records if they differ from what is written: at once, or if it
// has been a while.
func (w *flightWriter) save(atOnce bool) {
	now := w.l.clock()
	again := saveEvery
	if w.trouble != "" {
		again = saveAgain
	}
	if !atOnce && now.Mono < w.savedAt+again {
		return
	}
	w.l.mu.Lock()
	records := w.l.recorder.Records(now)
	w.l.mu.Unlock()
	data, err := encodeFailovers(records)
	if err == nil && bytes.Equal(data, w.written) || len(records) == 0 {
		return
	}
	w.savedAt = now.Mono
	if err == nil {
		err = w.l.store.Save(data)
	}
	if err == nil {
		w.written, w.trouble = data, ""
		return
	}
	if w.trouble != err.Error() {
		w.trouble = err.Error()
		w.l.log.Warn("the records of failovers cannot be kept, trying again", "error", err)
		w.l.publish(policy.Event{Kind: "warning", Detail: "the records of failovers cannot be kept: " + err.Error()})
	}
}

func (l *flightLog) open() []flight.Open {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recorder.Open()
}

func (l *flightLog) complete() []policy.Failover {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recorder.Tick(l.clock())
	return l.recorder.Completed()
}

// look brings the open records up to date.
func (l *flightLog) look(ctx context.Context) {
	open := l.open()
	if len(open) == 0 {
		return
	}
	l.lookForPassages(open)
	l.countFlows(ctx, open)
	l.countResets()
}

// lookForPassages asks the programs for the first packets of those that became
// MASTER. The stamps are theirs: it does not matter when they are read.
func (l *flightLog) lookForPassages(open []flight.Open) {
	for _, o := range open {
		if !o.Master || o.Passed {
			continue
		}
		for _, pin := range l.pinsOf(o.Group) {
			out, in, err := l.plane.Passages(pin)
			if err != nil {
				l.log.Debug("look for the first packets", "group", o.Group, "error", err)
				break
			}
			l.tell(func(r *flight.Recorder) { r.Passages(o.Group, out, in) })
		}
	}
}

func (l *flightLog) pinsOf(group string) []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pins[group]
}

// countFlows counts the flows from before the role change that had packets since.
func (l *flightLog) countFlows(ctx context.Context, open []flight.Open) {
	since := make(map[uint32]time.Duration) // by pin
	groups := make(map[uint32]string)
	for _, o := range open {
		if !o.Master {
			continue
		}
		for _, pin := range l.pinsOf(o.Group) {
			since[pin], groups[pin] = o.Since, o.Group
		}
	}
	if len(since) == 0 {
		return
	}
	spoke := make(map[string]uint64)
	err := l.plane.Flows(func(m policy.Mapping) bool {
		if began, ok := since[m.Pin]; ok && m.Born < began && max(m.LastOut, m.LastIn) >= began {
			spoke[groups[m.Pin]]++
		}
		return ctx.Err() == nil
	})
	if err != nil {
		l.log.Debug("count the flows that spoke again", "error", err)
		return
	}
	l.tell(func(r *flight.Recorder) {
		for group, n := range spoke {
			r.Spoke(group, n)
		}
	})
}

// countResets reads how many RSTs left, and how many did not.
func (l *flightLog) countResets() {
	l.looking.Lock()
	defer l.looking.Unlock()
	counters, err := l.plane.PinCounters()
	if err != nil {
		l.log.Debug("count RSTs", "error", err)
		return
	}
	held, heldErr := l.resetsHeld()
	more := held
	if held >= l.held { // else the table was made anew
		more -= l.held
	}
	known := l.heldRead
	if heldErr == nil {
		l.held, l.heldRead = held, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for group, pins := range l.pins {
		var total uint64
		for _, pin := range pins {
			total += counters[pin].Resets
		}
		l.recorder.Resets(group, total)
	}
	if heldErr == nil && known && more > 0 {
		l.recorder.ResetsHeld(more)
	}
}
