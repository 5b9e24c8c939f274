// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// eventSocket is a netlink socket that events come to. It is not one of the
// library's: those are watched by the runtime's poller, which is woken for every
// datagram that comes in, also while nobody wants to read. At 10,000 events a
// second that took most of the daemon's time.
type eventSocket struct {
	mu     sync.Mutex // of who waits and reads
	fd     int
	alarm  int // an eventfd: it ends a wait
	closed atomic.Bool

	released sync.Once
}

// dialEvents opens one in the network namespace of the calling thread. The buffer
// is in octets and may exceed the sysctl net.core.rmem_max.
func dialEvents(buffer int) (*eventSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	s := &eventSocket{fd: fd, alarm: -1}
	if err := s.setUp(buffer); err != nil {
		return nil, errors.Join(err, s.release())
	}
	return s, nil
}

func (s *eventSocket) setUp(buffer int) (err error) {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netfilter socket: %w", err)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		return fmt.Errorf("enlarge the receive buffer of the netfilter socket to %d octets: %w", buffer, err)
	}
	if s.alarm, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	return nil
}

// join subscribes to a multicast group, or ends that.
func (s *eventSocket) join(group uint32, on bool) error {
	if s.closed.Load() {
		return os.ErrClosed
	}
	option := unix.NETLINK_ADD_MEMBERSHIP
	if !on {
		option = unix.NETLINK_DROP_MEMBERSHIP
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, option, int(group)))
}

// wait returns when there is something to read, or ring was called. Called with
// mu.
func (s *eventSocket) wait() error {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.alarm), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
	}
}

// ring ends the present wait, and every one until hush.
func (s *eventSocket) ring() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(s.alarm, one[:]) // fails only when it rings already
}

func (s *eventSocket) hush() {
	var count [8]byte
	_, _ = unix.Read(s.alarm, count[:]) // fails only when it does not ring
}

// close ends whatever wait there is. The descriptors go with the last user.
func (s *eventSocket) close() error {
	if s.closed.Swap(true) {
		return os.ErrClosed
	}
	s.ring()
	return s.reap()
}

// enter is for who waits and reads; os.ErrClosed after close. leave ends it.
func (s *eventSocket) enter() error {
	s.mu.Lock()
	if s.closed.Load() {
		s.mu.Unlock()
		return os.ErrClosed
	}
	return nil
}

func (s *eventSocket) leave() {
	s.mu.Unlock()
	_ = s.reap() // who called close has its answer
}

// reap releases the descriptors of a closed socket that nobody uses.
func (s *eventSocket) reap() (err error) {
	if s.closed.Load() && s.mu.TryLock() {
		s.released.Do(func() { err = s.release() })
		s.mu.Unlock()
	}
	return err
}

func (s *eventSocket) release() error {
	errs := []error{unix.Close(s.fd)}
	if s.alarm >= 0 {
		errs = append(errs, unix.Close(s.alarm))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close netfilter socket: %w", err)
	}
	return nil
}
