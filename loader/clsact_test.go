// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

func addrPort(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

// sendSome makes an interface send packets: a broadcast.
func sendSome(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("198.51.100.77/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4(203, 0, 113, 0).To4(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.RouteReplace(route); err != nil {
		t.Fatal(err)
	}
	neigh := &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(203, 0, 113, 7), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
	if err := netlink.NeighSet(neigh); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp4", "203.0.113.7:9")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

func addQdisc(t *testing.T, ifindex int, kind string) {
	t.Helper()
	err := netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  kind,
	})
	if err != nil {
		t.Fatalf("add %s: %v", kind, err)
	}
}

func mustKind(t *testing.T, ifindex int, want string) {
	t.Helper()
	if kind, err := clsactKind(ifindex); err != nil || kind != want {
		t.Errorf("queue discipline %q, %v, want %q", kind, err, want)
	}
}

// TestClsact: without tcx the programs are filters of a clsact queue discipline
// that comes and goes with them; they are replaced in place.
func TestClsact(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	opts := Options{BPFFS: testBPFFS(t), noTCX: true}
	first := mustLoad(t, opts)
	mustApply(t, first, onePin(ifindex, "wan0", true))
	if first.Tier() != "clsact" {
		t.Errorf("tier %q", first.Tier())
	}
	second := mustLoad(t, opts)
	for _, h := range hooks {
		list, err := filters(ifindex, h)
		if err != nil || len(list) != 1 {
			t.Fatalf("%s filters %v, %v, want one", h.name, list, err)
		}
		want, err := programID(second.program(h))
		if err != nil {
			t.Fatal(err)
		}
		if got := list[0].(*netlink.BpfFilter).Id; got != int(want) {
			t.Errorf("%s program %d, want %d", h.name, got, want)
		}
	}
	mustApply(t, second, policy.Plan{})
	mustKind(t, ifindex, "")
}

// TestForeignClsact: a clsact queue discipline and filters that were there, or
// came later, stay.
func TestForeignClsact(t *testing.T) {
	for _, early := range []bool{true, false} {
		t.Run(map[bool]string{true: "before", false: "after"}[early], func(t *testing.T) {
			enterNamespace(t)
			ifindex := addVeth(t, "wan0", "wan1")
			foreign := countingProgram(t)
			d := mustLoad(t, Options{BPFFS: testBPFFS(t), noTCX: true})
			if early {
				addQdisc(t, ifindex, "clsact")
			} else {
				mustApply(t, d, onePin(ifindex, "wan0", true))
			}
			for _, h := range hooks {
				err := netlink.FilterAdd(&netlink.BpfFilter{
					FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: h.parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 7},
					Fd:          foreign.program.FD(), Name: "foreign", DirectAction: true,
				})
				if err != nil {
					t.Fatalf("add the other filter: %v", err)
				}
			}
			mustApply(t, d, onePin(ifindex, "wan0", true))
			sendSome(t, "wan0")
			if foreign.count(t) == 0 {
				t.Error("the other filter does not run")
			}
			// Ours come first at ingress and last at egress.
			for _, h := range hooks {
				list, err := filters(ifindex, h)
				if err != nil || len(list) != 2 {
					t.Fatalf("%s filters %v, %v, want two", h.name, list, err)
				}
				ours, err := findFilter(ifindex, h)
				if err != nil || ours == nil || (ours.Priority < 7) != (h.name == "ingress") {
					t.Errorf("%s filter %+v, %v", h.name, ours, err)
				}
			}
			mustApply(t, d, policy.Plan{})
			mustKind(t, ifindex, "clsact")
			for _, h := range hooks {
				list, err := filters(ifindex, h)
				if err != nil || len(list) != 1 {
					t.Errorf("%s filters %v, %v, want the other one", h.name, list, err)
				}
			}
		})
	}
}

// TestIngressQdisc: an ingress queue discipline is respected. tcx does not mind
// it; without tcx there is no egress hook, which the error says.
func TestIngressQdisc(t *testing.T) {
	enterNamespace(t)
	wan, good := addVeth(t, "wan0", "wan1"), addVeth(t, "lan0", "lan1")
	addQdisc(t, wan, "ingress")
	plan := onePin(wan, "wan0", true)
	plan.Interfaces = append(plan.Interfaces, policy.PlanInterface{Index: good, Name: "lan0", HasL2: true})
	d := mustLoad(t, Options{BPFFS: testBPFFS(t), noTCX: true})
	err := d.Apply(plan)
	var unsupported *UnsupportedError
	if !errors.As(err, &unsupported) {
		t.Fatalf("apply: %v, want an UnsupportedError", err)
	}
	contains(t, err.Error(), "interface wan0: attach egress program: missing an egress hook")
	mustKind(t, wan, "ingress")
	if list, err := filters(wan, ingressHook); err != nil || len(list) != 0 {
		t.Errorf("half an attachment stays: %v, %v", list, err)
	}
	if on, err := d.attached(good); err != nil || !on {
		t.Errorf("the good interface attached: %v, %v", on, err)
	}
	if states := uniqueStates(t, d); states[uniqueNew] == 0 || states[uniqueKnown] != 0 {
		t.Errorf("states of the bad interface's addresses: %v, want none to be pinned on", states)
	}

	d.noTCX = false
	if d.Tier() != "tcx" {
		t.Skip("this kernel has no tcx (Linux 6.6)")
	}
	mustApply(t, d, plan)
	mustKind(t, wan, "ingress")
	if states := uniqueStates(t, d); states[uniqueNew] != 0 || states[uniqueKnown] == 0 {
		t.Errorf("states of the interface's addresses: %v, want all to be pinned on", states)
	}
}

// uniqueStates counts the unique addresses in each state.
func uniqueStates(t *testing.T, d *Dataplane) map[uniqueState]int {
	t.Helper()
	uniques, err := readMap[slotAddr, uniqueState](d.maps.Uniques)
	if err != nil {
		t.Fatal(err)
	}
	states := make(map[uniqueState]int)
	for _, state := range uniques {
		states[state]++
	}
	return states
}
