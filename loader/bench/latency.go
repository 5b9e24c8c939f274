// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"math"
	"time"

	"vippin/bpf"
)

// How packets are timed. The core is one server: generator, router and sink
// share it. Packets come at random (exponential gaps, as of many hosts that know
// nothing of each other) at a share of the rate that the case takes. When a
// packet comes is decided beforehand; its time runs from then, also while the
// core is still busy with others, until the sink has it. What came meanwhile goes
// on in one batch, as a NIC's driver would take it. The clock stands still while
// another program has the core.
const (
	gaps       = 1024 // as in bpf/generator.bpf.c, like the next three
	bucketBits = 5
	buckets    = 1024
	tick       = 16 // of gaps, in a nanosecond

	pacedBatch  = 16 // frames that may go on together
	pacedTurn   = 20 * time.Millisecond
	pacedEnough = 2000 // packets, below which there is no 99th percentile
)

// gapTable are equally likely gaps with this mean, in ticks.
func gapTable(mean time.Duration) (table [gaps]uint32) {
	for i := range table {
		share := (float64(i) + 0.5) / gaps
		table[i] = uint32(-math.Log(share) * float64(mean) * tick)
	}
	return table
}

// histogram counts packets by the time that they were under way.
type histogram [buckets]uint64

// bounds are those of a bucket, in nanoseconds.
func bounds(bucket int) (low, high float64) {
	shift := max(bucket>>bucketBits-1, 0)
	low = math.Ldexp(float64(bucket-shift<<bucketBits), shift)
	return low, low + math.Ldexp(1, shift)
}

func (h *histogram) total() (n uint64) {
	for _, count := range h {
		n += count
	}
	return n
}

func (h *histogram) add(more *histogram) {
	for i, count := range more {
		h[i] += count
	}
}

// quantile is where this share of the packets was there, in nanoseconds; it
// supposes that they are spread evenly within a bucket.
func (h *histogram) quantile(share float64) float64 {
	rest := share * float64(h.total())
	for i, count := range h {
		if count > 0 && rest <= float64(count) {
			low, high := bounds(i)
			return low + (high-low)*rest/float64(count)
		}
		rest -= float64(count)
	}
	return math.NaN()
}

// timed lets packets come at a share of the rate at which they can go on in such
// batches, for about so long, and tells how long they were under way.
func (b *bed) timed(s bpf.GeneratorBenchStream, size int, load float64, about time.Duration) (*histogram, error) {
	s.Paced = 1
	about = max(about, pacedTurn)
	frames := 10_000
	r, err := b.playTimed(s, size, frames, 0)
	if err != nil {
		return nil, err
	}
	frames = int(r.rate() * pacedTurn.Seconds())
	if r, err = b.playTimed(s, size, frames, 0); err != nil {
		return nil, err
	}
	gap := time.Duration(float64(time.Second) / (load * r.rate()))
	var sum histogram
	for busy := time.Duration(0); busy < about; busy += r.busy {
		if r, err = b.playTimed(s, size, frames, gap); err != nil {
			return nil, err
		}
		frames = max(min(int(float64(frames)*float64(pacedTurn)/float64(r.busy)), chunk), pacedBatch)
		h := histogram{}
		if err := b.programs.Latencies.Get(&h); err != nil {
			return nil, fmt.Errorf("ask the sink for times: %w", err)
		}
		sum.add(&h)
	}
	return &sum, nil
}

func (b *bed) playTimed(s bpf.GeneratorBenchStream, size, frames int, gap time.Duration) (result, error) {
	if err := b.programs.Gaps.Set(gapTable(gap)); err != nil {
		return result{}, fmt.Errorf("tell the generator the pace: %w", err)
	}
	if err := b.programs.Latencies.Set(&histogram{}); err != nil {
		return result{}, fmt.Errorf("set the sink's times to zero: %w", err)
	}
	return b.play(s, size, frames)
}
