// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop is one thread's epoll: it calls the handler of every socket that has
// something, and tick in between. All of it with the lock held.
type loop struct {
	mu       sync.Mutex
	epoll    int
	handlers map[int32]func(events uint32)
	tick     func(now time.Time)
	every    time.Duration // at least so often
	stop     chan struct{}
	done     chan struct{}
}

func newLoop(every time.Duration) (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open an epoll: %w", err)
	}
	return &loop{
		epoll: epoll, handlers: make(map[int32]func(uint32)), every: every,
		tick: func(time.Time) {}, stop: make(chan struct{}), done: make(chan struct{}),
	}, nil
}

// add watches a socket; with the lock held. Events come once, at the edge.
func (l *loop) add(fd int, events uint32, handler func(events uint32)) error {
	l.handlers[int32(fd)] = handler
	event := unix.EpollEvent{Events: events | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("watch a socket: %w", err)
	}
	return nil
}

// remove closes a socket; with the lock held.
func (l *loop) remove(fd int) {
	delete(l.handlers, int32(fd))
	unix.Close(fd)
}

func (l *loop) run() {
	defer close(l.done)
	events := make([]unix.EpollEvent, 256)
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		n, err := unix.EpollWait(l.epoll, events, max(1, int(l.every.Milliseconds())))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // closed
		}
		l.mu.Lock()
		for _, e := range events[:max(n, 0)] {
			if handler := l.handlers[e.Fd]; handler != nil {
				handler(e.Events)
			}
		}
		l.tick(time.Now())
		l.mu.Unlock()
	}
}

// close ends the loop and closes every socket.
func (l *loop) close() {
	close(l.stop)
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	for fd := range l.handlers {
		l.remove(int(fd))
	}
	unix.Close(l.epoll)
}

// pace says how many of a ring of things are due, at even distances in time.
type pace struct {
	start    time.Time
	interval time.Duration // for one round of the ring
	size     int
	done     int  // since start
	burst    int  // at most so many at once; what is too late is skipped
	once     bool // one round only, and nothing of it is skipped
}

// due is the range [from, to) of running numbers whose time has come; a number
// modulo size is the place in the ring.
func (p *pace) due(now time.Time) (from, to int) {
	if p.size == 0 || p.interval <= 0 {
		return 0, 0
	}
	want := int(float64(now.Sub(p.start)) / float64(p.interval) * float64(p.size))
	if p.once {
		want = min(want, p.size)
	}
	from = max(p.done, want-p.burst)
	p.done = max(want, p.done)
	return from, p.done
}
