// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"vippin/policy"
)

// takeAll empties the line into a batch.
func takeAll(q *queue, seq uint64) (marks []uint32) {
	f := q.fly(seq)
	for q.waiting > 0 {
		at, kind := q.take(q.next())
		marks = append(marks, q.slots[at].flow.Mark)
		if kind == entryFlow || kind == entryGone {
			q.sent(f, at, kind)
		} else {
			q.release(at)
		}
	}
	return marks
}

func marked(n int, mark uint32) *policy.Flow {
	f := udpFlow(n)
	f.Mark = mark
	return &f
}

func TestQueueOrder(t *testing.T) {
	moved := marked(1, 14)
	moved.To.Port++
	again := marked(4, 15)
	for _, c := range []struct {
		name string
		put  func(q *queue)
		want []uint32
	}{
		{"in the order of putting", func(*queue) {}, []uint32{1, 2, 3}},
		{"a change stays in its place", func(q *queue) { q.put(0, marked(1, 11)) }, []uint32{11, 2, 3}},
		{"with another public end it goes last", func(q *queue) { q.put(0, moved) }, []uint32{2, 3, 14}},
		{"an end stays in its place", func(q *queue) { q.gone(0, &Gone{Key: marked(2, 0).FlowKey}) }, []uint32{1, 0, 3}},
		{"a flow that comes back goes last", func(q *queue) {
			q.gone(0, &Gone{marked(2, 0).FlowKey, marked(2, 0).To})
			q.put(0, marked(2, 12))
		}, []uint32{1, 3, 12}},
		{"a bulk's flow that waits keeps its news, after the mark", func(q *queue) {
			q.mark(0, entryBulkBegin, &bulkBegin{}, lineNews)
			q.putBulk(0, marked(2, 99))
			q.putBulk(0, again)
			q.putBulk(0, marked(4, 99))
		}, []uint32{1, 3, 0, 2, 15}},
		{"a bulk does not bring back what ended", func(q *queue) {
			q.gone(0, &Gone{Key: marked(2, 0).FlowKey})
			q.mark(0, entryBulkBegin, &bulkBegin{}, lineNews)
			q.putBulk(0, marked(2, 99))
		}, []uint32{1, 0, 3, 0}},
		{"what happens goes before the flows of a bulk, within it", func(q *queue) {
			q.mark(0, entryBulkBegin, &bulkBegin{}, lineNews)
			q.putBulk(0, marked(5, 5))
			q.putBulk(0, marked(6, 6))
			q.mark(0, entryBulkEnd, &bulkEnd{}, lineBulk)
			q.put(0, marked(7, 7))
			q.put(0, marked(6, 16))
			q.gone(0, &Gone{Key: marked(5, 0).FlowKey})
		}, []uint32{1, 2, 3, 0, 7, 16, 0, 0}},
		{"what is dropped is gone", func(q *queue) {
			q.drop()
			q.put(0, marked(7, 7))
		}, []uint32{7}},
	} {
		q := newQueue()
		for n := range 3 {
			q.put(0, marked(n+1, uint32(n+1)))
		}
		c.put(&q)
		if got := takeAll(&q, 1); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// A flow in two batches is pending until the later one is acknowledged.
func TestQueueAcks(t *testing.T) {
	q := newQueue()
	key := marked(1, 0).FlowKey
	q.put(1*time.Second, marked(1, 1))
	q.put(2*time.Second, marked(2, 2))
	takeAll(&q, 1)
	q.put(3*time.Second, marked(1, 11))
	if q.len() != 3 || q.age(9*time.Second) != 8*time.Second {
		t.Errorf("%d entries, the oldest %v old", q.len(), q.age(9*time.Second))
	}
	takeAll(&q, 2)
	if flows, gones := q.ack(1); flows != 2 || gones != 0 || !q.pending(key) || q.pending(marked(2, 0).FlowKey) {
		t.Errorf("batch 1: %d flows, %d gones", flows, gones)
	}
	if q.age(9*time.Second) != 6*time.Second {
		t.Errorf("the oldest is %v old", q.age(9*time.Second))
	}
	refused, ok := q.refused(2, []Refusal{{0, ReasonFull}})
	if _, other := q.refused(2, []Refusal{{1, ReasonFull}}); !ok || other || refused[0].FlowKey != key {
		t.Errorf("refused: %v", refused)
	}
	q.put(10*time.Second, marked(1, 12))
	if q.ack(2); !q.pending(key) || q.len() != 1 {
		t.Error("what waits is forgotten with what is acknowledged")
	}
	if dropped := q.drop(); dropped != 1 || q.pending(key) || q.len() != 0 || q.age(time.Hour) != 0 {
		t.Errorf("%d dropped, %d left", dropped, q.len())
	}
}

// However the queue is used, what it counts is there and what is done is forgotten.
func TestQueueKeepsItsBooks(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 9))
		q := newQueue()
		sent, acked := uint64(0), uint64(0)
		for range 2000 {
			n := r.IntN(40)
			switch r.IntN(9) {
			case 0, 1:
				q.put(0, marked(n, 1))
			case 2:
				f := marked(n, 1)
				f.To.Port = uint16(r.IntN(3))
				q.put(0, f)
			case 3:
				q.gone(0, &Gone{Key: marked(n, 0).FlowKey})
			case 4:
				q.putBulk(0, marked(n, 1))
			case 5:
				q.mark(0, entryBulkBegin, &bulkBegin{}, lineNews)
			case 6:
				sent++
				takeAll(&q, sent)
			case 7:
				if sent > acked {
					acked += 1 + r.Uint64N(sent-acked)
					q.ack(acked)
				}
			case 8:
				if r.IntN(10) == 0 {
					q.drop()
				}
			}
			audit(t, &q)
		}
		sent++
		takeAll(&q, sent)
		q.ack(sent)
		audit(t, &q)
		if len(q.index) != 0 || len(q.free) != len(q.slots) || q.unacked != 0 {
			t.Fatalf("seed %d: %d keys, %d of %d slots free, %d unacknowledged", seed, len(q.index), len(q.free), len(q.slots), q.unacked)
		}
	}
}

// audit compares the line and the flights with the counts.
func audit(t *testing.T, q *queue) {
	t.Helper()
	waiting := 0
	for in, l := range q.lines {
		last, turn := none, uint64(0)
		for at := l.head; at != none; at = q.slots[at].next {
			s := &q.slots[at]
			if s.prev != last || s.entry == entryNone || s.turn <= turn || s.line != lineKind(in) {
				t.Fatalf("slot %d is out of line: %+v", at, s)
			}
			last, turn = at, s.turn
			waiting++
		}
		if l.tail != last {
			t.Fatalf("line %d ends with slot %d, not %d", in, l.tail, last)
		}
	}
	unacked := 0
	for _, f := range q.flights {
		unacked += len(f.flows) + len(f.gones)
	}
	if waiting != q.waiting || unacked != q.unacked {
		t.Fatalf("%d wait, counted %d; %d unacknowledged, counted %d", waiting, q.waiting, unacked, q.unacked)
	}
	for key, at := range q.index {
		if s := &q.slots[at]; s.flow.FlowKey != key || s.entry == entryNone && s.batch == 0 {
			t.Fatalf("slot %d is kept for nothing: %+v", at, s)
		}
	}
}

// A queue that was long gives its memory back.
func TestQueueShrinks(t *testing.T) {
	q := newQueue()
	for n := range 2 * roomy {
		q.put(0, marked(n, 1))
	}
	takeAll(&q, 1)
	q.ack(1)
	if len(q.slots) != 0 || cap(q.slots) != 0 {
		t.Errorf("%d slots are kept", cap(q.slots))
	}
	q.put(0, marked(1, 5))
	if got := takeAll(&q, 2); !slices.Equal(got, []uint32{5}) {
		t.Errorf("after that: %v", got)
	}
}
