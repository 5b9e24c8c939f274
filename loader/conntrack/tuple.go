// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// Tuple is one direction of a conntrack entry, as the packets of that
// direction look before this router translates them. It is comparable and
// together with its zone is the kernel's look-up key.
type Tuple struct {
	Src, Dst netip.Addr // IPv4 addresses as such, not IPv4-mapped
	Proto    uint8      // IP protocol number
	// SrcPort and DstPort are the ports of TCP, UDP, UDP-Lite, SCTP and DCCP
	// and the call keys of GRE; 0 for other protocols.
	SrcPort, DstPort uint16
	// ICMPType, ICMPCode and ICMPID are those of ICMP and ICMPv6 queries; 0
	// for other protocols.
	ICMPType, ICMPCode uint8
	ICMPID             uint16
	Zone               uint16 // conntrack zone of this direction, normally 0
}

// IsICMP tells whether the tuple is one of ICMP or ICMPv6 and therefore has a
// type, code and identifier instead of ports.
func (t Tuple) IsICMP() bool { return t.Proto == unix.IPPROTO_ICMP || t.Proto == unix.IPPROTO_ICMPV6 }

// hasPorts tells whether NAT can choose a port, or an ICMP identifier. GRE's
// call keys are for its helper alone.
func (t Tuple) hasPorts() bool {
	switch t.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP:
		return true
	}
	return t.IsICMP()
}

// Source is the sending end; the port of an ICMP tuple is its identifier.
func (t Tuple) Source() netip.AddrPort {
	if t.IsICMP() {
		return netip.AddrPortFrom(t.Src, t.ICMPID)
	}
	return netip.AddrPortFrom(t.Src, t.SrcPort)
}

// Destination is the receiving end; the port of an ICMP tuple is its
// identifier.
func (t Tuple) Destination() netip.AddrPort {
	if t.IsICMP() {
		return netip.AddrPortFrom(t.Dst, t.ICMPID)
	}
	return netip.AddrPortFrom(t.Dst, t.DstPort)
}

// icmpAnswers pairs the ICMP queries that conntrack follows with their
// answers: echo, timestamp, information, address mask (RFC 792, RFC 950).
var icmpAnswers = map[uint8]uint8{8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17}

// icmpv6Answers is the same for ICMPv6: echo (RFC 4443), node information
// (RFC 4620).
var icmpv6Answers = map[uint8]uint8{128: 129, 129: 128, 139: 140, 140: 139}

// Inverse is the tuple of the answers to a packet of this tuple where nothing
// is translated. ok is false for ICMP types that have no answer.
func (t Tuple) Inverse() (inverse Tuple, ok bool) {
	inverse, ok = t, true
	inverse.Src, inverse.Dst = t.Dst, t.Src
	inverse.SrcPort, inverse.DstPort = t.DstPort, t.SrcPort
	switch t.Proto {
	case unix.IPPROTO_ICMP:
		inverse.ICMPType, ok = icmpAnswers[t.ICMPType]
	case unix.IPPROTO_ICMPV6:
		inverse.ICMPType, ok = icmpv6Answers[t.ICMPType]
	}
	return inverse, ok
}

// ProtoName is the usual name of an IP protocol, or its number.
func ProtoName(proto uint8) string {
	switch proto {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_DCCP:
		return "dccp"
	case unix.IPPROTO_GRE:
		return "gre"
	case unix.IPPROTO_UDPLITE:
		return "udplite"
	case unix.IPPROTO_ESP:
		return "esp"
	}
	return strconv.Itoa(int(proto))
}

func (t Tuple) String() string {
	zone := ""
	if t.Zone != 0 {
		zone = fmt.Sprintf(" zone %d", t.Zone)
	}
	if t.IsICMP() {
		return fmt.Sprintf("%s %v -> %v type %d code %d id %d%s",
			ProtoName(t.Proto), t.Src, t.Dst, t.ICMPType, t.ICMPCode, t.ICMPID, zone)
	}
	return fmt.Sprintf("%s %v -> %v%s", ProtoName(t.Proto), t.Source(), t.Destination(), zone)
}

// check says what makes it no tuple at all. IPv4-mapped addresses are let
// through: hosts can put them into IPv6 packets, and then they are here.
func (t Tuple) check() error {
	switch {
	case !t.Src.IsValid() || !t.Dst.IsValid():
		return errors.New("tuple has no source or no destination address")
	case t.Src.Is4() != t.Dst.Is4():
		return errors.New("tuple mixes IPv4 and IPv6")
	}
	return nil
}

// checkRequest says what would keep the kernel from finding the tuple.
func (t Tuple) checkRequest() error {
	switch {
	case t.Src.Is4In6() || t.Dst.Is4In6():
		return errors.New("tuple has an IPv4-mapped address, unmap it")
	case t.Src.Zone() != "" || t.Dst.Zone() != "":
		return errors.New("tuple has an address with an interface, remove it")
	}
	return t.check()
}
