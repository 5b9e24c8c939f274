// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"

	"vippin/bpf"
)

// The counters of many pins, over more than one portion, are added up over the CPUs,
// each in its place.
func TestSumPins(t *testing.T) {
	enterNamespace(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	const last = 2*scanChunk/pinCounters + 1
	for pin := range uint32(last + 2) { // one that is not asked for
		values := make([]uint64, possibleCPUs())
		for cpu := range values {
			values[cpu] = uint64(pin)
		}
		key := pin*pinCounters + uint32(bpf.DataplanePinCounterPIN_RESET)
		if err := d.maps.PinCounters.Put(key, values); err != nil {
			t.Fatal(err)
		}
	}
	sums, err := d.sumPins([]uint32{3, last, 7})
	if err != nil {
		t.Fatal(err)
	}
	for pin := range uint32(last + 1) {
		if got, want := sums.of(pin), uint64(pin)*uint64(possibleCPUs()); got.Resets != want || got.Pinned != 0 || got.Held != 0 {
			t.Fatalf("pin %d: %+v, want %d resets and nothing else", pin, got, want)
		}
	}
	if got := sums.of(last + 1); got.Resets != 0 {
		t.Errorf("a pin that was not read has %d resets", got.Resets)
	}
	if sums, err = d.sumPins([]uint32{maxPins - 1}); err != nil || sums.of(last+1).Resets != uint64(last+1)*uint64(possibleCPUs()) {
		t.Errorf("all pins: %v", err)
	}
}
