// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// StormPlan is new TCP connections at an even pace, to the server's ports in turn;
// each ends as soon as it is made.
type StormPlan struct {
	Local, Server netip.Addr
	Ports         int // of the server, from TCPPort on
	Rate          int // connections a second
	Patience      time.Duration
}

// Attempt is one connection.
type Attempt struct {
	Begun time.Time
	Took  time.Duration // 0 = it was not made: refused, reset, or its time was over
}

// storm is a running StormPlan.
type storm struct {
	*loop
	plan     StormPlan
	start    time.Time
	begun    int
	ended    bool
	attempts []Attempt
	overdue  int   // attempts before this one have an end
	sockets  []int // by attempt; -1 = closed
	failed   error // the first failure that is not a connection's fate
}

func startStorm(plan StormPlan) (*storm, error) {
	l, err := newLoop(time.Millisecond)
	if err != nil {
		return nil, err
	}
	s := &storm{loop: l, plan: plan, start: time.Now()}
	s.tick = s.onTick
	go s.run()
	return s, nil
}

func (s *storm) onTick(now time.Time) {
	if !s.ended {
		due := int(now.Sub(s.start).Seconds() * float64(s.plan.Rate))
		for ; s.begun < due && s.failed == nil; s.begun++ {
			s.failed = s.begin()
		}
	}
	for ; s.overdue < len(s.attempts) && now.Sub(s.attempts[s.overdue].Begun) > s.plan.Patience; s.overdue++ {
		s.finish(s.overdue, 0)
	}
}

func (s *storm) begin() error {
	fd, err := socket(unix.SOCK_STREAM, 0, s.plan.Local, 0)
	if err != nil {
		return err
	}
	// It ends by a RST: nothing is left of it.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("have a connection end at once: %w", err)
	}
	number := len(s.attempts)
	s.attempts, s.sockets = append(s.attempts, Attempt{Begun: time.Now()}), append(s.sockets, fd)
	port := uint16(TCPPort + number%s.plan.Ports)
	if err := unix.Connect(fd, sockaddr(s.plan.Server, port)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		s.sockets[number] = -1
		return nil // a fact about the way, as a refusal is
	}
	return s.add(fd, unix.EPOLLOUT, func(uint32) {
		took := time.Since(s.attempts[number].Begun)
		if code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
			took = 0
		}
		s.finish(number, took)
	})
}

func (s *storm) finish(number int, took time.Duration) {
	if fd := s.sockets[number]; fd >= 0 {
		s.sockets[number] = -1
		s.attempts[number].Took = took
		s.remove(fd)
	}
}

// Storm is what became of one.
type Storm struct {
	Attempts []Attempt
	Waiting  int // of these
}

// end begins no more connections; report says how those under way get on.
func (s *storm) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

func (s *storm) report() (r Storm, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Attempts = append(r.Attempts, s.attempts...)
	for _, fd := range s.sockets {
		r.Waiting += count(fd >= 0)
	}
	return r, s.failed
}
