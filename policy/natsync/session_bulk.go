// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"

	"vippin/policy"
)

// bulkRoom is how many entries may wait before a bulk pauses.
const bulkRoom = 4096

// BeginBulk begins to tell of all flows of some groups, "" being those without a
// group. about is how many there will be, 0 if that is unknown; it is for the peer
// to show. An earlier bulk that was not ended is given up.
func (s *Session) BeginBulk(groups []string, about uint64) {
	now := s.config.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.bulk = bulkOut{number: s.bulk.number + 1, open: true}
	s.stats.Sent.Bulk = Bulk{Running: true, Total: about}
	s.queue.mark(now, entryBulkBegin, &bulkBegin{s.bulk.number, about, usable(groups)}, lineNews)
	poke(s.wake)
}

// PutBulk tells of a flow of the bulk, unless something newer of its key waits. It
// waits while much does. ErrLost: the bulk was given up, begin another.
func (s *Session) PutBulk(ctx context.Context, f *policy.Flow) error {
	invalid := checkFlow(f) != nil
	for {
		room, err := s.tryBulk(f, invalid)
		if room == nil {
			return err
		}
		select {
		case <-room:
		case <-s.done:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryBulk puts a flow in the queue, or returns what to wait for.
func (s *Session) tryBulk(f *policy.Flow, invalid bool) (room <-chan struct{}, err error) {
	now := s.config.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, ErrClosed
	case !s.bulk.open:
		return nil, ErrLost
	case invalid:
		s.stats.Invalid++
		return nil, nil
	case s.queue.waiting >= min(bulkRoom, s.config.QueueLimit/2):
		if s.room == nil {
			s.room = make(chan struct{})
		}
		return s.room, nil
	}
	s.queue.putBulk(now, f)
	s.stats.Sent.Bulk.Flows++
	poke(s.wake)
	return nil, nil
}

// EndBulk tells the peer that what the bulk did not have is gone.
func (s *Session) EndBulk() {
	now := s.config.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.bulk.open {
		return
	}
	s.bulk.open = false
	s.stats.Sent.Bulk.Total = s.stats.Sent.Bulk.Flows
	s.queue.mark(now, entryBulkEnd, &bulkEnd{s.bulk.number, s.stats.Sent.Bulk.Flows}, lineBulk)
	poke(s.wake)
}

// makeRoom lets a bulk go on.
func (s *Session) makeRoom() {
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// bulkSent notes which batch was the last one before the bulk's end.
func (s *Session) bulkSent(end *bulkEnd) {
	if end.bulk != s.bulk.number {
		return
	}
	s.bulk.ended, s.bulk.last = true, s.sent
	s.bulkAcked()
}

// bulkAcked notes whether the peer has all of the bulk.
func (s *Session) bulkAcked() {
	if s.bulk.ended && s.acked >= s.bulk.last {
		s.stats.Sent.Bulk.Running, s.stats.Sent.Bulk.Done = false, true
	}
}
