// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"vippin/policy"
)

// How an advert's checksum was made (Advert.Checksum).
const (
	// ChecksumRFC is what the RFCs say: VRRPv2 and VRRPv3 over IPv4 without a
	// pseudo-header (RFC 3768 section 5.3.8, RFC 9568 section 5.2.8), VRRPv3
	// over IPv6 with one.
	ChecksumRFC = "rfc"
	// ChecksumPseudo is VRRPv3 over IPv4 with a pseudo-header, as keepalived
	// does unless told v3_checksum_as_v2.
	ChecksumPseudo = "pseudo-header"
)

// The address families of virtual routers (Advert.Family).
const (
	FamilyIPv4 = "ipv4"
	FamilyIPv6 = "ipv6"
)

// VRRPv2's authentication types (RFC 2338 section 5.3.6; RFC 3768 keeps only
// the first). The 8 octets of authentication data are there with each of them.
const (
	AuthNone = 0
	AuthPass = 1 // a password in clear text in the authentication data
	AuthAH   = 2 // an IP authentication header before the VRRP header
)

const (
	protocolVRRP  = 112 // IANA protocol number
	typeAdvert    = 1
	headerLen     = 8
	authLen       = 8
	maxAddresses  = 255
	secondUnit    = time.Second           // VRRPv2's unit of time
	centisecond   = 10 * time.Millisecond // VRRPv3's unit of time
	maxIntervalV2 = 0xff                  // seconds
	maxIntervalV3 = 0xfff                 // centiseconds: 12 bits
)

// multicastV4 is where adverts over IPv4 go (RFC 9568 section 5.1.1.2).
var multicastV4 = netip.AddrFrom4([4]byte{224, 0, 0, 18})

// Advert is one VRRP ADVERTISEMENT.
type Advert struct {
	Version  uint8         // 2 or 3
	VRID     uint8         // 1 to 255
	Priority uint8         // 0 = the sender resigns, 255 = it owns the addresses
	Interval time.Duration // between adverts, as advertised: whole seconds in version 2, centiseconds in version 3
	AuthType uint8         // version 2 only: AuthNone, AuthPass, AuthAH
	AuthData [authLen]byte // version 2 only; with AuthPass a password: not to be shown
	Checksum string        // ChecksumRFC or ChecksumPseudo
	Family   string        // FamilyIPv4 or FamilyIPv6
	VIPs     []netip.Addr  // one at least (RFC 9568 section 5.2.5)
}

// Parse reads a VRRP packet. The payload starts at the VRRP header; src and dst
// are the IP header's addresses (IPv4 also as ::ffff:a.b.c.d). Anything but
// policy.AdvertValid means that the Advert is the zero value and not to be used;
// a TTL, an authentication header and fragments are not seen from here. A VRID
// or a count of addresses of 0 is policy.AdvertShort, as in the programs. Octets
// after the announced ones (padding, keepalived's HMAC trailer) are ignored.
func Parse(payload []byte, src, dst netip.Addr) (Advert, policy.AdvertReason) {
	if len(payload) < headerLen {
		return Advert{}, policy.AdvertShort
	}
	src, dst = src.Unmap().WithZone(""), dst.Unmap().WithZone("")
	version := payload[0] >> 4
	is4 := src.Is4()
	switch {
	case version != 2 && version != 3,
		version == 2 && !is4,
		!src.IsValid() || !dst.IsValid() || is4 != dst.Is4():
		return Advert{}, policy.AdvertVersion
	case payload[0]&0x0f != typeAdvert:
		return Advert{}, policy.AdvertType
	}
	announced := announcedLen(version, is4, payload[3])
	if len(payload) < announced || payload[1] == 0 || payload[3] == 0 {
		return Advert{}, policy.AdvertShort
	}
	a := Advert{Version: version, VRID: payload[1], Priority: payload[2], Family: familyOf(src)}
	if version == 2 {
		a.AuthType = payload[4]
		if a.AuthType > AuthAH {
			return Advert{}, policy.AdvertAuth
		}
		copy(a.AuthData[:], payload[announced-authLen:announced])
		a.Interval = time.Duration(payload[5]) * secondUnit
	} else {
		a.Interval = time.Duration(binary.BigEndian.Uint16(payload[4:])&maxIntervalV3) * centisecond
	}
	if a.Checksum = checksumStyle(payload, announced, version, src, dst); a.Checksum == "" {
		return Advert{}, policy.AdvertChecksum
	}
	a.VIPs = addresses(payload[headerLen:], int(payload[3]), is4)
	return a, policy.AdvertValid
}

// Append encodes an advert after b, with the right checksum for a packet from
// src to dst. An empty Checksum means ChecksumRFC. It is for tests and the lab;
// nothing in vippin sends adverts. It fails when a value does not fit its field.
func Append(b []byte, a Advert, src, dst netip.Addr) ([]byte, error) {
	src, dst = src.Unmap().WithZone(""), dst.Unmap().WithZone("")
	is4 := src.Is4()
	if err := a.check(src, dst); err != nil {
		return b, err
	}
	start := len(b)
	b = append(b, a.Version<<4|typeAdvert, a.VRID, a.Priority, uint8(len(a.VIPs)))
	if a.Version == 2 {
		b = append(b, a.AuthType, uint8(a.Interval/secondUnit))
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(a.Interval/centisecond))
	}
	b = append(b, 0, 0)
	for _, vip := range a.VIPs {
		b = append(b, vip.AsSlice()...)
	}
	if a.Version == 2 {
		b = append(b, a.AuthData[:]...)
	}
	packet := b[start:]
	var pseudo uint32
	if !is4 || a.Checksum == ChecksumPseudo {
		pseudo = pseudoSum(src, dst, len(packet))
	}
	binary.BigEndian.PutUint16(packet[6:], ^fold(sum(packet, pseudo)))
	return b, nil
}

// check says whether every value fits its field.
func (a Advert) check(src, dst netip.Addr) error {
	is4 := src.Is4()
	if !src.IsValid() || !dst.IsValid() || is4 != dst.Is4() {
		return fmt.Errorf("encode advert from %s to %s: give two addresses of one family", src, dst)
	}
	unit, longest := centisecond, time.Duration(maxIntervalV3)
	switch {
	case a.Version == 2 && is4:
		unit, longest = secondUnit, maxIntervalV2
	case a.Version != 3:
		return fmt.Errorf("encode advert from %s: version %d is not 3 (or 2 over IPv4)", src, a.Version)
	case a.AuthType != AuthNone || a.AuthData != [authLen]byte{}:
		return fmt.Errorf("encode advert from %s: version 3 has no authentication, use version 2", src)
	}
	if a.Interval < 0 || a.Interval%unit != 0 || a.Interval/unit > longest {
		return fmt.Errorf("encode advert from %s: interval %s is not 0 to %d times %s", src, a.Interval, longest, unit)
	}
	if a.AuthType > AuthAH {
		return fmt.Errorf("encode advert from %s: authentication type %d is not 0, 1 or 2", src, a.AuthType)
	}
	if a.Checksum != "" && a.Checksum != ChecksumRFC && (a.Checksum != ChecksumPseudo || a.Version != 3 || !is4) {
		return fmt.Errorf("encode advert from %s: checksum %q is not %q (or %q in version 3 over IPv4)",
			src, a.Checksum, ChecksumRFC, ChecksumPseudo)
	}
	if a.VRID == 0 {
		return fmt.Errorf("encode advert from %s: VRID 0 is not 1 to 255", src)
	}
	if len(a.VIPs) < 1 || len(a.VIPs) > maxAddresses {
		return fmt.Errorf("encode advert from %s: %d addresses are not 1 to %d", src, len(a.VIPs), maxAddresses)
	}
	for _, vip := range a.VIPs {
		if !vip.IsValid() || vip.Is4() != is4 {
			return fmt.Errorf("encode advert from %s: address %s is not of its family", src, vip)
		}
	}
	return nil
}

// announcedLen is how many octets an advert with count addresses has.
func announcedLen(version uint8, is4 bool, count uint8) int {
	size := 16
	if is4 {
		size = 4
	}
	length := headerLen + int(count)*size
	if version == 2 {
		length += authLen
	}
	return length
}

// checksumStyle says which way of making the checksum this packet's fits, ""
// when none does.
func checksumStyle(payload []byte, announced int, version uint8, src, dst netip.Addr) string {
	packet := payload[:announced]
	plain := sum(packet, 0)
	fits := func(acc uint32) bool { return fold(acc) == 0xffff }
	switch {
	case !src.Is4():
		// The kernel makes and checks it over all the packet's octets, a trailer
		// included.
		if fits(sum(payload, pseudoSum(src, dst, len(payload)))) || fits(plain+pseudoSum(src, dst, announced)) {
			return ChecksumRFC
		}
	case fits(plain):
		return ChecksumRFC
	case version == 3 && fits(plain+pseudoSum(src, dst, announced)),
		// keepalived's old_unicast_checksum: the multicast group in the
		// pseudo-header of a unicast packet.
		version == 3 && fits(plain+pseudoSum(src, multicastV4, announced)):
		return ChecksumPseudo
	}
	return ""
}

// addresses reads count addresses.
func addresses(b []byte, count int, is4 bool) []netip.Addr {
	vips := make([]netip.Addr, count)
	for i := range vips {
		if is4 {
			vips[i] = netip.AddrFrom4([4]byte(b[4*i:]))
		} else {
			vips[i] = netip.AddrFrom16([16]byte(b[16*i:]))
		}
	}
	return vips
}

// pseudoSum adds up the pseudo-header of a VRRP packet (RFC 9293 section 3.1
// for IPv4, RFC 8200 section 8.1 for IPv6).
func pseudoSum(src, dst netip.Addr, length int) uint32 {
	return sum(src.AsSlice(), sum(dst.AsSlice(), protocolVRRP+uint32(length)))
}

// sum adds b's 16-bit words to acc (RFC 1071). A packet is at most 64 KiB, so
// that 32 bits hold the sum of several.
func sum(b []byte, acc uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return uint32(fold(acc))
}

func fold(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}

func familyOf(a netip.Addr) string {
	if a.Unmap().Is4() {
		return FamilyIPv4
	}
	return FamilyIPv6
}
