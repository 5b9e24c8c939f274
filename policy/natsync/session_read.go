// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"vippin/policy"
)

// reader takes in what the peer says. It belongs to the reading goroutine.
type reader struct {
	*Session
	frames frameReader
	batch  batchReader
	seq    uint64     // of the last batch
	bulk   *bulkBegin // that is under way
	taken  []policy.Flow
	news   digestsIn
}

// heard is a stream that notes when it waits, and counts.
type heard struct {
	*Session
	from io.Reader
}

func (h heard) Read(b []byte) (int, error) {
	h.waiting(&h.alive.reading)
	n, err := h.from.Read(b)
	h.alive.reading.Store(0)
	h.mu.Lock()
	h.stats.Received.Bytes += uint64(n)
	h.mu.Unlock()
	return n, err
}

// read takes in Hello and then all that comes, until the stream ends.
func (s *Session) read(ctx context.Context, conn io.Reader) error {
	r := &reader{Session: s, batch: batchReader{names: noNames}}
	r.frames.from = bufio.NewReaderSize(heard{s, conn}, 32<<10)
	for {
		frame, err := r.frames.next()
		if err != nil {
			return fmt.Errorf("read from peer: %w", err)
		}
		kind, message, err := splitFrame(frame)
		if err != nil {
			return fmt.Errorf("%w: frame: %w", ErrProtocol, err)
		}
		if err := r.dispatch(kind, message); err != nil {
			select { // let the peer know who we are, it may find the same mistake
			case <-s.greeted:
			case <-ctx.Done():
			}
			return r.blame(kind, err)
		}
	}
}

// blame says in which message the peer's mistake is.
func (r *reader) blame(kind frameKind, err error) error {
	if errors.Is(err, ErrProtocol) || errors.Is(err, ErrVersion) {
		return err
	}
	return fmt.Errorf("%w: %s: %w", ErrProtocol, kind, err)
}

func (r *reader) dispatch(kind frameKind, b []byte) error {
	if (kind == frameHello) != (r.version() == 0) {
		return errors.New("hello comes first and once")
	}
	h := r.config.Handler
	switch kind {
	case frameHello:
		return r.hello(b)
	case frameState:
		state, names, err := readState(b)
		if err != nil {
			return err
		}
		r.batch.names = names
		r.peerPrompt(state.Prompt)
		r.call(func() { h.State(state) })
	case frameBatch:
		return r.takeBatch(b)
	case frameAck:
		return r.ack(b)
	case frameBulkBegin:
		return r.bulkBegin(b)
	case frameBulkEnd:
		return r.bulkEnd(b)
	case frameBulkRequest:
		groups, err := readBulkRequest(b)
		if err != nil {
			return err
		}
		r.call(func() { h.BulkWanted(groups) })
	case frameDigest:
		return r.takeDigest(b)
	default:
		r.mu.Lock()
		r.stats.Ignored++
		r.mu.Unlock()
	}
	return nil
}

func (s *Session) version() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats.Version
}

// hello settles the version.
func (r *reader) hello(b []byte) error {
	peer, err := readHello(b)
	if err != nil {
		return err
	}
	own := &r.config
	version := min(own.MaxVersion, peer.MaxVersion)
	if version < max(own.MinVersion, peer.MinVersion) {
		return fmt.Errorf("%w: %s (%s) speaks %d to %d, this router %d to %d", ErrVersion,
			peer.Node, peer.Build, peer.MinVersion, peer.MaxVersion, own.MinVersion, own.MaxVersion)
	}
	r.mu.Lock()
	r.stats.Version, r.stats.Peer = version, peer
	r.mu.Unlock()
	r.call(func() { own.Handler.Hello(peer) })
	close(r.ready)
	return nil
}

// takeBatch hands a batch to the handler and then has it acknowledged.
func (r *reader) takeBatch(b []byte) error {
	seq, err := r.batch.readBatch(b)
	if err != nil {
		return fmt.Errorf("batch %d: %w", seq, err)
	}
	if seq != r.seq+1 {
		return fmt.Errorf("%w: %d after %d", ErrSequence, seq, r.seq)
	}
	r.seq = seq
	if err := r.countBatch(); err != nil {
		return err
	}
	var refusals []Refusal
	r.call(func() { refusals = r.config.Handler.Batch(&r.batch.Batch) })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acks.seq = seq
	if len(refusals) > 0 {
		r.acks.refused = append(r.acks.refused, refusedBatch{seq, slices.Clone(refusals)}) // the handler's are for this call
	}
	for _, refusal := range refusals {
		r.stats.Received.Refused[refusal.Reason]++
	}
	poke(r.wake)
	if r.asked || seq-r.acks.told >= gatherAcks {
		poke(r.hurry)
	}
	return nil
}

// countBatch counts a batch, and bounds what is owed to a peer that does not read.
func (r *reader) countBatch() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seq-r.acks.told > window {
		return fmt.Errorf("over %d batches without acknowledgement", window)
	}
	t := &r.stats.Received
	t.Batches++
	t.Flows += uint64(len(r.batch.Flows))
	t.Gones += uint64(len(r.batch.Gones))
	t.Expectations += uint64(len(r.batch.Expectations))
	if t.Bulk.Running {
		t.Bulk.Flows += uint64(len(r.batch.Flows))
	}
	return nil
}

// ack forgets what the peer has dealt with.
func (r *reader) ack(b []byte) error {
	seq, refusals, err := readAck(b)
	if err != nil {
		return err
	}
	r.mu.Lock()
	if seq <= r.acked || seq > r.sent {
		defer r.mu.Unlock()
		return fmt.Errorf("of batch %d, when %d was sent and %d acknowledged", seq, r.sent, r.acked)
	}
	refused, ok := r.queue.refused(seq, refusals)
	if !ok {
		defer r.mu.Unlock()
		return fmt.Errorf("refuses a flow that batch %d does not have", seq)
	}
	r.taken = r.queue.taken(r.taken[:0], seq, refusals)
	flows, gones := r.queue.ack(seq)
	r.acked = seq
	r.stats.Acknowledged += uint64(flows + gones)
	for _, refusal := range refusals {
		r.stats.Sent.Refused[refusal.Reason]++
	}
	r.bulkAcked()
	r.mu.Unlock()
	poke(r.wake) // the window is open
	r.tellAcked(refused, refusals)
	return nil
}

// tellAcked tells the handler what the peer has made of its batches.
func (r *reader) tellAcked(refused []policy.Flow, refusals []Refusal) {
	if len(refused) > 0 {
		reasons := make([]Reason, len(refusals))
		for i, refusal := range refusals {
			reasons[i] = refusal.Reason
		}
		r.call(func() { r.config.Handler.Refused(refused, reasons) })
	}
	if len(r.taken) > 0 {
		r.call(func() { r.config.Handler.Acked(r.taken) })
	}
}

func (r *reader) bulkBegin(b []byte) error {
	begin, err := readBulkBegin(b)
	if err != nil {
		return err
	}
	r.bulk = &begin
	r.mu.Lock()
	r.stats.Received.Bulk = Bulk{Running: true, Total: begin.about}
	r.mu.Unlock()
	r.call(func() { r.config.Handler.BulkBegin(begin.groups) })
	return nil
}

func (r *reader) bulkEnd(b []byte) error {
	bulk, count, err := readBulkEnd(b)
	if err != nil {
		return err
	}
	if r.bulk == nil || r.bulk.bulk != bulk {
		return fmt.Errorf("bulk %d is not under way", bulk)
	}
	groups := r.bulk.groups
	r.bulk = nil
	r.call(func() { r.config.Handler.BulkEnd(groups, count) })
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &r.stats.Received.Bulk
	t.Running, t.Done, t.Total = false, true, count
	return nil
}
