// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// setVMAC is setPair with keepalived's virtual MACs, inside and outside. What
// leaves by their interfaces is masqueraded, too.
func setVMAC(t *testing.T, name string, opts lab.Options, keepalived lab.Keepalived) *pair {
	t.Helper()
	keepalived.VMAC = true
	s := setScene(t, name, opts)
	s.must(s.AddSyncLink())
	p := &pair{scene: s, daemons: make(map[*lab.Router]*lab.Proc)}
	s.must(s.StartRouters(s.ctx, keepalived))
	for _, r := range s.Routers() {
		s.masqueradeAbove(r)
		p.daemons[r] = s.start(r, p.config(r, onWAN))
	}
	s.awaitPeace()
	p.awaitSync()
	return p
}

// lendMACs has keepalived with virtual MACs make ra MASTER, which holds the VIPs by itself
// until then.
func (s *scene) lendMACs(keepalived lab.Keepalived) {
	s.t.Helper()
	keepalived.VMAC = true
	s.must(s.RA.RemoveVIPs())
	_, err := s.StartKeepalived(s.RA, keepalived)
	s.must(err)
	s.must(s.RA.AwaitMaster(s.ctx))
}

// masqueradeAbove masquerades what leaves by the interfaces with the virtual MACs.
func (s *scene) masqueradeAbove(r *lab.Router) {
	s.t.Helper()
	s.must(r.NFT(s.ctx, fmt.Sprintf(`
table inet above {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname { "vrrp4.20", "vrrp6.20" } ip saddr %s masquerade
		oifname { "vrrp4.20", "vrrp6.20" } ip6 saddr %s masquerade
	}
}
`, lab.LAN.Prefix4(), lab.LAN.Prefix6())))
}

// virtualMAC is that of a segment's virtual router: RFC 9568 section 7.3.
func virtualMAC(segment lab.Segment, like netip.Addr) string {
	family := byte(1)
	if like.Is6() {
		family = 2
	}
	return policy.MAC{0, 0, 0x5e, 0, family, segment.VRID}.String()
}

// ownMAC is that of an interface.
func (s *scene) ownMAC(n *lab.Node, ifname string) string {
	s.t.Helper()
	link, err := n.Netlink().LinkByName(ifname)
	s.must(err)
	return link.Attrs().HardwareAddr.String()
}

// leadBy makes a router's packets leave by the interfaces themselves, or by those
// with the virtual MACs above them. Both have the connected route with the same
// metric, and the first one is taken: the other is put behind it. In IPv6 only a
// VIP with a prefix makes one.
func (s *scene) leadBy(r *lab.Router, above, prefix6 bool) {
	s.t.Helper()
	for _, segment := range s.Segments() {
		s.putBehind(r, segment, segment.Prefix4(), r.Own(segment).V4, segment.VIP4, above, "scope link")
		if prefix6 {
			s.putBehind(r, segment, segment.Prefix6(), netip.Addr{}, segment.VIP6, above, "metric 256")
		}
	}
	dev := lab.WAN.Name
	if above {
		dev = "vrrp6.20"
	}
	s.ip(r.Node, "route replace default via 198.51.100.10", fmt.Sprintf("route replace default via %s dev %s", s.linkLocal(s.Server, "eth0"), dev))
}

// linkLocal is the address that an interface has made of its MAC.
func (s *scene) linkLocal(n *lab.Node, ifname string) netip.Addr {
	s.t.Helper()
	byLink, err := n.Addresses()
	s.must(err)
	for _, prefix := range byLink[ifname] {
		if prefix.Addr().Is6() && prefix.Addr().IsLinkLocalUnicast() {
			return prefix.Addr()
		}
	}
	s.t.Fatalf("%s of %s has no link-local address: %v", ifname, n.Name, byLink)
	return netip.Addr{}
}

// putBehind takes one of two connected routes out and adds it behind the other.
func (s *scene) putBehind(r *lab.Router, segment lab.Segment, prefix netip.Prefix, own, vip netip.Addr, above bool, more string) {
	s.t.Helper()
	dev, source := segment.Name, own
	if !above {
		dev, source = aboveOf(segment, vip), vip
	}
	if prefix.Addr().Is4() {
		more += " src " + source.String()
	}
	s.ip(r.Node, fmt.Sprintf("route del %s dev %s", prefix, dev), fmt.Sprintf("route append %s dev %s proto kernel %s", prefix, dev, more))
	family := "-4"
	if prefix.Addr().Is6() {
		family = "-6"
	}
	both, err := r.Run(s.ctx, "ip", family, "route", "show", "exact", prefix.String())
	s.must(err)
	lines := strings.Split(strings.TrimSpace(both), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], "dev "+dev+" ") {
		s.t.Fatalf("connected routes of %s:\n%s", prefix, both)
	}
}

// aboveOf is the interface with a segment's virtual MAC.
func aboveOf(segment lab.Segment, like netip.Addr) string {
	if like.Is6() {
		return fmt.Sprintf("vrrp6.%d", segment.VRID)
	}
	return fmt.Sprintf("vrrp4.%d", segment.VRID)
}

// neighbourMAC is what a node has in its cache, "" for nothing.
func (s *scene) neighbourMAC(n *lab.Node, addr netip.Addr) string {
	s.t.Helper()
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := n.Netlink().NeighList(0, family)
	s.must(err)
	for _, entry := range list {
		if entry.IP.Equal(addr.AsSlice()) {
			return entry.HardwareAddr.String()
		}
	}
	return ""
}

// switchPort is where a switch believes a MAC to be, "" when it would flood.
func (s *scene) switchPort(at *lab.Node, mac string) string {
	s.t.Helper()
	list, err := at.Netlink().NeighList(0, unix.AF_BRIDGE)
	s.must(err)
	for _, entry := range list {
		if entry.HardwareAddr.String() == mac && entry.State&netlink.NUD_PERMANENT == 0 {
			link, err := at.Netlink().LinkByIndex(entry.LinkIndex)
			s.must(err)
			return link.Attrs().Name
		}
	}
	return ""
}

// awaitPorts waits until both switches have a router's port for all virtual MACs.
func (s *scene) awaitPorts(r *lab.Router) {
	s.t.Helper()
	for _, at := range []struct {
		node    *lab.Node
		segment lab.Segment
	}{{s.LANSwitch, lab.LAN}, {s.WANSwitch, lab.WAN}} {
		for _, like := range []netip.Addr{at.segment.VIP4, at.segment.VIP6} {
			mac := virtualMAC(at.segment, like)
			s.must(s.await(mac+" at the port of "+r.Name, func() (bool, error) { return s.switchPort(at.node, mac) == r.Name, nil }))
		}
	}
}

// sourceMACs are those of some frames.
func sourceMACs(frames []traffic.Frame) map[string]int {
	macs := make(map[string]int)
	for _, f := range frames {
		if ether, ok := f.Packet.LinkLayer().(*layers.Ethernet); ok {
			macs[ether.SrcMAC.String()]++
		}
	}
	return macs
}

// claimed is who has an address, by an ARP answer, a gratuitous ARP or a neighbour
// advertisement; "" for other frames.
func claimedMAC(f traffic.Frame, addr netip.Addr) string {
	if arp, ok := f.Packet.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		if net.IP(arp.SourceProtAddress).Equal(addr.AsSlice()) {
			return net.HardwareAddr(arp.SourceHwAddress).String()
		}
		return ""
	}
	na, ok := f.Packet.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if !ok || !na.TargetAddress.Equal(addr.AsSlice()) {
		return ""
	}
	for _, option := range na.Options {
		if option.Type == layers.ICMPv6OptTargetAddress {
			return net.HardwareAddr(option.Data).String()
		}
	}
	return "a neighbour advertisement without a MAC"
}
