// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// stream is one end of a TCP flow: records cut out of it.
type stream struct {
	connected bool
	part      [recordLen]byte
	have      int
}

// read takes what is there and calls got for every whole record; false means
// the end of the connection, or an error.
func (s *stream) read(fd int, buffer []byte, got func(record, []byte)) bool {
	for {
		n, err := unix.Read(fd, buffer)
		if errors.Is(err, unix.EAGAIN) {
			return true
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return false
		}
		for data := buffer[:n]; len(data) > 0; {
			k := copy(s.part[s.have:], data)
			s.have, data = s.have+k, data[k:]
			if s.have < recordLen {
				break
			}
			s.have = 0
			r, ok := parse(s.part[:])
			if !ok {
				return false // the stream is not what was sent
			}
			got(r, s.part[:])
		}
	}
}

// connect begins a TCP flow.
func (c *crowd) connect(f *flow) error {
	fd, err := socket(unix.SOCK_STREAM, 0, c.Local, f.slot.SourcePort)
	if err != nil {
		return err
	}
	f.fd = fd
	if err := unix.Connect(fd, f.to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return err
	}
	return c.add(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP, func(events uint32) { c.onTCP(f, events) })
}

func (c *crowd) onTCP(f *flow, events uint32) {
	if !f.stream.connected && events&unix.EPOLLOUT != 0 {
		if code, err := unix.GetsockoptInt(f.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
			c.breakFlow(f)
			return
		}
		f.stream.connected, f.made = true, time.Now()
		c.ask(f)
	}
	if events&(unix.EPOLLIN|unix.EPOLLERR|unix.EPOLLHUP|unix.EPOLLRDHUP) == 0 {
		return
	}
	if !f.stream.read(f.fd, c.buffer, func(r record, _ []byte) {
		if c.flowOf(TCP, r) == f {
			c.answered(f, r)
		}
	}) {
		c.breakFlow(f)
	}
}

func (c *crowd) breakFlow(f *flow) {
	f.broken = true
	if f.fd >= 0 {
		c.remove(f.fd)
		f.fd = -1
	}
}

// write sends a whole record or none: a part of one would spoil the stream.
func (c *crowd) write(f *flow, message []byte) {
	n, err := unix.Write(f.fd, message)
	switch {
	case errors.Is(err, unix.EAGAIN): // nothing is acknowledged: the flow waits
	case err != nil, n != len(message):
		c.breakFlow(f)
	}
}
