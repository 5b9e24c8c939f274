// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"

	"vippin/policy"
)

const (
	window     = 16  // batches that may be unacknowledged
	batchFlows = 512 // entries of a batch that is sent
	// While somebody waits for acknowledgements a bulk keeps the peer busy for some
	// milliseconds at most.
	promptWindow = 2
	promptBatch  = 64
	// Pause after a write, so that the next one has more than one entry: the longer the
	// more they have had. Acknowledgements wait for the longest, or for so many.
	gather     = 10 * time.Millisecond
	gatherAcks = window / 2
	gatherEach = 100 * time.Microsecond
	writeSize  = 64 << 10 // octets composed at once, one batch more at most
	writeChunk = 16 << 10 // octets of a write, as much as a TLS record takes
)

// acks is what the peer is to be told of its batches.
type acks struct {
	seq     uint64 // the last one that is dealt with
	told    uint64 // the last one that the peer knows to be
	refused []refusedBatch
}

type refusedBatch struct {
	seq      uint64
	refusals []Refusal
}

// writer composes what goes to the peer. It belongs to the writing goroutine.
type writer struct {
	*Session
	batch batchWriter
	out   []byte
	beat  []byte // the frame of the last State
	told  int    // entries since the last pause
	pace  int    // the same, but it falls slowly
}

// write sends Hello, and when the peer's is here, all that comes.
func (s *Session) write(ctx context.Context, conn io.Writer) error {
	w := &writer{Session: s}
	hello := Hello{s.config.MinVersion, s.config.MaxVersion, s.config.Node, s.config.Build, s.config.Boot}
	if err := w.message(frameHello, helloToWire(hello)); err != nil {
		return err
	}
	if err := w.flush(conn); err != nil {
		return err
	}
	close(s.greeted)
	select {
	case <-s.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	beat := time.NewTicker(s.config.Beat)
	defer beat.Stop()
	for first := true; ; first = false {
		if err := w.compose(first); err != nil {
			return err
		}
		if len(w.out) > 0 {
			if err := w.flush(conn); err != nil {
				return err
			}
			if !w.behind() {
				if err := w.pause(ctx); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
			w.out = append(w.out, w.beat...)
		case <-s.wake:
		}
	}
}

// behind tells whether a batch could be filled at once: then nothing need gather.
func (w *writer) behind() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queue.waiting >= batchFlows && len(w.queue.flights) < window
}

// mayCompose tells whether something waits that may go now. Called with mu.
func (w *writer) mayCompose() bool {
	limit := window
	if w.prompt && w.queue.next() == lineBulk {
		limit = promptWindow
	}
	return w.queue.waiting > 0 && len(w.queue.flights) < limit
}

// pause lets entries gather after a write: whoever comes to an idle session does not
// wait, a busy one writes once in a while. Where somebody waits for acknowledgements
// nothing gathers.
func (w *writer) pause(ctx context.Context) error {
	if w.isPrompt() {
		return nil
	}
	length := gather
	if w.told > 0 {
		w.pace = max(w.told, w.pace/2)
		length = min(gather, time.Duration(w.pace)*gatherEach)
	}
	w.told = 0
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	case <-w.hurry:
	}
	return nil
}

// flush writes out what was composed.
func (w *writer) flush(conn io.Writer) error {
	size := len(w.out)
	for b := w.out; len(b) > 0; {
		w.waiting(&w.alive.writing)
		n, err := conn.Write(b[:min(len(b), writeChunk)])
		w.alive.writing.Store(0)
		if err != nil {
			return fmt.Errorf("write to peer: %w", err)
		}
		b = b[n:]
	}
	w.out = w.out[:0]
	w.mu.Lock()
	w.stats.Sent.Bytes += uint64(size)
	w.mu.Unlock()
	return nil
}

// compose collects what there is to say: acknowledgements and State first.
func (w *writer) compose(first bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.composeAcks(); err != nil {
		return err
	}
	if w.stateDue || first {
		if err := w.composeState(); err != nil {
			return err
		}
	}
	if len(w.wanted) > 0 {
		if err := w.message(frameBulkRequest, &WireBulkRequest{Groups: w.wanted}); err != nil {
			return err
		}
		w.wanted = nil
	}
	for w.mayCompose() && len(w.out) < writeSize {
		if err := w.composeNext(); err != nil {
			return err
		}
		w.mu.Unlock() // let others in: a batch takes some ten microseconds
		w.mu.Lock()
	}
	if w.mayCompose() {
		poke(w.wake)
	}
	if w.queue.waiting == 0 {
		if err := w.composeDigest(); err != nil {
			return err
		}
	}
	if w.queue.waiting < bulkRoom/2 {
		w.makeRoom()
	}
	return nil
}

func (w *writer) composeAcks() error {
	a := &w.acks
	for _, r := range a.refused {
		if err := w.message(frameAck, ackToWire(r.seq, r.refusals)); err != nil {
			return err
		}
		a.told = r.seq
	}
	a.refused = nil
	if a.seq == a.told {
		return nil
	}
	a.told = a.seq
	return w.message(frameAck, ackToWire(a.seq, nil))
}

func (w *writer) composeState() error {
	w.stateDue = false
	state := w.state
	state.Prompt = w.prompt
	wire, ids := stateToWire(state)
	from := len(w.out)
	if err := w.message(frameState, wire); err != nil {
		return err
	}
	w.beat = append(w.beat[:0], w.out[from:]...)
	w.batch.ids = ids
	return nil
}

// composeNext composes a batch, or the mark that stands at the head of the line.
func (w *writer) composeNext() error {
	q := &w.queue
	in := q.next()
	switch q.first(in) {
	case entryBulkBegin:
		at, _ := q.take(in)
		begin := q.slots[at].other.(*bulkBegin)
		q.release(at)
		return w.message(frameBulkBegin, &WireBulkBegin{Bulk: begin.bulk, Groups: begin.groups, About: begin.about})
	case entryBulkEnd:
		at, _ := q.take(in)
		end := q.slots[at].other.(*bulkEnd)
		q.release(at)
		w.bulkSent(end)
		return w.message(frameBulkEnd, &WireBulkEnd{Bulk: end.bulk, Count: end.count})
	}
	return w.composeBatch(in)
}

// composeBatch takes entries from a line until a mark comes.
func (w *writer) composeBatch(in lineKind) error {
	q, t := &w.queue, &w.stats.Sent
	most := batchFlows
	if w.prompt {
		most = promptBatch
	}
	f := q.fly(w.sent + 1)
	w.batch.begin(f.seq)
	entries := 0
	for entries < most {
		kind := q.first(in)
		if kind == entryNone || kind == entryBulkBegin || kind == entryBulkEnd {
			break
		}
		at, _ := q.take(in)
		if !w.entry(f, at, kind) {
			w.stats.Unnamed++
			continue
		}
		entries++
	}
	if entries == 0 {
		q.flights = q.flights[:len(q.flights)-1]
		return nil
	}
	w.sent = f.seq
	w.told += entries
	t.Batches++
	t.Flows += uint64(len(f.flows))
	t.Gones += uint64(len(f.gones))
	t.Expectations += uint64(entries - len(f.flows) - len(f.gones))
	w.out = appendFrame(w.out, frameBatch, w.batch.b)
	return nil
}

// entry writes what was taken from the line into the batch, or forgets it.
func (w *writer) entry(f *flight, at int32, kind entryKind) bool {
	s := &w.queue.slots[at]
	switch kind {
	case entryFlow:
		if w.batch.flow(&s.flow) != nil {
			if s.batch == 0 {
				w.queue.release(at)
			}
			return false
		}
		w.queue.sent(f, at, kind)
	case entryGone:
		w.batch.gone(&Gone{s.flow.FlowKey, s.flow.To})
		w.queue.sent(f, at, kind)
	case entryExpectation:
		err := w.batch.expectation(s.other.(*policy.Expectation))
		w.queue.release(at)
		return err == nil
	}
	return true
}

// message composes a frame that goes through the generated code.
func (w *writer) message(kind frameKind, m proto.Message) (err error) {
	w.out, err = appendMessage(w.out, kind, m)
	return err
}
