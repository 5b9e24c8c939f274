// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// lookAbove reads what tells how packets come to interfaces with a virtual MAC, and
// leave by them; where there is none, nothing. Tables of routes may be large.
func lookAbove(m *policy.Machine, links []netlink.Link) (err error) {
	if !slices.ContainsFunc(links, func(link netlink.Link) bool { return link.Type() == "macvlan" }) {
		return nil
	}
	if m.Neighbours, err = neighbours(); err != nil {
		return err
	}
	if m.Ways4, err = ways(netlink.FAMILY_V4); err != nil {
		return err
	}
	m.Ways6, err = ways(netlink.FAMILY_V6)
	return err
}

// resolved are the states of a neighbour whose MAC is known and was not set by hand.
const resolved = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE

// neighbours counts on every interface those whose MAC is known: they asked for
// one of its addresses and were answered, or were asked. Link-local addresses are
// left out: a router's questions come from them.
func neighbours() (map[int]int, error) {
	counts := make(map[int]int)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := undisturbed(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range list {
			if n.State&resolved != 0 && len(n.HardwareAddr) > 0 && !n.IP.IsLinkLocalUnicast() {
				counts[n.LinkIndex]++
			}
		}
	}
	return counts, nil
}

// ways finds the interfaces that routes of the main table lead by. Of several
// with one prefix and metric, which stand together, the kernel takes the first.
// Hosts and link-local prefixes, which every interface has for itself, are left
// out. There may be a million routes: none is kept.
func ways(family int) (map[int]bool, error) {
	var leads map[int]bool
	_, err := undisturbed(func() ([]netlink.Route, error) {
		leads = make(map[int]bool)
		last := ""
		return nil, netlink.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE,
			func(route netlink.Route) bool {
				which := fmt.Sprintf("%v %d %d", route.Dst, route.Priority, route.Tos)
				if which == last || !isWay(route.Dst) {
					return true
				}
				last = which
				leads[route.LinkIndex] = true
				for _, hop := range route.MultiPath {
					leads[hop.LinkIndex] = true
				}
				return true
			})
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	delete(leads, 0)
	return leads, nil
}

func isWay(to *net.IPNet) bool {
	if to == nil {
		return true // the default route
	}
	ones, bits := to.Mask.Size()
	return ones < bits && !to.IP.IsLinkLocalUnicast() && !to.IP.IsMulticast()
}
