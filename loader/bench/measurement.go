// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"time"

	"vippin/bpf"
	"vippin/loader"
	"vippin/policy"
)

// measurement is one rate in the making.
type measurement struct {
	bed     *bed
	setting policy.BenchSetting
	stream  bpf.GeneratorBenchStream
	result  result             // of what counts: without the runs that warmed the caches
	before  loader.PinCounters // with vippin
	fast    uint64             // packets that had taken the fast path before those that count
	share   *float64           // of those that count, with the fast path
}

// warmUp is at least how many packets go before those that count.
const warmUp = 5000

// bite is how long packets are made before it is asked how long it took.
const bite = 250 * time.Millisecond

func (b *bed) begin(setting policy.BenchSetting) (m *measurement, err error) {
	m = &measurement{bed: b, setting: setting}
	m.stream = b.stream(setting.Flows, setting.Direction == policy.BenchBack)
	b.total = result{}
	if b.pin != nil {
		m.before, err = b.pin.counters()
	}
	return m, err
}

// goOn measures for about so long. A short run before it warms the caches, with
// every flow; the fast path learns those anew in it that it has not heard of
// for long.
func (m *measurement) goOn(about time.Duration) error {
	warm, err := m.warm()
	if err != nil {
		return err
	}
	before, err := m.bed.forwarded()
	if err != nil {
		return err
	}
	last, sum := warm, result{}
	for sum.busy < about {
		packets := min(max(last.rate()*min(bite, about-sum.busy).Seconds(), batch), 1e9)
		if last, err = m.bed.playAgain(m.stream, m.setting.Size, int(packets)); err != nil {
			return err
		}
		sum.add(last)
	}
	after, err := m.bed.forwarded()
	m.fast += after - before
	m.result.add(sum)
	return err
}

// warm plays every flow once, more often if they are few.
func (m *measurement) warm() (result, error) {
	return m.bed.playAll(m.stream, m.setting.Size, int(max(m.stream.Flows, warmUp)))
}

// steady is how long must be measured at least: with very many flows it tells in
// the rate how often the fast path asks the stack for each.
func (m *measurement) steady() (time.Duration, error) {
	const many = 250_000
	if m.bed.fast == nil || m.bed.part > 0 || m.setting.Flows < many {
		return 0, nil
	}
	state, err := m.bed.fast.path.State()
	return time.Duration(1.1 * state.PaceS * float64(time.Second)), err
}

// prove compares the pin's counters with what generator and sink saw: every
// packet of a pinned flow was pinned on its way out and returned on its way
// back, and none with the pin off. Packets may get lost before and behind it.
// On the fast path most must have taken it.
func (m *measurement) prove() error {
	b := m.bed
	if b.pin == nil {
		return nil
	}
	after, err := b.pin.counters()
	if err != nil {
		return err
	}
	if b.fast != nil {
		const most = 0.5
		share := float64(m.fast) / float64(m.result.arrived)
		m.share = &share
		if share < most {
			return fmt.Errorf("of %d packets %d took the fast path: that is not what was to be measured (%s)",
				m.result.arrived, m.fast, b.fast.exits())
		}
	}
	return judgeCounters(m.before, after, b.way.pin == pinOn, m.stream.Back != 0, b.total)
}

func judgeCounters(before, after loader.PinCounters, on, back bool, r result) error {
	pinned, returned := after.Pinned-before.Pinned, after.Returned-before.Returned
	off, unpinned := after.Unpinned["off"]-before.Unpinned["off"], after.TotalUnpinned()-before.TotalUnpinned()
	counted, others := pinned, returned+unpinned
	switch {
	case on && back:
		counted, others = returned, pinned+unpinned
	case !on && back: // the router's own address is nothing to the pin
		counted, others = r.arrived, pinned+returned+unpinned
	case !on:
		counted, others = off, pinned+returned+unpinned-off
	}
	if counted < r.arrived || counted > r.sent || others != 0 {
		return fmt.Errorf("of %d packets that arrived the pin counts %d pinned, %d returned, %d unpinned, %d of them as off: that is not what was to be measured",
			r.arrived, pinned, returned, unpinned, off)
	}
	return nil
}

// latency times packets at a share of the measured rate, in microseconds.
func (m *measurement) latency(load float64, about time.Duration) (p50, p99 float64, err error) {
	if _, err := m.warm(); err != nil {
		return 0, 0, err
	}
	var h *histogram
	for range tries { // a pause of the whole machine leads to a wrong pace
		h, err = m.bed.timed(m.stream, m.setting.Size, load, about)
		if err == nil && h.total() >= pacedEnough || err != nil && !errors.Is(err, errLost) {
			break
		}
	}
	if err != nil || h.total() < pacedEnough {
		return 0, 0, err
	}
	return h.quantile(0.5) / 1000, h.quantile(0.99) / 1000, nil
}

// fresh measures new flows, by a second of the core's time.
func (m *measurement) fresh() (float64, error) {
	if m.stream.Back != 0 || m.bed.fresh == 0 {
		return 0, nil
	}
	r, err := m.bed.playNew(m.setting.Size)
	if errors.Is(err, errLost) {
		r, err = m.bed.playNew(m.setting.Size)
	}
	if err != nil {
		return 0, fmt.Errorf("make new flows: %w", err)
	}
	return r.rate(), nil
}

func (b *bed) playNew(size int) (result, error) {
	b.strangers++
	s := b.stream(b.fresh, false)
	s.RemotePort += uint16(b.strangers)
	return b.play(s, size, b.fresh)
}
