// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"encoding/binary"
	"fmt"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// The bands of the prio queue discipline, as minor numbers of its classes.
const (
	bandByPriority = 1 // where skb->priority 7 goes
	bandByMark     = 2 // where mark 0x70/0xf0 goes
	bandOther      = 3
)

// TestVRRPTag: a prio queue discipline on a pinned interface sorts adverts by the
// priority, and by the mark, that vippin puts on them. The same adverts with a
// TTL that RFC 9568 section 5.1.1.3 forbids are left alone, which also shows that
// nothing else sorts them.
func TestVRRPTag(t *testing.T) {
	l := newLab(t)
	l.start(t, `
pins: [{vlan: 2, vips: [198.51.100.2, "2001:db8:2::2"]}]
vrrp: {tag: {mark: "0x70/0xf0", priority: 7}}
`)
	l.awaitPin(t, "MASTER", func(p pinRow) bool { return p.Role == "MASTER" })
	for _, sorted := range []struct {
		by   string
		band int
	}{{"priority", bandByPriority}, {"mark", bandByMark}} {
		t.Run(sorted.by, func(t *testing.T) {
			l.addPrio(t, sorted.by)
			for _, send := range []struct {
				name string
				call func(ttl int) error
			}{{"IPv4", l.advertise4}, {"IPv6", l.advertise6}} {
				for _, c := range []struct{ ttl, band int }{{255, sorted.band}, {254, bandOther}} {
					before := l.bandPackets(t, c.band)
					const adverts = 5
					for range adverts {
						l.router.must(t, func() error { return send.call(c.ttl) })
					}
					if more := l.bandPackets(t, c.band) - before; more < adverts {
						t.Errorf("%d %s adverts with TTL %d by %s: %d packets in class 1:%d; all: %v",
							adverts, send.name, c.ttl, sorted.by, more, c.band, l.allBands(t))
					}
				}
			}
			if n := l.bandPackets(t, sorted.band); n != 10 {
				t.Errorf("class 1:%d has %d packets, want exactly the 10 valid adverts", sorted.band, n)
			}
		})
	}
}

// addPrio puts a new prio queue discipline on the outside interface: three bands,
// everything into the last one but what "by" names.
func (l *lab) addPrio(t *testing.T, by string) {
	t.Helper()
	link := l.router.link(t, wan)
	root := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)}
	prio := netlink.NewPrio(root)
	for i := range prio.PriorityMap {
		prio.PriorityMap[i] = bandOther - 1
	}
	if by == "priority" {
		prio.PriorityMap[7] = bandByPriority - 1
	}
	if err := l.router.QdiscAdd(prio); err != nil {
		t.Fatalf("add prio to %s: %v", wan, err)
	}
	t.Cleanup(func() {
		if err := l.router.QdiscDel(prio); err != nil {
			t.Errorf("remove prio from %s: %v", wan, err)
		}
	})
	if by != "mark" {
		return
	}
	err := l.router.FilterAdd(&netlink.FwFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: root.LinkIndex, Parent: root.Handle, Priority: 1, Protocol: unix.ETH_P_ALL, Handle: 0x70,
		},
		Mask:    0xf0,
		ClassId: netlink.MakeHandle(1, bandByMark),
	})
	if err != nil {
		t.Fatalf("add a mark filter to %s: %v", wan, err)
	}
}

// allBands returns the packets that each class has sent, by minor number.
func (l *lab) allBands(t *testing.T) map[int]int {
	t.Helper()
	classes, err := l.router.ClassList(l.router.link(t, wan), netlink.MakeHandle(1, 0))
	if err != nil {
		t.Fatalf("list the classes of %s: %v", wan, err)
	}
	packets := map[int]int{}
	for _, class := range classes {
		attrs := class.Attrs()
		if attrs.Statistics == nil || attrs.Statistics.Basic == nil {
			t.Fatalf("class %s has no counters", netlink.HandleStr(attrs.Handle))
		}
		packets[int(attrs.Handle&0xffff)] = int(attrs.Statistics.Basic.Packets)
	}
	if len(packets) != 3 {
		t.Fatalf("%d classes on %s, want 3", len(packets), wan)
	}
	return packets
}

func (l *lab) bandPackets(t *testing.T, band int) int {
	t.Helper()
	return l.allBands(t)[band]
}

// advert is a VRRPv3 advertisement (RFC 9568 section 5.2) of VRID 10, priority
// 100, every second, with a checksum over the pseudo-header (which section 5.2.8
// has for IPv6 alone, and keepalived for both).
func advert(src, dst, vip net.IP) []byte {
	const version3Advertisement = 0x31
	message := append([]byte{version3Advertisement, 10, 100, 1, 0, 100, 0, 0}, vip...)
	pseudo := append(append([]byte{}, src...), dst...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(message)), 0, 0, 0, 112)
	var sum uint32
	for _, part := range [][]byte{pseudo, message} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(message[6:], ^uint16(sum))
	return message
}

func (l *lab) advertise4(ttl int) error {
	group := net.IPv4(224, 0, 0, 18)
	conn, err := net.ListenPacket("ip4:112", "198.51.100.3")
	if err != nil {
		return err
	}
	defer conn.Close()
	ifi, err := net.InterfaceByName(wan)
	if err != nil {
		return err
	}
	packets := ipv4.NewPacketConn(conn)
	if err := packets.SetMulticastInterface(ifi); err != nil {
		return err
	}
	if err := packets.SetMulticastTTL(ttl); err != nil {
		return err
	}
	message := advert(net.IPv4(198, 51, 100, 3).To4(), group.To4(), net.IPv4(198, 51, 100, 2).To4())
	_, err = packets.WriteTo(message, nil, &net.IPAddr{IP: group})
	return err
}

func (l *lab) advertise6(hops int) error {
	ifi, err := net.InterfaceByName(wan)
	if err != nil {
		return err
	}
	src, err := linkLocal(ifi)
	if err != nil {
		return err
	}
	conn, err := net.ListenPacket("ip6:112", src.String()+"%"+wan)
	if err != nil {
		return err
	}
	defer conn.Close()
	packets := ipv6.NewPacketConn(conn)
	if err := packets.SetMulticastInterface(ifi); err != nil {
		return err
	}
	if err := packets.SetMulticastHopLimit(hops); err != nil {
		return err
	}
	group := net.ParseIP("ff02::12")
	message := advert(src.To16(), group, net.ParseIP("2001:db8:2::2"))
	_, err = packets.WriteTo(message, nil, &net.IPAddr{IP: group, Zone: wan})
	return err
}

// linkLocal returns an interface's own IPv6 address.
func linkLocal(ifi *net.Interface) (net.IP, error) {
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		if ip := addr.(*net.IPNet).IP; ip.To4() == nil && ip.IsLinkLocalUnicast() {
			return ip, nil
		}
	}
	return nil, fmt.Errorf("find a link-local address on %s: none among %v", ifi.Name, addrs)
}
