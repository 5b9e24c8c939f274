// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
)

// Chunk types, RFC 9260 section 3.2.
const (
	sctpData       = 0
	sctpInit       = 1
	sctpInitAck    = 2
	sctpCookieEcho = 10
	sctpCookieAck  = 11
)

// The verification tags of the client's and the server's end.
const (
	sctpClientTag = 0xc11e
	sctpServerTag = 0x5e6e
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sctpPacket makes a packet with one chunk: common header (RFC 9260 section
// 3.1) with its checksum, chunk header, value.
func sctpPacket(from, to uint16, tag uint32, kind uint8, value []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0, kind, 3) // flags: of DATA, first and last part
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(b, value...)
	b = append(b, make([]byte, -len(b)&3)...)
	if kind != sctpData {
		b[13] = 0
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli)) // RFC 9260 appendix A
	return b
}

// sctpChunk is a packet that was read.
type sctpChunk struct {
	from, to uint16
	kind     uint8
	value    []byte
}

// sctpParse reads the first chunk of a packet whose checksum is right.
func sctpParse(b []byte) (c sctpChunk, err error) {
	if len(b) < 16 {
		return c, fmt.Errorf("sctp packet of %d octets", len(b))
	}
	bare := slices.Clone(b)
	clear(bare[8:12])
	if got, want := binary.LittleEndian.Uint32(b[8:]), crc32.Checksum(bare, castagnoli); got != want {
		return c, fmt.Errorf("sctp checksum %#08x, want %#08x", got, want)
	}
	length := int(binary.BigEndian.Uint16(b[14:]))
	if length < 4 || 12+length > len(b) {
		return c, fmt.Errorf("sctp chunk of %d octets in a packet of %d", length, len(b))
	}
	c.from, c.to, c.kind, c.value = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[12], b[16:12+length]
	return c, nil
}

// sctpInitValue is the fixed part of INIT and INIT ACK: tag, window, streams,
// first sequence number.
func sctpInitValue(tag uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = binary.BigEndian.AppendUint32(b, 1<<16)
	return append(b, 0, 1, 0, 1, 0, 0, 0, 1)
}

// sctpDataValue is a DATA chunk's value: sequence number, stream, its number,
// payload protocol, text.
func sctpDataValue(number uint32, text string) []byte {
	b := binary.BigEndian.AppendUint32(nil, number)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	return append(b, text...)
}

const sctpDataHeader = 12

// SCTPServer answers SCTP as a peer with one stream would: it is for kernels
// without SCTP. Bad collects what was wrong with packets that came.
type SCTPServer struct {
	raw *RawSocket
	bad chan error
}

// ServeSCTP opens the server inside the namespace, on every port of an address.
func ServeSCTP(in Enter, at netip.Addr) (*SCTPServer, error) {
	s := &SCTPServer{bad: make(chan error, 100)}
	var err error
	s.raw, err = OpenRaw(in, protoSCTP, at, s.answer)
	return s, err
}

const protoSCTP = 132

func (s *SCTPServer) answer(p RawPacket) []byte {
	c, err := sctpParse(p.Payload)
	if err != nil {
		select {
		case s.bad <- err:
		default: // enough is known
		}
		return nil
	}
	switch c.kind {
	case sctpInit:
		cookie := []byte{0, 7, 0, 8, 'c', 'o', 'o', 'k'} // parameter State Cookie
		return sctpPacket(c.to, c.from, sctpClientTag, sctpInitAck, append(sctpInitValue(sctpServerTag), cookie...))
	case sctpCookieEcho:
		return sctpPacket(c.to, c.from, sctpClientTag, sctpCookieAck, nil)
	case sctpData:
		return sctpPacket(c.to, c.from, sctpClientTag, sctpData, c.value)
	}
	return nil
}

// Source is where the packet with this text came from.
func (s *SCTPServer) Source(text string) (source netip.AddrPort, ok bool) {
	for _, p := range s.raw.Packets(nil) {
		c, err := sctpParse(p.Payload)
		if err == nil && c.kind == sctpData && string(c.value[sctpDataHeader:]) == text {
			return netip.AddrPortFrom(p.From, c.from), true
		}
	}
	return source, false
}

// Bad is what was wrong with the first packet that was, or nil.
func (s *SCTPServer) Bad() error {
	select {
	case err := <-s.bad:
		return err
	default:
		return nil
	}
}

// Close closes the server.
func (s *SCTPServer) Close() error { return s.raw.Close() }

// SCTPClient is one association's active end.
type SCTPClient struct {
	raw           *RawSocket
	local, remote netip.AddrPort
	number        uint32
}

// DialSCTP makes an association from inside the namespace.
func DialSCTP(ctx context.Context, in Enter, local, remote netip.AddrPort) (*SCTPClient, error) {
	raw, err := OpenRaw(in, protoSCTP, local.Addr(), nil)
	if err != nil {
		return nil, err
	}
	c := &SCTPClient{raw: raw, local: local, remote: remote, number: 1}
	if _, err = c.exchange(ctx, 0, sctpInit, sctpInitValue(sctpClientTag), sctpInitAck); err == nil {
		_, err = c.exchange(ctx, sctpServerTag, sctpCookieEcho, []byte("cook"), sctpCookieAck)
	}
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("open sctp %s to %s: %w", local, remote, err)
	}
	return c, nil
}

// Ask sends a text, which must be new, and waits until it comes back.
func (c *SCTPClient) Ask(ctx context.Context, text string) error {
	value := sctpDataValue(c.number, text)
	c.number++
	answer, err := c.exchange(ctx, sctpServerTag, sctpData, value, sctpData)
	if err == nil && string(answer) != string(value) {
		err = fmt.Errorf("sctp answers %q to %q", answer, value)
	}
	return err
}

// exchange sends one chunk and waits for a new one of another type.
func (c *SCTPClient) exchange(ctx context.Context, tag uint32, kind uint8, value []byte, want uint8) ([]byte, error) {
	var last []byte
	match := func(p RawPacket) bool {
		got, err := sctpParse(p.Payload)
		if err != nil || p.From != c.remote.Addr() || got.from != c.remote.Port() || got.to != c.local.Port() || got.kind != want {
			return false
		}
		last = got.value
		return true
	}
	before := len(c.raw.Packets(match))
	if err := c.raw.Send(c.remote.Addr(), sctpPacket(c.local.Port(), c.remote.Port(), tag, kind, value)); err != nil {
		return nil, err
	}
	if _, err := c.raw.Await(ctx, before+1, match); err != nil {
		return nil, fmt.Errorf("answer of type %d to type %d: %w", want, kind, err)
	}
	return last, nil
}

// Close closes the client's socket; the association is just left.
func (c *SCTPClient) Close() error { return c.raw.Close() }
