// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

func TestResolveTags(t *testing.T) {
	links := map[int]tagging{
		1:  {},                      // eth0
		2:  {parent: 1, tag: 2},     // eth0.2
		3:  {parent: 1, tag: 100},   // eth0.100
		4:  {parent: 3, tag: 20},    // eth0.100.20
		5:  {parent: 4, tag: 7},     // one tag too many
		6:  {parent: 2},             // macvlan on eth0.2
		7:  {parent: 6, tag: 30},    // VLAN on that macvlan
		8:  {parent: 4},             // macvlan on the QinQ device
		9:  {parent: 99, tag: 9},    // parent not here
		10: {parent: 11},            // a circle, which the kernel does not make
		11: {parent: 10, tag: 1},    //
		12: {parent: 12},            //
		13: {parent: 1, tag: 4094},  //
		14: {parent: 13, tag: 4094}, // the same tag twice
	}
	for index, want := range map[int]policy.VLAN{
		1: {}, 2: {Outer: 2}, 3: {Outer: 100}, 4: {Outer: 100, Inner: 20}, 5: VLANTooDeep, 6: {Outer: 2},
		7: {Outer: 2, Inner: 30}, 8: {Outer: 100, Inner: 20}, 9: {Outer: 9}, 10: VLANTooDeep, 12: {},
		14: {Outer: 4094, Inner: 4094}, 77: {},
	} {
		if got := resolveTags(links, index); got != want {
			t.Errorf("link %d: tags %v, want %v", index, got, want)
		}
	}
}

func linkAttrs(index int, name string, parent int) netlink.LinkAttrs {
	return netlink.LinkAttrs{
		Index: index, Name: name, ParentIndex: parent, NetNsID: -1, EncapType: "ether",
		RawFlags: unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_BROADCAST,
	}
}

func TestObservedSaysWhatTheKernelLists(t *testing.T) {
	loopback, down, noCarrier, moved := linkAttrs(1, "lo", 0), linkAttrs(5, "veth0", 4), linkAttrs(6, "eth1", 0), linkAttrs(7, "eth9.5", 2)
	dormant := linkAttrs(9, "eth2", 0)
	dormant.RawFlags |= unix.IFF_DORMANT
	loopback.EncapType = "loopback"
	down.RawFlags = 0
	noCarrier.RawFlags = unix.IFF_UP
	moved.NetNsID = 3          // ifindex 2 is one of another namespace
	noCarrier.MasterIndex = 10 // a bridge's port
	tunnel := linkAttrs(8, "wg0", 0)
	tunnel.EncapType = "none"
	got := observed([]netlink.Link{
		&netlink.Device{LinkAttrs: loopback},
		&netlink.Device{LinkAttrs: linkAttrs(2, "eth0", 0)},
		&netlink.Vlan{LinkAttrs: linkAttrs(3, "eth0.20", 2), VlanId: 20},
		&netlink.Macvlan{LinkAttrs: linkAttrs(4, "vrrp.10", 3)},
		&netlink.Veth{LinkAttrs: down},
		&netlink.Device{LinkAttrs: noCarrier},
		&netlink.Vlan{LinkAttrs: moved, VlanId: 5},
		&netlink.GenericLink{LinkAttrs: tunnel, LinkType: "wireguard"},
		&netlink.Device{LinkAttrs: dormant},
	}, []netlink.Addr{
		{LinkIndex: 3, IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 3).To4(), Mask: net.CIDRMask(24, 32)}},
		{LinkIndex: 4, IPNet: &net.IPNet{IP: net.ParseIP("2001:db8::2"), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_DEPRECATED | unix.IFA_F_PERMANENT},
		{LinkIndex: 3, IPNet: &net.IPNet{IP: net.ParseIP("fe80::1"), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_PERMANENT},
		{LinkIndex: 4},
	})
	prefix := netip.MustParsePrefix
	want := policy.Observed{Links: []policy.Link{
		{Index: 1, Name: "lo", Kind: "device", Up: true, HasL2: true},
		{Index: 2, Name: "eth0", Kind: "device", Up: true, HasL2: true},
		{Index: 3, Name: "eth0.20", Kind: "vlan", Parent: 2, VLAN: policy.VLAN{Outer: 20}, Up: true, HasL2: true,
			Addrs: []policy.Addr{{Prefix: prefix("192.0.2.3/24")}, {Prefix: prefix("fe80::1/64")}}},
		{Index: 4, Name: "vrrp.10", Kind: "macvlan", Parent: 3, VLAN: policy.VLAN{Outer: 20}, Up: true, HasL2: true,
			Addrs: []policy.Addr{{Prefix: prefix("2001:db8::2/128"), Deprecated: true}}},
		{Index: 5, Name: "veth0", Kind: "veth", HasL2: true},
		{Index: 6, Name: "eth1", Kind: "device", Master: 10, HasL2: true},
		{Index: 7, Name: "eth9.5", Kind: "vlan", VLAN: policy.VLAN{Outer: 5}, Up: true, HasL2: true},
		{Index: 8, Name: "wg0", Kind: "wireguard", Up: true},
		{Index: 9, Name: "eth2", Kind: "device", HasL2: true},
	}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestMergeLinkEvents(t *testing.T) {
	link := func(index int, at int64) LinkEvent {
		return LinkEvent{Kind: LinkChanged, Ifindex: index, Time: time.Duration(at)}
	}
	address := LinkEvent{Kind: AddrChanged, Ifindex: 1, Time: time.Duration(3)}
	resync := LinkEvent{Kind: Resync, Time: time.Duration(4)}
	merge := func(events ...LinkEvent) (merged []LinkEvent) {
		for _, event := range events {
			merged = mergeLinkEvent(merged, event)
		}
		return merged
	}
	var many []LinkEvent
	for i := range pendingMax + 1 {
		many = append(many, link(i, int64(10+i)))
	}
	for name, c := range map[string]struct{ got, want []LinkEvent }{
		"different ones stay in order":      {merge(link(1, 1), link(2, 2), address), []LinkEvent{link(1, 1), link(2, 2), address}},
		"equal ones keep the first time":    {merge(link(1, 1), address, link(1, 5)), []LinkEvent{link(1, 1), address}},
		"a resync swallows what follows":    {merge(resync, link(1, 5), address, resync), []LinkEvent{resync}},
		"a resync swallows what came first": {merge(link(1, 1), resync), []LinkEvent{{Kind: Resync, Time: time.Duration(1)}}},
		"as many as fit":                    {merge(many[:pendingMax]...), many[:pendingMax]},
		"too many become a resync":          {merge(many...), []LinkEvent{{Kind: Resync, Time: time.Duration(10)}}},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}
