// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"
	"time"
)

// The time of a flow's first answer counts, and one that went on is due no more.
func TestHoldingsAreDue(t *testing.T) {
	const timeout = 10 * time.Millisecond
	h := newHoldings()
	key := func(port uint16) flowKey { return flowKey{SelfPort: port} }
	h.add(key(1), 11, 0, timeout)
	h.add(key(2), 12, time.Millisecond, timeout)
	h.add(key(1), 13, 2*time.Millisecond, timeout)
	h.add(key(3), 14, 3*time.Millisecond, timeout)
	h.remove(h.of(key(2)))
	h.add(key(2), 15, 4*time.Millisecond, timeout) // a new time
	for _, step := range []struct {
		at, next time.Duration
		ports    []uint16
		ids      int
	}{
		{timeout - 1, timeout, nil, 0},
		{timeout, timeout + time.Millisecond, []uint16{1}, 2},
		{timeout + 2*time.Millisecond, timeout + 3*time.Millisecond, nil, 0},
		{time.Second, 0, []uint16{3, 2}, 2},
		{time.Second, 0, nil, 0},
	} {
		due, next := h.due(step.at)
		ids := 0
		for i, w := range due {
			if i >= len(step.ports) || w.key != key(step.ports[i]) {
				t.Fatalf("at %v %d is due", step.at, w.key.SelfPort)
			}
			ids += len(w.packets)
			h.remove(w)
		}
		if len(due) != len(step.ports) || ids != step.ids || next != step.next {
			t.Errorf("at %v %d flows with %d packets are due, next at %v", step.at, len(due), ids, next)
		}
	}
	if len(h.flows) != 0 {
		t.Errorf("%d flows wait", len(h.flows))
	}
	h.add(key(4), 16, time.Second, timeout)
	stale := h.of(key(4))
	h.remove(stale)
	h.add(key(4), 17, time.Second, timeout)
	if h.remove(stale); h.of(key(4)) == nil {
		t.Error("what went on before took the next one along")
	}
}
