// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os/exec"
	"strings"
	"testing"
)

// inForward is an nft table whose forward chain has these rules.
func inForward(rules string) string {
	return "table inet filter { chain forward { type filter hook forward priority filter; policy accept;\n" + rules + "\n}\n}"
}

// firewalls are rule sets, and what in them can change without an event.
var firewalls = []struct {
	name, rules string
	want        string // a part of why; "": nothing
}{
	{"no rules", "", ""},
	{"stateful firewall", inForward(`ct state invalid drop
		ct state established,related accept
		iifname "lan0" oifname "wan0" accept
		tcp dport { 22, 80, 443 } counter accept
		ip saddr 198.51.100.0/24 log prefix "x" drop
		reject with icmpx admin-prohibited`), ""},
	{"limit", inForward("limit rate 10/second accept"), "limit in inet filter forward"},
	{"limit of new ones", inForward("ct state new limit rate 10/second accept"), ""},
	{"limit of others than established", inForward("ct state { new, untracked } limit rate 10/second accept"), ""},
	{"limit of some that are established", inForward("ct state { new, established } limit rate 10/second accept"), "limit"},
	{"limit of established ones", inForward("ct state established limit rate over 1 mbytes/second drop"), "limit"},
	{"limit of established ones of a host", inForward("ct state established ip saddr 198.51.100.1 limit rate 1/second accept"), "limit"},
	{"limit of established ones of a host, of IPv4 alone", `table ip filter { chain forward { type filter hook forward priority 0;
		ct state established ip saddr 198.51.100.1 limit rate 1/second accept; } }`, "limit in ip filter forward"},
	{"limit of some states and marks", inForward("ct state . meta mark { established . 7, new . 8 } limit rate 1/second accept"), "limit"},
	{"limit of some of those that are not new", inForward("ct state != new tcp dport 22 limit rate 1/second accept"), "limit"},
	{"limit of some states and ports", inForward("ct state . tcp dport { established . 22, new . 80 } limit rate 1/second accept"), "limit"},
	{"limit behind a map of states and ports", `table inet filter { chain odd { limit rate 1/second accept; }
		chain forward { type filter hook forward priority 0; ct state . tcp dport vmap { established . 22 : jump odd }; } }`, "limit in inet filter odd"},
	{"limit of what is not new", inForward("ct state != new limit rate 10/second accept"), "limit"},
	{"limit after established ones have gone", inForward("ct state established,related counter accept\nlimit rate 10/second accept"), ""},
	{"limit after some have gone", inForward("iifname \"lan0\" ct state established accept\nlimit rate 10/second accept"), "limit"},
	{"limit after new ones have gone", inForward("ct state new accept\nlimit rate 10/second accept"), "limit"},
	{"limit after a map of states", inForward("ct state vmap { established : accept, related : accept, invalid : drop }\nlimit rate 1/second accept"), ""},
	{"limit in a chain that a map of states leads to", `table inet filter { chain odd { limit rate 1/second accept; }
		chain forward { type filter hook forward priority 0; ct state vmap { established : jump odd, new : accept }; } }`, "limit in inet filter odd"},
	{"limit in a chain that a map leads new ones to", `table inet filter { chain odd { limit rate 1/second accept; }
		chain forward { type filter hook forward priority 0; ct state vmap { new : jump odd, invalid : drop }; } }`, ""},
	{"limit in a chain that a map of ports leads to", `table inet filter { chain odd { limit rate 1/second accept; }
		chain forward { type filter hook forward priority 0; tcp dport vmap { 22 : jump odd, 80 : accept }; } }`, "limit in inet filter odd"},
	{"limit in a chain behind a jump", `table inet filter { chain odd { limit rate 1/second accept; }
		chain forward { type filter hook forward priority 0; tcp dport 22 jump odd; } }`, "limit in inet filter odd"},
	{"limit behind a chain in which established ones end", `table inet filter { chain states { ct state established,related accept; }
		chain forward { type filter hook forward priority 0; jump states; limit rate 1/second accept; } }`, ""},
	{"limit behind a jump of some to such a chain", `table inet filter { chain states { ct state established,related accept; }
		chain forward { type filter hook forward priority 0; tcp dport 1 jump states; limit rate 1/second accept; } }`, "limit"},
	{"limit after a goto", `table inet filter { chain other { counter; }
		chain forward { type filter hook forward priority 0; goto other; limit rate 1/second accept; } }`, ""},
	{"limit after a return", inForward("return\nlimit rate 1/second accept"), ""},
	{"limit in a chain that nothing leads to", "table inet filter { chain odd { limit rate 1/second accept; } }", ""},
	{"limit of the router's own packets", `table inet filter { chain input { type filter hook input priority 0; limit rate 1/second accept; }
		chain output { type filter hook output priority 0; limit rate 1/second accept; } }`, ""},
	{"limit in prerouting", "table ip raw { chain pre { type filter hook prerouting priority raw; limit rate 1/second accept; } }", "limit in ip raw pre"},
	{"limit of what is invalid", inForward("ct state invalid limit rate 1/second log"), ""},
	{"limit of what is invalid, as everything is before conntrack",
		"table ip raw { chain pre { type filter hook prerouting priority raw; ct state invalid limit rate 1/second drop; } }", "limit in ip raw pre"},
	{"limit after established ones have gone, before conntrack", `table inet raw { chain states { ct state established accept; }
		chain pre { type filter hook prerouting priority raw; jump states; limit rate 1/second accept; }
		chain forward { type filter hook forward priority 0; jump states; limit rate 1/second accept; } }`, "limit in inet raw pre"},
	{"limit in another base chain", `table inet filter { chain forward { type filter hook forward priority 0; ct state established accept; } }
		table inet more { chain post { type filter hook postrouting priority 0; limit rate 1/second accept; } }`, "limit in inet more post"},
	{"limit of IPv6", "table ip6 filter { chain forward { type filter hook forward priority 0; limit rate 1/second accept; } }", "limit in ip6 filter forward"},
	{"limit at the ingress of a device", `table netdev filter { chain in { type filter hook ingress device "lo" priority 0; limit rate 1/second accept; } }`, "limit in netdev filter in"},
	{"masquerade and its random numbers", `table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade;
		ip saddr 198.51.100.1 snat to numgen random mod 2 map { 0 : 203.0.113.1, 1 : 203.0.113.2 }; } }`, ""},
	{"quota", inForward("quota over 10 mbytes drop"), "quota"},
	{"named quota", "table inet filter { quota q { over 10 mbytes } \n chain forward { type filter hook forward priority 0; quota name \"q\" drop; } }", "quota q"},
	{"named limit", "table inet filter { limit l { rate 1/second } \n chain forward { type filter hook forward priority 0; limit name \"l\" drop; } }", "limit l"},
	{"named counter", "table inet filter { counter c { } \n chain forward { type filter hook forward priority 0; counter name \"c\" drop; } }", ""},
	{"map of named counters", `table inet filter { counter c { }
		chain forward { type filter hook forward priority 0; counter name ip saddr map { 198.51.100.1 : "c" }; } }`, "a map of objects"},
	{"connlimit", inForward("ct count over 20 reject"), "connlimit"},
	{"numgen", inForward("numgen inc mod 10 0 drop"), "numgen"},
	{"random", inForward("meta random 1-1000 drop"), "meta random"},
	{"time of day", inForward(`meta hour "08:00"-"17:00" drop`), "meta time"},
	{"day", inForward(`meta day "Sunday" drop`), "meta time"},
	{"time", inForward(`meta time > "2030-01-01" drop`), "meta time"},
	{"cpu", inForward("meta cpu 0 drop"), "meta cpu"},
	{"connection mark", inForward("ct mark 7 drop"), "ct mark"},
	{"connection mark that is set", inForward("ct mark set 7"), ""},
	{"connection's bytes", inForward("ct bytes > 1000000 drop"), "ct bytes"},
	{"set of blocked hosts", "table inet filter { set s { type ipv4_addr; } \n chain forward { type filter hook forward priority 0; ip saddr @s drop; } }", ""},
	{"set with timeouts", "table inet filter { set s { type ipv4_addr; timeout 1h; } \n chain forward { type filter hook forward priority 0; ip saddr @s drop; } }", "set s"},
	{"set that packets fill", `table inet filter { set s { type ipv4_addr; flags dynamic; size 1000; }
		chain forward { type filter hook forward priority 0; update @s { ip saddr limit rate over 10/second } drop; } }`, "a set that packets fill"},
	{"set that new connections fill", `table inet filter { set s { type ipv4_addr; flags dynamic; size 1000; }
		chain forward { type filter hook forward priority 0; ct state new add @s { ip saddr }; } }`, ""},
	{"set that packets have filled", `table inet filter { set s { type ipv4_addr; flags dynamic; size 1000; }
		chain forward { type filter hook forward priority 0; ip saddr @s drop; } }`, "set s"},
	{"set with counters", `table inet filter { set s { type ipv4_addr; counter; }
		chain forward { type filter hook forward priority 0; ip saddr @s drop; } }`, ""},
	{"set with quotas", `table inet filter { set s { type ipv4_addr; quota over 500 bytes; }
		chain forward { type filter hook forward priority 0; ip saddr @s drop; } }`, "set s, whose elements have a state"},
	{"map of prefixes", inForward("ip saddr vmap { 198.51.100.0/24 : drop, 203.0.113.0/24 : accept }"), ""},
	{"reverse path", "table inet filter { chain pre { type filter hook prerouting priority raw; fib saddr . iif oif missing drop; } }", ""},
	{"clamped MSS", inForward("tcp flags syn tcp option maxseg size set rt mtu"), ""},
	{"policies of IPsec", inForward("meta secpath exists accept"), ""},
	{"marks", inForward("meta mark & 0xff == 0x12 meta mark set 0x13"), ""},
	{"synproxy", inForward("synproxy mss 1460 wscale 7"), "synproxy"},
	{"a table of ours", "table inet vippin-quiet { chain odd { type filter hook prerouting priority 0; limit rate 1/second drop; } }", ""},
}

// TestSilentFirewall: what in real rule sets can change without an event.
func TestSilentFirewall(t *testing.T) {
	enterNamespace(t)
	for _, c := range firewalls {
		nft(t, "flush ruleset\n"+strings.ReplaceAll(c.rules, "} }", "}\n}")) // nft wants it so
		found, err := readFindings(nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		why := found.why()
		if c.want == "" && why != "" || !strings.Contains(why, c.want) {
			t.Errorf("%s: %q, want %q", c.name, why, c.want)
		}
	}
}

func command(t *testing.T, line string) {
	t.Helper()
	words := strings.Fields(line)
	if output, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, output)
	}
}

// TestSilentIptables: rules of iptables-nft that nf_tables cannot do itself, and the
// mere presence of iptables-legacy's tables.
func TestSilentIptables(t *testing.T) {
	enterNamespace(t)
	for _, c := range []struct{ line, want string }{
		{"iptables-nft -A FORWARD -s 198.51.100.1 -j DROP", ""},
		{"ip6tables-nft -A FORWARD -s 2001:db8::1 -j DROP", ""},
		{"iptables-nft -A INPUT -m quota --quota 1000 -j ACCEPT", ""},
		{"iptables-nft -t nat -A POSTROUTING -o wan0 -j MASQUERADE", ""},
		{"iptables-nft -A FORWARD -m quota --quota 1000 -j ACCEPT", "iptables match quota in ip filter FORWARD"},
		{"ip6tables-nft -A FORWARD -m time --timestart 08:00 -j DROP", "iptables match time in ip6 filter FORWARD"},
		{"iptables-nft -t mangle -A FORWARD -j TTL --ttl-set 64", "iptables target TTL in ip mangle FORWARD"},
		{"iptables-nft -A FORWARD -m statistic --mode random --probability 0.5 -j DROP", "iptables match statistic"},
		{"iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", ""},
		{"iptables-nft -A FORWARD -m state --state ESTABLISHED -j ACCEPT", ""},
		{"iptables-nft -A FORWARD -m conntrack --ctstate NEW -m quota --quota 1000 -j ACCEPT", ""},
		{"iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED -m quota --quota 1000 -j ACCEPT", "iptables match quota"},
		{"iptables-nft -A FORWARD -m conntrack ! --ctstate NEW -m quota --quota 1000 -j ACCEPT", "iptables match quota"},
		{"iptables-nft -A FORWARD -m conntrack --ctstate SNAT -j ACCEPT", "iptables match conntrack"},
		{"iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED --ctexpire 10:20 -j ACCEPT", "iptables match conntrack"},
		{"iptables-nft -t raw -A PREROUTING -m conntrack --ctstate ESTABLISHED -j ACCEPT", "iptables match conntrack"},
		{"iptables-nft -A FORWARD -m limit --limit 1/s -j ACCEPT", "limit in ip filter FORWARD"},
		{"ip6tables-legacy -t mangle -L", "ip6tables-legacy table mangle"},
		{"iptables-legacy -A FORWARD -s 198.51.100.1 -j DROP", "iptables-legacy table filter, ip6tables-legacy table mangle"},
	} {
		nft(t, "flush ruleset")
		command(t, c.line)
		found, err := readFindings(nil)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
		}
		why := found.why()
		if c.want == "" && why != "" || !strings.Contains(why, c.want) {
			t.Errorf("%s: %q, want %q", c.line, why, c.want)
		}
	}
}
