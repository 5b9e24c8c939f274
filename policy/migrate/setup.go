// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"vippin/policy"
)

// setup is what the input says of this router, in words of no program.
type setup struct {
	*notes
	options    Options
	instances  []*instance
	syncGroups []*syncGroup
	links      []*syncLink // of conntrackd, in the order of the input
	replicates bool        // there is something that replicates
	protocols  protocols
	ignore     []ignored
	expect     expectations
	tableSize  int // connections that conntrackd was told to hold, 0 = not told
	vips       int // of all instances
	nat        []*natRule
	addresses  map[string][]netip.Prefix // by interface, where the input has them
}

// instance is one VRRP instance.
type instance struct {
	at     place
	name   string
	iface  string // without virtual MAC; "" = none given
	vrid   uint8  // 0 = none given
	vips   []vip
	source netip.Addr   // of its adverts, if given
	peers  []netip.Addr // that its adverts go to, if to no group
	vmac   string       // name of its interface with a virtual MAC
	off    bool
}

type vip struct {
	addr netip.Addr
	dev  string // "" = the instance's interface
	at   place
}

// syncGroup is VRRP instances that fail over together.
type syncGroup struct {
	at      place
	name    string
	members []string
}

// syncLink is one way by which conntrackd reached the other router.
type syncLink struct {
	at        place
	kind      string // Multicast, UDP, TCP
	iface     string
	own, peer netip.Addr
	preferred bool // Default
}

// String names it with what is known of it.
func (l *syncLink) String() string {
	text := l.kind
	if l.iface != "" {
		text += " " + l.iface
	}
	for _, addr := range []netip.Addr{l.own, l.peer} {
		if addr.IsValid() {
			text += " " + addr.String()
		}
	}
	return text
}

// protocols is a filter: those that are let through, or those that are not.
type protocols struct {
	at     place
	given  bool
	accept bool
	names  []string // of policy.SyncProtocols
}

// ignored is a network that is never replicated.
type ignored struct {
	at      place
	setting string
	prefix  netip.Prefix
}

// expectations is what the input says of those that helpers make.
type expectations struct {
	given, on bool
}

// natRule is one rule of source NAT.
type natRule struct {
	at          place
	number      string // as VyOS's commands name it: "nat source rule 10"
	v6          bool
	off         bool // disabled, or an exception
	iface       string
	group       bool // iface names a group of interfaces
	source      string
	translation string
	target      netip.Addr // translation, if it is one address
	narrow      []string   // what else a packet must have
}

// reaches says whether the rule may have packets that leave by an interface.
func (r *natRule) reaches(iface string) bool {
	name, not := strings.CutPrefix(r.iface, "!")
	switch {
	case r.group, r.iface == "":
		return true
	case strings.HasSuffix(name, "*"):
		return strings.HasPrefix(iface, strings.TrimSuffix(name, "*")) != not
	}
	return (iface == name) != not
}

// vlanOf reads the tags in an interface's name: eth0.2, eth0.100.20, vlan20.
func vlanOf(iface string) policy.VLAN {
	_, tags, dotted := strings.Cut(iface, ".")
	if !dotted {
		digits, is := strings.CutPrefix(iface, "vlan")
		if !is {
			return policy.VLAN{}
		}
		tags = strings.TrimLeft(digits, "0")
	}
	vlan, err := policy.ParseVLAN(tags)
	if err != nil {
		return policy.VLAN{}
	}
	return vlan
}

// isInterface says whether Linux takes the name for an interface. A $ is what is
// left of a parameter that nobody defined.
func isInterface(name string) bool {
	if name == "" || len(name) > policy.InterfaceNameMax || name == "." || name == ".." {
		return false
	}
	return !strings.ContainsFunc(name, func(c rune) bool {
		return c == '/' || c == ':' || c == '$' || c == unicode.ReplacementChar || unicode.IsSpace(c) || !unicode.IsPrint(c)
	})
}

// parseVIP reads an address that may have a prefix length.
func parseVIP(text string) (netip.Addr, bool) {
	bare, bits, cut := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(bare)
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		return netip.Addr{}, false
	}
	if n, err := strconv.Atoi(bits); cut && (err != nil || n < 0 || n > addr.BitLen()) {
		return netip.Addr{}, false
	}
	ok := !addr.IsUnspecified() && !addr.IsMulticast() && !addr.IsLoopback() && addr != netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return addr, ok
}

// parseNetwork reads an address or a prefix and takes host bits off.
func parseNetwork(text string) (netip.Prefix, bool) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" || addr.Is4In6() {
			return netip.Prefix{}, false
		}
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil || prefix.Addr().Is4In6() {
		return netip.Prefix{}, false
	}
	return prefix.Masked(), true
}

// parseVRID reads 1 to 255.
func parseVRID(text string) (uint8, bool) {
	n, err := strconv.ParseUint(text, 10, 8)
	return uint8(n), err == nil && n > 0
}

// addVIP notes an address of an instance.
func (s *setup) addVIP(i *instance, text, dev string, at place) {
	addr, ok := parseVIP(text)
	if !ok {
		s.warn(at, "%q of VRRP instance %s is no virtual address: write it as ADDRESS/LENGTH, or add it to vips by hand", text, i.name)
		return
	}
	if s.vips++; s.vips > policy.VIPsMax {
		s.fault(at, "more than %d virtual addresses: migrate a part of them", policy.VIPsMax)
		return
	}
	i.vips = append(i.vips, vip{addr: addr, dev: dev, at: at})
}

// syncProtocol is vippin's word for a protocol.
func syncProtocol(name string) string {
	switch name = strings.ToLower(name); name {
	case "tcp", "udp", "icmp":
		return name
	case "ipv6-icmp", "icmp6", "icmpv6":
		return "icmpv6"
	}
	return "other"
}
