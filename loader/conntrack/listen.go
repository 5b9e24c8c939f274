// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Groups says which events a Listener gets.
type Groups uint32

// The multicast groups, NFNLGRP_CONNTRACK_*. Events exist only of entries born
// while somebody listened, unless the sysctl nf_conntrack_events is 1.
const (
	News Groups = 1 << iota
	Updates
	Destroys
	Expects // expectations that were made
)

var groupNumbers = [...]struct {
	group  Groups
	number uint32
}{
	{News, unix.NFNLGRP_CONNTRACK_NEW},
	{Updates, unix.NFNLGRP_CONNTRACK_UPDATE},
	{Destroys, unix.NFNLGRP_CONNTRACK_DESTROY},
	{Expects, unix.NFNLGRP_CONNTRACK_EXP_NEW},
}

// EventType says what happened.
type EventType uint8

// What can happen to a Listener.
const (
	New     EventType = 1 + iota // an entry was made
	Update                       // its state, mark, helper, … changed; not each timeout or counter
	Destroy                      // it was removed
	Expect                       // an expectation was made
	Overrun                      // events were lost: look at the table
)

func (t EventType) String() string {
	switch t {
	case New:
		return "NEW"
	case Update:
		return "UPDATE"
	case Destroy:
		return "DESTROY"
	case Expect:
		return "EXPECT"
	case Overrun:
		return "OVERRUN"
	}
	return fmt.Sprintf("EventType(%d)", uint8(t))
}

// Event is one change of the table.
type Event struct {
	Type EventType
	// Flow is nil for Expect and Overrun. New flows lack counters and may lack
	// what was not there yet. Updates have what changed, both tuples, status,
	// timeout and mark; they may lack the rest.
	Flow        *Flow
	Expectation *Expectation // nil but for Expect
}

// After some events others are let gather, the longer the more have come: where they
// come one after the other hardly at all, with 10,000 a second and more up to
// gatherFor, unless SetGather says otherwise. The first one after a rest is taken at
// once.
const (
	gatherFor  = 10 * time.Millisecond
	gatherEach = 100 * time.Microsecond
)

// Listener is a subscription to conntrack events of one network namespace.
type Listener struct {
	socket  *eventSocket
	burst   *burst
	decoder decoder
	ignored atomic.Pointer[[]uint32] // netlink ports
	gather  atomic.Int64             // time.Duration
}

// Listen subscribes in the network namespace of the calling thread. From its
// return on, events are kept until Receive takes them.
func Listen(groups Groups) (*Listener, error) { return listen(groups, readBuffer) }

func listen(groups Groups, buffer int) (*Listener, error) {
	s, err := dialEvents(buffer)
	if err != nil {
		return nil, err
	}
	l := &Listener{socket: s, burst: newBurst()}
	l.SetGather(gatherFor)
	if err := l.Join(groups); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return l, nil
}

// Join subscribes to groups in addition, also while Receive runs.
func (l *Listener) Join(groups Groups) error {
	for _, g := range groupNumbers {
		if groups&g.group == 0 {
			continue
		}
		if err := l.socket.join(g.number, true); err != nil {
			return fmt.Errorf("subscribe to conntrack events: %w", err)
		}
	}
	return nil
}

// Leave ends the subscription to groups. Events that came before are still
// received.
func (l *Listener) Leave(groups Groups) error {
	for _, g := range groupNumbers {
		if groups&g.group == 0 {
			continue
		}
		if err := l.socket.join(g.number, false); err != nil {
			return fmt.Errorf("unsubscribe from conntrack events: %w", err)
		}
	}
	return nil
}

// Ignore leaves out the events that requests of conns cause.
func (l *Listener) Ignore(conns ...*Conn) error {
	var ports []uint32
	for _, conn := range conns {
		port, err := conn.requests.port()
		if err != nil {
			return err
		}
		ports = append(ports, port)
	}
	l.ignored.Store(&ports)
	return nil
}

// SetGather says how long events may gather under load: 0 where each is wanted at
// once, at four times the cost; negative: as in the beginning.
func (l *Listener) SetGather(d time.Duration) {
	if d < 0 {
		d = gatherFor
	}
	l.gather.Store(int64(d))
}

// Close ends the subscription and any Receive, which returns os.ErrClosed.
func (l *Listener) Close() error { return l.socket.close() }

// Receive hands events to handle, one at a time and in the kernel's order,
// until ctx ends (then it returns nil), handle returns an error (which it
// returns) or the socket breaks. When the buffer ran over it says Overrun and
// goes on: all that was lost was lost before, so a dump made from then on makes
// up for it. A handle that takes long makes that likelier. The Flow is valid
// during the call.
func (l *Listener) Receive(ctx context.Context, handle func(Event) error) error {
	s := l.socket
	if err := s.enter(); err != nil {
		return l.broken(err)
	}
	defer s.leave()
	rung := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(rung)
		s.ring()
	})
	defer func() {
		if !stop() {
			<-rung // or it might end the next Receive
			s.hush()
		}
	}()
	lost, taken := false, 0
	for {
		if ctx.Err() != nil {
			return nil
		}
		if s.closed.Load() {
			return l.broken(os.ErrClosed)
		}
		var handled error
		err := l.burst.receive(s.fd, func(m netlink.Message) error {
			taken++
			handled = l.handle(ctx, m, handle)
			return handled
		}, func() error {
			handled = handle(Event{Type: Overrun})
			return handled
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case handled != nil:
			return handled
		case errors.Is(err, unix.ENOBUFS):
			// From now until it is empty the kernel puts nothing into the
			// buffer, and tells of no further loss. So read on until then.
			lost = true
		case errors.Is(err, unix.EAGAIN):
			if lost {
				lost = false
				if err := handle(Event{Type: Overrun}); err != nil {
					return err
				}
			}
			if pause := l.pauseAfter(taken); pause > 0 {
				letGather(ctx, pause)
			} else if err := s.wait(); err != nil {
				return l.broken(err)
			}
			taken = 0
		case err != nil:
			return l.broken(err)
		}
	}
}

// pauseAfter is how long to let events gather after so many.
func (l *Listener) pauseAfter(events int) time.Duration {
	return min(time.Duration(l.gather.Load()), time.Duration(events)*gatherEach)
}

// letGather waits until there may be several events: to be woken for each costs
// four times as much as to take it.
func letGather(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (l *Listener) broken(err error) error {
	return fmt.Errorf("listen to conntrack events: %w", err)
}

func (l *Listener) handle(ctx context.Context, m netlink.Message, handle func(Event) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if ports := l.ignored.Load(); ports != nil && slices.Contains(*ports, m.Header.PID) {
		return nil
	}
	event := Event{}
	switch {
	case m.Header.Type == msgDelete:
		event.Type = Destroy
	case m.Header.Type == msgNew && m.Header.Flags&(netlink.Create|netlink.Excl) != 0:
		event.Type = New
	case m.Header.Type == msgNew:
		event.Type = Update
	case m.Header.Type == msgExpectNew:
		event.Type = Expect
	default:
		return nil
	}
	if event.Type == Expect {
		event.Expectation, err = decodeExpectation(m.Data)
	} else {
		event.Flow, err = l.decoder.decode(m.Data)
	}
	if err != nil {
		// What it was about is lost, as if it had not come.
		return handle(Event{Type: Overrun})
	}
	return handle(event)
}
