// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// placeVirtual says of a macvlan what the loader would.
func (l *learnLab) placeVirtual(t *testing.T, ifindex int) {
	t.Helper()
	link := l.virtual[ifindex]
	number, below := placeIn(lanNumber, l.lanTags), link.Attrs().ParentIndex
	if below == l.out {
		number = placeIn(wanNumber, l.wanTags)
	}
	l.place(t, ifindex, number|fastVirtual, below)
	mac := link.Attrs().HardwareAddr
	put(t, l.fast.FastVirtual, FastpathFastVirtual{Place: number, Family: mac[4], Vrid: mac[5]}, uint32(ifindex))
}

// raise puts interfaces with virtual MACs on those of the router, as keepalived's
// use_vmac does, and has the hosts send there. It returns those outside.
func (l *learnLab) raise(t *testing.T) (out4, out6 netlink.Link) {
	t.Helper()
	l.virtual = make(map[int]netlink.Link)
	above := func(name string, below int, ipv6 bool, addr netip.Addr) netlink.Link {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = name, below, routersMAC(ipv6)
		link := &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PRIVATE}
		mustDo(t, netlink.LinkAdd(link))
		sysctl(t, "net/ipv4/conf/"+name+"/rp_filter", "0")
		mustDo(t, netlink.LinkSetUp(link), netlink.AddrAdd(link, &netlink.Addr{
			IPNet: netlink.NewIPNet(addr.AsSlice()), Flags: unix.IFA_F_NODAD,
		}))
		made, err := netlink.LinkByIndex(link.Index)
		mustDo(t, err)
		l.virtual[link.Index] = made
		l.placeVirtual(t, link.Index)
		return made
	}
	above("lan4", l.in, false, netip.MustParseAddr("198.18.1.254"))
	above("lan6", l.in, true, netip.MustParseAddr("2001:db8:18::fe"))
	out, err := netlink.LinkByIndex(l.out)
	mustDo(t, err, delAddr(out, vip4), delAddr(out, vip6))
	out4, out6 = above("wan4", l.out, false, vip4), above("wan6", l.out, true, vip6) // which are masqueraded, too
	sendTo(t, l.lan, l.lanTags, netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("2001:db8:18::1"))
	sendTo(t, l.wan, l.wanTags, vip4, vip6)
	return out4, out6
}

// sendTo has a host know the router's addresses by its virtual MACs.
func sendTo(t *testing.T, host netns.NsHandle, tags []tag, at ...netip.Addr) {
	t.Helper()
	mustDo(t, inside(host, func() error {
		name := "peer"
		for _, tag := range tags {
			name += fmt.Sprintf(".%d", tag.id)
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		var errs []error
		for _, addr := range at {
			errs = append(errs, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, IP: addr.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: routersMAC(addr.Is6()),
			}))
		}
		return errors.Join(errs...)
	}))
}

func delAddr(l netlink.Link, addr netip.Addr) error {
	return netlink.AddrDel(l, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())})
}

// teach has a flow sent both ways until XDP has to forward it.
func (l *learnLab) teach(t *testing.T, name string, k *talk, sees netip.Addr) {
	t.Helper()
	for range 2 {
		k.out(t)
		k.back(t)
	}
	for range 3 {
		l.expect(t, name+", out", forwardedOne, func() {
			if from := k.out(t); from.Addr() != sees {
				t.Errorf("%s: the server sees %v, want %v", name, from, sees)
			}
		})
		l.expect(t, name+", back", forwardedOne, func() { k.back(t) })
	}
}

// routeBy leads to the server by an interface.
func (l *learnLab) routeBy(t *testing.T, dev netlink.Link, ipv6 bool) {
	t.Helper()
	to := server(ipv6)
	mustDo(t, netlink.RouteReplace(&netlink.Route{
		LinkIndex: dev.Attrs().Index, Dst: netlink.NewIPNet(to.AsSlice()), Scope: netlink.SCOPE_LINK, Priority: 1,
	}))
}

// Flows that come to virtual MACs are learnt and forwarded, whichever interface they
// leave by: as the stack sends them, source MAC and all.
func TestLearnsVirtual(t *testing.T) {
	learnVirtual(t, newLearnLab(t))
}

// The same on VLANs, which only the emulated machines have: there a packet has lost
// its route when it comes to the device. What an interface with a virtual MAC takes
// counts, not what the one below does.
func TestLearnsVirtualTagged(t *testing.T) {
	vlan := func(id uint16) tag { return tag{unix.ETH_P_8021Q, id} }
	for _, c := range []struct{ lan, wan []tag }{
		{nil, []tag{vlan(2)}},
		{[]tag{vlan(3)}, []tag{{unix.ETH_P_8021AD, 100}, vlan(20)}},
	} {
		learnVirtual(t, newTaggedLab(t, c.lan, c.wan))
	}
}

func learnVirtual(t *testing.T, l *learnLab) {
	out4, out6 := l.raise(t)
	below, err := netlink.LinkByIndex(l.out)
	mustDo(t, err)
	port := uint16(5000)
	for i, above := range []netlink.Link{out4, out6} {
		ipv6 := i == 1
		mustDo(t, netlink.LinkSetMTU(below, 1490), netlink.LinkSetMTU(above, 1470)) // less than two tags leave
		for _, by := range []netlink.Link{below, above} {
			name := fmt.Sprintf("%v by %s", host(ipv6), by.Attrs().Name)
			l.routeBy(t, by, ipv6)
			l.clearEntries(t)
			port += 2
			l.teach(t, name, l.talk(t, ipv6, port), vip(ipv6))
			l.sameVirtual(t, name, by)
		}
	}
}

// sameVirtual looks at both directions' entries: their places, and how the first one's
// packets leave.
func (l *learnLab) sameVirtual(t *testing.T, name string, by netlink.Link) {
	t.Helper()
	found := l.entries(t)
	if len(found) != 2 {
		t.Fatalf("%s: entries %+v, want 2", name, found)
	}
	for i, want := range []uint32{placeIn(lanNumber, l.lanTags), placeIn(wanNumber, l.wanTags)} {
		if found[i].place != want|fastVirtual {
			t.Errorf("%s: place %#x, want %#x", name, found[i].place, want|fastVirtual)
		}
		if slot := found[i].fate.Pin & 0xfff; slot != pinNumber {
			t.Errorf("%s: pin %d, want %d", name, slot, pinNumber)
		}
	}
	by, err := netlink.LinkByIndex(by.Attrs().Index)
	mustDo(t, err)
	hop := l.hop(t, found[0].fate.Hop)
	if net.HardwareAddr(hop.Macs[6:]).String() != by.Attrs().HardwareAddr.String() || int(hop.Mtu) != by.Attrs().MTU {
		t.Errorf("%s: hop %+v, want it as by %s, %+v", name, hop, by.Attrs().HardwareAddr, by.Attrs().MTU)
	}
}
