// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// goneBeats is after how many beats without a sign of life a peer is gone.
const goneBeats = 6

// watch notes since when reader and writer wait for the peer.
type watch struct {
	reading, writing atomic.Int64 // nanoseconds of Config.Now plus 1, 0 = not waiting
}

func (s *Session) waiting(on *atomic.Int64) { on.Store(int64(s.config.Now()) + 1) }

// Run talks with the peer until ctx ends, the peer goes or breaks the protocol, and
// says which. It closes conn and waits for its goroutines.
func (s *Session) Run(ctx context.Context, conn io.ReadWriteCloser) error {
	defer s.end()
	tasks, inner := errgroup.WithContext(ctx)
	tasks.Go(func() error { return s.read(inner, conn) })
	tasks.Go(func() error { return s.write(inner, conn) })
	tasks.Go(func() error { return s.watch(inner) })
	tasks.Go(func() error {
		<-inner.Done()
		conn.Close() // wakes reader and writer; their errors come too late to count
		return nil
	})
	err := tasks.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return fmt.Errorf("peer has closed the session: %w", err)
	}
	return err
}

// end drops what waits.
func (s *Session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.queue = newQueue()
	s.bulk.open = false
	s.stats.Sent.Bulk.Running, s.stats.Received.Bulk.Running = false, false
	close(s.done)
}

// watch ends the session when the peer says nothing or reads nothing, and tells the
// handler of an overflow: Put must not wait for it.
func (s *Session) watch(ctx context.Context) error {
	beat := time.NewTicker(s.config.Beat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.lost:
			s.call(s.config.Handler.Lost)
		case <-beat.C:
			if s.overdue(&s.alive.reading) {
				return fmt.Errorf("%w for %v", ErrSilent, goneBeats*s.config.Beat)
			}
			if s.overdue(&s.alive.writing) {
				return fmt.Errorf("%w for %v", ErrStalled, goneBeats*s.config.Beat)
			}
		}
	}
}

func (s *Session) overdue(since *atomic.Int64) bool {
	at := since.Load()
	return at != 0 && int64(s.config.Now())-(at-1) >= int64(goneBeats*s.config.Beat)
}

// call makes a call of the handler when no other one lasts.
func (s *Session) call(f func()) {
	s.calls.Lock()
	defer s.calls.Unlock()
	f()
}
