// SPDX-License-Identifier: Apache-2.0

package parity

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/policy"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ips(list ...string) (out []netip.Addr) {
	for _, text := range list {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func nets(list ...string) (out []netip.Prefix) {
	for _, text := range list {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// words reads a rule as it is written here: "@wan0" is an interface, "#" begins an
// address, a prefix or a range.
func words(text string) (rule []policy.NATWord) {
	for part := range strings.FieldsSeq(text) {
		word := policy.NATWord{Text: part}
		if name, is := strings.CutPrefix(part, "@"); is {
			word = policy.NATWord{Interface: name}
		} else if addr, is := strings.CutPrefix(part, "#"); is {
			prefix, err := netip.ParsePrefix(addr)
			if err != nil {
				prefix = netip.PrefixFrom(netip.MustParseAddr(addr), netip.MustParseAddr(addr).BitLen())
			}
			word = policy.NATWord{From: prefix.Masked().Addr(), To: policy.LastOf(prefix)}
		}
		if last := len(rule) - 1; word.Text != "" && last >= 0 && rule[last].Text != "" {
			rule[last].Text += " " + word.Text
			continue
		}
		rule = append(rule, word)
	}
	return rule
}

func natChain(hook string, rules ...string) policy.NATChain {
	chain := policy.NATChain{Family: "inet", Table: "nat", Name: hook, Hook: hook}
	for _, rule := range rules {
		chain.Rules = append(chain.Rules, words(rule))
	}
	return chain
}

// names are what a router's interfaces are called, and its last octet.
type names struct {
	outside, voip, inside, sync string
	tag                         uint16 // of the inside VLAN, where there is a trunk
	octet                       string
}

var (
	trunk = names{"eth0.2", "eth0.20", "eth0.101", "eth9", 101, "3"}
	nics  = names{"enp7s0", "wan7", "lan0", "enp9s0", 0, "4"}
)

// sources is where the facts of a healthy router come from.
func sources(n names) Sources {
	config := policy.DefaultConfig("vippin.yaml", "router-"+n.octet)
	vips := ips("198.51.100.2", "198.51.100.9", "2001:db8:2::2")
	config.Pins = []policy.PinConfig{{VLAN: policy.VLAN{Outer: 2}, VIPs: vips, Sources: nets("192.168.101.0/24")}, {VLAN: policy.VLAN{Outer: 20}, Name: "voip"}}
	addr := func(text string, deprecated bool) policy.Addr {
		return policy.Addr{Prefix: netip.MustParsePrefix(text), Deprecated: deprecated}
	}
	return Sources{
		Version: "1.0", Protocol: [2]uint32{1, 1}, Tier: "tcx", Config: config,
		Plan: policy.Plan{
			Groups: []policy.PlanGroup{{ID: 7, Name: "Core"}, {ID: 8, Name: "20/voip"}},
			Interfaces: []policy.PlanInterface{
				{Index: 2, Name: n.outside, Slot: 1, VRIDs: []policy.PlanVRID{{VRID: 10, Group: 7}, {VRID: 11, Group: 7}}}, {Index: 3, Name: n.voip, Slot: 2},
			},
			Pins: []policy.PlanPin{
				{ID: 1, Slot: 1, Group: 7, VLAN: policy.VLAN{Outer: 2}, Interface: n.outside, Ifindex: 2, VIPs: vips, Enabled: true},
				{ID: 2, Slot: 2, Group: 8, VLAN: policy.VLAN{Outer: 20}, Name: "voip", Interface: n.voip, Ifindex: 3, VIPs: ips("203.0.113.20")},
				{ID: 3, VLAN: policy.VLAN{Outer: 30}, Retired: true},
			},
		},
		Observed: policy.Observed{Links: []policy.Link{
			{Index: 1, Name: "lo", Addrs: []policy.Addr{addr("127.0.0.1/8", false)}},
			{Index: 2, Name: n.outside, VLAN: tagIf(n, 2), Addrs: []policy.Addr{
				addr("198.51.100."+n.octet+"/24", false), addr("2001:db8:2::"+n.octet+"/64", false), addr("fe80::"+n.octet+"/64", false),
			}},
			{Index: 3, Name: n.voip, VLAN: tagIf(n, 20), Addrs: []policy.Addr{addr("203.0.113."+n.octet+"/24", false)}},
			{Index: 4, Name: n.inside, VLAN: tagIf(n, n.tag), Addrs: []policy.Addr{addr("192.168.101."+n.octet+"/24", false), addr("2001:db8:101::"+n.octet+"/64", false)}},
			{Index: 5, Name: n.sync, Addrs: []policy.Addr{addr("198.19.0."+n.octet+"/29", false)}},
			{Index: 6, Name: "vrrp.10", Kind: "macvlan", Parent: 2, Addrs: []policy.Addr{addr("198.51.100.99/32", false)}},
			{Index: 7, Name: "unused"},
		}},
		Likeness: policy.Likeness{
			Kernel: "6.12." + n.octet, MTU: map[int]int{2: 1500, 3: 1500, 4: 9000, 5: 1500, 7: 1500},
			Clock: policy.Clock{Time: noon, Sources: []string{"chronyd"}, Synced: true},
			Sysctls: map[string]string{
				"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/conf/all/rp_filter": "0",
				"net/netfilter/nf_conntrack_tcp_loose": "1", "net/netfilter/nf_conntrack_udp_timeout": "30", "net/netfilter/nf_conntrack_max": "262144",
				"net/ipv4/conf/" + n.outside + "/rp_filter": "2", "net/ipv4/conf/" + n.outside + "/forwarding": "1",
			},
			NAT: policy.NATChains{Known: true, Chains: []policy.NATChain{
				natChain("prerouting", "iifname @"+n.outside+" ip daddr #198.51.100.2 tcp dport 443 dnat to #192.168.101.9"),
				natChain("postrouting", "oifname @"+n.outside+" ip saddr #192.168.101.0/24 masquerade", "oifname @"+n.voip+" masquerade",
					"oifname @"+n.inside+" snat to #192.168.101."+n.octet),
			}},
		},
	}
}

// tagIf is a VLAN of a router with a trunk.
func tagIf(n names, vlan uint16) policy.VLAN {
	if n.tag == 0 {
		return policy.VLAN{}
	}
	return policy.VLAN{Outer: vlan}
}

// text is differences, a line each, without what they break.
func text(list []policy.Difference) string {
	var lines []string
	for _, d := range list {
		lines = append(lines, fmt.Sprintf("%s %s: %s: %s | %s", d.State, d.Check, d.About, d.Here, d.There))
	}
	return strings.Join(lines, "\n")
}

// through is facts as the peer reads them.
func through(t *testing.T, f Facts) Facts {
	t.Helper()
	encoded, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := Decode(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

// A trunk here and NICs there: nothing, from either side. A MASTER has VIPs of no
// pin, too.
func TestNothingDiffers(t *testing.T) {
	master := sources(trunk)
	master.Observed.Links[3].Addrs = append(master.Observed.Links[3].Addrs,
		policy.Addr{Prefix: netip.MustParsePrefix("192.168.101.1/24"), Deprecated: true}, policy.Addr{Prefix: netip.MustParsePrefix("2001:db8:101::1/128")})
	a, b := Gather(master), Gather(sources(nics))
	for i, pair := range [][2]Facts{{a, b}, {b, a}, {a, a}} {
		if got := Compare(pair[0], through(t, pair[1]), "router-b", noon.Add(clockApart)); len(got) > 0 {
			t.Errorf("%d: %s", i, text(got))
		}
	}
}

// Each difference is found, alone, on both routers alike.
func TestDifferences(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(s *Sources)
		want  string
	}{
		"no pin for the VLAN": {func(s *Sources) {
			s.Plan.Pins[0].Retired = true
			s.Plan.Interfaces[0].VRIDs = nil
			s.Plan.Groups = s.Plan.Groups[1:]
		},
			"error vlan: VLAN 2: a pin with 198.51.100.2, 198.51.100.9, 2001:db8:2::2 | no pin"},
		"pin of another name": {func(s *Sources) { s.Plan.Pins[1].Name = "phones" },
			"error pin: pin 20/voip: a pin with 203.0.113.20 | no pin\nerror pin: pin 20/phones: no pin | a pin with 203.0.113.20"},
		"absent interface": {func(s *Sources) {
			s.Plan.Pins[0].Ifindex, s.Plan.Interfaces = 0, s.Plan.Interfaces[1:]
			s.Observed.Links = slices.Delete(s.Observed.Links, 1, 2)
		}, "error interface: pin 2: eth0.2 | no such interface"},
		"group": {func(s *Sources) { s.Plan.Groups[0].Name = "Edge" }, "error group: pin 2: Core | Edge"},
		"group without a pin": {func(s *Sources) { s.Plan.Groups = append(s.Plan.Groups, policy.PlanGroup{ID: 9, Name: "LAN"}) },
			"error group: group LAN: - | LAN"},
		"VRID":                  {func(s *Sources) { s.Plan.Interfaces[0].VRIDs[1].VRID = 12 }, "error vrid: VLAN 2, group Core: VRID 11 | VRID 12"},
		"VRID of another group": {func(s *Sources) { s.Plan.Interfaces[0].VRIDs[1].Group = 8 }, "error group: VRID 11 on VLAN 2: Core | 20/voip"},
		"one VRID less":         {func(s *Sources) { s.Plan.Interfaces[0].VRIDs = s.Plan.Interfaces[0].VRIDs[:1] }, "error vrid: VLAN 2, group Core: VRID 11 | -"},
		"VIP": {func(s *Sources) { s.Plan.Pins[0].VIPs = ips("198.51.100.77", "198.51.100.9", "2001:db8:2::2") },
			"error vip: pin 2, source of IPv4: 198.51.100.2 | 198.51.100.77"},
		"first VIP": {func(s *Sources) { s.Plan.Pins[0].VIPs = ips("198.51.100.9", "198.51.100.2", "2001:db8:2::2") },
			"error vip: pin 2, source of IPv4: 198.51.100.2 | 198.51.100.9"},
		"no IPv6 VIP": {func(s *Sources) { s.Plan.Pins[0].VIPs = ips("198.51.100.2", "198.51.100.9") },
			"error vip: pin 2, source of IPv6: 2001:db8:2::2 | none"},
		"further VIP": {func(s *Sources) { s.Plan.Pins[0].VIPs = ips("2001:db8:2::2", "198.51.100.2") },
			"error vip: pin 2, further VIPs: 198.51.100.9 | -"},
		"switched off": {func(s *Sources) { s.Plan.Pins[0].Enabled, s.Plan.Pins[0].EnabledBy = false, policy.EnabledByToggle },
			"error pin: pin 2, the switch: on (config) | off (toggle)"},
		"sources": {func(s *Sources) { s.Config.Pins[0].Sources = nil }, "error pin: pin 2, sources: 192.168.101.0/24 | every inside host"},
		"other rule": {func(s *Sources) { s.Likeness.NAT.Chains[1].Rules[1] = words("oifname @wan7 masquerade random") },
			"error nat: postrouting (inet), rule 2: oifname VLAN 20 masquerade | oifname VLAN 20 masquerade random"},
		"no rule": {func(s *Sources) { s.Likeness.NAT.Chains[1].Rules = s.Likeness.NAT.Chains[1].Rules[1:] },
			"error nat: postrouting (inet), rule 1: oifname VLAN 2 ip saddr 192.168.101.0/24 masquerade | -"},
		"order of rules": {func(s *Sources) { r := s.Likeness.NAT.Chains[1].Rules; r[0], r[1] = r[1], r[0] },
			"error nat: postrouting (inet), rule 1 here and 2 there: oifname VLAN 2 ip saddr 192.168.101.0/24 masquerade | oifname VLAN 2 ip saddr 192.168.101.0/24 masquerade"},
		"the other router's address": {func(s *Sources) { s.Likeness.NAT.Chains[1].Rules[2] = words("oifname @lan0 snat to #192.168.101.3") },
			"error nat: postrouting (inet), rule 3: oifname VLAN 101 snat to own address on VLAN 101 | oifname VLAN 101 snat to 192.168.101.3"},
		"published service": {func(s *Sources) { s.Likeness.NAT.Chains = s.Likeness.NAT.Chains[1:] },
			"error nat: prerouting (inet), rule 1: iifname VLAN 2 ip daddr 198.51.100.2 tcp dport 443 dnat to 192.168.101.9 | -"},
		"legacy iptables": {func(s *Sources) { s.Likeness.NAT.Legacy = []string{"IPv4"} }, "warning nat: legacy iptables: none | rules for IPv4"},
		"no rules read": {func(s *Sources) { s.Likeness.NAT = policy.NATChains{}; s.Likeness.Unread = []string{"NAT rules: no"} },
			"warning facts: what could not be read: - | NAT rules: no"},
		"forwarding":        {func(s *Sources) { s.Likeness.Sysctls["net/ipv4/ip_forward"] = "0" }, "error sysctl: net.ipv4.ip_forward: 1 | 0"},
		"forwarding of one": {func(s *Sources) { s.Likeness.Sysctls["net/ipv4/conf/enp7s0/forwarding"] = "0" }, "error forwarding: forwarding on VLAN 2: 1 | 0"},
		"conntrack": {func(s *Sources) { s.Likeness.Sysctls["net/netfilter/nf_conntrack_tcp_loose"] = "0" },
			"warning sysctl: net.netfilter.nf_conntrack_tcp_loose: 1 | 0"},
		"a timeout": {func(s *Sources) { s.Likeness.Sysctls["net/netfilter/nf_conntrack_udp_timeout"] = "60" },
			"warning sysctl: net.netfilter.nf_conntrack_udp_timeout: 30 | 60"},
		"rp_filter":  {func(s *Sources) { s.Likeness.Sysctls["net/ipv4/conf/enp7s0/rp_filter"] = "1" }, "warning sysctl: rp_filter on VLAN 2: 2 | 1"},
		"MTU":        {func(s *Sources) { s.Likeness.MTU[2] = 1400 }, "warning mtu: VLAN 2: 1500 | 1400"},
		"MTU inside": {func(s *Sources) { s.Likeness.MTU[4] = 1500 }, "warning mtu: VLAN 101: 9000 | 1500"},
		"prefix length": {func(s *Sources) { s.Observed.Links[3].Addrs[0].Prefix = netip.MustParsePrefix("192.168.101.4/25") },
			"error network: VLAN 101: 192.168.101.0/24 | 192.168.101.0/25"},
		"scope":    {func(s *Sources) { s.Config.Sync.Scope = policy.ScopePinned }, "error sync: sync.scope: nat | pinned"},
		"protocol": {func(s *Sources) { s.Config.Sync.Protocols = []string{"udp", "tcp"} }, "error sync: sync.protocols: icmp, icmpv6, other, tcp, udp | tcp, udp"},
		"strict":   {func(s *Sources) { s.Config.Sync.Mode = policy.SyncStrict }, "warning sync: sync.mode: async | strict"},
		"room":     {func(s *Sources) { s.Config.Dataplane.MaxFlows = 10 }, "warning sync: dataplane.max_flows: 262144 | 10"},
		"fastpath": {func(s *Sources) { s.Fastpath = true }, "note fastpath: the fast path: off | on"},
		"tier":     {func(s *Sources) { s.Tier = "tcx+marks" }, "warning tier: the dataplane: tcx on Linux 6.12.3 | tcx+marks on Linux 6.12.4"},
		"version":  {func(s *Sources) { s.Version = "1.1" }, "warning version: vippin: 1.0 | 1.1"},
		"clock": {func(s *Sources) { s.Likeness.Clock = policy.Clock{Time: noon.Add(-3 * time.Minute)} },
			"warning clock: the time, 3m0s apart: 2026-11-24 12:00:00 UTC (chronyd) | 2026-11-24 11:57:00 UTC (no program sets it, not synchronised)"},
	} {
		s := sources(nics)
		c.spoil(&s)
		own, peer := Gather(sources(trunk)), Gather(s)
		found := Compare(own, through(t, peer), "router-b", noon)
		if got := text(found); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, c.want)
		}
		for _, d := range found {
			if d.Peer != "router-b" || d.Breaks == "" || strings.Contains(d.Breaks, "%!") || !slices.Contains(ranks, d.Check) {
				t.Errorf("%s: %+v", name, d)
			}
		}
		if back := Compare(peer, through(t, own), "router-a", noon.Add(peer.Clock.Time.Sub(own.Clock.Time))); len(back) != len(found) || Errors(back) != Errors(found) {
			t.Errorf("%s: the peer finds\n%s", name, text(back))
		}
	}
}

// What is said in adverts counts when both routers have sent some.
func TestAdverts(t *testing.T) {
	said := func(s Sources, ifname string, version uint8, interval float64) Sources {
		s.Routers = []policy.VRRPStatus{{Interface: ifname, VRID: 10, Family: "ipv4", Version: version,
			Routers: []policy.RouterStatus{{Interval: 5}, {Interval: interval, Self: true}}}}
		return s
	}
	own := Gather(said(sources(trunk), "eth0.2", 3, 100))
	for want, peer := range map[string]Sources{
		"":  said(sources(nics), "enp7s0", 3, 100),
		" ": sources(nics),
		"error vrid: VRID 10 on VLAN 2, ipv4: VRRPv3 | VRRPv2":                                  said(sources(nics), "enp7s0", 2, 100),
		"warning vrid: VRID 10 on VLAN 2, ipv4: an advert every 100ms | an advert every 1000ms": said(sources(nics), "enp7s0", 3, 1000),
	} {
		if got := text(Compare(own, Gather(peer), "router-b", noon)); got != strings.TrimSpace(want) {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

// The worst comes first, whatever is found first.
func TestWorstFirst(t *testing.T) {
	s := sources(nics)
	s.Tier, s.Likeness.MTU[2], s.Config.Sync.Scope, s.Plan.Pins[0].Enabled, s.Plan.Pins[1].Retired = "clsact", 1400, policy.ScopeAll, false, true
	s.Version, s.Likeness.Sysctls["net/ipv4/ip_forward"], s.Likeness.NAT.Legacy = "2", "0", []string{"IPv4"}
	var checks []string
	found := Compare(Gather(sources(trunk)), Gather(s), "b", noon)
	for _, d := range found {
		checks = append(checks, d.Check)
	}
	if want := []string{"vlan", "pin", "sync", "sysctl", "nat", "mtu", "tier", "version"}; !slices.Equal(checks, want) || Errors(found) != 4 {
		t.Errorf("%v, %d errors, want %v, 4", checks, Errors(found), want)
	}
}

// Ways to write the same rule, and others.
func TestRules(t *testing.T) {
	own, peer := Gather(sources(trunk)), Gather(sources(nics))
	pairing := pair(&own, &peer)
	here, there := dialectOf(&own, pairing.here), dialectOf(&peer, pairing.there)
	own.Interfaces[3].Perhaps = nil
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"oifname @eth0.2 masquerade", "oifname @enp7s0 masquerade", true},
		{"oifname @eth0.2 masquerade", "oifname @wan7 masquerade", false},
		{"oifname { @eth0.20 , @eth0.2 } masquerade", "oifname { @enp7s0 , @wan7 } masquerade", true},
		{"oifname { @eth0.20 } masquerade", "oifname @wan7 masquerade", true},
		{"oifname { @eth0.20 } masquerade", "oifname @wan* masquerade", true},
		{"oifname { @eth0.20 , @eth0.2 } masquerade", "oifname @wan* masquerade", false},
		{"oifname != @eth0.2 masquerade", "oifname @enp7s0 masquerade", false},
		{"iifname . oifname { @eth0.2 . @eth0.20 : jump a }", "iifname . oifname { @enp7s0 . @wan7 : jump a }", true},
		{"oifname @ppp0 masquerade", "oifname @ppp0 masquerade", true},
		{"oifname @ppp0 masquerade", "oifname @ppp1 masquerade", false},
		{"snat to #198.51.100.3", "snat to #198.51.100.4", true},
		{"snat to #198.51.100.3", "snat to #198.51.100.3", false},
		{"snat to #198.51.100.3", "snat to #203.0.113.4", false},
		{"snat to #198.51.100.2", "snat to #198.51.100.2", true},
		{"snat to #198.51.100.2", "snat to #198.51.100.4", false},
		{"ip saddr #192.168.0.0/16 masquerade", "ip saddr #192.168.0.0/17 masquerade", false},
	} {
		a, b := here.read(words(c.a)), there.read(words(c.b))
		if a.same(b) != c.same || b.same(a) != c.same {
			t.Errorf("%q (%s) and %q (%s) are the same: %t, want %t", c.a, a, c.b, b, !c.same, c.same)
		}
	}
	// A second address, or a VIP that no pin has.
	perhaps := token{text: "203.0.113.7", perhaps: "own address on VLAN 20"}
	for other, same := range map[token]bool{
		{text: "203.0.113.7"}: true, {text: "203.0.113.8", perhaps: "own address on VLAN 20"}: true,
		{text: "own address on VLAN 20"}: true, {text: "own address on VLAN 2"}: false, {text: "203.0.113.8"}: false,
	} {
		if perhaps.same(other) != same || other.same(perhaps) != same {
			t.Errorf("%v and %v are the same: %t", perhaps, other, !same)
		}
	}
}

// Lists that are too long to be aligned are compared all the same, in bounded time.
func TestLongLists(t *testing.T) {
	list := func(shift int) (rules []rule) {
		for i := range 3000 {
			rules = append(rules, rule{{text: fmt.Sprint(i + shift)}})
		}
		return rules
	}
	if got := gaps(list(0), list(0)); len(got) > 0 {
		t.Errorf("%d gaps between equal lists", len(got))
	}
	one := list(0)
	one[1500] = rule{{text: "other"}}
	if got := gaps(list(0), one); len(got) != 1 || !slices.Equal(got[0].here, []int{1500}) || !slices.Equal(got[0].there, []int{1500}) {
		t.Errorf("gaps %v", got)
	}
	if got := gaps(list(0), list(1)); len(got) != 3000 {
		t.Errorf("%d gaps, want all", len(got))
	}
	if got := gaps(list(0)[:3], list(0)[1:5]); !reflect.DeepEqual(got, []gap{{here: []int{0}}, {there: []int{2, 3}}}) {
		t.Errorf("gaps %v", got)
	}
	s := sources(nics)
	for i := range 100 {
		s.Likeness.NAT.Chains[1].Rules = append(s.Likeness.NAT.Chains[1].Rules, words(fmt.Sprintf("x%d masquerade", i)))
	}
	if got := Compare(Gather(sources(trunk)), Gather(s), "b", noon); len(got) != rulesShown+1 || got[rulesShown].Here != "36 differ" {
		t.Errorf("%d differences, the last %+v", len(got), got[len(got)-1])
	}
}

// Whatever there is to say fits the frame; what is left out is told, and is no
// difference of its own.
func TestBounds(t *testing.T) {
	s := sources(nics)
	for i := range 1500 {
		s.Likeness.NAT.Chains[1].Rules = append(s.Likeness.NAT.Chains[1].Rules, words(fmt.Sprintf("oifname @wan7 ip saddr #10.0.%d.%d masquerade", i/256, i%256)))
	}
	for vlan := range 2500 {
		s.Plan.Pins = append(s.Plan.Pins, policy.PlanPin{VLAN: policy.VLAN{Outer: uint16(vlan%4094 + 1)}, Name: fmt.Sprint("n", vlan), VIPs: ips("203.0.113.20", "2001:db8::7")})
	}
	f := Gather(s)
	g := through(t, f)
	if g.LeftOut.Rules == 0 || g.LeftOut.Pins == 0 || len(g.Pins) < 100 || len(f.Pins) != 2502 || len(s.Likeness.NAT.Chains[1].Rules) != 1503 {
		t.Errorf("left out %+v, %d pins are kept of %d, and of the rules themselves %d", g.LeftOut, len(g.Pins), len(f.Pins), len(s.Likeness.NAT.Chains[1].Rules))
	}
	for _, own := range []Facts{f, g} {
		if found := Compare(own, g, "b", noon); len(found) != 1 || found[0].Check != "facts" {
			t.Errorf("%d differences: %.300s", len(found), text(found))
		}
	}
	g.Version = strings.Repeat("é", MaxOctets)
	if found := Compare(f, g, "b", noon); len(found) != 2 || len(found[0].There) > 1100 {
		t.Errorf("%d differences, and the peer's version has %d octets", len(found), len(found[0].There))
	}
	if _, err := Decode(make([]byte, MaxOctets+1)); err == nil {
		t.Error("read more than fits")
	}
}

// A newer format has more fields, and other kinds of values where this one has none.
func TestDecode(t *testing.T) {
	if f, err := Decode([]byte(`{"format": 9, "node": "n", "weather": {"sun": 1}, "options": {"sync.new": "x"}}`)); err != nil || f.Node != "n" {
		t.Errorf("a newer format reads as %+v, %v", f, err)
	} else if got := Compare(Gather(sources(trunk)), f, "b", time.Time{}); Errors(got) == 0 {
		t.Error("nothing differs from nothing")
	}
	long, _ := json.Marshal(Facts{Format: 1, NAT: policy.NATChains{Chains: []policy.NATChain{{Rules: [][]policy.NATWord{make([]policy.NATWord, maxWords+1)}}}}})
	many, _ := json.Marshal(Facts{Format: 1, NAT: policy.NATChains{Chains: []policy.NATChain{{Rules: make([][]policy.NATWord, maxRules+1)}}}})
	for _, bad := range []string{"", "{}", "[]", `{"format": 0}`, `{"format": 1, "pins": [{"vips": ["x"]}]}`, `{"format": 1, "pins": 7}`, `{"format":1,"nat":{"chains":[{"rules":[["#1-x"]]}]}}`, string(long), string(many)} {
		if f, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%.60s reads as %+v", bad, f)
		}
	}
}

func FuzzDecode(f *testing.F) {
	own := Gather(sources(trunk))
	other := Gather(sources(nics))
	encoded, _ := other.Encode()
	f.Add(encoded)
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if facts, err := Decode(text); err == nil {
			Compare(own, facts, "b", noon)
			Compare(facts, own, "b", noon)
		}
	})
}
