// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/json"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

// written is this namespace's rules that translate, a line each.
func written(t *testing.T) (lines []string) {
	t.Helper()
	chains, err := readNATChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range chains {
		for _, rule := range chain.Rules {
			text, err := json.Marshal(rule)
			if err != nil {
				t.Fatal(err)
			}
			var again []policy.NATWord
			if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(again, rule) {
				t.Errorf("%s reads as %v, %v, want %v", text, again, err, rule)
			}
			var words []string
			for _, w := range rule {
				words = append(words, w.String())
			}
			lines = append(lines, strings.TrimSpace(chain.Hook+" "+chain.Name)+": "+strings.Join(words, " "))
		}
	}
	return lines
}

// What nft(8) is told is what is read back, as far as flows go by it.
func TestReadNATChains(t *testing.T) {
	enterNamespace(t)
	addVeth(t, "wan0", "far0")
	nft(t, `
table inet nat {
	set inside { type ipv4_addr; flags interval; elements = { 192.168.101.0/24, 192.168.7.1-192.168.7.9 } }
	set learned { type ipv4_addr; flags dynamic,timeout; timeout 1m; elements = { 203.0.113.1 } }
	chain later { type nat hook postrouting priority 110; policy accept; masquerade fully-random; }
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "wan*" ip saddr 192.168.101.0/24 counter masquerade comment "all"
		oifname { "wan0", "eth0.2" } ip6 saddr 2001:db8:101::/64 masquerade random
		oif "wan0" ip saddr @inside ip daddr != 198.18.0.0/15 snat ip to 198.51.100.3-198.51.100.5
		ip saddr @learned meta l4proto udp log prefix "x" snat ip to 198.51.100.3:1024-2048 persistent
		iifname . oifname vmap { "lan0" . "wan0" : jump inner }
		meta mark & 0xf == 3 tcp dport { 80, 443 } masquerade
		ip saddr 192.168.0.0/20 udp sport 1000-2000 masquerade to :5000-6000
	}
	chain inner { ip protocol icmp return; ct state established accept; snat ip to ip daddr map { 203.0.113.1 : 198.51.100.7 }; }
	chain unused { masquerade; };
}
table ip nat4 {
	chain pre { type nat hook prerouting priority dstnat; ip daddr 198.51.100.2 tcp dport 443 dnat to 192.168.101.9:8443; tcp dport 81 redirect to :8081; };
}
table inet filter { chain post { type filter hook postrouting priority 0; oifname "wan0" accept; }; }
`)
	want := []string{
		"prerouting pre: ip daddr 198.51.100.2 l4proto tcp dport 443 dnat to 192.168.101.9 port 8443",
		"prerouting pre: l4proto tcp dport 81 redirect port 8081",
		"postrouting postrouting: oifname wan* nfproto ipv4 ip saddr 192.168.101.0/24 masquerade",
		"postrouting postrouting: oifname { eth0.2 , wan0 } nfproto ipv6 ip6 saddr 2001:db8:101::/64 masquerade random",
		"postrouting postrouting: oifname wan0 nfproto ipv4 ip saddr { 192.168.101.0/24 , 192.168.7.1-192.168.7.9 } ip daddr != 198.18.0.0/15 snat to 198.51.100.3-198.51.100.5",
		"postrouting postrouting: nfproto ipv4 ip saddr @learned l4proto udp snat to 198.51.100.3 port 1024-2048 persistent",
		"postrouting postrouting: iifname . oifname { lan0 . wan0 : jump inner }",
		"postrouting postrouting: mark & 0x0f000000 0x3 l4proto tcp dport { 443 , 80 } masquerade",
		"postrouting postrouting: nfproto ipv4 ip saddr 192.168.0.0/20 l4proto udp sport >= 1000 sport <= 2000 masquerade port 5000-6000",
		"postrouting later: masquerade fully-random",
		"inner: nfproto ipv4 l4proto icmp return",
		"inner: ct state & 0x02000000 != 0x0 accept",
		"inner: nfproto ipv4 snat to ip daddr { 203.0.113.1 : 198.51.100.7 }",
	}
	if got := written(t); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What counts, or is only said, makes no difference; addresses stand apart from
// what the library does not know.
func TestReadNATChainsOfIPTables(t *testing.T) {
	enterNamespace(t)
	for _, command := range []string{
		"iptables-nft -t nat -A POSTROUTING -s 192.168.101.0/24 -o wan+ -m comment --comment all -j MASQUERADE",
		"iptables-nft -t nat -A POSTROUTING ! -o lan0 -p tcp --dport 80 -j SNAT --to-source 198.51.100.2-198.51.100.3",
		"iptables-nft -t nat -A PREROUTING -d 198.51.100.2 -p tcp -m multiport --dports 80,443 -j DNAT --to-destination 192.168.101.9:8080",
		"iptables-nft -t nat -N MORE", "iptables-nft -t nat -A POSTROUTING -j MORE",
		"ip6tables-nft -t nat -A POSTROUTING -o wan0 -j SNAT --to-source 2001:db8::2",
		"ip6tables-nft -t nat -A POSTROUTING -j MASQUERADE --random",
	} {
		words := strings.Fields(command)
		if output, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, output)
		}
	}
	want := []string{
		"prerouting PREROUTING: l4proto tcp ip daddr 198.51.100.2 multiport.1 0x01025000bb01" + strings.Repeat("0", 84) + " dnat to 192.168.101.9 port 8080",
		"postrouting POSTROUTING: oifname wan* ip saddr 192.168.101.0/24 masquerade",
		"postrouting POSTROUTING: oifname != lan0 l4proto tcp dport 80 snat to 198.51.100.2/31",
		"postrouting POSTROUTING: jump MORE",
		"postrouting POSTROUTING: oifname wan0 snat to 2001:db8::2",
		"postrouting POSTROUTING: masquerade random",
	}
	if got := written(t); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What is no setting, or bears on no flow, is not compared.
func TestAlikeFromFiles(t *testing.T) {
	root := aMachine()
	for name, value := range map[string]string{
		"nf_conntrack_tcp_loose": "1", "nf_conntrack_count": "77", "nf_conntrack_buckets": "65536", "nf_log_all_netns": "0",
	} {
		root["proc/sys/net/netfilter/"+name] = file(value + "\n")
	}
	root["proc/42/comm"], root["proc/43/comm"], root["proc/44/comm"] = file("systemd-timesyn\n"), file("chronyd\n"), file("chronyd\n")
	r := machineReader{root: root}
	want := map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0.2/rp_filter": "1",
		"net/netfilter/nf_conntrack_max": "262144", "net/netfilter/nf_conntrack_tcp_loose": "1",
	}
	if got := r.alike([]string{"eth0.2"}); !reflect.DeepEqual(got, want) {
		t.Errorf("settings %v, want %v", got, want)
	}
	if got, want := r.running(timeDaemons), []string{"chronyd", "systemd-timesyn"}; !slices.Equal(got, want) {
		t.Errorf("programs %v, want %v", got, want)
	}
}

func TestLikenessHere(t *testing.T) {
	enterNamespace(t)
	index := addVeth(t, "wan0", "far0")
	l := Likeness([]string{"wan0"})
	if len(l.Unread) > 0 || !l.NAT.Known || l.MTU[index] != 1500 || l.Kernel == "" || l.Sysctls["net/ipv4/conf/wan0/rp_filter"] == "" ||
		l.Sysctls["net/netfilter/nf_conntrack_tcp_be_liberal"] == "" || l.Clock.Time.IsZero() {
		t.Errorf("got %+v", l)
	}
}
