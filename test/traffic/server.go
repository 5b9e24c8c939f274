// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The words of the protocol. A request is one line (TCP) or one datagram:
//
//	HELLO id number          answered, and remembered for id
//	ONEWAY id number         remembered, never answered
//	PUT octets seed          (TCP) that many octets follow; answered "SHA256 hex"
//	GET octets seed          (TCP) answered with that many octets, then "SHA256 hex"
//	PACE octets              (TCP) what follows leaves at so many octets a second; not answered
//
// HELLO and anything unknown are answered "SOURCE address:port request".
const (
	wordHello  = "HELLO"
	wordOneWay = "ONEWAY"
	wordPut    = "PUT"
	wordGet    = "GET"
	wordPace   = "PACE"
	wordSource = "SOURCE"
	wordSHA    = "SHA256"
)

// ServerOptions says what a server listens on. Name addresses rather than
// wildcards where the namespace has several: a UDP answer leaves from the
// socket's address.
type ServerOptions struct {
	TCP  []netip.AddrPort
	UDP  []netip.AddrPort
	Ping bool // also watch the echo requests that Pinger sends (the kernel answers them)
}

// Stream is what a server saw of one flow.
type Stream struct {
	ID         string
	Proto      string           // tcp, udp, icmp
	Sources    []netip.AddrPort // in order of first appearance; ICMP: the identifier as port
	Packets    uint64           // requests, or datagrams of a one-way stream
	Missing    uint64           // numbers that were jumped over
	First      time.Time
	Last       time.Time
	LongestGap time.Duration // between two of them

	next uint64
}

// Server is an echo server that says which source it saw.
type Server struct {
	cancel context.CancelFunc
	ctx    context.Context
	tasks  sync.WaitGroup

	mu        sync.Mutex
	listening []interface{ Close() error }
	conns     map[net.Conn]struct{}
	streams   map[string]*Stream
}

// Serve opens every socket inside the namespace and serves until Close.
func Serve(in Enter, opts ServerOptions) (*Server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		ctx: ctx, cancel: cancel,
		conns: make(map[net.Conn]struct{}), streams: make(map[string]*Stream),
	}
	if err := in(func() error { return s.open(opts) }); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open(opts ServerOptions) error {
	var listen net.ListenConfig
	listen.SetMultipathTCP(false)
	for _, at := range opts.TCP {
		l, err := listen.Listen(s.ctx, "tcp", at.String())
		if err != nil {
			return fmt.Errorf("listen for TCP on %s: %w", at, err)
		}
		s.listening = append(s.listening, l)
		s.tasks.Go(func() { s.accept(l) })
	}
	for _, at := range opts.UDP {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return fmt.Errorf("listen for UDP on %s: %w", at, err)
		}
		s.listening = append(s.listening, conn)
		if err := makeRoom(conn); err != nil {
			return err
		}
		s.tasks.Go(func() { s.answerUDP(conn) })
	}
	if !opts.Ping {
		return nil
	}
	for _, f := range icmpFamilies {
		conn, err := f.listen()
		if err != nil {
			return err
		}
		s.listening = append(s.listening, conn)
		s.tasks.Go(func() { s.watchEchoes(f, conn) })
	}
	return nil
}

// Close ends every connection and waits until nothing runs any more.
func (s *Server) Close() error {
	s.cancel()
	s.mu.Lock()
	var errs []error
	for _, l := range s.listening {
		errs = append(errs, l.Close())
	}
	s.listening = nil
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.tasks.Wait()
	return errors.Join(errs...)
}

// Stream returns what was seen of a flow so far; the zero Stream if nothing.
func (s *Server) Stream(id string) Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen := s.streams[id]; seen != nil {
		return seen.copy()
	}
	return Stream{}
}

// Streams returns what was seen so far of every flow, by id.
func (s *Server) Streams() map[string]Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Stream, len(s.streams))
	for id, seen := range s.streams {
		all[id] = seen.copy()
	}
	return all
}

// AwaitStream waits until count packets of a flow have been seen.
func (s *Server) AwaitStream(ctx context.Context, id string, count uint64) (Stream, error) {
	for {
		seen := s.Stream(id)
		if seen.Packets >= count {
			return seen, nil
		}
		select {
		case <-ctx.Done():
			return seen, fmt.Errorf("wait for %d packets of %s (seen: %d from %v): %w", count, id, seen.Packets, seen.Sources, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (m *Stream) copy() Stream {
	c := *m
	c.Sources = slices.Clone(m.Sources)
	return c
}

// remember counts one HELLO or ONEWAY; fields are the words after it.
func (s *Server) remember(proto string, source netip.AddrPort, fields []string) {
	if len(fields) < 2 {
		return
	}
	number, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.streams[fields[0]]
	if m == nil {
		m = &Stream{ID: fields[0], Proto: proto, First: now, Last: now, next: number}
		s.streams[fields[0]] = m
	}
	m.Sources = addSource(m.Sources, source)
	m.Packets++
	m.LongestGap = max(m.LongestGap, now.Sub(m.Last))
	m.Last = now
	if number > m.next {
		m.Missing += number - m.next
	}
	m.next = number + 1
}

// answer works one request line out and returns the reply, "" for none.
func (s *Server) answer(proto string, source netip.AddrPort, request string) string {
	source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	fields := strings.Fields(request)
	if len(fields) > 0 {
		switch fields[0] {
		case wordOneWay:
			s.remember(proto, source, fields[1:])
			return ""
		case wordHello:
			s.remember(proto, source, fields[1:])
		}
	}
	return fmt.Sprintf("%s %s %s", wordSource, source, strings.TrimSpace(request))
}

func (s *Server) answerUDP(conn *net.UDPConn) {
	buffer := make([]byte, 65536)
	for {
		n, source, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier answer
		}
		if reply := s.answer("udp", source, string(buffer[:n])); reply != "" {
			_, _ = conn.WriteToUDPAddrPort([]byte(reply), source) // the client sees what is missing
		}
	}
}
