// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// RawPacket is what came in an IP packet of one protocol.
type RawPacket struct {
	From    netip.Addr
	Payload []byte // after the IP header
}

// RawSocket sends and collects packets of one IP protocol, as the ends of a
// tunnel do. It needs root.
type RawSocket struct {
	conn   *net.IPConn
	answer func(RawPacket) []byte
	done   chan struct{}

	mu      sync.Mutex
	packets []RawPacket
	grown   chan struct{} // closed at the next packet
}

// OpenRaw opens the socket inside the namespace, bound to an address. Unless
// answer is nil, what it returns for a packet goes back to the sender; nil is
// no answer.
func OpenRaw(in Enter, proto uint8, local netip.Addr, answer func(RawPacket) []byte) (*RawSocket, error) {
	network := fmt.Sprintf("ip4:%d", proto)
	if !local.Is4() {
		network = fmt.Sprintf("ip6:%d", proto)
	}
	s := &RawSocket{answer: answer, done: make(chan struct{}), grown: make(chan struct{})}
	err := in(func() (err error) {
		s.conn, err = net.ListenIP(network, &net.IPAddr{IP: local.AsSlice()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a raw socket for protocol %d on %s: %w", proto, local, err)
	}
	_ = s.conn.SetReadBuffer(4 << 20) // as much as the system allows
	go s.run()
	return s, nil
}

func (s *RawSocket) run() {
	defer close(s.done)
	buffer := make([]byte, datagramMax)
	for {
		n, from, err := s.conn.ReadFromIP(buffer)
		if err != nil {
			return // closed; ICMP errors are for connected sockets only
		}
		addr, _ := netip.AddrFromSlice(from.IP)
		packet := RawPacket{From: addr.Unmap(), Payload: slices.Clone(buffer[:n])}
		s.mu.Lock()
		s.packets = append(s.packets, packet)
		close(s.grown)
		s.grown = make(chan struct{})
		s.mu.Unlock()
		if s.answer == nil {
			continue
		}
		if reply := s.answer(packet); reply != nil {
			_ = s.Send(packet.From, reply) // whoever waits for it sees what is missing
		}
	}
}

// Send sends one packet; the kernel makes its IP header.
func (s *RawSocket) Send(to netip.Addr, payload []byte) error {
	if _, err := s.conn.WriteToIP(payload, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return fmt.Errorf("send a raw packet to %s: %w", to, err)
	}
	return nil
}

// Packets returns what came so far and matches; a nil match takes all.
func (s *RawSocket) Packets(match func(RawPacket) bool) []RawPacket {
	packets, _ := s.matching(match)
	return packets
}

func (s *RawSocket) matching(match func(RawPacket) bool) ([]RawPacket, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var packets []RawPacket
	for _, p := range s.packets {
		if match == nil || match(p) {
			packets = append(packets, p)
		}
	}
	return packets, s.grown
}

// Await waits until at least count packets match, and returns them.
func (s *RawSocket) Await(ctx context.Context, count int, match func(RawPacket) bool) ([]RawPacket, error) {
	for {
		packets, grown := s.matching(match)
		if len(packets) >= count {
			return packets, nil
		}
		select {
		case <-ctx.Done():
			return packets, fmt.Errorf("wait for %d matching raw packets (seen: %d of %d): %w", count, len(packets), len(s.Packets(nil)), ctx.Err())
		case <-grown:
		}
	}
}

// Close closes the socket; Packets still returns what came.
func (s *RawSocket) Close() error {
	err := s.conn.Close()
	<-s.done
	return err
}
