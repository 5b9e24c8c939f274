// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

const (
	protoVRRP = layers.IPProtocol(112)
	protoAH   = layers.IPProtocol(51)
)

// sum says how the checksum of an advert is made.
type sum int

const (
	sumRFC    sum = iota // RFC 9568: pseudo-header over IPv6 only; RFC 3768: none
	sumPseudo            // as keepalived does in version 3 over IPv4
	sumGroup             // as keepalived did for unicast: the group's address in the pseudo-header
	sumWrong
)

// advert describes a VRRP advert on the wire; it is encoded here by hand, from
// RFC 9568 section 5.2 and RFC 3768 section 5.3.
type advert struct {
	version  uint8
	kind     uint8
	vrid     uint8
	priority uint8
	count    int // of addresses, where it is not len(vips): -1 = 0
	auth     uint8
	interval uint16 // version 2: seconds; version 3: hundredths of a second
	vips     []netip.Addr
	password string // version 2: eight octets, zero without a password
	sum      sum

	ah       bool // behind an authentication header
	src, dst netip.Addr
	ttl      uint8
	fragment uint16      // IPv4
	ext      []extension // IPv6
	options  []layers.IPv4Option
	tags     []tag
	padding  int // octets behind the packet, as short Ethernet frames have
}

var (
	multicast4 = netip.MustParseAddr("224.0.0.18")
	multicast6 = netip.MustParseAddr("ff02::12")
	linkLocal6 = netip.MustParseAddr("fe80::3")
)

func advert3() advert {
	return advert{
		version: 3, kind: 1, vrid: 51, priority: 150, interval: 100, vips: []netip.Addr{vip4},
		src: unique4, dst: multicast4, ttl: 255,
	}
}

func advert3v6() advert {
	return advert{
		version: 3, kind: 1, vrid: 51, priority: 150, interval: 100,
		vips: []netip.Addr{netip.MustParseAddr("fe80::2"), vip6},
		src:  linkLocal6, dst: multicast6, ttl: 255,
	}
}

func advert2() advert {
	return advert{
		version: 2, kind: 1, vrid: 51, priority: 150, interval: 1, vips: []netip.Addr{vip4},
		password: "\x00\x00\x00\x00\x00\x00\x00\x00",
		src:      unique4, dst: multicast4, ttl: 255,
	}
}

func advertPass() advert {
	a := advert2()
	a.auth, a.password = 1, "secret\x00\x00"
	return a
}

func advertAH() advert {
	a := advert2()
	a.auth, a.ah = 2, true
	return a
}

// vrrp is the VRRP packet: what stands behind the IP header and any AH.
func (a advert) vrrp() []byte {
	count := len(a.vips)
	if a.count != 0 {
		count = max(a.count, 0)
	}
	b := []byte{a.version<<4 | a.kind, a.vrid, a.priority, byte(count)}
	if a.version == 2 {
		b = append(b, a.auth, byte(a.interval), 0, 0)
	} else {
		b = binary.BigEndian.AppendUint16(b, a.interval)
		b = append(b, 0, 0)
	}
	for _, vip := range a.vips {
		b = append(b, vip.AsSlice()...)
	}
	b = append(b, a.password...)
	var over []byte
	if a.src.Is6() || a.sum == sumPseudo || a.sum == sumGroup {
		dst := a.dst
		if a.sum == sumGroup {
			dst = multicast4
		}
		over = append(over, a.src.AsSlice()...)
		over = append(over, dst.AsSlice()...)
		over = binary.BigEndian.AppendUint32(over, uint32(len(b)))
		over = append(over, 0, 0, 0, byte(protoVRRP))
	}
	check := internetChecksum(append(over, b...))
	if a.sum == sumWrong {
		check ^= 0x0101
	}
	binary.BigEndian.PutUint16(b[6:], check)
	return b
}

// internetChecksum is that of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// bytes is the frame on the wire.
func (a advert) bytes(t *testing.T) []byte {
	t.Helper()
	return a.frame(t, a.vrrp())
}

// frame puts any packet into the advert's IP and Ethernet headers.
func (a advert) frame(t *testing.T, vrrp []byte) []byte {
	t.Helper()
	proto := protoVRRP
	if a.ah {
		// Next header, length, reserved, SPI, sequence number, digest.
		vrrp = append([]byte{byte(protoVRRP), 4, 0, 0, 0, 0, 0, 51, 0, 0, 0, 9, 15: 0xaa, 23: 0xbb}, vrrp...)
		proto = protoAH
	}
	b := append([]byte{}, 0x01, 0, 0x5e, 0, 0, 0x12)
	b = append(b, virtualMAC...)
	for _, tag := range a.tags {
		b = binary.BigEndian.AppendUint16(b, tag.ethertype)
		b = binary.BigEndian.AppendUint16(b, tag.id)
	}
	if a.src.Is6() {
		for i := len(a.ext) - 1; i >= 0; i-- {
			vrrp = append(append([]byte{byte(proto)}, a.ext[i].rest...), vrrp...)
			proto = a.ext[i].number
		}
		ip := &layers.IPv6{
			Version: 6, NextHeader: proto, HopLimit: a.ttl, SrcIP: a.src.AsSlice(), DstIP: a.dst.AsSlice(),
		}
		b = binary.BigEndian.AppendUint16(b, uint16(layers.EthernetTypeIPv6))
		b = append(b, serialize(t, ip, gopacket.Payload(vrrp))...)
	} else {
		ip := &layers.IPv4{
			Version: 4, TOS: 0xc0, TTL: a.ttl, Protocol: proto, SrcIP: a.src.AsSlice(), DstIP: a.dst.AsSlice(),
			Flags: layers.IPv4Flag(a.fragment >> 13), FragOffset: a.fragment & 0x1fff, Options: a.options,
		}
		b = binary.BigEndian.AppendUint16(b, uint16(layers.EthernetTypeIPv4))
		b = append(b, serialize(t, ip, gopacket.Payload(vrrp))...)
	}
	return append(b, make([]byte, a.padding)...)
}

var virtualMAC = net.HardwareAddr{0, 0, 0x5e, 0, 1, 51}

// headers is how many octets stand before the VRRP packet or the AH.
func (a advert) headers() int {
	n := etherHeader + 4*len(a.tags)
	for _, o := range a.options {
		n += int(o.OptionLength)
	}
	if !a.src.Is6() {
		return n + 20
	}
	n += 40
	for _, e := range a.ext {
		n += 1 + len(e.rest)
	}
	return n
}
