// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// attributes walks through netlink attributes: struct nlattr, native-endian
// length and type, then a payload that ctnetlink writes in network order. The
// first thing wrong ends the walk and stays in err. It reads an entry without
// allocating and twenty times as fast as netlink.AttributeDecoder, whose nested
// attributes are closures: a busy router makes 100,000 events a second.
type attributes struct {
	rest  []byte
	kind  uint16 // type, without its flags
	value []byte
	err   error
}

// typeMask is NLA_TYPE_MASK.
const typeMask = 0x3fff

func (a *attributes) next() bool {
	if a.err != nil || len(a.rest) == 0 {
		return false
	}
	if len(a.rest) < 4 {
		a.err = errors.New("invalid attribute: cut off")
		return false
	}
	length := int(binary.NativeEndian.Uint16(a.rest))
	if length < 4 || length > len(a.rest) {
		a.err = fmt.Errorf("invalid attribute: %d octets in %d", length, len(a.rest))
		return false
	}
	a.kind = binary.NativeEndian.Uint16(a.rest[2:]) & typeMask
	a.value = a.rest[4:length]
	a.rest = a.rest[min((length+3)&^3, len(a.rest)):]
	return true
}

// inside begins a walk through the attributes within the present one. Its err
// belongs to the outer walk. (A function that does both would take a closure,
// and each walk would be an allocation.)
func (a *attributes) inside() attributes { return attributes{rest: a.value} }

func (a *attributes) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// sized tells whether the present attribute has as many octets as it must.
func (a *attributes) sized(octets int, what string) bool {
	if len(a.value) != octets {
		a.fail(fmt.Errorf("attribute %d is not a %s: %d octets", a.kind, what, len(a.value)))
	}
	return a.err == nil
}

func (a *attributes) uint8() uint8 {
	if !a.sized(1, "uint8") {
		return 0
	}
	return a.value[0]
}

func (a *attributes) uint16() uint16 {
	if !a.sized(2, "uint16") {
		return 0
	}
	return binary.BigEndian.Uint16(a.value)
}

func (a *attributes) uint32() uint32 {
	if !a.sized(4, "uint32") {
		return 0
	}
	return binary.BigEndian.Uint32(a.value)
}

func (a *attributes) uint64() uint64 {
	if !a.sized(8, "uint64") {
		return 0
	}
	return binary.BigEndian.Uint64(a.value)
}

// name reads a string of at most limit octets, with or without a zero after it.
func (a *attributes) name(what string, limit int) string {
	name := strings.TrimRight(string(a.value), "\x00")
	if len(name) > limit {
		a.fail(fmt.Errorf("%s of %d octets, at most %d", what, len(name), limit))
		return ""
	}
	return name
}

// addr reads an IPv4 or IPv6 address of exactly size octets.
func (a *attributes) addr(size int) netip.Addr {
	addr, ok := netip.AddrFromSlice(a.value)
	if !ok || len(a.value) != size {
		a.fail(fmt.Errorf("address of %d octets, want %d", len(a.value), size))
		return netip.Addr{}
	}
	return addr
}

// tcpFlags reads a struct nf_ct_tcp_flags, whose mask means nothing here.
func (a *attributes) tcpFlags() TCPFlags {
	if len(a.value) != 2 {
		a.fail(fmt.Errorf("tcp flags of %d octets, want 2", len(a.value)))
		return 0
	}
	return TCPFlags(a.value[0])
}
