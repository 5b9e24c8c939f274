// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

// instanceText is a vrrp_instance of keepalived's.
func instanceText(name, iface string, vrid int, vips ...string) string {
	return fmt.Sprintf("vrrp_instance %s {\n\tinterface %s\n\tvirtual_router_id %d\n\tvirtual_ipaddress {\n\t%s\n\t}\n}\n",
		name, iface, vrid, strings.Join(vips, "\n\t"))
}

// pinsOf writes pins shortly: "2/voip@eth0.2 198.51.100.2,… group sources off".
func pinsOf(cfg *policy.Config) (list []string) {
	for _, p := range cfg.Pins {
		text := fmt.Sprintf("%s@%s %v %s", p.Key(), p.Interface, p.VIPs, p.Group)
		if len(p.Sources) > 0 {
			text += fmt.Sprint(" ", p.Sources)
		}
		if !p.Enabled {
			text += " off"
		}
		list = append(list, text)
	}
	return list
}

func groupsOf(cfg *policy.Config) (list []string) {
	for _, g := range cfg.Groups {
		list = append(list, fmt.Sprint(g.Name, " ", g.VRIDs))
	}
	return list
}

func wantLists(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestPinsOfKeepalived(t *testing.T) {
	cases := []struct {
		name, text   string
		pins, groups []string
	}{
		{"tags by name", instanceText("A", "eth0.2", 10, "198.51.100.2/24") + instanceText("B", "eth0.100.20", 11, "203.0.113.2") +
			instanceText("C", "vlan0030", 12, "203.0.113.130") + instanceText("D", "eth1", 13, "198.18.0.1/15") + instanceText("E", "eth0.4095", 14, "198.18.0.2"),
			[]string{"2@eth0.2 [198.51.100.2] A", "100.20@eth0.100.20 [203.0.113.2] B", "30@vlan0030 [203.0.113.130] C", "0/eth1@eth1 [198.18.0.1] D", "0/eth0.4095@eth0.4095 [198.18.0.2] E"},
			[]string{"A [10@eth0.2]", "B [11@eth0.100.20]", "C [12@vlan0030]", "D [13@eth1]", "E [14@eth0.4095]"}},
		{"one sync group, two families", "vrrp_sync_group G {\n group { A B }\n}\n" + instanceText("A", "eth0.2", 10, "198.51.100.2/24") + instanceText("B", "eth0.2", 10, "fe80::2", "2001:db8::2/64"),
			[]string{"2@eth0.2 [198.51.100.2 fe80::2 2001:db8::2] G"}, []string{"G [10@eth0.2]"}},
		{"no sync group, two families", instanceText("A", "eth0.2", 10, "198.51.100.2/24") + instanceText("B", "eth0.2", 10, "2001:db8::2/64"),
			[]string{"2/A@eth0.2 [198.51.100.2] A", "2/B@eth0.2 [2001:db8::2] B"}, []string{"A [10@eth0.2]", "B []"}},
		{"one VLAN on two trunks", instanceText("A", "eth0.2", 10, "198.51.100.2") + instanceText("B", "eth1.2", 11, "203.0.113.2"),
			[]string{"2/eth0.2@eth0.2 [198.51.100.2] A", "2/eth1.2@eth1.2 [203.0.113.2] B"}, []string{"A [10@eth0.2]", "B [11@eth1.2]"}},
		{"VIPs elsewhere", instanceText("A", "eth0.2", 10, "198.51.100.2", "203.0.113.2/26 brd 203.0.113.63 dev eth0.3 label eth0.3:a"),
			[]string{"2@eth0.2 [198.51.100.2] A", "3@eth0.3 [203.0.113.2] A"}, []string{"A [10@eth0.2]"}},
		{"virtual MAC", "vrrp_instance A {\n\tinterface eth0.2\n\tuse_vmac vrrp.10 00:00:5e:00:01:0a\n\tvirtual_router_id 10\n\tvirtual_ipaddress { 198.51.100.2 dev vrrp.10 }\n}\n",
			[]string{"2@eth0.2 [198.51.100.2] A"}, []string{"A [10@eth0.2]"}},
		{"link-local alone", instanceText("A", "eth0.2", 10, "fe80::2"), nil, []string{"A [10@eth0.2]"}},
		{"no interface", "vrrp_instance A {\n\tvirtual_router_id 10\n\tvirtual_ipaddress {\n\t198.51.100.2\n\t203.0.113.2 dev eth3\n\t}\n}\n",
			[]string{"0@eth3 [203.0.113.2] A"}, []string{"A [10]"}},
		{"no VRID", "vrrp_instance A {\n\tinterface eth3\n\tvirtual_ipaddress { 203.0.113.2 }\n}\n", []string{"0@eth3 [203.0.113.2] A"}, []string{"A []"}},
		{"twice", instanceText("A", "eth0.2", 10, "198.51.100.2", "198.51.100.2/24") + instanceText("A", "eth0.3", 11, "198.51.100.3"),
			[]string{"2@eth0.2 [198.51.100.2] A"}, []string{"A [10@eth0.2]"}},
		{"a group called like an instance", "vrrp_sync_group B {\n group {\n A\n }\n}\n" + instanceText("A", "eth0.2", 10, "198.51.100.2") + instanceText("B", "eth0.3", 11, "203.0.113.2"),
			[]string{"2@eth0.2 [198.51.100.2] B", "3@eth0.3 [203.0.113.2] B-2"}, []string{"B [10@eth0.2]", "B-2 [11@eth0.3]"}},
		{"names that do not fit", instanceText("'"+strings.Repeat("ä ", 40)+"'", "eth0.2", 10, "198.51.100.2"),
			[]string{"2@eth0.2 [198.51.100.2] " + strings.Repeat("ä-", 21)}, []string{strings.Repeat("ä-", 21) + " [10@eth0.2]"}},
		{"words of YAML", instanceText("no", "eth0.2", 10, "198.51.100.2") + instanceText("10", "'true'", 11, "203.0.113.2"),
			[]string{"2@eth0.2 [198.51.100.2] no", "0@true [203.0.113.2] 10"}, []string{"no [10@eth0.2]", "10 [11@true]"}},
		{"what YAML takes for something else", instanceText("null", "eth0.2", 10, "198.51.100.2") + instanceText("'[x'", "eth0.3", 11, "203.0.113.2") +
			instanceText("*a", "eth0.4", 12, "203.0.113.3") + instanceText("&b:", "'%eth'", 13, "203.0.113.4"),
			[]string{"2@eth0.2 [198.51.100.2] null", "3@eth0.3 [203.0.113.2] [x", "4@eth0.4 [203.0.113.3] *a", "0@%eth [203.0.113.4] &b:"},
			[]string{"null [10@eth0.2]", "[x [11@eth0.3]", "*a [12@eth0.4]", "&b: [13@%eth]"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg, _ := migrated(t, c.text, Options{})
			wantLists(t, "pins", pinsOf(cfg), c.pins)
			wantLists(t, "groups", groupsOf(cfg), c.groups)
		})
	}
}

// vyPair is two VLANs in one sync group, outside with three VIPs.
const vyPair = `set high-availability vrrp group OUT interface eth0.2
set high-availability vrrp group OUT vrid 2
set high-availability vrrp group OUT address 198.51.100.2/24
set high-availability vrrp group OUT address 198.51.100.3/24
set high-availability vrrp group OUT excluded-address 2001:db8::2/64
set high-availability vrrp group IN interface eth0.101
set high-availability vrrp group IN vrid 101
set high-availability vrrp group IN address 198.18.101.1/24
set high-availability vrrp sync-group CORE member OUT
set high-availability vrrp sync-group CORE member IN
`

// rule is the commands of a rule of source NAT.
func rule(n int, words ...string) (text string) {
	for _, w := range words {
		text += fmt.Sprintf("set nat source rule %d %s\n", n, w)
	}
	return text
}

func TestPinsWhereNATLeaves(t *testing.T) {
	const out = "2@eth0.2 [198.51.100.2 198.51.100.3 2001:db8::2] CORE"
	const in = "101@eth0.101 [198.18.101.1] CORE"
	cases := []struct {
		name, rules string
		pins        []string
		says        string // in the comments
	}{
		{"masquerade", rule(10, "outbound-interface name eth0.2", "translation address masquerade"), []string{out}, "source rule 10 to masquerade by eth0.2 (11): keep it: vippin puts the VIP on"},
		{"older words", rule(10, "outbound-interface eth0.2", "translation address masquerade"), []string{out}, ""},
		{"any interface", rule(10, "translation address masquerade"), []string{out, in}, ""},
		{"wildcard", rule(10, "outbound-interface name eth0.1*", "translation address masquerade"), []string{in}, ""},
		{"all but one", rule(10, "outbound-interface name !eth0.101", "translation address masquerade"), []string{out}, ""},
		{"group of interfaces", rule(10, "outbound-interface group WANS", "translation address masquerade"), []string{out, in}, "in the group was not looked at"},
		{"elsewhere", rule(10, "outbound-interface name eth7", "translation address masquerade"), []string{out + " off", in + " off"}, "no VIP is on this interface"},
		{"disabled", rule(10, "outbound-interface name eth0.101", "translation address masquerade", "disable") + rule(20, "outbound-interface name eth0.2", "translation address masquerade"),
			[]string{out}, "rule 10 to masquerade by eth0.101 (11): keep it: it is switched off"},
		{"exception", rule(10, "outbound-interface name eth0.101", "translation address masquerade", "exclude") + rule(20, "outbound-interface name eth0.2", "translation address masquerade"), []string{out}, ""},
		{"to a VIP", rule(10, "outbound-interface name eth0.2", "translation address 198.51.100.3"), []string{"2@eth0.2 [198.51.100.3 198.51.100.2 2001:db8::2] CORE"},
			"may be kept: its connections have the VIP by themselves"},
		{"to a VIP of another interface", rule(10, "outbound-interface name eth7", "translation address 198.51.100.3"), []string{out + " off", in + " off"}, "keep it: the VIP is on eth0.2"},
		{"to another address", rule(10, "outbound-interface name eth0.2", "translation address 192.0.2.1-192.0.2.9"), []string{out + " off", in + " off"}, "no address of VRRP's"},
		{"rules share VIPs out, by their numbers", rule(20, "outbound-interface name eth0.2", "source address 198.18.1.0/24", "translation address 198.51.100.3") +
			rule(5, "outbound-interface name eth0.2", "source address 198.18.2.7", "translation address 198.51.100.2") +
			rule(30, "outbound-interface name eth0.2", "source address 198.18.3.0/24", "translation address 198.51.100.3"),
			[]string{"2/rule5@eth0.2 [198.51.100.2] CORE [198.18.2.7/32]", "2/rule20@eth0.2 [198.51.100.3] CORE [198.18.1.0/24 198.18.3.0/24]", "2/rest@eth0.2 [2001:db8::2] CORE"}, ""},
		{"a share for everybody", rule(5, "outbound-interface name eth0.2", "source address 198.18.2.7", "translation address 198.51.100.2") +
			rule(6, "outbound-interface name eth0.2", "source address !198.18.3.0/24", "translation address 198.51.100.3"),
			[]string{"2/rule5@eth0.2 [198.51.100.2] CORE [198.18.2.7/32]", "2/rule6@eth0.2 [198.51.100.3] CORE", "2/rest@eth0.2 [2001:db8::2] CORE"}, ""},
		{"some hosts and everybody", rule(5, "outbound-interface name eth0.2", "source address 198.18.2.7", "translation address 198.51.100.2") +
			rule(6, "outbound-interface name eth0.2", "source address 198.18.3.0/24", "translation address 198.51.100.3") +
			rule(7, "outbound-interface name eth0.2", "translation address 198.51.100.3"),
			[]string{"2/rule5@eth0.2 [198.51.100.2] CORE [198.18.2.7/32]", "2/rule6@eth0.2 [198.51.100.3] CORE", "2/rest@eth0.2 [2001:db8::2] CORE"}, ""},
		{"to a VIP of each family", rule(5, "outbound-interface name eth0.2", "source address 198.18.2.7", "translation address 198.51.100.2") +
			"set nat66 source rule 5 outbound-interface name eth0.2\nset nat66 source rule 5 translation address 2001:db8::2\n", []string{out}, ""},
		{"IPv6", "set nat66 source rule 10 outbound-interface name eth0.2\nset nat66 source rule 10 translation address masquerade\n", []string{out}, "nat66 source rule 10 to masquerade"},
		{"IPv6 where there is none", "set nat66 source rule 10 outbound-interface name eth0.101\nset nat66 source rule 10 translation address masquerade\n", []string{out + " off", in + " off"}, ""},
		{"unknown", "", []string{out, in}, "TODO: where source NAT leaves is not in these files"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg, r := migrated(t, vyPair+c.rules, Options{})
			wantLists(t, "pins", pinsOf(cfg), c.pins)
			wantLists(t, "groups", groupsOf(cfg), []string{"CORE [2@eth0.2 101@eth0.101]"})
			if !strings.Contains(unwrapped(r), c.says) {
				t.Errorf("no %q in\n%s", c.says, r.YAML)
			}
		})
	}
}

// unwrapped is the text with its comments on one line each.
func unwrapped(r *Result) string {
	return strings.NewReplacer("\n#     ", " ", "\n#   migrate", " migrate").Replace(string(r.YAML))
}

func TestOutsideIsTold(t *testing.T) {
	cfg, r := migrated(t, vyPair, Options{Outside: []string{"eth0.2", "eth9"}})
	wantLists(t, "pins", pinsOf(cfg), []string{"2@eth0.2 [198.51.100.2 198.51.100.3 2001:db8::2] CORE"})
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], `no virtual address is on "eth9"`) {
		t.Errorf("warnings %q", r.Warnings)
	}
	if !strings.Contains(string(r.YAML), "eth0.101 of IN (6): inside") {
		t.Errorf("nothing is said of eth0.101:\n%s", r.YAML)
	}
}

// Sync groups name instances that are not there, or that are in two of them.
func TestSyncGroupsThatAreWrong(t *testing.T) {
	cfg, r := migrated(t, "vrrp_sync_group G {\n group {\n A\n C\n }\n}\nvrrp_sync_group H {\n group {\n A\n }\n}\n"+instanceText("A", "eth0.2", 10, "198.51.100.2"), Options{})
	wantLists(t, "groups", groupsOf(cfg), []string{"G [10@eth0.2]"})
	wantLists(t, "warnings", r.Warnings, []string{
		"in:1: sync group G: there is no VRRP instance C here: add its VRID and VIPs by hand",
		"in:7: sync group H: A is in G already",
	})
}

// What needs no word has none.
func TestWhatIsSaidOfInstances(t *testing.T) {
	const group = "vrrp_sync_group G {\n group { A B }\n}\n"
	pair := instanceText("A", "eth0.2", 10, "198.51.100.2") + instanceText("B", "eth0.2", 10, "2001:db8::2")
	for text, says := range map[string]bool{group + pair: false, pair: true} {
		if _, r := migrated(t, text, Options{}); strings.Contains(string(r.YAML), "VRID 10@eth0.2 of B (") != says {
			t.Errorf("want said %t:\n%s", says, r.YAML)
		}
	}
	if _, r := migrated(t, instanceText("A", "eth0.2", 10, "fe80::2"), Options{}); !strings.Contains(string(r.YAML), "eth0.2 of A (1): link-local addresses alone") {
		t.Errorf("%s", r.YAML)
	}
}

// 200 VLANs of a trunk in one group.
func TestManyVLANs(t *testing.T) {
	var text, members strings.Builder
	for n := 1; n <= 200; n++ {
		fmt.Fprintf(&members, "\t\tV%d\n", n)
		text.WriteString(instanceText(fmt.Sprintf("V%d", n), fmt.Sprintf("eth0.%d", 1000+n), n, fmt.Sprintf("198.18.%d.1/24", n)))
	}
	cfg, _ := migrated(t, "vrrp_sync_group ALL {\n\tgroup {\n"+members.String()+"\t}\n}\n"+text.String(), Options{})
	if len(cfg.Pins) != 200 || len(cfg.Groups) != 1 || len(cfg.Groups[0].VRIDs) != 200 {
		t.Errorf("%d pins, groups %v", len(cfg.Pins), cfg.Groups)
	}
}

// More than the dataplane holds is an error, not a configuration that is refused.
func TestTooMuch(t *testing.T) {
	var instances, rules, vips strings.Builder
	for n := range policy.GroupsMax + 1 {
		fmt.Fprintf(&instances, "set high-availability vrrp group G%d vrid 1\n", n)
	}
	for n := range rulesMax + 1 {
		fmt.Fprintf(&rules, "set nat source rule %d translation address masquerade\n", n+1)
	}
	for n := range policy.VIPsMax + 1 {
		fmt.Fprintf(&vips, "set high-availability vrrp group A address 198.18.%d.%d/15\n", n/250, n%250+1)
	}
	for want, text := range map[string]string{"4095 VRRP instances": instances.String(), "10000 rules": rules.String(), "16384 virtual addresses": vips.String()} {
		if _, err := Run([]Source{{"in", []byte(text)}}, Options{Node: "x"}); err == nil || !strings.Contains(err.Error(), "more than "+want) {
			t.Errorf("%v, want more than %s", err, want)
		}
	}
}
