// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"time"

	"vippin/policy"
)

// queue has what waits for the peer, in two lines, and what the peer has not yet
// acknowledged. Of a flow at most one entry waits. Its owner locks it.
type queue struct {
	slots    []slot
	free     []int32
	index    map[policy.FlowKey]int32 // of flows and gones
	lines    [2]line
	waiting  int
	turns    uint64   // the latest turn
	flights  []flight // batches without acknowledgement, the oldest first
	unacked  int      // their flows and gones
	bulkTurn uint64   // of the latest bulk's begin
	keep     bool     // flights keep what was sent
}

// slot is a flow that waits or is not acknowledged, or something else that waits.
type slot struct {
	flow       policy.Flow // of a gone only its key and To
	other      any         // *policy.Expectation, *bulkBegin, *bulkEnd
	since      time.Duration
	turn       uint64 // its place in the order
	batch      uint64 // the last one it went in, 0 = none that is unacknowledged
	prev, next int32
	entry      entryKind
	line       lineKind
}

// line is what waits in order.
type line struct{ head, tail int32 } // slots, none = none

// lineKind is one of a queue's lines.
type lineKind uint8

const (
	// What happens goes before the flows of a bulk: somebody may wait for it. The
	// beginning of a bulk is here, too, so that what happens afterwards is told within it.
	lineNews lineKind = iota
	lineBulk
)

// entryKind is what waits in a slot.
type entryKind uint8

const (
	entryNone entryKind = iota
	entryFlow
	entryGone
	entryExpectation
	entryBulkBegin
	entryBulkEnd
)

// flight is a batch that is not acknowledged.
type flight struct {
	seq          uint64
	since        time.Duration // when its first entry began to wait
	flows, gones []int32       // slots
	told         []policy.Flow // the flows as they were sent, if they are kept
}

// bulkEnd is WireBulkEnd.
type bulkEnd struct{ bulk, count uint64 }

const none = int32(-1)

// roomy is how many slots are kept when none is in use.
const roomy = 8192

func newQueue() queue {
	return queue{index: map[policy.FlowKey]int32{}, lines: [2]line{{none, none}, {none, none}}}
}

// len is how many entries wait or are unacknowledged.
func (q *queue) len() int { return q.waiting + q.unacked }

// put makes an entry of a flow wait. It takes the place of one that waits, unless
// that is about another public end, which may have been another flow's meanwhile.
func (q *queue) put(now time.Duration, f *policy.Flow) {
	s, at := q.of(f.FlowKey)
	if s.entry != entryNone && (s.entry == entryGone || s.flow.To != f.To) {
		q.unlink(at)
	}
	s.flow = *f
	q.wait(now, at, entryFlow, lineNews)
}

// putBulk makes a flow of a bulk wait after the bulk's beginning. What waits of it
// already is newer than the bulk.
func (q *queue) putBulk(now time.Duration, f *policy.Flow) {
	s, at := q.of(f.FlowKey)
	switch s.entry {
	case entryGone:
		return
	case entryFlow:
		if s.turn < q.bulkTurn {
			q.unlink(at)
			q.wait(now, at, entryFlow, lineBulk)
		}
		return
	}
	s.flow = *f
	q.wait(now, at, entryFlow, lineBulk)
}

// gone makes an entry of an ended flow wait.
func (q *queue) gone(now time.Duration, g *Gone) {
	s, at := q.of(g.Key)
	s.flow = policy.Flow{FlowKey: g.Key, To: g.To}
	q.wait(now, at, entryGone, lineNews)
}

// mark makes something that is not a flow wait.
func (q *queue) mark(now time.Duration, kind entryKind, other any, in lineKind) {
	at := q.slot()
	q.slots[at].other = other
	q.wait(now, at, kind, in)
	if kind == entryBulkBegin {
		q.bulkTurn = q.turns
	}
}

// of finds or makes the slot of a flow.
func (q *queue) of(key policy.FlowKey) (*slot, int32) {
	at, ok := q.index[key]
	if !ok {
		at = q.slot()
		q.index[key] = at
	}
	return &q.slots[at], at
}

// slot makes an empty slot.
func (q *queue) slot() int32 {
	if n := len(q.free); n > 0 {
		at := q.free[n-1]
		q.free = q.free[:n-1]
		return at
	}
	q.slots = append(q.slots, slot{})
	return int32(len(q.slots) - 1)
}

// wait puts a slot at the end of a line, unless it is in that one, or in the news.
func (q *queue) wait(now time.Duration, at int32, kind entryKind, in lineKind) {
	s := &q.slots[at]
	if s.entry != entryNone && s.line > in {
		q.unlink(at)
	}
	if s.entry != entryNone {
		s.entry = kind
		return
	}
	q.turns++
	l := &q.lines[in]
	s.entry, s.line, s.since, s.turn, s.prev, s.next = kind, in, now, q.turns, l.tail, none
	if l.tail == none {
		l.head = at
	} else {
		q.slots[l.tail].next = at
	}
	l.tail = at
	q.waiting++
}

// unlink takes a slot out of its line.
func (q *queue) unlink(at int32) {
	s := &q.slots[at]
	l := &q.lines[s.line]
	if s.prev == none {
		l.head = s.next
	} else {
		q.slots[s.prev].next = s.next
	}
	if s.next == none {
		l.tail = s.prev
	} else {
		q.slots[s.next].prev = s.prev
	}
	s.entry = entryNone
	q.waiting--
}

// next is the line whose turn it is.
func (q *queue) next() lineKind {
	if q.lines[lineNews].head != none {
		return lineNews
	}
	return lineBulk
}

// first is what stands at the head of a line.
func (q *queue) first(in lineKind) entryKind {
	if head := q.lines[in].head; head != none {
		return q.slots[head].entry
	}
	return entryNone
}

// take takes the slot at the head out of a line.
func (q *queue) take(in lineKind) (at int32, kind entryKind) {
	at = q.lines[in].head
	kind = q.slots[at].entry
	q.unlink(at)
	return at, kind
}

// release gives a slot back that nothing waits in and no batch refers to.
func (q *queue) release(at int32) {
	s := &q.slots[at]
	if s.other == nil {
		delete(q.index, s.flow.FlowKey)
	}
	*s = slot{}
	q.free = append(q.free, at)
	if len(q.free) == len(q.slots) && len(q.slots) > roomy {
		q.slots, q.free, q.index = nil, nil, map[policy.FlowKey]int32{}
	}
}

// fly begins a batch. Its slots are added by sent.
func (q *queue) fly(seq uint64) *flight {
	if n := len(q.flights); n < cap(q.flights) {
		q.flights = q.flights[:n+1] // with the slices of an old one
	} else {
		q.flights = append(q.flights, flight{})
	}
	f := &q.flights[len(q.flights)-1]
	*f = flight{seq: seq, flows: f.flows[:0], gones: f.gones[:0], told: f.told[:0]}
	return f
}

// sent notes that a slot taken from the line is in a batch.
func (q *queue) sent(f *flight, at int32, kind entryKind) {
	s := &q.slots[at]
	if len(f.flows)+len(f.gones) == 0 {
		f.since = s.since
	}
	if kind == entryFlow {
		f.flows = append(f.flows, at)
		if q.keep {
			f.told = append(f.told, s.flow)
		}
	} else {
		f.gones = append(f.gones, at)
	}
	s.batch = f.seq
	q.unacked++
}

// taken appends the flows of the batches up to seq that were kept, but those that
// the batch seq has refused.
func (q *queue) taken(flows []policy.Flow, seq uint64, refusals []Refusal) []policy.Flow {
	for i := range q.flights {
		switch f := &q.flights[i]; {
		case f.seq > seq:
			return flows
		case f.seq < seq || len(refusals) == 0:
			flows = append(flows, f.told...)
		default:
			flows = appendOthers(flows, f.told, refusals)
		}
	}
	return flows
}

// appendOthers appends what is not refused.
func appendOthers(flows, told []policy.Flow, refusals []Refusal) []policy.Flow {
	refused := make(map[int]bool, len(refusals))
	for _, r := range refusals {
		refused[r.Index] = true
	}
	for i := range told {
		if !refused[i] {
			flows = append(flows, told[i])
		}
	}
	return flows
}

// ack forgets the batches up to seq.
func (q *queue) ack(seq uint64) (flows, gones int) {
	done := 0
	for ; done < len(q.flights) && q.flights[done].seq <= seq; done++ {
		f := &q.flights[done]
		q.landed(f.seq, f.flows)
		q.landed(f.seq, f.gones)
		flows, gones = flows+len(f.flows), gones+len(f.gones)
	}
	q.unacked -= flows + gones
	rotate(q.flights, done)
	q.flights = q.flights[:len(q.flights)-done]
	return flows, gones
}

// rotate moves the first n elements behind the others.
func rotate(flights []flight, n int) {
	if n == 0 || n == len(flights) {
		return
	}
	moved := append([]flight(nil), flights[:n]...)
	copy(flights[copy(flights, flights[n:]):], moved)
}

func (q *queue) landed(seq uint64, slots []int32) {
	for _, at := range slots {
		s := &q.slots[at]
		if s.batch != seq {
			continue // a later batch has it, too
		}
		s.batch = 0
		if s.entry == entryNone {
			q.release(at)
		}
	}
}

// refused names flows of the batch seq by their places in it: as they were sent, if
// that was kept, else as they are now.
func (q *queue) refused(seq uint64, refusals []Refusal) (flows []policy.Flow, ok bool) {
	for i := range q.flights {
		f := &q.flights[i]
		if f.seq != seq {
			continue
		}
		for _, r := range refusals {
			if r.Index >= len(f.flows) {
				return nil, false
			}
			if len(f.told) > r.Index {
				flows = append(flows, f.told[r.Index])
				continue
			}
			flows = append(flows, q.slots[f.flows[r.Index]].flow)
		}
		return flows, true
	}
	return nil, false
}

// pending tells whether anything of a flow waits or is unacknowledged.
func (q *queue) pending(key policy.FlowKey) bool {
	_, ok := q.index[key]
	return ok
}

// drop forgets all that waits and tells how many entries that was.
func (q *queue) drop() int {
	dropped := q.waiting
	for q.waiting > 0 {
		if at, _ := q.take(q.next()); q.slots[at].batch == 0 {
			q.release(at)
		}
	}
	return dropped
}

// age is how long the oldest entry has waited for its acknowledgement.
func (q *queue) age(now time.Duration) (age time.Duration) {
	if len(q.flights) > 0 {
		age = now - q.flights[0].since
	}
	for _, l := range q.lines {
		if l.head != none {
			age = max(age, now-q.slots[l.head].since)
		}
	}
	return age
}
