// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

// nftList is what nft shows of a table, without handles; "" when there is none.
func nftList(t *testing.T, family, table string) string {
	t.Helper()
	output, err := exec.Command("nft", "list", "table", family, table).CombinedOutput()
	if err != nil {
		if strings.Contains(string(output), "No such file") {
			return ""
		}
		t.Fatalf("nft list table %s %s: %v: %s", family, table, err, output)
	}
	return string(output)
}

var fingerprintText = regexp.MustCompile(`vippin [0-9a-f]{12}`)

// TestMarksTable: the rules as the kernel has them.
func TestMarksTable(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	upper := addVeth(t, "vrrp0", "vrrp1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t), noBTF: true})
	plan := onePin(ifindex, "wan0", true)
	plan.Interfaces[0].Uppers = []int{upper}
	plan = twoPins(plan, 9)
	mustApply(t, d, plan)
	want := fmt.Sprintf(`table inet vippin {
	map interfaces {
		type iface_index : verdict
		elements = { "wan0" : jump interface-%[1]d, "vrrp0" : jump interface-%[1]d }
	}

	chain postrouting {
		type filter hook postrouting priority srcnat + 1; policy accept;
		oif vmap @interfaces comment "vippin FINGERPRINT"
	}

	chain conntrack {
		meta mark != 0x00000000/1 meta mark set meta mark & 0x00ffffff comment "not ours"
		ct direction original ct status snat meta mark set meta mark & 0x80ffffff | 0x80000000 comment "source NAT, the flow's own direction"
		meta mark 0x00000000/1 return comment "nothing to tell"
		ct status ! confirmed meta mark set meta mark | 0x40000000 comment "the flow's first packet"
		ct status seen-reply meta mark set meta mark | 0x20000000 comment "the flow has been answered"
		ct status expected,0x2000 meta mark set meta mark | 0x10000000 comment "the flow has a helper, or is a helper's child"
	}

	chain interface-%[1]d {
		jump conntrack comment "interface wan0"
		meta mark 0x00000000/1 return comment "nothing to tell"
		meta nfproto ipv4 ct original ip saddr 192.168.7.0/24 meta mark set meta mark & 0xf2ffffff | 0x02000000 return comment "source 192.168.7.0/24 is number 2"
		meta nfproto ipv4 meta mark set meta mark & 0xf1ffffff | 0x01000000 return comment "source 0.0.0.0/0 is number 1"
		meta nfproto ipv6 meta mark set meta mark & 0xf1ffffff | 0x01000000 return comment "source ::/0 is number 1"
	}
}
`, ifindex)
	got := fingerprintText.ReplaceAllString(nftList(t, "inet", "vippin"), "vippin FINGERPRINT")
	if got != want {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
	if lost, err := d.MarksLost(); err != nil || lost {
		t.Errorf("the table as it was made counts as lost: %v, %v", lost, err)
	}
}

// twoPins adds a second pin, for one inside prefix, to onePin's plan.
func twoPins(plan policy.Plan, id uint32) policy.Plan {
	plan.Pins, plan.Interfaces = slices.Clone(plan.Pins), slices.Clone(plan.Interfaces)
	second := plan.Pins[0]
	second.ID, second.Name, second.VIP4, second.VIPs = id, "second", netip.MustParseAddr("198.51.100.7"), addrs("198.51.100.7")
	plan.Pins = append(plan.Pins, second)
	slices.SortFunc(plan.Pins, func(a, b policy.PlanPin) int { return cmp.Compare(a.ID, b.ID) })
	iface := &plan.Interfaces[0]
	iface.VIPs = append(slices.Clone(iface.VIPs), second.VIP4)
	source := policy.PlanSource{Prefix: netip.MustParsePrefix("192.168.7.0/24"), Pin: id}
	iface.Sources = slices.Insert(slices.Clone(iface.Sources), 1, source)
	return plan
}

func mustGeneration(t *testing.T) uint32 {
	t.Helper()
	at, err := rulesetGeneration()
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestMarksTableChanges: the table follows the plan, each time in one step and
// only if it differs; a pin keeps its number; nobody else's table is touched; and
// unload takes it away.
func TestMarksTableChanges(t *testing.T) {
	enterNamespace(t)
	ifindex, another := addVeth(t, "wan0", "wan1"), addVeth(t, "other0", "other1")
	nft(t, `table inet foreign { chain c { type filter hook postrouting priority 101; meta mark set 5; }; }
		table ip vippin { chain c { comment "of the same name, in another family"; }; }`)
	foreign, sameName := nftList(t, "inet", "foreign"), nftList(t, "ip", "vippin")
	dir := testBPFFS(t)
	d := mustLoad(t, Options{BPFFS: dir, noBTF: true})
	apply := func(plan policy.Plan, changes uint32, what string) string {
		t.Helper()
		before := mustGeneration(t)
		mustApply(t, d, plan)
		if after := mustGeneration(t); after != before+changes {
			t.Errorf("%s: nf_tables changed %d times, want %d", what, after-before, changes)
		}
		if lost, err := d.MarksLost(); err != nil || lost {
			t.Errorf("%s: counts as lost: %v, %v", what, lost, err)
		}
		return nftList(t, "inet", "vippin")
	}
	one := onePin(ifindex, "wan0", true)
	one.Pins[0].ID, one.Interfaces[0].Sources[0].Pin, one.Interfaces[0].Sources[1].Pin = 5, 5, 5
	apply(one, 1, "the first plan")
	apply(one, 0, "the same plan")
	two := apply(twoPins(one, 2), 1, "another pin")
	contains(t, two, "source 0.0.0.0/0 is number 1") // as before, although its own number is the larger one
	contains(t, two, "source 192.168.7.0/24 is number 2")
	if pin := pinAtNumber(t, d, 1); pin != 5 {
		t.Errorf("number 1 is pin %d, want 5", pin)
	}
	if pin := pinAtNumber(t, d, 2); pin != 2 {
		t.Errorf("number 2 is pin %d, want 2", pin)
	}
	if pin := pinAtNumber(t, d, 0); pin != 0 {
		t.Errorf("a host without a number is taken by pin %d", pin)
	}
	samePlan(t, mustPlanned(t, d), twoPins(one, 2)) // the numbers are not for others to see
	moved := onePin(another, "other0", true)
	moved.Pins[0].ID, moved.Interfaces[0].Sources = 5, one.Interfaces[0].Sources
	if text := apply(moved, 1, "another interface"); strings.Contains(text, fmt.Sprintf("interface-%d", ifindex)) {
		t.Errorf("the interface that left is still there:\n%s", text)
	}
	if got := nftList(t, "inet", "foreign"); got != foreign {
		t.Errorf("somebody else's table became\n%s", got)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if nftList(t, "inet", "vippin") == "" {
		t.Error("the table went with the process")
	}
	opened, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	if tier := opened.Tier(); tier != tierTCX+tierMarks && tier != tierClsact+tierMarks {
		t.Errorf("opened, the tier is %q", tier)
	}
	if err := opened.SetSettings(Settings{Lease: 1}); err != nil {
		t.Fatal(err)
	}
	if settings, err := opened.settings(); err != nil || settings.Marks != 1 || settings.LeaseNs != 1 {
		t.Errorf("settings %+v, %v", settings, err)
	}
	if _, err := opened.Unload(false); err != nil {
		t.Fatal(err)
	}
	if text := nftList(t, "inet", "vippin"); text != "" {
		t.Errorf("after unload there is still\n%s", text)
	}
	if nftList(t, "inet", "foreign") != foreign || nftList(t, "ip", "vippin") != sameName {
		t.Error("unload touched somebody else's table")
	}
}

func pinAtNumber(t *testing.T, d *Dataplane, number uint32) (pin uint32) {
	t.Helper()
	if err := d.maps.Sources.Lookup(numberKey(1, number), &pin); err != nil {
		t.Fatalf("look up number %d: %v", number, err)
	}
	return pin
}

// TestMarksLost: whatever somebody does to the table is noticed, and mended by
// the next Apply; what happens to other tables is not taken for it.
func TestMarksLost(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t), noBTF: true})
	if lost, err := d.MarksLost(); err != nil || lost {
		t.Errorf("before the first plan: %v, %v", lost, err)
	}
	plan := onePin(ifindex, "wan0", true)
	mustApply(t, d, plan)
	whole := nftList(t, "inet", "vippin")
	chain := interfaceChain(uint32(ifindex))
	for what, shown := range map[string]bool{ // are the packets still marked?
		"flush ruleset":                                        false,
		"delete table inet vippin":                             false,
		"flush chain inet vippin conntrack":                    false,
		"flush chain inet vippin postrouting":                  false,
		"flush map inet vippin interfaces":                     false,
		"flush chain inet vippin " + chain:                     false,
		"add rule inet vippin " + chain + " counter":           true,
		"add chain inet vippin theirs":                         true,
		"delete table inet vippin; add table inet vippin":      false,
		"add element inet vippin interfaces { lo : continue }": true,
	} {
		nft(t, what)
		lost, err := d.MarksLost()
		if err != nil || !lost {
			t.Errorf("%s: lost %v, %v", what, lost, err)
		}
		held, err := readMarks()
		if err != nil || held.marks(uint32(ifindex)) != shown {
			t.Errorf("%s: marked %v, want %v (%v)", what, !shown, shown, err)
		}
		mustApply(t, d, plan)
		if got := nftList(t, "inet", "vippin"); got != whole {
			t.Errorf("%s: became\n%s\nwant\n%s", what, got, whole)
		}
		if lost, err := d.MarksLost(); err != nil || lost {
			t.Errorf("%s: lost after it was mended: %v, %v", what, lost, err)
		}
	}
	nft(t, "add table inet foreign")
	if lost, err := d.MarksLost(); err != nil || lost {
		t.Errorf("somebody else's table: %v, %v", lost, err)
	}
}

// TestMarksNumbers: at most 15 pins on an interface have a number; the others
// take no flow, and the error says so. Numbers that become free are not given
// away at once.
func TestMarksNumbers(t *testing.T) {
	pins := func(first, last uint32) content {
		c := newContent()
		c.ifaces[3] = ifaceValue{Slot: 1}
		for id := first; id <= last; id++ {
			c.sources[newSourceKey(1, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(id)}), 16))] = id
		}
		return c
	}
	plan := policy.Plan{Interfaces: []policy.PlanInterface{{Index: 3, Name: "wan0"}}}
	now := newContent()
	next := func(c content, want string) []markedInterface {
		t.Helper()
		list, errs := c.marking(now, plan)
		if text := fmt.Sprint(errs); !strings.Contains(text, want) {
			t.Errorf("errors %s, want %q", text, want)
		}
		seen := make(map[uint32]bool)
		for _, source := range list[0].sources {
			pin := uint32(source.prefix.Addr().As4()[1])
			if got := c.sources[numberKey(1, source.number)]; got != pin || source.number == 0 || seen[source.number] {
				t.Errorf("source %v has number %d, which is pin %d", source.prefix, source.number, got)
			}
			seen[source.number] = true
			if was := now.sources[numberKey(1, source.number)]; was != 0 && was != pin {
				t.Errorf("number %d goes from pin %d to pin %d at once", source.number, was, pin)
			}
		}
		now = c
		return list
	}
	if list := next(pins(1, 7), "[]"); len(list[0].sources) != 7 {
		t.Errorf("%d sources", len(list[0].sources))
	}
	next(pins(5, 12), "[]")
	next(pins(1, 8), "[]")
	now = newContent()
	list := next(pins(1, 17), "interface wan0 has 17 pins: on a kernel without BTF only 15 can be told apart, 2 take no flow")
	if len(list[0].sources) != 15 {
		t.Errorf("%d sources", len(list[0].sources))
	}
}
