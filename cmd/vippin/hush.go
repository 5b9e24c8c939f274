// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// resetTable is what keeps this kernel from answering by RST: package loader.
type resetTable struct {
	hold func(vips []netip.Addr, d time.Duration) error
	end  func() error
	held func() (uint64, error)
}

// hush keeps the kernel from answering by RST what belongs to connections that it
// was not told of in time (sync.no_rst): their ends try again, and are told of or
// made anew until then.
//
// While flows of a group may be missing on a router that stands by it costs nothing
// to be silent, since the VIPs are elsewhere; so all is in place when it takes over.
// From then on the time runs.
type hush struct {
	log   *slog.Logger
	now   func() time.Duration // CLOCK_MONOTONIC
	table resetTable
	wake  chan struct{}

	mu     sync.Mutex
	limit  time.Duration            // sync.no_rst
	vips   map[string][]netip.Addr  // by group
	behind []string                 // groups that stand by and may lack flows
	until  map[string]time.Duration // groups that were taken over in that state
	anew   bool                     // a time begins
	count  uint64                   // of earlier tables
	failed bool

	// Of Run alone:
	silent  []netip.Addr
	renewAt time.Duration
}

func newHush(log *slog.Logger, now func() time.Duration, table resetTable, limit time.Duration) *hush {
	return &hush{log: log, now: now, table: table, limit: limit, wake: make(chan struct{}, 1), until: make(map[string]time.Duration)}
}

// Set takes a changed sync.no_rst.
func (h *hush) Set(limit time.Duration) { h.change(func() { h.limit = limit }) }

// SetVIPs says which VIPs the groups have.
func (h *hush) SetVIPs(vips map[string][]netip.Addr) { h.change(func() { h.vips = vips }) }

// SetBehind says of which groups flows may be missing while this router stands by.
func (h *hush) SetBehind(groups []string) {
	if h.isBehind(groups) {
		return
	}
	h.change(func() { h.behind = groups })
}

func (h *hush) isBehind(groups []string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Equal(h.behind, groups)
}

// TakenOver says that this router has become MASTER of a group of which flows may be
// missing; Over, that this is no matter any more.
func (h *hush) TakenOver(group string) {
	h.change(func() { h.until[group], h.anew = h.now()+h.limit, true })
}

// Over ends what TakenOver began.
func (h *hush) Over(group string) {
	h.change(func() { delete(h.until, group) })
}

func (h *hush) change(what func()) {
	h.mu.Lock()
	what()
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Run keeps the table as it has to be until ctx ends; the kernel ends what is left.
func (h *hush) Run(ctx context.Context) error {
	h.end() // what a daemon before this one has left
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		case <-timer.C:
		}
		timer.Stop()
		if next := h.look(); next > 0 {
			timer.Reset(next)
		}
	}
}

// look makes the table what it has to be, and says when to look again, 0 = not by
// time alone.
func (h *hush) look() (next time.Duration) {
	vips, lasts, next, anew := h.wanted()
	switch now := h.now(); {
	case len(vips) == 0:
		if len(h.silent) > 0 {
			h.end()
		}
		h.silent = nil
	case !anew && slices.Equal(vips, h.silent) && now < h.renewAt:
	default:
		h.report(h.table.hold(vips, lasts))
		h.silent, h.renewAt = vips, now+next
	}
	return next
}

// wanted is for which VIPs to be silent, for how long, when to look again, and
// whether that time begins now.
func (h *hush) wanted() (vips []netip.Addr, lasts, next time.Duration, anew bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	anew, h.anew = h.anew, false
	for group, until := range h.until {
		if until <= now {
			delete(h.until, group)
			continue
		}
		vips = append(vips, h.vips[group]...)
		lasts = max(lasts, until-now)
		if next == 0 || until-now < next {
			next = until - now
		}
	}
	if len(h.behind) > 0 && h.limit > 0 {
		for _, group := range h.behind {
			vips = append(vips, h.vips[group]...)
		}
		lasts, next = max(lasts, h.limit), h.limit/3
	}
	slices.SortFunc(vips, netip.Addr.Compare)
	return slices.Compact(vips), lasts, next, anew
}

func (h *hush) end() {
	held, _ := h.table.held()
	h.report(h.table.end())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count += held
}

// report tells of a failure once: the kernel answers as ever then.
func (h *hush) report(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil && !h.failed {
		h.log.Warn("connections that are not known yet are answered by RST", "error", err)
	}
	h.failed = err != nil
}

// Held is how many segments were not answered.
func (h *hush) Held() uint64 {
	h.mu.Lock()
	count := h.count
	h.mu.Unlock()
	held, err := h.table.held()
	if err != nil {
		held = 0
	}
	return count + held
}
