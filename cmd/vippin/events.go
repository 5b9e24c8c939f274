// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"vippin/policy"
)

// eventBacklog is how many events a reader may be behind before it loses some.
const eventBacklog = 256

// eventLost is the kind of the line that tells a reader what it missed.
const eventLost = "lost"

// eventHub hands the daemon's events to whoever is watching. Publishing never
// waits: a reader that is too slow loses events and is told how many.
type eventHub struct {
	now func() time.Time

	mu      sync.Mutex
	readers map[*eventReader]struct{}
}

type eventReader struct {
	events chan policy.Event
	lost   uint64
}

func newEventHub(now func() time.Time) *eventHub {
	return &eventHub{now: now, readers: make(map[*eventReader]struct{})}
}

// Publish sets the time of an event that has none and hands it on.
func (h *eventHub) Publish(event policy.Event) {
	if event.Time.IsZero() {
		event.Time = h.now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.readers {
		r.offer(event, h.now())
	}
}

// Subscribe returns the events from now on; the channel is closed after ctx
// has ended.
func (h *eventHub) Subscribe(ctx context.Context) <-chan policy.Event {
	r := &eventReader{events: make(chan policy.Event, eventBacklog)}
	h.mu.Lock()
	h.readers[r] = struct{}{}
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.readers, r)
		close(r.events)
	})
	return r.events
}

// offer runs under the hub's lock, so it is the only sender: room seen stays
// room. The notice of a loss needs a place of its own before the next event.
func (r *eventReader) offer(event policy.Event, now time.Time) {
	needed := 1
	if r.lost > 0 {
		needed = 2
	}
	if cap(r.events)-len(r.events) < needed {
		r.lost++
		return
	}
	if r.lost > 0 {
		r.events <- policy.Event{Time: now, Kind: eventLost,
			Detail: fmt.Sprintf("lost %d events: they came faster than they were read", r.lost)}
		r.lost = 0
	}
	r.events <- event
}
