// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math"
	"testing"
	"time"

	"vippin/policy"
)

// TestBounds: buckets lie side by side, and none is wider than 1/32 of its bound.
func TestBounds(t *testing.T) {
	if low, high := bounds(0); low != 0 || high != 1 {
		t.Errorf("first bucket from %v to %v", low, high)
	}
	for i := range buckets - 1 {
		low, high := bounds(i)
		if next, _ := bounds(i + 1); next != high || (i >= 64 && high-low > low/32) {
			t.Fatalf("bucket %d from %v to %v, the next from %v", i, low, high, next)
		}
	}
}

func TestHistogramQuantile(t *testing.T) {
	var h histogram
	if !math.IsNaN(h.quantile(0.5)) {
		t.Error("a quantile of nothing")
	}
	h[10], h[20], h[100] = 50, 49, 1 // 100 stands for 2^2 * (100-2*32) = 144 to 148 ns
	for share, want := range map[float64]float64{0.25: 10.5, 0.5: 11, 0.99: 21, 0.995: 146, 1: 148} {
		if got := h.quantile(share); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %v is %v, want %v", share, got, want)
		}
	}
}

func TestGapTable(t *testing.T) {
	table := gapTable(time.Microsecond)
	var sum float64
	for i, gap := range table {
		sum += float64(gap)
		if i > 0 && gap > table[i-1] {
			t.Fatalf("gap %d is longer than the one before", i)
		}
	}
	if mean := sum / gaps / tick; math.Abs(mean-1000) > 10 {
		t.Errorf("a mean gap of %v ns, want 1000", mean)
	}
}

// TestTimed: every packet is timed once, and most come later than at full rate.
func TestTimed(t *testing.T) {
	onBed(t, policy.BenchMasquerade, asItIs, func(b *bed) error {
		if err := b.establish(100); err != nil {
			return err
		}
		s := b.stream(100, false)
		s.Paced = 1
		r, err := wholly(3000, func() (result, error) { return b.playTimed(s, 64, 3000, 0) })
		if err != nil {
			return err
		}
		var h histogram
		if err := b.programs.Latencies.Get(&h); err != nil {
			return err
		}
		if h.total() != 3000 || r.arrived != 3000 {
			t.Errorf("at once: %d packets, %d timed, want 3000", r.arrived, h.total())
		}
		// Of 3000 frames few are due within the time that they take.
		if r, err = b.playTimed(s, 64, 3000, time.Hour); err != nil || r.sent >= 3000 {
			t.Errorf("an hour apart: %+v, %v", r, err)
		}
		return nil
	})
}

// TestBuckets: the sink sorts as bounds has it.
func TestBuckets(t *testing.T) {
	onBed(t, policy.BenchDrop, asItIs, func(b *bed) error {
		s := b.stream(1, false)
		s.Paced = 1
		var seen histogram
		for range 20 {
			before := time.Now()
			if _, err := b.playTimed(s, 64, 1, 0); err != nil {
				return err
			}
			most := time.Since(before)
			var h histogram
			if err := b.programs.Latencies.Get(&h); err != nil {
				return err
			}
			for i, n := range h {
				if low, _ := bounds(i); n > 0 && low > float64(most) {
					t.Errorf("a packet under way for %v ns and more, in a run of %v", low, most)
				}
			}
			seen.add(&h)
		}
		if low, _ := bounds(0); seen.total() != 20 || seen[0] > 0 {
			t.Errorf("%d packets timed, %d of them at %v ns", seen.total(), seen[0], low)
		}
		return nil
	})
}
