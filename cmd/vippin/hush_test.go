// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeResets is a table whose elements end by themselves.
type fakeResets struct {
	mu    sync.Mutex
	until map[netip.Addr]time.Time
	held  uint64
	ends  int
}

func (f *fakeResets) table() resetTable {
	return resetTable{
		hold: func(vips []netip.Addr, d time.Duration) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, vip := range vips {
				f.until[vip] = time.Now().Add(d)
			}
			return nil
		},
		end: func() error {
			f.mu.Lock()
			defer f.mu.Unlock()
			clear(f.until)
			f.held = 0
			f.ends++
			return nil
		},
		held: func() (uint64, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.held, nil
		},
	}
}

// silent is the VIPs whose RSTs are held now.
func (f *fakeResets) silent() (vips []netip.Addr) {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for vip, until := range f.until {
		if time.Now().Before(until) {
			vips = append(vips, vip)
		}
	}
	slices.SortFunc(vips, netip.Addr.Compare)
	return vips
}

func inHush(t *testing.T, test func(h *hush, kernel *fakeResets)) {
	synctest.Test(t, func(t *testing.T) {
		kernel := &fakeResets{until: make(map[netip.Addr]time.Time)}
		began := time.Now()
		now := func() time.Duration { return time.Since(began) + time.Hour }
		h := newHush(slog.New(slog.DiscardHandler), now, kernel.table(), 10*time.Second)
		h.SetVIPs(map[string][]netip.Addr{"one": addrs("198.51.100.2", "2001:db8:2::2"), "two": addrs("203.0.113.2")})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.Run(ctx) }()
		test(h, kernel)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func wantSilent(t *testing.T, when string, kernel *fakeResets, want ...string) {
	t.Helper()
	if got := kernel.silent(); !slices.Equal(got, addrs(want...)) {
		t.Errorf("%s: silent for %v, want %v", when, got, want)
	}
}

func TestHushStandsByAndEnds(t *testing.T) {
	inHush(t, func(h *hush, kernel *fakeResets) {
		wantSilent(t, "nothing is missing", kernel)
		h.SetBehind([]string{"one"})
		wantSilent(t, "a bulk is missing", kernel, "198.51.100.2", "2001:db8:2::2")
		time.Sleep(59 * time.Second)
		wantSilent(t, "still", kernel, "198.51.100.2", "2001:db8:2::2")
		h.TakenOver("one")
		h.SetBehind(nil)
		wantSilent(t, "taken over", kernel, "198.51.100.2", "2001:db8:2::2")
		kernel.mu.Lock()
		kernel.held = 7
		kernel.mu.Unlock()
		time.Sleep(9 * time.Second)
		wantSilent(t, "9 s later", kernel, "198.51.100.2", "2001:db8:2::2")
		time.Sleep(2 * time.Second)
		wantSilent(t, "11 s later", kernel)
		if held, err := h.Held(); kernel.ends != 2 || held != 7 || err != nil {
			t.Errorf("ended %d times, %d held, %v", kernel.ends, held, err)
		}
	})
}

// Each group has its own time; what comes in between prolongs no other's.
func TestHushOfTwoGroups(t *testing.T) {
	inHush(t, func(h *hush, kernel *fakeResets) {
		h.TakenOver("one")
		time.Sleep(6 * time.Second)
		h.TakenOver("two")
		wantSilent(t, "both", kernel, "198.51.100.2", "203.0.113.2", "2001:db8:2::2")
		time.Sleep(5 * time.Second)
		wantSilent(t, "the first is over", kernel, "203.0.113.2")
		time.Sleep(6 * time.Second)
		wantSilent(t, "the second is over", kernel)
	})
}

func TestHushSwitchedOff(t *testing.T) {
	inHush(t, func(h *hush, kernel *fakeResets) {
		h.Set(0)
		h.SetBehind([]string{"one"})
		h.TakenOver("two")
		wantSilent(t, "no_rst is 0", kernel)
	})
}

// What a dead daemon left is ended by the kernel, and the next daemon tidies up.
func TestHushOfADeadDaemon(t *testing.T) {
	inHush(t, func(h *hush, kernel *fakeResets) {
		synctest.Wait()
		if kernel.ends != 1 {
			t.Errorf("ended %d times at the start", kernel.ends)
		}
	})
}
