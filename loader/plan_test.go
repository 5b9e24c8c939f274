// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vippin/bpf"
	"vippin/policy"
)

var equalPlans = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty(),
	cmpopts.IgnoreFields(policy.Plan{}, "Warnings"),
}

func mustPlanned(t *testing.T, d *Dataplane) policy.Plan {
	t.Helper()
	plan, err := d.Planned()
	if err != nil {
		t.Fatalf("planned: %v", err)
	}
	return plan
}

func samePlan(t *testing.T, got, want policy.Plan) {
	t.Helper()
	if diff := cmp.Diff(want, got, equalPlans); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

// largePlan has two pins on one interface, an absent one, and a watched
// interface.
func largePlan(t *testing.T) policy.Plan {
	wan, watched := addVeth(t, "wan0", "wan1"), addVeth(t, "eth0.20", "eth1.20")
	return policy.Plan{
		Groups: []policy.PlanGroup{{ID: 1, Name: "core"}, {ID: 3, Name: "voip"}},
		Pins: []policy.PlanPin{
			{
				ID: 1, Slot: 1, Group: 1, VLAN: policy.VLAN{Outer: 2}, Interface: "wan0", Ifindex: wan,
				VIP4: netip.MustParseAddr("198.51.100.2"), VIP6: netip.MustParseAddr("2001:db8::2"),
				VIPs:    addrs("fe80::2", "198.51.100.2", "2001:db8::2", "198.51.100.1"),
				Enabled: true, EnabledBy: policy.EnabledByToggle, OnPort4: true,
			},
			{
				ID: 2, Slot: 1, Group: 3, VLAN: policy.VLAN{Outer: 2}, Name: "voip", Interface: "wan0", Ifindex: wan,
				VIP4: netip.MustParseAddr("198.51.100.4"), VIPs: addrs("198.51.100.4"), EnabledBy: policy.EnabledByToggle,
			},
			{
				ID: 7, Slot: 5, Group: 1, VLAN: policy.VLAN{Outer: 100, Inner: 20}, Interface: "eth9", Enabled: true,
				VIP6: netip.MustParseAddr("2001:db8:9::2"), VIPs: addrs("2001:db8:9::2"), OnPort6: true,
			},
		},
		Interfaces: []policy.PlanInterface{
			{
				Index: wan, Name: "wan0", Slot: 1, HasL2: true, Bridged: true,
				Uniques: addrs("198.51.100.3", "2001:db8::3"),
				VIPs:    addrs("198.51.100.1", "198.51.100.2", "198.51.100.4", "2001:db8::2", "fe80::2"),
				Sources: []policy.PlanSource{
					{Prefix: netip.MustParsePrefix("192.168.1.0/24"), Pin: 2}, {Prefix: netip.MustParsePrefix("::/0"), Pin: 1},
				},
				VRIDs: []policy.PlanVRID{{VRID: 10, Group: 1}, {VRID: 255, Group: 3}},
			},
			{Index: watched, Name: "eth0.20", VRIDs: []policy.PlanVRID{{VRID: 10, Group: 1}}},
		},
	}
}

func TestPlanComesBack(t *testing.T) {
	enterNamespace(t)
	plan := largePlan(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	if empty := mustPlanned(t, d); len(empty.Pins)+len(empty.Groups)+len(empty.Interfaces) != 0 {
		t.Errorf("plan of an empty dataplane: %+v", empty)
	}
	for range 2 { // the second time nothing changes
		mustApply(t, d, plan)
		samePlan(t, mustPlanned(t, d), plan)
	}
	// IPv4 lies inside ::/0 as the maps hold addresses, but is not meant by it.
	c := convergence{d: d}
	for host, want := range map[string]uint32{"192.168.1.7": 2, "192.168.2.7": 0, "2001:db8:1::7": 1} {
		if got := c.pinOf(1, netip.MustParseAddr(host)); got != want {
			t.Errorf("pin of %s: %d, want %d", host, got, want)
		}
	}
	rows, err := d.PinStatus()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, row := range rows {
		names = append(names, row.VLAN.String()+"/"+row.Name+"/"+row.Group)
	}
	if got := strings.Join(names, " "); got != "2//core 2/voip/voip 100.20//core" {
		t.Errorf("rows %s", got)
	}
	mustApply(t, d, policy.Plan{})
	samePlan(t, mustPlanned(t, d), policy.Plan{})
	if left, err := d.attachments(); err != nil || len(left) != 0 {
		t.Errorf("attachments left: %v, %v", left, err)
	}
}

// TestSameAgain: applying the plan in force leaves maps, switches and
// attachments alone, even for a moment.
func TestSameAgain(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	plan := onePin(ifindex, "wan0", true)
	mustApply(t, d, plan)
	link, program := linkState(t, d, ifindex, ingressHook)
	now, err := d.content()
	if err != nil {
		t.Fatal(err)
	}
	want, err := wanted(plan)
	if err != nil {
		t.Fatal(err)
	}
	step := convergence{d: d, now: now, want: want}
	if fresh, errs := step.markFresh(); len(fresh) != 0 || errors.Join(errs...) != nil {
		t.Errorf("marked %v (%v), want nothing", fresh, errs)
	}
	mustApply(t, d, plan)
	if l, p := linkState(t, d, ifindex, ingressHook); l != link || p != program {
		t.Errorf("link %d program %d became %d, %d", link, program, l, p)
	}
	// A process that dies before it has noted the living flows leaves a mark.
	key := slices.Collect(maps.Keys(now.uniques))[0]
	if err := d.maps.Uniques.Put(key, uniqueNew); err != nil {
		t.Fatal(err)
	}
	mustApply(t, d, plan)
	var state uniqueState
	if err := d.maps.Uniques.Lookup(key, &state); err != nil || state != uniqueKnown {
		t.Errorf("the mark left behind is %v (%v), want it gone", state, err)
	}
}

func TestPinLeaves(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	if err := errors.Join(d.SetRole(1, policy.RoleMaster, true), d.maps.PinCounters.Put(uint32(pinCounters), sevens())); err != nil {
		t.Fatal(err)
	}
	key, _ := testMapping(t, d, 4000)
	mustApply(t, d, policy.Plan{})
	plan := mustPlanned(t, d)
	if len(plan.Pins) != 1 || !plan.Pins[0].Retired || plan.Pins[0].Enabled || len(plan.Interfaces) != 1 {
		t.Fatalf("with a living mapping: %+v, want a retired pin and its interface", plan)
	}
	if on, err := d.attached(ifindex); err != nil || !on {
		t.Errorf("with a living mapping attached: %v, %v", on, err)
	}
	if rows, err := d.PinStatus(); err != nil || len(rows) != 0 {
		t.Errorf("rows %+v, %v, want none", rows, err)
	}
	if err := switchPin(d, 1, true); err == nil || mustPlanned(t, d).Pins[0].Enabled {
		t.Errorf("a retired pin was switched on (%v)", err)
	}
	if err := d.maps.ByLocal.Delete(key); err != nil {
		t.Fatal(err)
	}
	mustApply(t, d, policy.Plan{})
	samePlan(t, mustPlanned(t, d), policy.Plan{})
	if on, err := d.attached(ifindex); err != nil || on {
		t.Errorf("without a mapping attached: %v, %v", on, err)
	}
	role, fixed, err := d.Role(1)
	if err != nil || role != policy.RoleFault || fixed {
		t.Errorf("the next pin 1 begins as %v, fixed %v (%v)", role, fixed, err)
	}
	if sums, err := d.sumPins([]uint32{1}); err != nil || sums.of(1).Pinned != 0 {
		t.Errorf("the next pin 1 begins with %+v (%v)", sums.of(1), err)
	}
}

func sevens() []uint64 {
	values := make([]uint64, possibleCPUs())
	for i := range values {
		values[i] = 7
	}
	return values
}

func TestPinState(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	const off = pinCounters + uint32(bpf.DataplanePinCounterPIN_OFF) // of pin 1
	if err := errors.Join(d.maps.PinCounters.Put(pinCounters, sevens()), d.maps.PinCounters.Put(off, sevens())); err != nil {
		t.Fatal(err)
	}
	if err := switchPin(d, 1, false); err != nil {
		t.Fatal(err)
	}
	testMapping(t, d, 4000)
	rows, err := d.PinStatus()
	if err != nil || len(rows) != 1 {
		t.Fatalf("rows %+v, %v", rows, err)
	}
	sevenEach := 7 * uint64(possibleCPUs())
	row := rows[0]
	if row.Enabled || row.EnabledBy != policy.EnabledByToggle || row.Flows != 1 || row.PacketsPinned != sevenEach ||
		row.PacketsUnpinned != sevenEach || row.UnpinnedBy["off"] != sevenEach || len(row.UnpinnedBy) != len(unpinnedReasons) {
		t.Errorf("row %+v", row)
	}
	var flows []policy.Mapping
	if err := d.Flows(func(m policy.Mapping) bool { flows = append(flows, m); return true }); err != nil {
		t.Fatal(err)
	}
	want := []policy.Mapping{{
		Pin: 1, Slot: 1, Proto: 6, Born: 5, Public: netip.MustParseAddrPort("198.51.100.2:4000"),
		Local: netip.MustParseAddrPort("198.51.100.3:4000"), Remote: netip.MustParseAddrPort("203.0.113.9:443"),
	}}
	if diff := cmp.Diff(want, flows, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	if counters, err := d.VRRPCounters(); err != nil || len(counters) != int(vrrpCounters) {
		t.Errorf("VRRP counters %v, %v", counters, err)
	}
}

// TestEffectiveRole goes through what judge_role in bpf/role.h distinguishes.
func TestEffectiveRole(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	if err := d.SetSettings(Settings{Lease: 2 * time.Second, TagMark: 0x70, TagMask: 0xf0, TagPriority: 7}); err != nil {
		t.Fatal(err)
	}
	const now = 1000 * time.Second
	for _, test := range []struct {
		what         string
		role         policy.Role
		fixed        bool
		beat, advert time.Duration // before now; 0: never
		want         policy.Role
	}{
		{"fixed", policy.RoleMaster, true, 0, 0, policy.RoleMaster},
		{"daemon lives", policy.RoleMaster, false, time.Second, 0, policy.RoleMaster},
		{"daemon lives and says no", policy.RoleBackup, false, time.Second, time.Millisecond, policy.RoleBackup},
		{"daemon dead", policy.RoleMaster, false, 3 * time.Second, 0, policy.RoleBackup},
		{"daemon dead, adverts leave", policy.RoleMaster, false, 3 * time.Second, 290 * time.Millisecond, policy.RoleMaster},
		{"daemon dead, adverts stopped", policy.RoleMaster, false, 3 * time.Second, 310 * time.Millisecond, policy.RoleBackup},
		{"no daemon ever, adverts leave", policy.RoleFault, false, 0, 290 * time.Millisecond, policy.RoleMaster},
		{"nothing", policy.RoleFault, false, 0, 0, policy.RoleFault},
	} {
		beat, own := time.Duration(0), bpf.DataplaneOwnAdvert{IntervalNs: uint64(100 * time.Millisecond)}
		if test.beat != 0 {
			beat = now - test.beat
		}
		if test.advert != 0 {
			own.LastNs = uint64(now - test.advert)
		}
		err := errors.Join(d.SetRole(1, test.role, test.fixed), d.Heartbeat(beat), d.maps.OwnAdverts.Put(uint32(1), own))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.EffectiveRole(1, now); err != nil || got != test.want {
			t.Errorf("%s: %v, %v, want %v", test.what, got, err, test.want)
		}
	}
}

func TestBadPlans(t *testing.T) {
	for _, test := range []struct {
		want string
		plan policy.Plan
	}{
		{"only 1 to 4095", policy.Plan{Pins: []policy.PlanPin{{ID: 4096}}}},
		{"longer than 31 octets", policy.Plan{Pins: []policy.PlanPin{{ID: 1, Name: strings.Repeat("x", 32)}}}},
		{"only 1 to 4095", policy.Plan{Groups: []policy.PlanGroup{{Name: "x"}}}},
		{"no name", policy.Plan{Groups: []policy.PlanGroup{{ID: 1}}}},
		{"has index 0", policy.Plan{Interfaces: []policy.PlanInterface{{Name: "wan0"}}}},
		{"source without prefix", policy.Plan{Interfaces: []policy.PlanInterface{{Index: 1, Slot: 1, Sources: make([]policy.PlanSource, 1)}}}},
	} {
		_, err := wanted(test.plan)
		if err == nil {
			t.Errorf("accepted a plan with %s", test.want)
			continue
		}
		contains(t, err.Error(), test.want)
	}
}
