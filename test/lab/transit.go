// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Addresses behind the further routers. Beyond is on the transit router's far
// side, Deep in a part of the LAN's prefixes that the inside router routes.
var (
	TransitWAN = WAN.ends(20)
	Beyond     = further("198.18.1.", "2001:db8:18:1::").ends(10)
	InsideLAN  = LAN.ends(20)
	Deep       = further("192.168.101.", "2001:db8:101:0:1::").ends(130)

	transitFar = further("198.18.1.", "2001:db8:18:1::").ends(1)
	insideFar  = further("192.168.101.", "2001:db8:101:0:1::").ends(129)
)

// The networks between a further router and the host behind it: 14 IPv4
// addresses, and a part of what is a /64 elsewhere.
const (
	furtherBits4 = 28
	furtherBits6 = 80
)

func further(base4, base6 string) Segment {
	return Segment{Bits4: furtherBits4, Bits6: furtherBits6, base4: base4, base6: base6}
}

// addTransit puts a router on the WAN, and a host behind it that has no other
// way to anybody.
func (l *Lab) addTransit() (err error) {
	if !l.Options.Transit {
		return nil
	}
	l.Transit, l.BeyondHost, err = l.addFurther(l.WANSwitch, "transit", "beyond", TransitWAN, transitFar, Beyond, WAN)
	return err
}

// addInside puts a router on the LAN, and an inside host behind it.
func (l *Lab) addInside() (err error) {
	if !l.Options.Inside {
		return nil
	}
	if l.Inside, l.DeepHost, err = l.addFurther(l.LANSwitch, "inside", "deep", InsideLAN, insideFar, Deep, LAN); err != nil {
		return err
	}
	return errors.Join(
		l.Inside.addRoute("eth0", netip.Prefix{}, LAN.VIP4),
		l.Inside.addRoute("eth0", netip.Prefix{}, LAN.VIP6),
	)
}

// addFurther makes a router with eth0 on a switch and eth1 to a host.
func (l *Lab) addFurther(at *Node, name, host string, near, far, end Ends, on Segment) (router, behind *Node, err error) {
	if router, err = l.addNode(name); err != nil {
		return nil, nil, err
	}
	if behind, err = l.addNode(host); err != nil {
		return nil, nil, err
	}
	link := further("", "")
	return router, behind, errors.Join(
		router.forwards(),
		router.plug("eth0", at, bridge0, name),
		router.addEnds("eth0", on, near),
		router.cable("eth1", behind, "eth0"),
		router.addEnds("eth1", link, far),
		behind.addEnds("eth0", link, end),
		behind.addRoute("eth0", netip.Prefix{}, far.V4),
		behind.addRoute("eth0", netip.Prefix{}, far.V6),
	)
}

// routeFurther teaches a router where the further networks are.
func (r *Router) routeFurther() error {
	var errs []error
	route := func(segment Segment, end, via Ends) {
		errs = append(errs,
			r.addRoute(r.Ifname(segment), netip.PrefixFrom(end.V4, furtherBits4).Masked(), via.V4),
			r.addRoute(r.Ifname(segment), netip.PrefixFrom(end.V6, furtherBits6).Masked(), via.V6))
	}
	if r.lab.Options.Transit {
		route(WAN, Beyond, TransitWAN)
	}
	if r.lab.Options.Inside {
		route(LAN, Deep, InsideLAN)
	}
	return errors.Join(errs...)
}

// cable lays a cable between two nodes, without a switch.
func (n *Node) cable(ifname string, to *Node, theirs string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ifname
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: theirs, PeerNamespace: netlink.NsFd(to.handle)}
	if err := n.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("lay a cable from %s to %s: %w", n.NS, to.NS, err)
	}
	return errors.Join(n.setUp(ifname), to.setUp(theirs))
}

// forwards makes a router of the node.
func (n *Node) forwards() error {
	return errors.Join(
		n.Sysctl("net/ipv4/ip_forward", "1"),
		n.Sysctl("net/ipv6/conf/all/forwarding", "1"),
	)
}

// Narrow lets the node send a neighbour no larger packets than mtu octets. The
// neighbour is not told: it goes on to announce what its own interface takes,
// as a host does whose path is narrow somewhere in the middle.
func (n *Node) Narrow(ifname string, neighbour netip.Addr, mtu int) error {
	link, err := n.nl.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", ifname, n.NS, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, MTU: mtu,
		Dst: ipNet(netip.PrefixFrom(neighbour, neighbour.BitLen())),
	}
	if err := n.nl.RouteReplace(route); err != nil {
		return fmt.Errorf("narrow the way to %s in %s to %d octets: %w", neighbour, n.NS, mtu, err)
	}
	return nil
}
