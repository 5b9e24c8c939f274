// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	ipv4 = "ipv4"
	ipv6 = "ipv6"
)

// network is the addresses of a family.
type network struct {
	lan, unique       netip.Prefix // the router's own
	vip               netip.Addr
	clients, remotes  netip.Addr // the first of many
	inside, outside   netip.Prefix
	insideHop, outHop netip.Addr // who has them
}

var networks = map[string]network{
	ipv4: {
		lan: netip.MustParsePrefix("192.168.101.1/24"), unique: netip.MustParsePrefix("198.51.100.3/24"),
		vip:     netip.MustParseAddr("198.51.100.2"),
		clients: netip.MustParseAddr("198.18.0.1"), inside: netip.MustParsePrefix("198.18.0.0/16"),
		remotes: netip.MustParseAddr("203.0.113.1"), outside: netip.MustParsePrefix("203.0.113.0/24"),
		insideHop: netip.MustParseAddr("192.168.101.10"), outHop: netip.MustParseAddr("198.51.100.10"),
	},
	ipv6: {
		lan: netip.MustParsePrefix("2001:db8:101::1/64"), unique: netip.MustParsePrefix("2001:db8:100::3/64"),
		vip:     netip.MustParseAddr("2001:db8:100::2"),
		clients: netip.MustParseAddr("2001:db8:18::1"), inside: netip.MustParsePrefix("2001:db8:18::/64"),
		remotes: netip.MustParseAddr("2001:db8:113::1"), outside: netip.MustParsePrefix("2001:db8:113::/64"),
		insideHop: netip.MustParseAddr("2001:db8:101::10"), outHop: netip.MustParseAddr("2001:db8:100::10"),
	},
}

// addForwarding makes a router: addresses, routes, and neighbours that nobody
// need be asked for.
func (b *bed) addForwarding() error {
	for _, file := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := writeSysctl(file, "1"); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		own  netip.Prefix
		far  netip.Prefix
		hop  netip.Addr
		side side
	}{
		{b.lan, b.inside, b.insideHop, b.sides[insideSide]},
		{b.unique, b.outside, b.outHop, b.sides[outsideSide]},
	} {
		if err := addAddr(s.side.index, s.own, false); err != nil {
			return err
		}
		neighbour := netlink.Neigh{
			LinkIndex: s.side.index, State: netlink.NUD_PERMANENT, IP: s.hop.AsSlice(), HardwareAddr: s.side.farMAC,
		}
		if err := netlink.NeighAdd(&neighbour); err != nil {
			return fmt.Errorf("add neighbour %s: %w", s.hop, err)
		}
		route := netlink.Route{LinkIndex: s.side.index, Gw: s.hop.AsSlice(), Dst: ipNet(s.far)}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("add route to %s: %w", s.far, err)
		}
	}
	return addAddr(b.sides[outsideSide].index, netip.PrefixFrom(b.vip, b.vip.BitLen()), true)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addAddr adds an address, a VIP as keepalived does: over IPv6 deprecated, so
// that nothing chooses it by itself.
func addAddr(ifindex int, prefix netip.Prefix, virtual bool) error {
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
		if virtual {
			addr.ValidLft = math.MaxUint32
		}
	}
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	if err := netlink.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("add address %s: %w", prefix, err)
	}
	return nil
}
