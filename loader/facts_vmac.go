// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What tells how packets come to an interface with a virtual MAC, and leave by it.

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
// with one prefix and metric the kernel takes the first. Hosts and link-local
// prefixes, which every interface has for itself, are left out.
func ways(family int) (map[int]bool, error) {
	routes, err := undisturbed(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	leads := make(map[int]bool)
	taken := make(map[string]bool)
	for _, route := range routes {
		which := fmt.Sprintf("%v %d %d", route.Dst, route.Priority, route.Tos)
		if taken[which] || !isWay(route.Dst) {
			continue
		}
		taken[which] = true
		leads[route.LinkIndex] = true
		for _, hop := range route.MultiPath {
			leads[hop.LinkIndex] = true
		}
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
