// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// readBuffer lost none of 50,000 events at 115,000/s; the default of 208
	// KiB lost half. The kernel takes the memory only as it is used.
	readBuffer = 16 << 20
	// datagramMax is more than the kernel puts into one datagram: 32 KiB in a
	// dump (netlink_dump), one entry else.
	datagramMax = 1 << 16
	// batchSize messages go into one datagram; more make it no faster.
	batchSize = 128
	// answerTimeout is how long a request may wait. The kernel answers within
	// the system call that sends it, so nothing is ever waited for in practice.
	answerTimeout = 10 * time.Second
)

// socket is a netlink socket whose answers are read here instead of by
// netlink.Conn.Receive: that waits for a Done message after every message
// marked multi-part, and ctnetlink marks the answer to a single get so without
// ever sending one. It also hands out one message at a time from one buffer,
// and an error message does not hide those after it.
type socket struct {
	mu       sync.Mutex // one exchange at a time
	conn     *netlink.Conn
	raw      syscall.RawConn
	buf      []byte
	request  request // of changes, which count their messages themselves
	sequence uint32
	closed   atomic.Bool

	// What the last receive got. It is kept here, and read is made once, since a
	// closure for each datagram would be four allocations for each event.
	read  func(fd uintptr) bool
	n     int
	from  unix.Sockaddr
	errno error
}

// dialSocket opens a socket in the network namespace of the calling thread.
func dialSocket(buffer int) (*socket, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	s := &socket{conn: conn, buf: make([]byte, datagramMax)}
	s.read = s.readOne
	if err := s.setUp(buffer); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

func (s *socket) setUp(buffer int) (err error) {
	if err := s.conn.SetReadBuffer(buffer); err != nil {
		return fmt.Errorf("enlarge the receive buffer of the netfilter socket to %d octets: %w", buffer, err)
	}
	// Errors need not repeat the request.
	if err := s.conn.SetOption(netlink.CapAcknowledge, true); err != nil {
		return fmt.Errorf("set up netfilter socket: %w", err)
	}
	s.raw, err = s.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("set up netfilter socket: %w", err)
	}
	return nil
}

// port is the socket's netlink port, by which the kernel says whose request
// caused an event.
func (s *socket) port() (port uint32, err error) {
	control := s.raw.Control(func(fd uintptr) {
		var at unix.Sockaddr
		if at, err = unix.Getsockname(int(fd)); err == nil {
			port = at.(*unix.SockaddrNetlink).Pid
		}
	})
	if err = errors.Join(control, err); err != nil {
		return 0, fmt.Errorf("ask for the port of the netfilter socket: %w", err)
	}
	return port, nil
}

func (s *socket) close() error {
	s.closed.Store(true)
	if err := s.conn.Close(); err != nil {
		return fmt.Errorf("close netfilter socket: %w", err)
	}
	return nil
}

// receive waits for one datagram and hands each of its messages to handle,
// whose error ends it. The messages are only valid during the call.
func (s *socket) receive(handle func(netlink.Message) error) error {
	err := s.raw.Read(s.read)
	n, from, errno := s.n, s.from, s.errno
	if err = errors.Join(err, errno); err != nil {
		return fmt.Errorf("read from netfilter socket: %w", err)
	}
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
		return nil // not the kernel
	}
	if n > len(s.buf) {
		return fmt.Errorf("read from netfilter socket: datagram of %d octets, at most %d", n, len(s.buf))
	}
	return eachMessage(s.buf[:n], handle)
}

// readOne takes a datagram from the socket; it tells whether there was one.
func (s *socket) readOne(fd uintptr) bool {
	for {
		s.n, s.from, s.errno = unix.Recvfrom(int(fd), s.buf, unix.MSG_TRUNC)
		if !errors.Is(s.errno, unix.EINTR) {
			return !errors.Is(s.errno, unix.EAGAIN)
		}
	}
}

// eachMessage splits a datagram.
func eachMessage(b []byte, handle func(netlink.Message) error) error {
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		aligned := (length + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
		if length < unix.NLMSG_HDRLEN || length > len(b) || aligned < length {
			return fmt.Errorf("split netlink datagram: message of %d octets in %d", length, len(b))
		}
		message := netlink.Message{
			Header: netlink.Header{
				Length:   uint32(length),
				Type:     netlink.HeaderType(binary.NativeEndian.Uint16(b[4:])),
				Flags:    netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:])),
				Sequence: binary.NativeEndian.Uint32(b[8:]),
				PID:      binary.NativeEndian.Uint32(b[12:]),
			},
			Data: b[unix.NLMSG_HDRLEN:length],
		}
		if err := handle(message); err != nil {
			return err
		}
		b = b[min(aligned, len(b)):]
	}
	return nil
}

// verdict reads the error number of an Error or Done message; nil is success.
func verdict(m netlink.Message) error {
	if len(m.Data) < 4 {
		if m.Header.Type == netlink.Done {
			return nil
		}
		return fmt.Errorf("netlink error message of %d octets", len(m.Data))
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code >= 0 {
		return nil
	}
	return unix.Errno(-code)
}
