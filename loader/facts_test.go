// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"vippin/policy"
)

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func linkTo(target string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
}

// mounts is a mount table with a BPF file system of a device.
func mounts(bpf string) string {
	return "22 1 259:1 / / rw - ext4 /dev/root rw\n23 22 0:20 / /sys rw - sysfs sysfs rw\n" +
		"39 23 0:29 / /sys/fs/bp rw - tmpfs none rw\n40 23 0:30 / /sys/fs/bpf rw - bpf bpf rw\n43 23 " + bpf + " / /sys/fs/bpf rw - bpf bpf rw\n" +
		"44 23 0:31 / /sys/fs/bpf/vip rw - tmpfs none rw\n"
}

func aMachine() fstest.MapFS {
	return fstest.MapFS{
		"proc/sys/kernel/osrelease":                      file("6.1.0-28-amd64\n"),
		"proc/sys/net/ipv4/ip_forward":                   file("1\n"),
		"proc/sys/net/ipv4/conf/eth0.2/rp_filter":        file("1\n"),
		"proc/sys/net/netfilter/nf_conntrack_max":        file("262144\n"),
		"sys/class/dmi/id/sys_vendor":                    file("Microsoft Corporation\n"),
		"sys/class/dmi/id/product_name":                  file("Virtual Machine\n"),
		"sys/class/dmi/id/bios_vendor":                   file("American Megatrends\n"),
		"sys/class/dmi/id/chassis_asset_tag":             file("7783-7084-3265-9085-8269-3286-77\n"),
		"sys/kernel/btf/vmlinux":                         file("x"),
		"proc/thread-self/net/netstat":                   file("IpExt: A B\nIpExt: 1 2\nTcpExt: SyncookiesSent IPReversePathFilter Z\nTcpExt: 5 17 9\nIpExt: IPReversePathFilter\nIpExt: 3\n"),
		"proc/thread-self/net/ip_tables_names":           file("filter\nnat\n"),
		"proc/thread-self/net/ip6_tables_names":          file("filter\n"),
		"proc/thread-self/ns/net":                        linkTo("net:[4026531840]"),
		"proc/thread-self/mountinfo":                     file(mounts("0:39")),
		"proc/1/mountinfo":                               file(mounts("0:40")),
		"proc/1/comm":                                    file("systemd\n"),
		"proc/1/ns/net":                                  linkTo("net:[4026531840]"),
		"proc/77/comm":                                   file("conntrackd\n"),
		"proc/77/ns/net":                                 linkTo("net:[4026531840]"),
		"proc/78/comm":                                   file("conntrackd\n"),
		"proc/78/ns/net":                                 linkTo("net:[4026531999]"),
		"proc/79/comm":                                   file("conntrackd\n"),
		"proc/99/mountinfo":                              file("22 1 259:1 / / rw - ext4 /dev/root rw\n"),
		"proc/driver/comm":                               file("conntrackd\n"),
		"proc/sys/net/ipv4/conf/../../secret/forwarding": file("no path"),
	}
}

func TestMachineFromFiles(t *testing.T) {
	r := machineReader{root: aMachine(), pid: 99}
	got := r.files(MachineOptions{Interfaces: []string{"eth0.2", "../../secret"}})
	want := policy.Machine{
		Kernel: "6.1.0-28-amd64", BTF: true,
		Platform: policy.Platform{Vendor: "Microsoft Corporation", Product: "Virtual Machine", BIOS: "American Megatrends",
			Chassis: "7783-7084-3265-9085-8269-3286-77"},
		Sysctls: map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0.2/rp_filter": "1",
			"net/netfilter/nf_conntrack_max": "262144"},
		RPFDrops: 17, NAT: policy.NAT{Legacy: []string{"IPv4"}}, Conntrackd: []int{77},
		BPFFS: policy.BPFFS{Dir: DefaultBPFFS, Ours: "0:39", Host: "0:40", Daemon: "259:1"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestMachineFromNothing(t *testing.T) {
	got := machineReader{root: fstest.MapFS{}}.files(MachineOptions{BPFFS: "/run/x/"})
	want := policy.Machine{Sysctls: map[string]string{}, BPFFS: policy.BPFFS{Dir: "/run/x"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What this kernel says agrees with what the test knows of it.
func TestMachineHere(t *testing.T) {
	l := newLab(t)
	dir := testBPFFS(t)
	opts := MachineOptions{BPFFS: dir, DaemonPID: os.Getpid(), Interfaces: []string{"wan0"}}
	before := Machine(opts)
	if before.Loaded || before.Attached != nil || len(before.Unread) > 0 {
		t.Errorf("before load: %+v", before)
	}
	d := mustLoad(t, Options{BPFFS: dir})
	l.plan(t, d, true)
	m := Machine(opts)
	if !m.Loaded || !m.Attached[l.ifindex] || len(m.Attached) != 1 || len(m.Unread) > 0 {
		t.Errorf("loaded %t, attached %v, unread %q", m.Loaded, m.Attached, m.Unread)
	}
	if m.Kernel == "" || m.Sysctls["net/ipv4/ip_forward"] != "1" || m.Sysctls["net/ipv4/conf/wan0/forwarding"] != "1" {
		t.Errorf("kernel %q, sysctls %v", m.Kernel, m.Sysctls)
	}
	if b := m.BPFFS; !b.Mounted || b.Ours == "" || b.Ours != b.Daemon {
		t.Errorf("bpffs %+v", b)
	}
	if !m.NAT.Known || len(m.NAT.Rules) != 1 || !m.NAT.Rules[0].Masquerade {
		t.Errorf("NAT %+v", m.NAT)
	}
	await(t, "packets that left are counted", func() bool {
		sendSome(t, "wan0")
		return Machine(opts).Counters[l.ifindex].Out > 0
	})
	if err := os.Remove(d.linkPath(l.ifindex, egressHook)); err != nil {
		t.Fatal(err)
	}
	await(t, "a detached program", func() bool { return !Machine(opts).Attached[l.ifindex] })
}

// rulesOf loads a ruleset and reads its source NAT back, without handles.
func rulesOf(t *testing.T, script string) []policy.NATRule {
	t.Helper()
	nft(t, script)
	rules, _, err := readRuleset()
	if err != nil {
		t.Fatal(err)
	}
	nft(t, "flush ruleset")
	for i := range rules {
		rules[i].Where = ""
	}
	return rules
}

// No subtests: each would run on another thread, which is not in the namespace.
func TestReadRuleset(t *testing.T) {
	enterNamespace(t)
	const post = "{ type nat hook postrouting priority srcnat; }"
	base := func(rules string) string {
		return "table ip n { chain post { type nat hook postrouting priority srcnat; " + rules + "; }; }"
	}
	lo := up(t, "lo").Attrs().Index
	names := func(not bool, list ...string) policy.OutMatch { return policy.OutMatch{Names: list, Not: not} }
	masq := func(out ...policy.OutMatch) policy.NATRule {
		return policy.NATRule{IPv4: true, Masquerade: true, Out: out}
	}
	fixed := func(v4 bool, from, to string, out ...policy.OutMatch) policy.NATRule {
		a := addrs(from, to)
		return policy.NATRule{IPv4: v4, IPv6: !v4, From: a[0], To: a[1], Out: out}
	}
	for name, c := range map[string]struct {
		script string
		want   []policy.NATRule
	}{
		"name":                    {base(`oifname "wan0" masquerade`), []policy.NATRule{masq(names(false, "wan0"))}},
		"wildcard":                {base(`oifname "wan*" masquerade`), []policy.NATRule{masq(names(false, "wan*"))}},
		"other than":              {base(`oifname != "lan0" ip saddr 192.168.0.0/16 masquerade random`), []policy.NATRule{masq(names(true, "lan0"))}},
		"index":                   {base(`oif lo masquerade`), []policy.NATRule{masq(policy.OutMatch{Indexes: []int{lo}})}},
		"anything":                {base(`ip saddr 192.168.0.0/16 masquerade`), []policy.NATRule{masq()}},
		"incoming is no outgoing": {base(`iifname "lan0" masquerade`), []policy.NATRule{masq()}},
		"set":                     {base(`oifname { "wan0", "wan1" } masquerade`), []policy.NATRule{masq(names(false, "wan0", "wan1"))}},
		"not in set":              {base(`oifname != { "lan0", "lan1" } masquerade`), []policy.NATRule{masq(names(true, "lan0", "lan1"))}},
		"named set":               {`table ip n { set out { type ifname; elements = { "wan7" }; }; chain post { type nat hook postrouting priority srcnat; oifname @out masquerade; }; }`, []policy.NATRule{masq(names(false, "wan7"))}},
		"empty set":               {`table ip n { set out { type ifname; }; chain post { type nat hook postrouting priority srcnat; oifname @out masquerade; }; }`, []policy.NATRule{masq(policy.OutMatch{})}},
		"wildcards in set":        {`table ip n { set out { type ifname; flags interval; elements = { "wan*" }; }; chain post { type nat hook postrouting priority srcnat; oifname @out masquerade; }; }`, []policy.NATRule{masq()}},
		"concatenation":           {base(`oifname . ip saddr { "wan0" . 192.168.0.1 } masquerade`), []policy.NATRule{masq(names(false, "wan0"))}},
		"its second part":         {base(`ip saddr . oifname { 192.168.0.1 . "wan0" } masquerade`), []policy.NATRule{masq()}},
		"jump":                    {`table ip n { chain vyos { ip saddr 10.0.0.0/8 masquerade; }; chain post { type nat hook postrouting priority srcnat; oifname "wan0" jump vyos; }; }`, []policy.NATRule{masq(names(false, "wan0"))}},
		"two rules behind three conditions": {`table ip n { chain c { oifname "w0" masquerade; oifname "w1" masquerade; }; chain post { type nat hook postrouting priority srcnat; oifname != "a" oifname != "b" oifname != "c" jump c; }; }`,
			[]policy.NATRule{masq(names(true, "a"), names(true, "b"), names(true, "c"), names(false, "w0")), masq(names(true, "a"), names(true, "b"), names(true, "c"), names(false, "w1"))}},
		"verdict map":       {`table ip n { chain a { masquerade; }; chain b { snat to 198.51.100.2; }; chain post { type nat hook postrouting priority srcnat; oifname vmap { "wan0" : jump a, "wan1" : goto b }; }; }`, []policy.NATRule{fixed(true, "198.51.100.2", "198.51.100.2", names(false, "wan1")), masq(names(false, "wan0"))}},
		"loop of nothing":   {`table ip n { chain post { type nat hook postrouting priority srcnat; oifname "wan0" accept; }; }`, nil},
		"snat":              {base(`oifname "wan0" snat to 198.51.100.2`), []policy.NATRule{fixed(true, "198.51.100.2", "198.51.100.2", names(false, "wan0"))}},
		"snat range":        {base(`oifname "wan0" snat to 198.51.100.2-198.51.100.9`), []policy.NATRule{fixed(true, "198.51.100.2", "198.51.100.9", names(false, "wan0"))}},
		"inet, both":        {`table inet n { chain post ` + post + `; }; add rule inet n post oifname "wan0" masquerade`, []policy.NATRule{{IPv4: true, IPv6: true, Masquerade: true, Out: []policy.OutMatch{names(false, "wan0")}}}},
		"inet, one":         {`table inet n { chain post ` + post + `; }; add rule inet n post ip saddr 192.168.0.0/16 masquerade`, []policy.NATRule{masq()}},
		"inet, not one":     {`table inet n { chain post ` + post + `; }; add rule inet n post meta nfproto != ipv4 masquerade`, []policy.NATRule{{IPv6: true, Masquerade: true}}},
		"ip6 snat":          {`table ip6 n { chain post ` + post + `; }; add rule ip6 n post snat to 2001:db8::2`, []policy.NATRule{fixed(false, "2001:db8::2", "2001:db8::2")}},
		"not source NAT":    {`table ip n { chain pre { type nat hook prerouting priority dstnat; dnat to 192.168.0.1; }; chain f { type filter hook forward priority 0; accept; }; }`, nil},
		"unreachable chain": {`table ip n { chain lonely { masquerade; }; chain post ` + post + `; }`, nil},
	} {
		got := rulesOf(t, c.script)
		slices.SortFunc(got, func(a, b policy.NATRule) int {
			if a.Masquerade == b.Masquerade {
				return 0
			}
			if b.Masquerade {
				return -1
			}
			return 1
		})
		for i := range got {
			for j := range got[i].Out {
				slices.Sort(got[i].Out[j].Names)
			}
			if len(got[i].Out) == 0 {
				got[i].Out = nil
			}
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got  %+v\nwant %+v", name, got, c.want)
		}
	}
}

// iptables-nft's own expressions say the same.
func TestReadRulesetOfIPTables(t *testing.T) {
	enterNamespace(t)
	for _, command := range []string{
		"iptables-nft -t nat -A POSTROUTING -o wan+ -j MASQUERADE",
		"iptables-nft -t nat -A POSTROUTING ! -o lan0 -j SNAT --to-source 198.51.100.2-198.51.100.3",
		"ip6tables-nft -t nat -A POSTROUTING -o wan0 -j SNAT --to-source 2001:db8::2",
		"ip6tables-nft -t nat -A POSTROUTING -j MASQUERADE",
	} {
		words := strings.Fields(command)
		if output, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, output)
		}
	}
	got, _, err := readRuleset()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortStableFunc(got, func(a, b policy.NATRule) int { return strings.Compare(a.Where[:9], b.Where[:9]) })
	var texts []string
	for _, r := range got {
		texts = append(texts, fmt.Sprintf("%t %t %t %v %v %v", r.IPv4, r.IPv6, r.Masquerade, r.From, r.To, r.Out))
	}
	want := []string{
		"true false true invalid IP invalid IP [{[wan*] [] false}]",
		"true false false 198.51.100.2 198.51.100.3 [{[lan0] [] true}]",
		"false true false 2001:db8::2 2001:db8::2 [{[wan0] [] false}]",
		"false true true invalid IP invalid IP []",
	}
	if !slices.Equal(texts, want) {
		t.Errorf("got  %q\nwant %q", texts, want)
	}
}
