// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Role is what a router is for a VIP or a group of them.
type Role uint8

// The roles, as RFC 9568 section 6.3 and keepalived name them. RoleFault
// stands for RFC 9568's Initialize and keepalived's FAULT and STOP. The
// numbers are those of the BPF maps.
const (
	RoleFault  Role = 0
	RoleBackup Role = 1
	RoleMaster Role = 2
)

func (r Role) String() string {
	switch r {
	case RoleFault:
		return "FAULT"
	case RoleBackup:
		return "BACKUP"
	case RoleMaster:
		return "MASTER"
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// MarshalText writes the role as keepalived does: MASTER, BACKUP or FAULT.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (r *Role) UnmarshalText(text []byte) error {
	for _, known := range []Role{RoleFault, RoleBackup, RoleMaster} {
		if string(text) == known.String() {
			*r = known
			return nil
		}
	}
	return fmt.Errorf("unknown role %q (one of MASTER, BACKUP, FAULT)", text)
}

// EnabledBy says whose word decides whether a pin is on.
type EnabledBy uint8

// A toggle beats the configuration until it is reset.
const (
	EnabledByConfig EnabledBy = 0
	EnabledByToggle EnabledBy = 1
)

func (e EnabledBy) String() string {
	if e == EnabledByToggle {
		return "toggle"
	}
	return "config"
}

// MarshalText writes "config" or "toggle".
func (e EnabledBy) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (e *EnabledBy) UnmarshalText(text []byte) error {
	switch string(text) {
	case "config":
		*e = EnabledByConfig
	case "toggle":
		*e = EnabledByToggle
	default:
		return fmt.Errorf("unknown word %q (config or toggle)", text)
	}
	return nil
}

// Observed is what the kernel says of its interfaces at one moment.
type Observed struct {
	Links  []Link
	OnPort OnPort
}

// OnPort says what netfilter sees on the ports of this network namespace's bridges,
// before the bridge's own interface does (br_netfilter, net.bridge.bridge-nf-*).
type OnPort struct {
	IPv4, IPv6 bool // call-iptables, call-ip6tables
	Tagged     bool // filter-vlan-tagged: behind 802.1Q tags, too
}

// Link is one network interface of this router.
type Link struct {
	Index  int
	Name   string
	Kind   string // "vlan", "macvlan", "veth", "device", …
	Parent int    // ifindex of the lower device of a VLAN or macvlan, else 0
	Master int    // ifindex of the bridge, bond or VRF that it is a port of, else 0
	VLAN   VLAN   // tags between this interface and the wire
	Up     bool   // administratively up and with a carrier
	HasL2  bool   // frames begin with an Ethernet header
	MAC    MAC    // zero: it has none
	Addrs  []Addr
}

// Addr is one address on a link.
type Addr struct {
	Prefix     netip.Prefix // address and prefix length, unmasked
	Deprecated bool         // the kernel never chooses it by itself: IPv6 deprecated (keepalived's /128 VIPs), IPv4 secondary
}

// Plan is the whole state the dataplane must have. Numbers (pin, slot, group)
// index BPF maps and stay the same for as long as the thing they name exists,
// over reloads and restarts.
type Plan struct {
	Interfaces []PlanInterface
	Pins       []PlanPin
	Groups     []PlanGroup
	Warnings   []string // each names the thing and the way out
}

// GroupNames maps the groups' numbers to their names.
func (p Plan) GroupNames() map[uint32]string {
	names := make(map[uint32]string, len(p.Groups))
	for _, group := range p.Groups {
		names[group.ID] = group.Name
	}
	return names
}

// PlanInterface is an interface that carries the programs: one with a pin, or
// one where only VRRP is watched (Slot 0).
type PlanInterface struct {
	Index   int
	Name    string
	Slot    uint32       // key space of its mappings; 0 = watched only
	HasL2   bool         // frames begin with an Ethernet header
	Bridged bool         // a Linux bridge, or on one
	Uniques []netip.Addr // addresses the router itself owns here: what masquerade may choose
	VIPs    []netip.Addr // every VIP of the pins here, link-local ones too
	Sources []PlanSource // which inside prefix belongs to which pin; the longest prefix decides
	VRIDs   []PlanVRID   // whose adverts renew which group's lease
	Uppers  []int        // macvlans on it (VRRP's virtual MAC): what leaves by them leaves here
}

// PlanSource says that flows from an inside prefix belong to a pin. First
// match wins in the configuration; here that is already worked out, so that
// the longest prefix gives the same answer.
type PlanSource struct {
	Prefix netip.Prefix
	Pin    uint32
}

// PlanVRID says that adverts of a VRID on an interface speak for a group.
type PlanVRID struct {
	VRID  uint8
	Group uint32
}

// PlanPin is one pin. A retired pin is one that left the configuration while
// mappings of it lived: it makes no new ones and is not shown.
type PlanPin struct {
	ID        uint32
	Slot      uint32
	Group     uint32
	VLAN      VLAN
	Name      string
	Interface string       // name, also while the interface is absent
	Ifindex   int          // 0 while the interface is absent
	VIP4      netip.Addr   // source for IPv4, or the zero Addr
	VIP6      netip.Addr   // source for IPv6, or the zero Addr
	VIPs      []netip.Addr // all, in the order of the configuration
	Enabled   bool
	EnabledBy EnabledBy
	Retired   bool
	OnPort4   bool // netfilter sees answers on the port of a bridge: no new mapping in this family
	OnPort6   bool
}

// PlanGroup is one group of VRRP instances that fail over together.
type PlanGroup struct {
	ID   uint32
	Name string
}

// Direction tells an advert heard from one sent.
type Direction uint8

// As seen from this router.
const (
	In  Direction = 0
	Out Direction = 1
)

// AdvertSeen is one VRRP packet as the dataplane saw it, valid or not.
type AdvertSeen struct {
	Time      time.Duration // CLOCK_MONOTONIC
	Ifindex   int
	Direction Direction
	VLAN      VLAN       // tags still in the frame when it was seen
	Src, Dst  netip.Addr // outer addresses
	SrcMAC    [6]byte
	TTL       uint8 // or hop limit
	AH        bool  // the VRRP header followed an authentication header
	Reason    AdvertReason
	Payload   []byte // from the VRRP header on, as much as was captured
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// ClaimKind is what somebody says of a VIP. The numbers are those of the BPF
// enum claim_kind.
type ClaimKind uint8

// What can be said.
const (
	ClaimOwns    ClaimKind = iota // he has it, unasked: gratuitous ARP, or any ARP packet he sends from it
	ClaimAnswers                  // he has it: the answer to a question
	ClaimAsks                     // he asks whether anybody has it: an ARP probe (RFC 5227 section 2.1.1)
)

// ClaimSeen is an ARP packet, or a neighbour advertisement, of somebody else
// about a VIP, as the dataplane saw it come in.
type ClaimSeen struct {
	Time    time.Duration // CLOCK_MONOTONIC
	Ifindex int
	VIP     netip.Addr
	MAC     MAC // of whoever says so
	Kind    ClaimKind
}

// Probe is a question to be sent: who has this VIP?
type Probe struct {
	Ifindex int
	VIP     netip.Addr
	MAC     MAC        // the interface's own
	From    netip.Addr // IPv6: an address of the interface's own; IPv4 asks from nowhere
}

// Mapping is one pinned flow's NAT binding (RFC 4787 section 1.2).
type Mapping struct {
	Pin, Slot       uint32
	Proto           uint8          // IP protocol number
	Public          netip.AddrPort // VIP and port as seen on the wire; ICMP echo: the identifier as port
	Local           netip.AddrPort // what this router's conntrack knows
	Remote          netip.AddrPort // ICMP echo: port 0
	Native          bool           // conntrack itself knows the public end
	Acked           bool           // the peer has it
	Born            time.Duration  // CLOCK_MONOTONIC
	LastOut, LastIn time.Duration  // CLOCK_MONOTONIC, 0 = never
}
