// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"time"
)

// End is one end of a flow: address and port, of ICMP echo the identifier as the
// inside host's port (0 on the other end), of protocols without ports 0. IPv4
// addresses are IPv4-mapped, which makes an End small and comparable.
type End struct {
	Addr [16]byte
	Port uint16
}

// MakeEnd is the End of an address and port; of the zero AddrPort the zero End.
func MakeEnd(at netip.AddrPort) End {
	if !at.IsValid() {
		return End{}
	}
	return End{Addr: at.Addr().As16(), Port: at.Port()}
}

// AddrPort is the reverse of MakeEnd.
func (e End) AddrPort() netip.AddrPort {
	if e == (End{}) {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(e.IP(), e.Port)
}

// IP is the address alone.
func (e End) IP() netip.Addr { return netip.AddrFrom16(e.Addr).Unmap() }

// Is4 tells whether the address is an IPv4 one.
func (e End) Is4() bool { return netip.AddrFrom16(e.Addr).Is4In6() }

func (e End) String() string { return e.AddrPort().String() }

// FlowKey names a flow on every router: the original direction's ends as the
// inside host sends them, whatever a router makes of them.
type FlowKey struct {
	Src, Dst End
	Zone     uint16 // conntrack zone
	Proto    uint8  // IP protocol number
}

// FlowBits is what conntrack knows of a flow besides its ends.
type FlowBits uint8

// The bits of FlowBits.
const (
	FlowSeenReply FlowBits = 1 << iota // packets went both ways
	FlowAssured                        // not dropped early when the table is full
)

// Flow is a flow as routers tell each other of it: by what the wire sees, never by
// an interface or a router's own address.
type Flow struct {
	FlowKey
	// Answers come from From and go to To: the destination and the source of the
	// packets as they leave the router, after all NAT, and after pinning. So To is
	// the public end.
	From, To End
	Group    string  // the VRRP group it fails over with; "" = none
	Pin      PinName // zero = no pin
	Bits     FlowBits
	TCPState uint8    // enum tcp_conntrack, 0 for other protocols
	TCPScale [2]uint8 // window scales of the original and the reply direction, RFC 7323 section 2.2
	Mark     uint32
	Timeout  time.Duration // what conntrack gives it now, in seconds; 0 = not told
	Extra    *FlowExtra    // what few flows have, or nil
}

// NATed tells whether the flow is translated at all.
func (f *Flow) NATed() bool { return f.From != f.Dst || f.To != f.Src }

// FlowExtra is what few flows have.
type FlowExtra struct {
	SCTPState uint8        // enum sctp_conntrack
	SCTPTags  [2]uint32    // verification tags of the original and the reply direction, RFC 9260 section 8.5
	Helper    string       // of conntrack: "ftp", "sip", … or ""
	Master    FlowKey      // of an expected child: the flow whose helper expected it; zero: none
	Adjust    [2]SeqAdjust // of the original and the reply direction
}

// SeqAdjust is by how much a helper changed the length of a TCP direction: the
// offsets of its sequence numbers before and after a position.
type SeqAdjust struct {
	Position      uint32
	Before, After int32
}

// Expectation is a flow that a helper expects.
type Expectation struct {
	Master   FlowKey // the flow whose helper expects it
	Src, Dst End     // as it will come in; Src.Port 0 = any
	Proto    uint8
	AnySrc   bool // from any address, Src is zero
	Timeout  time.Duration
	Helper   string
	Class    uint32 // NFCT_EXPECT_CLASS, the helper's own numbering
	Flags    uint32 // NF_CT_EXPECT_*
	Function string // what sets it up: "nat-follow-master", "sip", … or ""
	NAT      End    // what nat-follow-master translates to; zero: nothing
	NATReply bool   // direction of the translation
}

// PinName names a pin on every router: by VLAN and virtual IP. The zero value
// means none.
type PinName struct {
	VLAN VLAN
	VIP  netip.Addr
}

// Names is how other routers know the pin: one name for each family that it has a
// source for.
func (p PlanPin) Names() []PinName {
	var names []PinName
	for _, vip := range []netip.Addr{p.VIP4, p.VIP6} {
		if vip.IsValid() {
			names = append(names, PinName{VLAN: p.VLAN, VIP: vip})
		}
	}
	return names
}
