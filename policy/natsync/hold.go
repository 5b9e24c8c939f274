// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"time"

	"vippin/policy"
)

// shakenFor is how long after a link or address has gone the kernel may still be
// removing the entries that masquerade had made with it, and how long before it
// is heard of it may have begun.
const shakenFor = 2 * time.Second

// Hold keeps the ends of flows back for some time before a peer hears of them:
// when an interface is set down or loses an address, the kernel removes every
// masqueraded entry that used it, just when the peer needs them. Times are
// CLOCK_MONOTONIC.
type Hold struct {
	For   time.Duration // sync.delete_hold
	Limit int           // flows held at most

	waiting map[policy.FlowKey]*held
	ends    map[ends]*held        // of those whose public end is known
	order   []*held               // by time; some may be cancelled
	shaken  map[int]time.Duration // when an interface last lost ground
}

// tcpEstablished is TCP_CONNTRACK_ESTABLISHED: the states after it are those of a
// connection's end.
const tcpEstablished = 3

// ends is what answers are known by, which one flow at a time has.
type ends struct {
	to, from policy.End
	zone     uint16
	proto    uint8
}

func endsOf(flow *policy.Flow) ends { return ends{flow.To, flow.From, flow.Zone, flow.Proto} }

type held struct {
	flow    policy.Flow
	ifindex int
	at      time.Duration
	over    bool // cancelled, or done
}

// Held is what becomes of the end of a flow.
type Held uint8

// What becomes of it.
const (
	HeldBack Held = iota // it waits
	Flushed              // its interface has lost ground: it is to be put back
	HoldFull             // there is no room: it is forgotten, a bulk must make up for it
)

// Gone notes that the kernel has removed a flow that leaves by an interface (0:
// none that matters).
func (h *Hold) Gone(now time.Duration, flow *policy.Flow, ifindex int) Held {
	if last, ok := h.shaken[ifindex]; ok && now-last <= shakenFor && survives(flow) {
		return Flushed
	}
	if len(h.waiting) >= h.Limit {
		return HoldFull
	}
	if h.waiting == nil {
		h.waiting, h.ends = make(map[policy.FlowKey]*held), make(map[ends]*held)
	}
	h.cancel(flow.FlowKey)
	what := &held{flow: *flow, ifindex: ifindex, at: now}
	h.waiting[flow.FlowKey] = what
	if flow.To != (policy.End{}) {
		h.ends[endsOf(flow)] = what
	}
	h.order = append(h.order, what)
	return HeldBack
}

// survives tells whether a flow may have been in use when its entry went: a TCP
// connection that has ended is not put back.
func survives(flow *policy.Flow) bool {
	return flow.To != (policy.End{}) && !isOver(flow)
}

// isOver tells whether a flow is a TCP connection that is closing or closed.
func isOver(flow *policy.Flow) bool {
	return flow.Proto == ipTCP && flow.TCPState > tcpEstablished
}

// Seen cancels the end of a flow that is there again. If it has the ends of another
// one, that one has ended for good, and peers must hear of it first: it is handed
// over.
func (h *Hold) Seen(flow *policy.Flow) (over *policy.Flow) {
	h.cancel(flow.FlowKey)
	what := h.ends[endsOf(flow)]
	if what == nil {
		return nil
	}
	h.cancel(what.flow.FlowKey)
	return &what.flow
}

func (h *Hold) cancel(key policy.FlowKey) {
	what, ok := h.waiting[key]
	if !ok {
		return
	}
	what.over = true
	delete(h.waiting, key)
	if at := endsOf(&what.flow); h.ends[at] == what {
		delete(h.ends, at)
	}
}

// Shaken notes that an interface was set down, went, or lost an address. It hands
// over the flows that ended shortly before: they were flushed and are to be put
// back.
func (h *Hold) Shaken(now time.Duration, ifindex int) []policy.Flow {
	if h.shaken == nil {
		h.shaken = make(map[int]time.Duration)
	}
	h.shaken[ifindex] = now
	var flushed []policy.Flow
	for _, what := range h.order {
		if what.over || what.ifindex != ifindex || now-what.at > max(shakenFor, h.For) || !survives(&what.flow) {
			continue
		}
		flushed = append(flushed, what.flow)
		h.cancel(what.flow.FlowKey)
	}
	h.compact()
	return flushed
}

// Drop forgets the ends of a group's flows: this router is not its MASTER any
// more, and its word would not count.
func (h *Hold) Drop(group string) {
	for _, what := range h.order {
		if !what.over && what.flow.Group == group {
			h.cancel(what.flow.FlowKey)
		}
	}
	h.compact()
}

// Due hands over the flows that have been gone for the whole time: peers may
// hear of it.
func (h *Hold) Due(now time.Duration, yield func(*policy.Flow)) {
	done := 0
	for _, what := range h.order {
		if !what.over && now-what.at < h.For {
			break
		}
		done++
		if !what.over {
			h.cancel(what.flow.FlowKey)
			yield(&what.flow)
		}
	}
	h.order = append(h.order[:0], h.order[done:]...)
	clear(h.order[len(h.order):cap(h.order)])
}

// Next is when Due has something to hand over, 0 = nothing waits.
func (h *Hold) Next() time.Duration {
	for _, what := range h.order {
		if !what.over {
			return what.at + h.For
		}
	}
	return 0
}

// Len is how many flows wait.
func (h *Hold) Len() int { return len(h.waiting) }

// compact drops what is over.
func (h *Hold) compact() {
	kept := h.order[:0]
	for _, what := range h.order {
		if !what.over {
			kept = append(kept, what)
		}
	}
	clear(h.order[len(kept):])
	h.order = kept
}
