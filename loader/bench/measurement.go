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
	bed    *bed
	stream bpf.GeneratorBenchStream
	size   int
	result result             // of what counts: without the runs that warmed the caches
	before loader.PinCounters // with vippin
}

// tries is how often a run is begun again after packets got lost: when the
// kernel lets something else onto the core at a bad moment, a veth's ring of
// 256 packets runs over.
const tries = 5

// warmUp is at least how many packets go before those that count.
const warmUp = 5000

func (b *bed) begin(setting policy.BenchSetting) (m *measurement, err error) {
	m = &measurement{bed: b, size: setting.Size}
	m.stream = b.stream(setting.Flows, setting.Direction == policy.BenchBack)
	b.total = result{}
	if b.pin != nil {
		m.before, err = b.pin.counters()
	}
	return m, err
}

// goOn measures for about so long. A short run before it warms the caches, with
// every flow, and says how many packets that is.
func (m *measurement) goOn(about time.Duration) (err error) {
	for range tries {
		if err = m.run(about); !errors.Is(err, errLost) {
			return err
		}
	}
	return fmt.Errorf("%w, %d times in a row: look what else runs on CPU %d", err, tries, m.bed.cpu)
}

func (m *measurement) run(about time.Duration) error {
	warm, err := m.bed.play(m.stream, m.size, max(m.stream.Flows, warmUp))
	if err != nil {
		return err
	}
	packets := uint32(min(max(warm.rate()*about.Seconds(), batch), 1e9))
	r, err := m.bed.play(m.stream, m.size, packets)
	if err != nil {
		return err
	}
	m.result.add(r)
	return nil
}

// prove compares the pin's counters with what generator and sink saw: every
// packet of a pinned flow was pinned on its way out and returned on its way
// back, and none with the pin off. Packets may get lost before and behind it.
func (m *measurement) prove() error {
	b := m.bed
	if b.pin == nil {
		return nil
	}
	after, err := b.pin.counters()
	if err != nil {
		return err
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
