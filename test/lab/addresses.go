// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
)

// Segment is one network that both routers are on.
type Segment struct {
	Name   string // the routers' interface: lan0, wan0 or wan1
	VRID   uint8  // of the IPv4 and of the IPv6 instance
	Tag    uint16 // on trunks
	Bits4  int
	Bits6  int
	VIP4   netip.Addr
	VIP6   netip.Addr // keepalived adds it as a deprecated /128
	VIPLL  netip.Addr // link-local: the first address of an IPv6 instance (RFC 9568 section 5.2.9)
	RA, RB Ends       // the routers' own (unique) addresses

	base4, base6 string
}

// Ends are one machine's addresses on a segment.
type Ends struct{ V4, V6 netip.Addr }

// The segments.
var (
	LAN  = segment("lan0", 10, 101, "192.168.101.", "2001:db8:101::", 1, 2, 3)
	WAN  = segment("wan0", 20, 2, "198.51.100.", "2001:db8:100::", 2, 3, 4)
	WAN1 = segment("wan1", 30, 30, "203.0.113.", "2001:db8:113::", 2, 3, 4)
)

// The server's addresses: on the WAN segments, and behind one of them.
var (
	ServerWAN  = WAN.ends(10)
	ServerWAN1 = WAN1.ends(10)
	ServerFar  = Ends{netip.MustParseAddr("198.18.0.10"), netip.MustParseAddr("2001:db8:18::10")}
)

func segment(name string, vrid uint8, tag uint16, base4, base6 string, vip, ra, rb int) Segment {
	s := Segment{Name: name, VRID: vrid, Tag: tag, Bits4: 24, Bits6: 64, base4: base4, base6: base6}
	s.VIP4, s.VIP6 = s.ends(vip).V4, s.ends(vip).V6
	s.VIPLL = netip.MustParseAddr(fmt.Sprintf("fe80::%d:1", vrid))
	s.RA, s.RB = s.ends(ra), s.ends(rb)
	return s
}

// ends makes the addresses that end in a number, written alike in both.
func (s Segment) ends(number int) Ends {
	return Ends{
		V4: netip.MustParseAddr(fmt.Sprintf("%s%d", s.base4, number)),
		V6: netip.MustParseAddr(fmt.Sprintf("%s%d", s.base6, number)),
	}
}

// Prefix4 and Prefix6 are the segment's networks.
func (s Segment) Prefix4() netip.Prefix { return netip.PrefixFrom(s.VIP4, s.Bits4).Masked() }

// Prefix6 is the IPv6 one.
func (s Segment) Prefix6() netip.Prefix { return netip.PrefixFrom(s.VIP6, s.Bits6).Masked() }

// HostEnds are the addresses of LAN host number i, from 0.
func HostEnds(i int) Ends { return LAN.ends(11 + i) }

// Port makes an endpoint of an address.
func Port(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }
