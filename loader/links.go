// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// observeTries is how often a dump is repeated that links or addresses changed
// under.
const observeTries = 5

// tagsMax stops the walk from an interface to the wire: a tower of stacked
// devices higher than this is a mistake (the kernel's own limit is 8).
const tagsMax = 8

// VLANTooDeep is the tags of an interface behind three or more of them, which
// policy.VLAN cannot say. IEEE 802.1Q reserves 4095, so no pin finds it by its
// tag; by its name one does.
var VLANTooDeep = policy.VLAN{Outer: 4095, Inner: 4095}

// Observe reads the links and addresses of the network namespace of the
// calling thread.
func Observe() (policy.Observed, error) {
	links, err := undisturbed(netlink.LinkList)
	if err != nil {
		return policy.Observed{}, fmt.Errorf("list links: %w", err)
	}
	addrs, err := undisturbed(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return policy.Observed{}, fmt.Errorf("list addresses: %w", err)
	}
	seen := observed(links, addrs)
	seen.OnPort = OnPort()
	return seen, nil
}

// ErrDisturbed is in the chain of Observe's error when links or addresses change so
// fast that no dump is of one moment.
var ErrDisturbed = netlink.ErrDumpInterrupted

// undisturbed repeats a dump that the kernel says is not of one moment.
func undisturbed[T any](dump func() ([]T, error)) (result []T, err error) {
	for range observeTries {
		result, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return result, err
		}
	}
	return result, err
}

// observed says in policy's words what the kernel listed.
func observed(links []netlink.Link, addrs []netlink.Addr) policy.Observed {
	byLink := make(map[int][]policy.Addr, len(links))
	for _, addr := range addrs {
		if a, ok := addrOf(addr); ok {
			byLink[addr.LinkIndex] = append(byLink[addr.LinkIndex], a)
		}
	}
	tags := make(map[int]tagging, len(links))
	for _, link := range links {
		tags[link.Attrs().Index] = taggingOf(link)
	}
	result := policy.Observed{Links: make([]policy.Link, 0, len(links))}
	for _, link := range links {
		attrs := link.Attrs()
		result.Links = append(result.Links, policy.Link{
			Index:  attrs.Index,
			Name:   attrs.Name,
			Kind:   link.Type(),
			Parent: tags[attrs.Index].parent,
			Master: attrs.MasterIndex,
			VLAN:   resolveTags(tags, attrs.Index),
			Up:     isUp(attrs.RawFlags),
			HasL2:  hasL2(attrs.EncapType),
			MAC:    macOf(attrs.HardwareAddr),
			Addrs:  byLink[attrs.Index],
		})
	}
	return result
}

// addrOf converts an address; one without a local end is none.
func addrOf(addr netlink.Addr) (policy.Addr, bool) {
	if addr.IPNet == nil {
		return policy.Addr{}, false
	}
	ip, ok := netip.AddrFromSlice(addr.IP)
	ones, bits := addr.Mask.Size()
	if !ok || bits == 0 {
		return policy.Addr{}, false
	}
	if bits == 32 {
		ip = ip.Unmap()
	}
	passedOver := unix.IFA_F_DEPRECATED
	if ip.Is4() { // over IPv6 the same bit means temporary
		passedOver = unix.IFA_F_SECONDARY
	}
	return policy.Addr{
		Prefix:     netip.PrefixFrom(ip, ones),
		Deprecated: addr.Flags&passedOver != 0,
	}, true
}

// isUp wants the link switched on, with a carrier, and not waiting for someone
// to let it in (RFC 2863's dormant: 802.1X). IFF_RUNNING would say the same, but
// up to a second later.
func isUp(flags uint32) bool {
	return flags&unix.IFF_UP != 0 && flags&unix.IFF_LOWER_UP != 0 && flags&unix.IFF_DORMANT == 0
}

// hasL2 takes the hardware type in vishvananda's words. Packets on the
// loopback device begin with an (all zero) Ethernet header, too.
func hasL2(encap string) bool { return encap == "ether" || encap == "loopback" }

// macOf leaves out addresses of another length, which tunnels and InfiniBand
// have.
func macOf(addr net.HardwareAddr) (mac policy.MAC) {
	if len(addr) == len(mac) {
		copy(mac[:], addr)
	}
	return mac
}

// tagging is what one device adds on the way to the wire.
type tagging struct {
	parent int    // ifindex of the lower device here, 0 = none
	tag    uint16 // VLAN identifier it adds, 0 = none
}

func taggingOf(link netlink.Link) tagging {
	attrs := link.Attrs()
	t := tagging{}
	switch l := link.(type) {
	case *netlink.Vlan:
		t.tag = uint16(l.VlanId)
		t.parent = attrs.ParentIndex
	case *netlink.Macvlan, *netlink.Macvtap, *netlink.IPVlan, *netlink.IPVtap:
		t.parent = attrs.ParentIndex
	}
	// Of others ParentIndex is something else: of a veth its peer. And a
	// parent in another namespace has a number of that namespace.
	if attrs.NetNsID >= 0 {
		t.parent = 0
	}
	return t
}

// resolveTags walks from a device down to the wire. The tag nearest to the
// wire is the outer one: eth0.100.20 is a VLAN device 20 on a VLAN device 100.
func resolveTags(links map[int]tagging, index int) policy.VLAN {
	var tags []uint16 // from the wire up
	for range tagsMax {
		link, ok := links[index]
		if !ok {
			break
		}
		if link.tag != 0 {
			tags = append([]uint16{link.tag}, tags...)
		}
		if index = link.parent; index == 0 {
			break
		}
	}
	switch len(tags) {
	case 0:
		return policy.VLAN{}
	case 1:
		return policy.VLAN{Outer: tags[0]}
	case 2:
		return policy.VLAN{Outer: tags[0], Inner: tags[1]}
	}
	return VLANTooDeep
}
