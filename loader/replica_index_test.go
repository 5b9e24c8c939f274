// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"testing"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// indexPlan has two pins of two groups on one interface, older ones that are
// retired, and one whose interface is absent.
func indexPlan() policy.Plan {
	pin := func(id, group uint32, vlan uint16, vip string, retired bool) policy.PlanPin {
		addr := netip.MustParseAddr(vip)
		return policy.PlanPin{
			ID: id, Slot: 1, Group: group, VLAN: policy.VLAN{Outer: vlan}, VIP4: addr, VIPs: []netip.Addr{addr},
			Ifindex: 7, Retired: retired, Enabled: !retired,
		}
	}
	absent := pin(4, 2, 3, "203.0.113.2", false)
	absent.Slot, absent.Ifindex = 2, 0
	return policy.Plan{
		Groups: []policy.PlanGroup{{ID: 1, Name: "core"}, {ID: 2, Name: "edge"}},
		Pins: []policy.PlanPin{
			pin(3, 2, 2, "198.51.100.2", true), pin(1, 1, 2, "198.51.100.2", false), pin(2, 2, 2, "198.51.100.4", false), absent,
			pin(5, 2, 2, "198.51.100.2", true),
		},
		Interfaces: []policy.PlanInterface{{Index: 7, Name: "wan0", Slot: 1, Uniques: addrs("198.51.100.3"), VIPs: addrs("198.51.100.2", "198.51.100.4")}},
	}
}

func TestReplicaIndex(t *testing.T) {
	addr := func(prefix string, deprecated bool) policy.Addr {
		return policy.Addr{Prefix: netip.MustParsePrefix(prefix), Deprecated: deprecated}
	}
	x := newReplicaIndex(indexPlan(), policy.Observed{Links: []policy.Link{
		{Index: 7, HasL2: true, Addrs: []policy.Addr{addr("198.51.100.3/24", false), addr("198.51.100.2/24", false)}},
		{Index: 8, HasL2: true, Addrs: []policy.Addr{
			addr("192.168.1.1/24", false), addr("192.168.1.254/32", false), addr("192.168.1.253/24", true), addr("fe80::1/64", false),
		}},
		{Index: 9, Kind: "macvlan", HasL2: true, Addrs: []policy.Addr{addr("192.168.2.254/24", false)}},
		{Index: 10, Addrs: []policy.Addr{addr("192.0.2.1/32", false)}}, // PPP
	}})
	for text, want := range map[string]ownership{
		"198.51.100.3": ownUnique, "198.51.100.2": ownFloating, "198.51.100.255": ownUnique, "198.51.100.9": 0,
		"192.168.1.1": ownUnique, "192.168.1.254": ownFloating, "192.168.1.253": ownFloating, "192.168.1.255": ownUnique,
		"192.168.2.254": ownFloating, "192.0.2.1": ownUnique, "fe80::1": ownUnique, "198.51.100.4": 0, // a VIP that is not here
	} {
		if got := x.own[netip.MustParseAddr(text)]; got != want {
			t.Errorf("%s is %d to this router, want %d", text, got, want)
		}
	}
	for text, want := range map[string]string{"198.51.100.2": "core", "198.51.100.4": "edge", "203.0.113.2": "edge"} {
		vip := netip.MustParseAddr(text)
		if x.groups[vip] != want {
			t.Errorf("VIP %s is of group %q, want %q", text, x.groups[vip], want)
		}
	}
	name := policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: netip.MustParseAddr("198.51.100.2")}
	if pin := x.named[name]; pin == nil || pin.ID != 1 || pin.name(true) != name || pin.group != "core" {
		t.Errorf("%v is pin %+v", name, x.named[name])
	}
	unique := x.ends[netip.MustParseAddr("198.51.100.3")]
	if len(unique) != 1 || unique[0] != (replicaEnd{slot: 1, ifindex: 7, unique: true, enabled: true}) {
		t.Errorf("the unique address is a local end at %+v", unique)
	}
	if ends := x.ends[netip.MustParseAddr("198.51.100.2")]; len(ends) != 1 || ends[0].unique {
		t.Errorf("the VIP is a local end at %+v", ends)
	}
}

// TestMappedAddressesAreLeftOut: a host can send IPv6 packets from what is written
// as an IPv4 address. These are no IPv4 flow, and conntrack cannot be asked.
func TestMappedAddressesAreLeftOut(t *testing.T) {
	x := &flowReader{index: newReplicaIndex(policy.Plan{}, policy.Observed{}), options: newReplicaOptions(policy.DefaultConfig("", "").Sync)}
	good := conntrack.Tuple{Src: netip.MustParseAddr("2001:db8::1"), Dst: netip.MustParseAddr("2001:db8::2"), Proto: 6}
	bad := good
	bad.Src = netip.MustParseAddr("::ffff:192.0.2.1")
	for _, e := range []*conntrack.Flow{{Orig: bad, Reply: good}, {Orig: good, Reply: bad}} {
		if reason := x.leavesOut(e); reason != skipProtocol {
			t.Errorf("%v: left out for %q", e.Orig, skipNames[reason])
		}
	}
	r := &Replica{} // it has no conntrack to ask
	for _, e := range []*conntrack.Expectation{{Master: bad, Tuple: good}, {Master: good, Tuple: bad}} {
		if told, err := r.expectation(x, e); told != nil || err != nil {
			t.Errorf("told of %+v, %v", told, err)
		}
	}
}
