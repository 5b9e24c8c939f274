// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"

	"vippin/policy"
)

// Of two connected routes alike the first one leads, and only that one; hosts and
// link-local prefixes are no ways.
func TestWays(t *testing.T) {
	enterNamespace(t)
	wan, above := macvlanOnVeth(t)
	addAddr(t, wan, "198.51.100.3/24")
	addAddr(t, above, "198.51.100.2/24")
	addAddr(t, above, "2001:db8::2/128")
	want := func(family int, wanLeads, aboveLeads bool) {
		t.Helper()
		leads, err := ways(family)
		if err != nil || leads[wan.Attrs().Index] != wanLeads || leads[above.Attrs().Index] != aboveLeads {
			t.Errorf("family %d: %v, %v; want wan (%d) %t and vrrp.10 (%d) %t", family, leads, err,
				wan.Attrs().Index, wanLeads, above.Attrs().Index, aboveLeads)
		}
	}
	want(netlink.FAMILY_V4, true, false)
	want(netlink.FAMILY_V6, false, false)
	for _, command := range [][]string{
		{"route", "del", "198.51.100.0/24", "dev", "wan"},
		{"route", "append", "198.51.100.0/24", "dev", "wan", "proto", "kernel", "scope", "link", "src", "198.51.100.3"},
	} {
		if out, err := exec.Command("ip", command...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	want(netlink.FAMILY_V4, false, true)
	addAddr(t, wan, "2001:db8::3/64")
	want(netlink.FAMILY_V6, true, false)
	_, everything, _ := net.ParseCIDR("::/0")
	route := &netlink.Route{LinkIndex: above.Attrs().Index, Dst: everything, Gw: net.ParseIP("fe80::1")}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	want(netlink.FAMILY_V6, true, true)
}

// Nothing is read where there is no macvlan, and everything where there is one.
func TestLookAbove(t *testing.T) {
	enterNamespace(t)
	addVeth(t, "lan0", "lan1")
	look := func(m *policy.Machine) error {
		links, err := undisturbed(netlink.LinkList)
		if err != nil {
			t.Fatal(err)
		}
		return lookAbove(m, links)
	}
	var m policy.Machine
	if err := look(&m); err != nil || m.Neighbours != nil || m.Ways4 != nil || m.Ways6 != nil {
		t.Errorf("without a macvlan: %+v, %v", m, err)
	}
	macvlanOnVeth(t)
	if err := look(&m); err != nil || m.Neighbours == nil || m.Ways4 == nil || m.Ways6 == nil {
		t.Errorf("with one: %+v, %v", m, err)
	}
}

// Neighbours count where their MAC is known and was not set by hand, and by their
// global addresses only.
func TestNeighbours(t *testing.T) {
	enterNamespace(t)
	wan, above := macvlanOnVeth(t)
	mac, _ := net.ParseMAC("02:00:00:00:00:11")
	index := above.Attrs().Index
	for ip, state := range map[string]int{
		"192.168.101.11": netlink.NUD_STALE, "192.168.101.12": netlink.NUD_REACHABLE, "2001:db8::11": netlink.NUD_STALE,
		"192.168.101.13": netlink.NUD_PERMANENT, "fe80::11": netlink.NUD_STALE, "2001:db8::12": netlink.NUD_NOARP,
	} {
		entry := &netlink.Neigh{LinkIndex: index, IP: net.ParseIP(ip), State: state, HardwareAddr: mac}
		if err := netlink.NeighAdd(entry); err != nil {
			t.Fatal(err)
		}
	}
	counts, err := neighbours()
	if err != nil || counts[index] != 3 || counts[wan.Attrs().Index] != 0 {
		t.Errorf("%v, %v; want 3 on %d", counts, err, index)
	}
}
