// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
	"vippin/policy/parity"
	"vippin/test/lab"
)

// onTrunk is onWAN for a router whose interfaces are called as a trunk's VLANs.
var onTrunk = strings.Replace(onWAN, "interface: wan0", "interface: eth0.2", 1)

// trunkNames is what the segments' interfaces are called there.
var trunkNames = map[string]string{"wan0": "eth0.2", "lan0": "eth0.101"}

// setUnlike builds a pair of which ra's interfaces are called like a trunk's.
func setUnlike(t *testing.T, name string) *pair {
	t.Helper()
	s := setScene(t, name, lab.Options{Hosts: 1})
	s.must(s.AddSyncLink())
	for was, is := range trunkNames {
		s.ip(s.RA.Node, "link set "+was+" name "+is)
	}
	s.ip(s.RA.Node, "link set "+lab.SyncLink+" name eth1.9")
	s.natRules(s.RA, `oifname "eth0.2" ip saddr 192.168.101.0/24 masquerade`, `oifname { "eth0.2" } ip6 saddr 2001:db8:101::/64 counter masquerade`,
		fmt.Sprintf(`oifname "eth0.101" snat ip to %s`, lab.LAN.RA.V4))
	s.natRules(s.RB, healthyRules...)
	p := &pair{scene: s}
	_, err := s.StartKeepalived(s.RA, lab.Keepalived{Names: trunkNames})
	s.must(err)
	s.must(s.RA.AwaitMaster(s.ctx))
	_, err = s.StartKeepalived(s.RB, lab.Keepalived{})
	s.must(err)
	s.start(s.RA, p.config(s.RA, onTrunk))
	s.start(s.RB, p.config(s.RB, onWAN))
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitRole(s.RB, policy.RoleBackup)
	p.awaitSync()
	return p
}

// healthyRules are rb's, which say the same as ra's in other words.
var healthyRules = []string{
	`oifname "wan*" ip saddr 192.168.101.0/24 masquerade`, `oifname "wan0" ip6 saddr 2001:db8:101::/64 masquerade comment "six"`,
	fmt.Sprintf(`oif "lan0" snat ip to %s`, lab.LAN.RB.V4),
}

// natRules replaces a router's NAT rules.
func (s *scene) natRules(r *lab.Router, rules ...string) {
	s.t.Helper()
	s.must(r.NFT(s.ctx, "table inet nat\ndelete table inet nat\ntable inet nat {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat;\n\t\t"+
		strings.Join(rules, "\n\t\t")+"\n\t}\n}\n"))
}

// parity is "vippin parity -j"; differences are an answer too.
func (p *pair) parity(r *lab.Router) (found []policy.Difference) {
	p.t.Helper()
	out, complaint, exit := p.Vippin(r, "parity", "-j")
	if exit != 0 && exit != 1 || out == "" {
		p.t.Fatalf("vippin parity on %s: exit %d: %s\n%s", r.Name, exit, complaint, p.Describe())
	}
	p.must(json.Unmarshal([]byte(out), &found))
	if (len(found) == 0) != (exit == 0) {
		p.t.Errorf("vippin parity on %s: exit %d with %d differences", r.Name, exit, len(found))
	}
	return found
}

// awaitParity waits until a router finds just these differences, each as
// "state check about: here | there".
func (p *pair) awaitParity(r *lab.Router, want ...string) {
	p.t.Helper()
	var got []string
	short, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	err := lab.Await(short, fmt.Sprintf("the differences %q on %s", want, r.Name), func() (bool, error) {
		got = got[:0]
		for _, d := range p.parity(r) {
			got = append(got, fmt.Sprintf("%s %s %s: %s | %s", d.State, d.Check, d.About, d.Here, d.There))
			if d.Breaks == "" || d.Peer != p.other(r).Name {
				p.t.Errorf("difference %+v", d)
			}
		}
		return slices.Equal(got, want), nil
	})
	if err != nil {
		p.t.Fatalf("%v\n%s finds\n%s", err, r.Name, strings.Join(got, "\n"))
	}
}

// configure has a router's configuration changed.
func (p *pair) reconfigure(r *lab.Router, config string) {
	p.t.Helper()
	p.must(p.WriteVippin(r, config))
	p.vippin(r, "reload")
}

// unlike is one way for rb to differ, and the way back.
type unlike struct {
	name         string
	harm, cure   func(p *pair)
	here, there  string // "" = nothing
	state, check string
	about        string
}

// edited has rb's pins written otherwise.
func edited(old, new string) func(p *pair) {
	return func(p *pair) {
		p.t.Helper()
		if !strings.Contains(onWAN, old) {
			p.t.Fatalf("%q is not in the configuration", old)
		}
		p.reconfigure(p.RB, p.config(p.RB, strings.Replace(onWAN, old, new, 1)))
	}
}

func asBefore(p *pair) { p.t.Helper(); p.reconfigure(p.RB, p.config(p.RB, onWAN)) }

func setting(key, value string) func(p *pair) {
	return func(p *pair) { p.t.Helper(); p.must(p.RB.Sysctl(key, value)) }
}

func ruled(rules ...string) func(p *pair) {
	return func(p *pair) { p.t.Helper(); p.natRules(p.RB, rules...) }
}

func toldBy(args ...string) func(p *pair) {
	return func(p *pair) { p.t.Helper(); p.vippin(p.RB, args...) }
}

func onRB(commands ...string) func(p *pair) {
	return func(p *pair) { p.t.Helper(); p.ip(p.RB.Node, commands...) }
}

var differences = []unlike{
	{"no pin", edited("pins:\n  - {vlan: 2, interface: wan0, vips: [198.51.100.2, \"2001:db8:100::2\"], group: RouterCore}", "pins: []"), asBefore,
		"no pin", "a pin with 198.51.100.2, 2001:db8:100::2", parity.Error, "vlan", "VLAN 2"},
	{"another VIP", edited("198.51.100.2", "198.51.100.77"), asBefore, "198.51.100.77", "198.51.100.2", parity.Error, "vip", "pin 2, source of IPv4"},
	{"one VIP more", edited("198.51.100.2,", "198.51.100.2, 198.51.100.77,"), asBefore, "198.51.100.77", "", parity.Error, "vip", "pin 2, further VIPs"},
	{"another VRID", edited("vrids: [20]", "vrids: [21]"), asBefore, "VRID 21", "VRID 20", parity.Error, "vrid", "VLAN 2, group RouterCore"},
	{"another group", func(p *pair) { p.reconfigure(p.RB, p.config(p.RB, strings.ReplaceAll(onWAN, "RouterCore", "Edge"))) }, asBefore,
		"Edge", "RouterCore", parity.Error, "group", "pin 2"},
	{"switched off", toldBy("pin", "off", "2"), toldBy("pin", "reset", "2"), "off (toggle)", "on (config)", parity.Error, "pin", "pin 2, the switch"},
	{"sources", edited("group: RouterCore}", "group: RouterCore, sources: [192.168.101.0/25]}"), asBefore,
		"192.168.101.0/25", "every inside host", parity.Error, "pin", "pin 2, sources"},
	{"another rule", ruled(healthyRules[0]+" random", healthyRules[1], healthyRules[2]), ruled(healthyRules...),
		"oifname VLAN 2 nfproto ipv4 ip saddr 192.168.101.0/24 masquerade random", "oifname VLAN 2 nfproto ipv4 ip saddr 192.168.101.0/24 masquerade",
		parity.Error, "nat", "postrouting (inet), rule 1"},
	{"a rule less", ruled(healthyRules[0], healthyRules[2]), ruled(healthyRules...),
		"", "oifname VLAN 2 nfproto ipv6 ip6 saddr 2001:db8:101::/64 masquerade", parity.Error, "nat", "postrouting (inet), rule 2"},
	{"the other's address in a rule", ruled(healthyRules[0], healthyRules[1], `oif "lan0" snat ip to `+lab.LAN.RA.V4.String()), ruled(healthyRules...),
		"oifname network 192.168.101.0/24 snat to " + lab.LAN.RA.V4.String(),
		"oifname network 192.168.101.0/24 snat to own address on network 192.168.101.0/24", parity.Error, "nat", "postrouting (inet), rule 3"},
	{"forwarding", setting("net/ipv4/conf/wan0/forwarding", "0"), setting("net/ipv4/conf/wan0/forwarding", "1"), "0", "1", parity.Error, "forwarding", "forwarding on VLAN 2"},
	{"conntrack", setting("net/netfilter/nf_conntrack_tcp_loose", "0"), setting("net/netfilter/nf_conntrack_tcp_loose", "1"),
		"0", "1", parity.Warning, "sysctl", "net.netfilter.nf_conntrack_tcp_loose"},
	{"reverse-path filter", setting("net/ipv4/conf/lan0/rp_filter", "1"), setting("net/ipv4/conf/lan0/rp_filter", "0"),
		"1", "0", parity.Warning, "sysctl", "rp_filter on network 192.168.101.0/24"},
	{"MTU", onRB("link set wan0 mtu 1400"), onRB("link set wan0 mtu 1500"), "1400", "1500", parity.Warning, "mtu", "VLAN 2"},
	{"prefix length", onRB("addr del 192.168.101.3/24 dev lan0", "addr add 192.168.101.3/25 dev lan0"),
		onRB("addr del 192.168.101.3/25 dev lan0", "addr add 192.168.101.3/24 dev lan0"),
		"192.168.101.0/25", "192.168.101.0/24", parity.Error, "network", "network 192.168.101.0/25"},
	{"scope", func(p *pair) { p.extra = "  scope: pinned\n"; asBefore(p); p.extra = "" }, asBefore, "pinned", "nat", parity.Error, "sync", "sync.scope"},
}

// Parity finds nothing on healthy routers, though one has a trunk's names and the
// other has not, and each difference that is made, from the router that changed and
// from the other.
func TestParity(t *testing.T) {
	t.Parallel()
	p := setUnlike(t, "parity")
	p.awaitParity(p.RA)
	p.awaitParity(p.RB)
	orDash := func(text string) string {
		if text == "" {
			return "-"
		}
		return text
	}
	for i, d := range differences {
		p.run(d.name, func(s *scene) {
			q := &pair{scene: s}
			here, there := orDash(d.here), orDash(d.there)
			defer func() {
				d.cure(q)
				q.awaitParity(q.RB)
			}()
			d.harm(q)
			q.awaitParity(q.RB, fmt.Sprintf("%s %s %s: %s | %s", d.state, d.check, d.about, here, there))
			if i == 1 { // the peer is told, too; some seconds may lie between two digests
				q.awaitParity(q.RA, fmt.Sprintf("%s %s %s: %s | %s", d.state, d.check, d.about, there, here))
				for _, r := range q.Routers() {
					if got := q.status(r).Warnings; !slices.ContainsFunc(got, func(w string) bool {
						return strings.HasPrefix(w, "1 difference with peer "+q.other(r).Name+" would break connections")
					}) {
						q.t.Errorf("status of %s does not warn: %q", r.Name, got)
					}
				}
			}
		})
	}
	p.must(p.RA.Keepalived().Stop()) // both have advertised then
	p.awaitRole(p.RB, policy.RoleMaster)
	p.awaitParity(p.RA)
	p.awaitParity(p.RB)
	p.otherTier()
	p.alone()
}

// otherTier starts rb's daemon again where the kernel describes no types.
func (p *pair) otherTier() {
	if p.Options.NoBTF {
		return
	}
	daemon := p.start(p.RB, p.config(p.RB, onWAN))
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", daemon.Pid()))
	p.must(err)
	p.must(daemon.Stop())
	_, err = p.RB.Start(p.RB.Dir, "vippin-nobtf", nil, "unshare", "--mount", "sh", "-c", `mount -t tmpfs none /sys/kernel/btf && exec "$@"`, "no-btf",
		program, "run", "-c", p.RB.ConfigFile())
	p.must(err)
	p.must(lab.Await(p.ctx, "an answer of rb", func() (bool, error) {
		_, _, exit := p.Vippin(p.RB, "status", "-j")
		return exit == 0 || exit == 3, nil
	}))
	p.awaitPeer(p.RB, "up")
	found := p.parity(p.RB)
	if len(found) != 1 || found[0].Check != "tier" || !strings.Contains(found[0].Here, "marks") || strings.Contains(found[0].There, "marks") {
		p.t.Errorf("without BTF rb finds %+v", found)
	}
}

// alone cuts the link: there is nobody to compare with, and nothing to warn of.
func (p *pair) alone() {
	warns := func() bool {
		return slices.ContainsFunc(p.status(p.RA).Warnings, func(w string) bool { return strings.Contains(w, "with peer rb would break") })
	}
	p.natRules(p.RB, healthyRules[0])
	p.parity(p.RB) // looks
	p.must(lab.Await(p.ctx, "a warning on ra", func() (bool, error) { return warns(), nil }))
	p.must(p.CutSync(p.RB))
	p.must(lab.Await(p.ctx, "ra without a peer", func() (bool, error) {
		out, complaint, exit := p.Vippin(p.RA, "parity")
		return exit == 1 && out == "" && strings.Contains(complaint, "vippin peers"), nil
	}))
	if warns() {
		p.t.Error("ra warns of differences with a peer that has gone")
	}
}
