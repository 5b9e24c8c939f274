// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// request is a run of messages in the making, as they go into one datagram. Its
// memory serves for the next one.
type request struct {
	buf    []byte
	starts []int // where in buf the messages begin
	owners []int // by message: whose answer it is, or nobody's
	owner  int   // of the messages that are begun
}

const nobody = -1

func (r *request) reset() { r.buf, r.starts, r.owners = r.buf[:0], r.starts[:0], r.owners[:0] }

// cut takes back the messages from number n on.
func (r *request) cut(n int) {
	if n < len(r.starts) {
		r.buf, r.starts, r.owners = r.buf[:r.starts[n]], r.starts[:n], r.owners[:n]
	}
}

// begin starts a message: struct nlmsghdr and struct nfgenmsg. Until seal its
// length and number are missing.
func (r *request) begin(kind netlink.HeaderType, flags netlink.HeaderFlags, family uint8) {
	r.starts, r.owners = append(r.starts, len(r.buf)), append(r.owners, r.owner)
	r.buf = append(r.buf, 0, 0, 0, 0)
	r.buf = binary.NativeEndian.AppendUint16(r.buf, uint16(kind))
	r.buf = binary.NativeEndian.AppendUint16(r.buf, uint16(netlink.Request|flags))
	r.buf = append(r.buf, 0, 0, 0, 0, 0, 0, 0, 0, family, 0, 0, 0)
}

// seal numbers the messages from first on. The kernel tells of those that fail;
// of the last one it tells in any case, and then it has told of the others.
func (r *request) seal(first uint32) {
	end := len(r.buf)
	for i, start := range slices.Backward(r.starts) {
		binary.NativeEndian.PutUint32(r.buf[start:], uint32(end-start))
		binary.NativeEndian.PutUint32(r.buf[start+8:], first+uint32(i))
		end = start
	}
	flags := r.buf[r.starts[len(r.starts)-1]+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|uint16(netlink.Acknowledge))
}

// attr begins an attribute of size octets.
func (r *request) attr(kind uint16, size int) {
	r.buf = binary.NativeEndian.AppendUint16(r.buf, uint16(unix.SizeofNlAttr+size))
	r.buf = binary.NativeEndian.AppendUint16(r.buf, kind)
}

func (r *request) uint8(kind uint16, value uint8) {
	r.attr(kind, 1)
	r.buf = append(r.buf, value, 0, 0, 0)
}

func (r *request) uint16(kind, value uint16) {
	r.attr(kind, 2)
	r.buf = append(binary.BigEndian.AppendUint16(r.buf, value), 0, 0)
}

func (r *request) uint32(kind uint16, value uint32) {
	r.attr(kind, 4)
	r.buf = binary.BigEndian.AppendUint32(r.buf, value)
}

func (r *request) addr(kind uint16, addr netip.Addr) {
	r.attr(kind, addr.BitLen()/8)
	if addr.Is4() {
		octets := addr.As4()
		r.buf = append(r.buf, octets[:]...)
		return
	}
	octets := addr.As16()
	r.buf = append(r.buf, octets[:]...)
}

// text writes a string as the kernel wants it, with a zero after it.
func (r *request) text(kind uint16, value string) {
	r.attr(kind, len(value)+1)
	r.buf = append(append(r.buf, value...), 0)
	for len(r.buf)%unix.NLA_ALIGNTO != 0 {
		r.buf = append(r.buf, 0)
	}
}

// nest begins an attribute of attributes, which ends with close.
func (r *request) nest(kind uint16) (at int) {
	at = len(r.buf)
	r.attr(kind|unix.NLA_F_NESTED, 0)
	return at
}

func (r *request) close(at int) {
	binary.NativeEndian.PutUint16(r.buf[at:], uint16(len(r.buf)-at))
}

// tuple writes a tuple without its zone, which goes into the message's CTA_ZONE.
func (r *request) tuple(kind uint16, t *Tuple) {
	tuple := r.nest(kind)
	ip := r.nest(ctaTupleIP)
	if t.Src.Is4() {
		r.addr(ctaIPv4Src, t.Src)
		r.addr(ctaIPv4Dst, t.Dst)
	} else {
		r.addr(ctaIPv6Src, t.Src)
		r.addr(ctaIPv6Dst, t.Dst)
	}
	r.close(ip)
	proto := r.nest(ctaTupleProto)
	r.uint8(ctaProtoNum, t.Proto)
	switch t.Proto {
	case unix.IPPROTO_ICMP:
		r.uint16(ctaProtoICMPID, t.ICMPID)
		r.uint8(ctaProtoICMPType, t.ICMPType)
		r.uint8(ctaProtoICMPCode, t.ICMPCode)
	case unix.IPPROTO_ICMPV6:
		r.uint16(ctaProtoICMPv6ID, t.ICMPID)
		r.uint8(ctaProtoICMPv6Type, t.ICMPType)
		r.uint8(ctaProtoICMPv6Code, t.ICMPCode)
	default:
		r.uint16(ctaProtoSrcPort, t.SrcPort)
		r.uint16(ctaProtoDstPort, t.DstPort)
	}
	r.close(proto)
	r.close(tuple)
}

func (r *request) zone(zone uint16) {
	if zone != 0 {
		r.uint16(ctaZone, zone)
	}
}

// answerFunc is told what the kernel says to the message of owner i: a message,
// valid during the call, or an error.
type answerFunc func(i int, m netlink.Message, err error)

// do sends n owners' messages, in datagrams of batchSize owners. encode writes
// the i-th one's. answer is told of those that encode or the kernel refuses, and
// of answers other than success. An error means that the exchange itself broke;
// what the kernel made of the messages is then not known.
func (s *socket) do(n int, encode func(r *request, i int) error, answer answerFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.request
	for i := 0; i < n; {
		r.reset()
		for end := min(i+batchSize, n); i < end; i++ {
			before := len(r.starts)
			r.owner = i
			if err := encode(r, i); err != nil {
				r.cut(before)
				answer(i, netlink.Message{}, err)
			}
		}
		if len(r.starts) == 0 {
			continue
		}
		if err := s.send(r, answer); err != nil {
			return err
		}
	}
	return nil
}

func (s *socket) send(r *request, answer answerFunc) error {
	first := s.sequence
	s.sequence += uint32(len(r.starts))
	r.seal(first)
	var errno error
	err := s.raw.Write(func(fd uintptr) bool {
		_, errno = unix.Write(int(fd), r.buf)
		return !errors.Is(errno, unix.EAGAIN)
	})
	if err := errors.Join(err, errno); err != nil {
		return fmt.Errorf("write to netfilter socket: %w", err)
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return fmt.Errorf("set deadline of netfilter socket: %w", err)
	}
	done := false
	take := func(m netlink.Message) error {
		i := m.Header.Sequence - first
		if i >= uint32(len(r.starts)) {
			return nil // left over from an exchange that broke
		}
		var err error
		if m.Header.Type == netlink.Error {
			err = verdict(m)
			done = i == uint32(len(r.starts)-1)
		}
		if r.owners[i] != nobody && (err != nil || m.Header.Type != netlink.Error) {
			answer(r.owners[i], m, err)
		}
		return nil
	}
	for !done {
		err := s.receive(take)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("wait for the kernel's answers to %d messages: nothing after %v", len(r.starts), answerTimeout)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// change is do for requests that have no answer but success or failure.
func (s *socket) change(n int, encode func(r *request, i int) error, failed func(i int, err error)) error {
	return s.do(n, encode, func(i int, _ netlink.Message, err error) {
		if err != nil {
			failed(i, err)
		}
	})
}
