// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ServerPlan is what a server worker listens on.
type ServerPlan struct {
	Local netip.Addr
	TCP   bool
	Ports int // TCP: from TCPPort on; 0 = this one alone
	UDP   []uint16
	ICMP  bool // watch the echo requests that the kernel answers
	Flows [Protos]int
	Mute  bool // UDP: datagrams are received by nobody, and there is no answer
}

// server answers and notes sources.
type server struct {
	*loop
	plan   ServerPlan
	buffer []byte
	seen   [Protos][]Seen
}

func startServer(plan ServerPlan) (s *server, err error) {
	l, err := newLoop(50 * time.Millisecond)
	if err != nil {
		return nil, err
	}
	s = &server{loop: l, plan: plan, buffer: make([]byte, 4096)}
	for p, n := range plan.Flows {
		s.seen[p] = make([]Seen, n)
	}
	defer func() {
		if err != nil {
			unix.Close(l.epoll)
		}
	}()
	for i := range max(plan.Ports, count(plan.TCP)) {
		if err := s.listen(uint16(TCPPort + i)); err != nil {
			return nil, err
		}
	}
	for _, port := range plan.UDP {
		fd, err := socket(unix.SOCK_DGRAM, 0, plan.Local, port)
		if err != nil {
			return nil, err
		}
		if plan.Mute { // nothing piles up either
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
				return nil, fmt.Errorf("shrink a buffer: %w", err)
			}
			s.handlers[int32(fd)] = nil
			continue
		}
		if err := s.add(fd, unix.EPOLLIN, func(uint32) { s.readUDP(fd) }); err != nil {
			return nil, err
		}
	}
	if plan.ICMP {
		fd, err := icmpSocket(plan.Local)
		if err != nil {
			return nil, err
		}
		if err := s.add(fd, unix.EPOLLIN, func(uint32) { s.readICMP(fd) }); err != nil {
			return nil, err
		}
	}
	go s.run()
	return s, nil
}

func (s *server) listen(port uint16) error {
	fd, err := socket(unix.SOCK_STREAM, 0, s.plan.Local, port)
	if err != nil {
		return err
	}
	if err := unix.Listen(fd, 4096); err != nil {
		unix.Close(fd)
		return err
	}
	return s.add(fd, unix.EPOLLIN, func(uint32) { s.accept(fd) })
}

func (s *server) accept(listener int) {
	for {
		fd, from, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		source, conn := addrPort(from), &stream{}
		if s.add(fd, unix.EPOLLIN|unix.EPOLLRDHUP, func(uint32) {
			if !conn.read(fd, s.buffer, func(r record, raw []byte) { s.answerTCP(fd, source, r, raw) }) {
				s.remove(fd)
			}
		}) != nil {
			unix.Close(fd)
		}
	}
}

func (s *server) answerTCP(fd int, source netip.AddrPort, r record, raw []byte) {
	s.note(TCP, source, r)
	record{source: source}.putSource(raw)
	_, _ = unix.Write(fd, raw) // the client sees what is missing
}

func (s *server) readUDP(fd int) {
	for {
		n, from, err := unix.Recvfrom(fd, s.buffer, 0)
		if err != nil {
			return
		}
		r, ok := parse(s.buffer[:n])
		if !ok {
			continue
		}
		source := addrPort(from)
		s.note(UDP, source, r)
		record{source: source}.putSource(s.buffer)
		_ = unix.Sendto(fd, s.buffer[:recordLen], 0, from)
	}
}

func (s *server) readICMP(fd int) {
	for {
		n, from, err := unix.Recvfrom(fd, s.buffer, 0)
		if err != nil {
			return
		}
		if id, r, ok := readEcho(s.buffer[:n], s.plan.Local.Is6(), true); ok {
			s.note(ICMP, netip.AddrPortFrom(addrPort(from).Addr(), id), r)
		}
	}
}

func (s *server) note(proto Proto, source netip.AddrPort, r record) {
	if r.proto != proto || int(r.id) >= len(s.seen[proto]) { // a decoy's, or a probe's
		return
	}
	seen := &s.seen[proto][r.id]
	switch {
	case !seen.Source.IsValid():
		seen.Source = source
	case seen.Source != source:
		seen.Moved = true
	}
	seen.After = seen.After || r.phase == After
}

func (s *server) report() [Protos][]Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all [Protos][]Seen
	for p := range all {
		all[p] = append(all[p], s.seen[p]...)
	}
	return all
}
