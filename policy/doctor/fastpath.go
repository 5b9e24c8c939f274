// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"slices"
	"strings"

	"vippin/policy"
)

// fastpathWord begins what "status" warns of the fast path, which is judged here.
const fastpathWord = "fast path" // ": …", " on eth0: …"

// The fast path of a daemon that runs: without one there is none, which checkDaemon
// says.
func checkFastpath(v *view) []Finding {
	if v.Daemon == nil || v.Daemon.Status.Fastpath == nil {
		return nil
	}
	s := v.Daemon.Status.Fastpath
	var found []Finding
	if !s.Open {
		found = append(found, warning(closedRemedy(s), "the fast path is on but closed, and every packet takes the stack: %s", s.Closed))
	}
	for _, device := range s.Interfaces {
		if device.Refused != "" {
			found = append(found, warning(refusedRemedy(device), "%s does not take the fast path: %s", device.Interface, device.Refused))
			continue
		}
		for _, text := range device.Warnings {
			f := warning(deviceRemedy(device, text), "fast path on %s: %s", device.Interface, text)
			if v.Config != nil && v.Config.Fastpath.Force && strings.Contains(text, "queue discipline") { // as was asked for
				f.State = OK
			}
			found = append(found, f)
		}
	}
	for _, text := range s.Warnings {
		found = append(found, warning(lines("journalctl -u vippin -n 50", "vippin fastpath ls"), "fast path: %s", text))
	}
	if s.Open {
		found = append(found, meters(v, s)...)
		found = append(found, dominant(s)...)
	}
	return unless(found, "the fast path forwards: %d of %d packets", s.Packets[policy.FastpathForwarded], packetsIn(s))
}

func closedRemedy(s *policy.FastpathState) string {
	if strings.HasSuffix(s.Closed, policy.FastpathQueues) {
		rules := "nft -a list ruleset | grep -E 'queue|NFQUEUE'"
		if strings.Contains(s.Closed, "-legacy") {
			rules = lines("iptables-legacy-save | grep NFQUEUE", "ip6tables-legacy-save | grep NFQUEUE")
		}
		return lines("# an intrusion prevention system or the like is to see every packet, so none may pass it by. Otherwise: let the rule",
			"# match new connections alone (ct state new), or name its interfaces (iifname, oifname) and leave those out of",
			"# fastpath.interfaces, or take it away, or do without the fast path. This is the rule:",
			rules, "vippin fastpath off")
	}
	if len(s.Interfaces) == 0 {
		return lines("# name the devices, inside and outside, in the configuration (not the VLANs on them):",
			"# fastpath: {enabled: true, interfaces: [eth0]}", "vippin check && vippin reload")
	}
	return lines("vippin fastpath ls", "journalctl -u vippin -n 50", "# or do without it:", "vippin fastpath off")
}

// meters finds a rule that would do something else if it saw every packet. Where
// fastpath.force is set it may be meant so.
func meters(v *view, s *policy.FastpathState) []Finding {
	rule, isMeter := strings.CutSuffix(s.PaceWhy, policy.FastpathMeters)
	if !isMeter {
		return nil
	}
	f := warning(lines("# if it need not see established connections, accept those before it (ct state established accept), or let it match new ones",
		"# alone; else name its interfaces (iifname, oifname) and leave those out of fastpath.interfaces, or do without the fast path:",
		"nft -a list ruleset", "vippin fastpath off"),
		"fast path: %s goes by how many packets it sees, and sees one in %g s of each connection that takes the fast path", rule, s.PaceS)
	if v.Config != nil && v.Config.Fastpath.Force {
		f.State = OK
	}
	return only(f)
}

// refusals tell from the words of a refusal what to do about it; DEV is the
// interface.
var refusals = []struct{ word, remedy string }{
	{"queue discipline", lines("# do without it, or let the fast path pass it by (fastpath: {force: true} in the configuration, vippin reload); this is the one:",
		"tc qdisc show dev DEV")},
	{"GRO", lines("# at the veth's other end, PEER:", "ethtool -K PEER gro on")},
	{"XDP program", lines("# whose is it? It is not replaced:", "ip -d link show dev DEV", "bpftool net show dev DEV")},
	{"no such interface", lines("# is it spelt so in fastpath.interfaces? These are there:", "ip -br link")},
	{"instead", lines("# change fastpath.interfaces in the configuration as told, then:", "vippin check && vippin reload")},
}

func refusedRemedy(device policy.FastpathDevice) string {
	if _, way, told := strings.Cut(device.Refused, "ethtool -K "+device.Interface); told {
		way, _, _ = strings.Cut(way, ",")
		return lines("# it stays off over a reboot where your network configuration says so, too:", "ethtool -K "+device.Interface+way)
	}
	for _, r := range refusals {
		if strings.Contains(device.Refused, r.word) {
			return strings.ReplaceAll(r.remedy, "DEV", device.Interface)
		}
	}
	return lines("# take it out of fastpath.interfaces, if it is to stay so:", "ip -d link show dev "+device.Interface)
}

func deviceRemedy(device policy.FastpathDevice, text string) string {
	switch {
	case strings.Contains(text, " at tc "):
		return lines("# whose is it? If it has to see or drop these packets, switch the fast path off (vippin fastpath off):",
			"bpftool net show", "tc filter show dev "+device.Interface+" egress", "tc filter show dev "+device.Interface+" ingress")
	case strings.Contains(text, "queue discipline"):
		return "tc qdisc show dev " + device.Interface
	case device.Mode == "generic":
		return lines("# a driver with XDP would be faster; which one is it?", "ethtool -i "+device.Interface)
	}
	return lines("ip -d link show dev "+device.Interface, "ethtool -k "+device.Interface)
}

// packetsIn are those that XDP saw.
func packetsIn(s *policy.FastpathState) (sum uint64) {
	for name, packets := range s.Packets {
		if name == policy.FastpathForwarded || !slices.Contains(policy.FastpathNotStack, name) {
			sum += packets
		}
	}
	return sum
}

// Where many packets came and this many of a hundred share one fate, that is no
// accident.
const (
	manyPackets = 10000
	nearlyAll   = 90
)

// fates say what it means when nearly all packets take the stack for one reason.
// What is usual somewhere (not_ip, protocol, flags, miss) is not there.
var fates = []struct{ exit, means, remedy string }{
	{"other_host", "frames come to other MACs than the interface's own: a virtual MAC that this router does not hold (\"vippin fastpath ls\" names those that it does), a bridge, or a switch that floods",
		lines("# whose MACs are these?", "tcpdump -c 20 -eni INTERFACE")},
	{"closed", "the daemon gave no sign of life for longer than vrrp.lease", "journalctl -u vippin -n 50"},
	{"stale", "something changes all the time: routes, firewall rules, links or roles", lines("# what is it?", "ip monitor", "nft monitor")},
	{"hop_gone", "neighbours change or fail all the time", "ip monitor neigh"},
	{"too_big", "packets are larger than the MTU where they are to go", "ip -br link"},
	{"fragment", "packets are fragments", "# which senders do that? Give them a smaller MTU, or let path MTU discovery work"},
	{"options", "packets have IP options", "tcpdump -c 20 -ni INTERFACE 'ip[0] & 0xf > 5'"},
	{"no_room", "the driver leaves no room for another VLAN tag", "ethtool -i INTERFACE"},
	{"drift", "conntrack is not told how far TCP connections are", "vippin fastpath ls"},
}

// lessons say what it means when nearly all packets teach nothing for one reason,
// while nearly nothing is forwarded.
var lessons = []struct{ refusal, means, remedy string }{
	{"no_note", "packets leave that XDP did not see come in: the NIC strips their VLAN tags, or they come in by an interface that is not named",
		lines("ethtool -K INTERFACE rxvlan off", "# and name the inside devices, too, in fastpath.interfaces")},
	{"not_pinned", "no pin takes these connections", lines("# let all established connections take the fast path, in the configuration:", "# fastpath: {all: true}")},
	{"changed", "something beside conntrack and routing changes packets: their addresses, TTL or traffic class", "nft list ruleset | grep -E 'dscp|ttl|hoplimit|set'"},
	{"no_conntrack", "conntrack does not know them", "nft list ruleset | grep -w notrack"},
	{"not_acked", "the peer does not acknowledge connections (sync.mode: strict)", "vippin peers"},
	{"not_liberal", "conntrack cannot be told to watch TCP windows no more", "journalctl -u vippin -n 50"},
	{"helper", "conntrack helpers, zones or flow tables have to do with them", "nft list ruleset | grep -E 'helper|zone|flow'"},
	{"full", "there is no room for more ways out", "ip neigh | wc -l"},
}

// dominant finds one reason that keeps nearly all packets on the stack.
func dominant(s *policy.FastpathState) []Finding {
	all := packetsIn(s)
	if all < manyPackets || s.Packets[policy.FastpathForwarded] > all/10 {
		return nil
	}
	for _, fate := range fates {
		if n := s.Packets[fate.exit]; n*100 >= all*nearlyAll {
			return only(warning(fate.remedy, "hardly any packet takes the fast path, and %d of %d do not for one reason (%s): %s", n, all, fate.exit, fate.means))
		}
	}
	var taught uint64
	for _, n := range s.Unlearnt {
		taught += n
	}
	for _, lesson := range lessons {
		if n := s.Unlearnt[lesson.refusal]; taught >= manyPackets && n*100 >= taught*nearlyAll {
			f := warning(lesson.remedy, "hardly any connection takes the fast path, since packets teach nothing, %d of %d (%s): %s",
				n, taught, lesson.refusal, lesson.means)
			if lesson.refusal == "not_pinned" { // it may be meant so
				f.State = OK
			}
			return only(f)
		}
	}
	return nil
}
