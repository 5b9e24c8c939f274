// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// answer is what a packet from outside says of its flow: by whom it was sent, and
// to which local end.
type answer struct {
	proto  uint8
	remote netip.AddrPort
	local  netip.AddrPort
}

// readAnswer reads the headers of a packet; ok is false for what has no ports
// where they should be.
func readAnswer(octets []byte) (a answer, ok bool) {
	if len(octets) == 0 {
		return a, false
	}
	var src, dst netip.Addr
	var rest []byte
	switch octets[0] >> 4 {
	case 4:
		src, dst, a.proto, rest, ok = readIPv4(octets)
	case 6:
		src, dst, a.proto, rest, ok = readIPv6(octets)
	}
	if !ok {
		return a, false
	}
	var from, to uint16
	switch a.proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(rest) < 4 {
			return a, false
		}
		from, to = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6: // the identifier of an echo
		if len(rest) < 6 {
			return a, false
		}
		to = binary.BigEndian.Uint16(rest[4:])
	}
	a.remote, a.local = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
	return a, true
}

// readIPv4 reads RFC 791's header.
func readIPv4(octets []byte) (src, dst netip.Addr, proto uint8, rest []byte, ok bool) {
	size := int(octets[0]&0xf) * 4
	if size < 20 || len(octets) < size {
		return src, dst, 0, nil, false
	}
	src, dst = netip.AddrFrom4([4]byte(octets[12:])), netip.AddrFrom4([4]byte(octets[16:]))
	return src, dst, octets[9], octets[size:], true
}

// readIPv6 reads RFC 8200's header and steps over those behind it that have their
// length in the second octet, or are a fragment's.
func readIPv6(octets []byte) (src, dst netip.Addr, proto uint8, rest []byte, ok bool) {
	if len(octets) < 40 {
		return src, dst, 0, nil, false
	}
	src, dst = netip.AddrFrom16([16]byte(octets[8:])), netip.AddrFrom16([16]byte(octets[24:]))
	proto, rest = octets[6], octets[40:]
	for {
		size := 0
		switch proto {
		case unix.IPPROTO_FRAGMENT:
			size = 8
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(rest) >= 2 {
				size = (int(rest[1]) + 1) * 8
			}
		default:
			return src, dst, proto, rest, true
		}
		if size == 0 || len(rest) < size {
			return src, dst, 0, nil, false
		}
		proto, rest = rest[0], rest[size:]
	}
}
