// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"slices"
	"time"
)

// holdings are the flows whose answers wait, by their public end and in the order
// in which their time is over.
type holdings struct {
	flows map[flowKey]*holding
	order []*holding // some may have gone on
}

// holding is one flow whose answers wait.
type holding struct {
	key     flowKey // in by_public
	until   time.Duration
	packets []heldPacket
}

// heldPacket is one answer; times are CLOCK_MONOTONIC.
type heldPacket struct {
	id    uint32
	since time.Duration
}

func newHoldings() holdings { return holdings{flows: make(map[flowKey]*holding)} }

func (h *holdings) of(key flowKey) *holding { return h.flows[key] }

// add lets one more packet of a flow wait. The time of its first one counts.
func (h *holdings) add(key flowKey, id uint32, now, timeout time.Duration) {
	w := h.flows[key]
	if w == nil {
		w = &holding{key: key, until: now + timeout}
		h.flows[key] = w
		h.order = append(h.order, w)
	}
	w.packets = append(w.packets, heldPacket{id: id, since: now})
}

func (h *holdings) remove(w *holding) {
	if h.flows[w.key] == w {
		delete(h.flows, w.key)
	}
}

func (h *holdings) all() []*holding { return slices.Collect(maps.Values(h.flows)) }

// due takes those out of the order whose time is over, and tells when the next
// one's is; 0: there is none.
func (h *holdings) due(now time.Duration) (some []*holding, next time.Duration) {
	for i, w := range h.order {
		if w.until > now {
			h.order = h.order[i:]
			return some, w.until
		}
		if h.flows[w.key] == w {
			some = append(some, w)
		}
	}
	h.order = nil
	return some, 0
}
