// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vippin/loader"
)

// loaderResets is the real one.
var loaderResets = resetTable{hold: loader.HoldResets, end: loader.EndHoldResets, held: loader.ResetsHeld}

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
// From then on the time runs. The kernel ends it by itself.
type hush struct {
	log   *slog.Logger
	now   func() time.Duration // CLOCK_MONOTONIC
	table resetTable
	wake  chan struct{}

	mu     sync.Mutex
	limit  time.Duration           // sync.no_rst
	vips   map[string][]netip.Addr // by group
	behind []string                // groups that stand by and may lack flows
	taken  []string                // groups that were taken over in that state, just now
	until  time.Duration           // when the last one's time is over

	counting sync.Mutex // while a table goes, its count is not in the sum
	count    uint64     // of earlier tables
	stands   bool       // there is a table

	// Of Run alone:
	failed  bool
	renewAt time.Duration
}

func newHush(log *slog.Logger, now func() time.Duration, table resetTable, limit time.Duration) *hush {
	return &hush{log: log, now: now, table: table, limit: limit, wake: make(chan struct{}, 1)}
}

// Set takes a changed sync.no_rst.
func (h *hush) Set(limit time.Duration) {
	h.change(func() { h.limit = limit })
}

// SetVIPs says which VIPs the groups have.
func (h *hush) SetVIPs(vips map[string][]netip.Addr) {
	h.change(func() { h.vips = vips })
}

// SetBehind says of which groups flows may be missing while this router stands by.
func (h *hush) SetBehind(groups []string) {
	h.mu.Lock()
	same := slices.Equal(h.behind, groups)
	h.mu.Unlock()
	if !same {
		h.change(func() { h.behind = groups })
	}
}

// TakenOver says that this router has become MASTER of a group of which flows may be
// missing.
func (h *hush) TakenOver(group string) {
	h.change(func() { h.taken = append(h.taken, group) })
}

// change makes Run look at once.
func (h *hush) change(what func()) {
	h.mu.Lock()
	what()
	h.mu.Unlock()
	poke(h.wake)
}

// Run keeps the table as it has to be until ctx ends; the kernel ends what is left.
func (h *hush) Run(ctx context.Context) error {
	if err := h.table.end(); err != nil { // what a daemon before this one has left
		h.log.Debug("remove the table of sync.no_rst", "error", err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		woken := true
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		case <-timer.C:
			woken = false
		}
		timer.Stop()
		if next := h.look(woken); next > 0 {
			timer.Reset(next)
		}
	}
}

// look begins the time of VIPs, anew if something has changed, and says when to look
// again; 0: not by time alone.
func (h *hush) look(changed bool) (next time.Duration) {
	now := h.now()
	h.mu.Lock()
	limit, standing := h.limit, len(h.behind) > 0 && h.limit > 0
	var vips []netip.Addr
	for _, group := range h.taken {
		vips = append(vips, h.vips[group]...)
		h.until = now + limit
	}
	h.taken = nil
	if standing && (changed || now >= h.renewAt) {
		for _, group := range h.behind {
			vips = append(vips, h.vips[group]...)
		}
		h.renewAt = now + limit/3
	}
	until := h.until
	h.mu.Unlock()
	if len(vips) > 0 && limit > 0 {
		h.hold(vips, limit)
	}
	switch {
	case standing:
		return max(h.renewAt-now, time.Millisecond)
	case now < until:
		return until - now
	case h.stands:
		h.end()
	}
	return 0
}

func (h *hush) hold(vips []netip.Addr, limit time.Duration) {
	h.counting.Lock()
	defer h.counting.Unlock()
	h.report(h.table.hold(vips, limit))
	h.stands = true
}

// end removes the table and keeps its count.
func (h *hush) end() {
	h.counting.Lock()
	defer h.counting.Unlock()
	held, err := h.table.held()
	if err == nil {
		err = h.table.end()
	}
	if err != nil {
		h.log.Debug("remove the table of sync.no_rst", "error", err)
		return
	}
	h.count += held
	h.stands = false
}

// report tells of a failure once: the kernel answers as ever then.
func (h *hush) report(err error) {
	if err != nil && !h.failed {
		h.log.Warn("connections that are not known yet are answered by RST", "error", err)
	}
	h.failed = err != nil
}

// Held is how many segments were not answered since the daemon began.
func (h *hush) Held() (uint64, error) {
	h.counting.Lock()
	defer h.counting.Unlock()
	if !h.stands {
		return h.count, nil
	}
	held, err := h.table.held()
	return h.count + held, err
}
