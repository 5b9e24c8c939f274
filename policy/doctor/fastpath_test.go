// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"testing"

	"vippin/policy"
)

// fast gives a healthy router a fast path that is well, and spoils it.
func fast(spoil func(s *policy.FastpathState)) func(*Facts) {
	return func(f *Facts) {
		s := &policy.FastpathState{
			Enabled: true, Open: true, Flows: 100, Unlearnt: map[string]uint64{"not_established": 20, "not_liberal": 3},
			Packets: map[string]uint64{"forwarded": 100000, "miss": 500, "flags": 100, "learnt": 200, "not_learnt": 23},
			Interfaces: []policy.FastpathDevice{
				{Interface: "eth0", Ifindex: 2, Mode: "native", VLANs: []policy.VLAN{{Outer: 2}, {Outer: 20}}},
				{Interface: "eth1", Ifindex: 9, Mode: "native"},
			},
		}
		spoil(s)
		f.Daemon.Status.Fastpath = s
		f.Daemon.Status.Warnings = append(f.Daemon.Status.Warnings, "fast path: what status says of it")
	}
}

func exits(exits map[string]uint64) func(*Facts) {
	return fast(func(s *policy.FastpathState) { s.Packets = exits })
}

func refused(why string) func(*Facts) {
	return fast(func(s *policy.FastpathState) { s.Interfaces[0].Mode, s.Interfaces[0].Refused = "", why })
}

func untaught(refusal string) func(*Facts) {
	return fast(func(s *policy.FastpathState) {
		s.Packets = map[string]uint64{"forwarded": 10, "miss": 50000}
		s.Unlearnt = map[string]uint64{refusal: 45000, "not_established": 300}
	})
}

var fastMutations = []mutation{
	{"closed", master, fast(func(s *policy.FastpathState) { s.Open, s.Closed = false, "this kernel lacks BTF" }),
		"fastpath", Warning, []string{"closed", "lacks BTF"}, []string{"vippin fastpath off"}},
	{"no interfaces", master, fast(func(s *policy.FastpathState) {
		s.Open, s.Closed, s.Interfaces = false, "fastpath.interfaces names no interface", nil
	}), "fastpath", Warning, []string{"names no interface"}, []string{"fastpath: {enabled: true, interfaces: [eth0]}", "vippin reload"}},
	{"packets go to a program", master, fast(func(s *policy.FastpathState) {
		s.Open, s.Closed = false, "nft rule with queue in inet ips forward"+policy.FastpathQueues
	}), "fastpath", Warning, []string{"closed", "queue in inet ips forward", "to a program"}, []string{"ct state new", "fastpath.interfaces", "grep -E 'queue|NFQUEUE'"}},
	{"packets go to a program by iptables-legacy", master, fast(func(s *policy.FastpathState) {
		s.Open, s.Closed = false, "rule with NFQUEUE in iptables-legacy table filter"+policy.FastpathQueues
	}), "fastpath", Warning, []string{"closed", "iptables-legacy table filter"}, []string{"ct state new", "\niptables-legacy-save | grep NFQUEUE"}},
	{"packets are metered", master, fast(func(s *policy.FastpathState) {
		s.PaceS, s.PaceWhy = 4, "nft rule with limit in inet filter forward"+policy.FastpathMeters
	}), "fastpath", Warning, []string{"limit in inet filter forward", "one in 4 s"}, []string{"nft -a list ruleset", "vippin fastpath off"}},
	{"stripped tags", master, refused("it takes VLAN tags off before XDP sees them: ethtool -K eth0 rx-vlan-hw-parse off, and at its other end …"),
		"fastpath", Warning, []string{"eth0 does not take the fast path", "VLAN tags"}, []string{"\nethtool -K eth0 rx-vlan-hw-parse off"}},
	{"shaped", master, refused("the queue discipline htb would not see what takes the fast path: remove it, …"),
		"fastpath", Warning, []string{"htb"}, []string{"tc qdisc show dev eth0", "force: true"}},
	{"foreign XDP", master, refused("the XDP program 77 of somebody else has it"), "fastpath", Warning, []string{"77"}, []string{"bpftool net show dev eth0"}},
	{"veth without GRO", master, refused(`a veth does when its other end has GRO ("ethtool -K PEER gro on") or an XDP program`),
		"fastpath", Warning, []string{"GRO"}, []string{"gro on"}},
	{"absent", master, refused("there is no such interface now; it is attached when it comes"), "fastpath", Warning, nil, []string{"ip -br link"}},
	{"a VLAN is named", master, refused("it is a vlan on eth0: name eth0 instead"), "fastpath", Warning, nil, []string{"vippin reload"}},
	{"refused otherwise", master, refused("its packets have no Ethernet header"), "fastpath", Warning, []string{"Ethernet"}, []string{"ip -d link show dev eth0"}},
	{"generic", master, fast(func(s *policy.FastpathState) {
		s.Interfaces[1].Mode, s.Interfaces[1].Warnings = "generic", []string{"its driver has no native XDP: generic XDP is slower"}
	}), "fastpath", Warning, []string{"eth1", "slower"}, []string{"ethtool -i eth1"}},
	{"another program at tc", master, fast(func(s *policy.FastpathState) {
		s.Interfaces[1].Warnings = []string{"the program police at tc ingress of eth1 does not see what takes the fast path"}
	}), "fastpath", Warning, []string{"police"}, []string{"tc filter show dev eth1 ingress"}},
	{"another warning of a device", master, fast(func(s *policy.FastpathState) { s.Interfaces[1].Warnings = []string{"odd"} }),
		"fastpath", Warning, []string{"eth1", "odd"}, []string{"ethtool -k eth1"}},
	{"asks dropped", master, fast(func(s *policy.FastpathState) { s.Warnings = []string{"12 requests were lost"} }),
		"fastpath", Warning, []string{"12 requests"}, []string{"journalctl"}},
	{"virtual MACs", master, exits(map[string]uint64{"other_host": 95000, "forwarded": 4000, "miss": 100}),
		"fastpath", Warning, []string{"95000 of 99100", "other_host", "virtual MAC"}, []string{"tcpdump"}},
	{"everything changes", master, exits(map[string]uint64{"stale": 95000, "forwarded": 100}), "fastpath", Warning, []string{"changes all the time"}, []string{"ip monitor"}},
	{"tags stripped after all", master, untaught("no_note"), "fastpath", Warning, []string{"45000 of 45300", "no_note"}, []string{"rxvlan off"}},
	{"changed by rules", master, untaught("changed"), "fastpath", Warning, []string{"TTL"}, []string{"nft list ruleset"}},
}

func TestFastpathMutations(t *testing.T) {
	for _, m := range fastMutations {
		t.Run(m.name, func(t *testing.T) { m.expect(t) })
	}
}

// What is usual is no finding.
func TestFastpathIsCalm(t *testing.T) {
	for name, oddity := range map[string]func(*Facts){
		"all well": fast(func(*policy.FastpathState) {}), "no packets": exits(nil),
		"a standby hears other hosts' frames": exits(map[string]uint64{"other_host": 9000}),
		"only pings":                          exits(map[string]uint64{"protocol": 95000}),
		"one of many reasons":                 exits(map[string]uint64{"other_host": 95000, "forwarded": 15000}),
		"nothing is pinned":                   untaught("not_pinned"),
		"only scans":                          untaught("not_established"),
		"switched off":                        func(*Facts) {},
		"rules change without a word": fast(func(s *policy.FastpathState) {
			s.PaceS, s.PaceWhy = 4, "nft rule with ct mark in inet filter forward"
		}),
		"metered, and forced": func(f *Facts) {
			f.Config.Fastpath.Force = true
			fast(func(s *policy.FastpathState) {
				s.PaceWhy = "nft rule with limit in inet filter forward" + policy.FastpathMeters
			})(f)
		},
		"shaped, and forced": func(f *Facts) {
			f.Config.Fastpath.Force = true
			fast(func(s *policy.FastpathState) {
				s.Interfaces[0].Warnings = []string{"the queue discipline htb does not see what takes the fast path"}
			})(f)
		},
	} {
		f := healthy(t, master)
		oddity(f)
		for _, one := range bad(Examine(*f)) {
			t.Errorf("%s: %+v", name, one)
		}
	}
}
