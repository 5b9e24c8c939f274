// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The bridges in the WAN switch's namespace; the LAN switch has the first only.
const (
	bridge0 = "br0"
	bridge1 = "br1" // WAN1; its ports have a 1 at the end of their names
)

func (l *Lab) addSwitches() (err error) {
	if l.LANSwitch, err = l.addSwitch("lan", bridge0); err != nil {
		return err
	}
	bridges := []string{bridge0}
	if l.Options.WAN1 {
		bridges = append(bridges, bridge1)
	}
	l.WANSwitch, err = l.addSwitch("wan", bridges...)
	return err
}

func (l *Lab) addSwitch(name string, bridges ...string) (*Node, error) {
	n, err := l.addNode(name)
	if err != nil {
		return nil, err
	}
	if err := n.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
		return nil, err // a switch says nothing of its own
	}
	// Without br_netfilter these do not exist, and frames are not filtered either.
	for _, call := range []string{"iptables", "ip6tables", "arptables"} {
		if err := n.Sysctl("net/bridge/bridge-nf-call-"+call, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	flood := false
	for _, bridge := range bridges {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridge
		if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &flood}); err != nil {
			return nil, fmt.Errorf("add bridge %s in %s: %w", bridge, n.NS, err)
		}
		if err := n.setUp(bridge); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// plug lays a cable: port on a switch's bridge, ifname in the node.
func (n *Node) plug(ifname string, at *Node, bridge, port string) error {
	return n.plugMTU(ifname, at, bridge, port, n.lab.Options.MTU)
}

// plugMTU is plug with another MTU than the lab's, 0 for the kernel's own; without a
// bridge the port is in none.
func (n *Node) plugMTU(ifname string, at *Node, bridge, port string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: ifname, PeerNamespace: netlink.NsFd(n.handle), PeerHardwareAddr: n.macs[ifname]}
	if mtu != 0 {
		veth.MTU, veth.PeerMTU = mtu, uint32(mtu)
	}
	if err := at.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("plug %s of %s into %s: %w", ifname, n.NS, at.NS, err)
	}
	if bridge != "" {
		if err := at.enslave(port, bridge); err != nil {
			return err
		}
	}
	return errors.Join(at.setUp(port), n.setUp(ifname))
}

// enslave makes an interface a port of a bridge.
func (n *Node) enslave(port, bridge string) error {
	link, err := n.nl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", port, n.NS, err)
	}
	master, err := n.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", bridge, n.NS, err)
	}
	if err := n.nl.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("add port %s to %s in %s: %w", port, bridge, n.NS, err)
	}
	return nil
}

func (n *Node) setUp(ifname string) error { return n.setLink(ifname, true) }

func (n *Node) setLink(ifname string, up bool) error {
	link, err := n.nl.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", ifname, n.NS, err)
	}
	set, word := n.nl.LinkSetDown, "down"
	if up {
		set, word = n.nl.LinkSetUp, "up"
	}
	if err := set(link); err != nil {
		return fmt.Errorf("set %s in %s %s: %w", ifname, n.NS, word, err)
	}
	return nil
}

// addAddress gives an interface an address, or renews it; a deprecated one is
// never chosen as a source.
func (n *Node) addAddress(ifname string, addr netip.Addr, bits int, deprecated bool) error {
	link, err := n.nl.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", ifname, n.NS, err)
	}
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, bits))}
	if addr.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if deprecated {
		a.ValidLft, a.PreferedLft = math.MaxUint32, 0
	}
	if err := n.nl.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add %s to %s in %s: %w", addr, ifname, n.NS, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addRoute routes a prefix (the zero Prefix: everything) by a neighbour.
func (n *Node) addRoute(ifname string, to netip.Prefix, via netip.Addr) error {
	link, err := n.nl.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", ifname, n.NS, err)
	}
	if !to.IsValid() {
		zero := netip.IPv4Unspecified()
		if via.Is6() {
			zero = netip.IPv6Unspecified()
		}
		to = netip.PrefixFrom(zero, 0)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), Gw: via.AsSlice()}
	if err := n.nl.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s by %s in %s: %w", to, via, n.NS, err)
	}
	return nil
}

func (n *Node) addEnds(ifname string, s Segment, ends Ends) error {
	return errors.Join(
		n.addAddress(ifname, ends.V4, s.Bits4, false),
		n.addAddress(ifname, ends.V6, s.Bits6, false),
	)
}

func (l *Lab) addServer() (err error) {
	if l.Server, err = l.addNode("srv"); err != nil {
		return err
	}
	if err := errors.Join(
		l.Server.plug("eth0", l.WANSwitch, bridge0, "srv"),
		l.Server.addEnds("eth0", WAN, ServerWAN),
		l.Server.addAddress("lo", ServerFar.V4, 32, false),
		l.Server.addAddress("lo", ServerFar.V6, 128, false),
	); err != nil {
		return err
	}
	if l.Options.WAN1 {
		if err := errors.Join(
			l.Server.plug("eth1", l.WANSwitch, bridge1, "srv1"),
			l.Server.addEnds("eth1", WAN1, ServerWAN1),
		); err != nil {
			return err
		}
	}
	if l.Options.Masquerade != MasqueradeNone {
		return nil
	}
	return errors.Join(
		l.Server.addRoute("eth0", LAN.Prefix4(), WAN.VIP4),
		l.Server.addRoute("eth0", LAN.Prefix6(), WAN.VIP6),
	)
}

func (l *Lab) addHosts() error {
	for i := range l.Options.Hosts {
		name := fmt.Sprintf("h%d", i+1)
		h, err := l.addNode(name)
		if err != nil {
			return err
		}
		l.Hosts = append(l.Hosts, h)
		if err := errors.Join(
			h.plug("eth0", l.LANSwitch, bridge0, name),
			h.addEnds("eth0", LAN, HostEnds(i)),
			h.addRoute("eth0", netip.Prefix{}, LAN.VIP4),
			h.addRoute("eth0", netip.Prefix{}, LAN.VIP6),
		); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) addRouters() (err error) {
	if l.RA, err = l.addRouter("ra", func(s Segment) Ends { return s.RA }); err != nil {
		return err
	}
	if l.Options.SingleRouter {
		return l.RA.AddVIPs()
	}
	if l.RB, err = l.addRouter("rb", func(s Segment) Ends { return s.RB }); err != nil || !l.Options.ThirdRouter {
		return err
	}
	l.RC, err = l.addRouter("rc", func(s Segment) Ends { return s.ends(5) })
	return err
}

func (l *Lab) addRouter(name string, ends func(Segment) Ends) (*Router, error) {
	n, err := l.addNode(name)
	if err != nil {
		return nil, err
	}
	r := &Router{Node: n, Dir: filepath.Join(l.Dir, name), BPFFS: l.bpffs(name), segment: ends}
	if err := os.Mkdir(r.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of %s: %w", name, err)
	}
	if err := n.forwards(); err != nil {
		return nil, err
	}
	if err := r.plugIn(); err != nil {
		return nil, err
	}
	return r, r.configure()
}

// plugIn lays the router's cables.
func (r *Router) plugIn() error {
	for _, c := range r.lab.cables(r) {
		if err := c.lay(); err != nil {
			return err
		}
	}
	return nil
}

// configure gives the router its own addresses and routes; also after its
// links were down, which takes most of them away.
func (r *Router) configure() error {
	for _, s := range r.lab.Segments() {
		if err := r.addEnds(r.Ifname(s), s, r.Own(s)); err != nil {
			return err
		}
	}
	if r.lab.syncLink {
		if err := r.addAddress(SyncLink, r.SyncAddr(), 29, false); err != nil {
			return err
		}
	}
	return errors.Join(
		r.addRoute(r.Ifname(WAN), netip.Prefix{}, ServerWAN.V4),
		r.addRoute(r.Ifname(WAN), netip.Prefix{}, ServerWAN.V6),
		r.routeFurther(),
	)
}

// port finds the switch port of a router's interface.
func (l *Lab) port(r *Router, s Segment) (at *Node, bridge, port string) {
	switch s.Name {
	case LAN.Name:
		return l.LANSwitch, bridge0, r.Name
	case WAN1.Name:
		return l.WANSwitch, bridge1, r.Name + "1"
	}
	return l.WANSwitch, bridge0, r.Name
}

// AddVIPs gives the router every VIP by hand, as keepalived would: IPv4 with
// the segment's prefix length, IPv6 as a deprecated /128.
func (r *Router) AddVIPs() error {
	var errs []error
	for _, s := range r.lab.Segments() {
		errs = append(errs,
			r.addAddress(r.Ifname(s), s.VIP4, s.Bits4, false),
			r.addAddress(r.Ifname(s), s.VIP6, 128, true),
			r.addAddress(r.Ifname(s), s.VIPLL, 64, true))
	}
	return errors.Join(errs...)
}

// RemoveVIPs takes away what AddVIPs gave.
func (r *Router) RemoveVIPs() error {
	var errs []error
	for _, s := range r.lab.Segments() {
		name := r.Ifname(s)
		link, err := r.nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", name, r.NS, err)
		}
		for _, p := range []netip.Prefix{
			netip.PrefixFrom(s.VIP4, s.Bits4), netip.PrefixFrom(s.VIP6, 128), netip.PrefixFrom(s.VIPLL, 64),
		} {
			if err := r.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
				errs = append(errs, fmt.Errorf("remove %s from %s in %s: %w", p, name, r.NS, err))
			}
		}
	}
	return errors.Join(errs...)
}
