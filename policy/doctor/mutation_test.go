// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

const (
	master = policy.RoleMaster
	backup = policy.RoleBackup
)

func conflict(f *Facts, text string) {
	f.Daemon.Status.Groups[0].Conflict = text
	f.Daemon.VRRP[0].Conflict = text
}

func peer(f *Facts, priority uint8) {
	vr := &f.Daemon.VRRP[0]
	vr.Routers = append(vr.Routers, policy.RouterStatus{Address: netip.MustParseAddr("198.51.100.4"), Priority: priority, Interval: 1000, LastSeen: 100})
	conflict(f, "both masters: 198.51.100.3 (this router) and 198.51.100.4 advertise VRID 10 on eth0.2")
}

func eaten(f *Facts) {
	f.addVMAC()
	f.Machine.Counters[vmacIndex] = policy.LinkCounters{In: 30, InMulticast: 30, Out: 500}
	f.Pins[0].PacketsReturned = 0
}

// waiting picks the warnings about pins without an interface.
func waiting(warnings []string) []string {
	return slices.DeleteFunc(slices.Clone(warnings), func(text string) bool { return !strings.HasSuffix(text, waits) })
}

var hyperVFirmware = policy.Platform{Vendor: "Microsoft Corporation", Product: "Virtual Machine"}

// mutations are one wrong fact each.
var mutations = []mutation{
	{"config errors", master, func(f *Facts) { f.Config, f.ConfigErrors = nil, []string{"vippin.yaml:7: no VIP"} },
		"config", Error, []string{"vippin.yaml:7: no VIP"}, []string{"vippin check"}},
	{"not reloaded", master, func(f *Facts) { f.Pins = f.Pins[:1] },
		"config", Warning, []string{"not what the daemon has in force"}, []string{"vippin reload"}},
	{"another group", master, func(f *Facts) { f.Pins[0].Group = "Other" },
		"config", Warning, []string{"not what the daemon has in force"}, []string{"vippin reload"}},
	{"silent daemon", master, func(f *Facts) { f.Daemon, f.DaemonError = nil, "timeout" },
		"daemon", Error, []string{"timeout"}, []string{"restart vippin"}},
	{"loaded, no daemon", master, func(f *Facts) { f.Daemon = nil },
		"daemon", Warning, []string{"no daemon runs"}, []string{"vippin run"}},
	{"nothing loaded", master, func(f *Facts) {
		f.Daemon, f.Pins, f.Machine.Loaded, f.Machine.Attached, f.Tier = nil, nil, false, nil, ""
	},
		"daemon", Error, []string{"nothing is loaded"}, []string{"vippin run"}},
	{"status warns", master, func(f *Facts) { f.Daemon.Status.Warnings = []string{"not everything of the plan is in the kernel: x"} },
		"status", Warning, []string{"not everything of the plan"}, []string{"vippin reload"}},
	{"unread", master, func(f *Facts) { f.Machine.Unread = []string{"NAT rules: permission denied"} },
		"unread", Warning, []string{"NAT rules: permission denied"}, []string{"sudo vippin doctor"}},
	{"old kernel", master, func(f *Facts) { f.Machine.Kernel = "5.10.0-30-amd64" },
		"tier", Error, []string{"5.10.0-30-amd64 is older than 6.1"}, []string{"Linux 6.1"}},
	{"no conntrack", master, func(f *Facts) { delete(f.Machine.Sysctls, "net/netfilter/nf_conntrack_max") },
		"tier", Error, []string{"no connection tracking"}, []string{"modprobe nf_conntrack"}},
	{"no conntrack events", master, func(f *Facts) { delete(f.Machine.Sysctls, "net/netfilter/nf_conntrack_events") },
		"tier", Error, []string{"connections that end"}, []string{"CONFIG_NF_CONNTRACK_EVENTS"}},
	{"daemon in a private bpffs", master, func(f *Facts) { f.Machine.BPFFS.Daemon = "0:77" },
		"bpffs", Error, []string{"0:77", "0:39"}, []string{"nsenter --net="}},
	{"private bpffs, host unknown", master, func(f *Facts) { f.Machine.BPFFS.Daemon, f.Machine.BPFFS.Host = "0:77", "" },
		"bpffs", Error, []string{"0:77", "0:39"}, []string{"nsenter --net="}},
	{"we in a private bpffs", master, func(f *Facts) { f.Machine.BPFFS.Ours = "0:77" },
		"bpffs", Warning, []string{"0:77"}, []string{"nsenter --mount="}},
	{"bpffs unmounted", master, func(f *Facts) { f.Machine.BPFFS.Mounted = false },
		"bpffs", Error, []string{"no BPF file system"}, nil},
	{"programs gone", master, func(f *Facts) { f.Machine.Attached[vlan20Index] = false },
		"programs", Error, []string{"eth0.20 (VLAN 20)"}, []string{"vippin load"}},
	{"link down", master, func(f *Facts) { f.Observed.Links[1].Up = false },
		"interfaces", Error, []string{"eth0.2 (VLAN 2) is down"}, []string{"ip link set dev eth0.2 up"}},
	{"VIP nowhere, MASTER", master, func(f *Facts) { f.Observed.Links[2].Addrs = f.Observed.Links[2].Addrs[:1] },
		"vips", Error, []string{"203.0.113.2", "MASTER", "nowhere"}, []string{"virtual_ipaddress", "eth0.20", "reload keepalived"}},
	{"half the VIPs", backup, func(f *Facts) {
		l := &f.Observed.Links[1]
		l.Addrs = append(l.Addrs, policy.Addr{Prefix: netip.MustParsePrefix("198.51.100.2/24")})
	}, "vips", Error, []string{"2001:db8:2::2", "nowhere", "198.51.100.2 is on"}, []string{"virtual_ipaddress"}},
	{"VIP nowhere, advertised", backup, func(f *Facts) { f.Daemon.VRRP[2].Routers[0].Self = true; f.Daemon.Status.Groups[0].Role = master },
		"vips", Error, []string{"203.0.113.2", "advertises"}, []string{"virtual_ipaddress"}},
	{"VIP on the wrong interface", backup, func(f *Facts) {
		f.Observed.Links[0].Addrs = []policy.Addr{{Prefix: netip.MustParsePrefix("203.0.113.2/24")}}
	}, "vips", Error, []string{"203.0.113.2", "is on eth0 instead of eth0.20"}, nil},
	{"no IPv4 forwarding", master, func(f *Facts) { f.sysctl("net/ipv4/ip_forward", "0") },
		"forwarding", Error, []string{"net.ipv4.ip_forward is 0"}, []string{"sysctl -w net.ipv4.ip_forward=1"}},
	{"no forwarding on one", master, func(f *Facts) { f.sysctl("net/ipv4/conf/eth0.2/forwarding", "0") },
		"forwarding", Error, []string{"eth0.2"}, []string{"sysctl -w net/ipv4/conf/eth0.2/forwarding=1"}},
	{"no IPv6 forwarding", master, func(f *Facts) { f.sysctl("net/ipv6/conf/all/forwarding", "0") },
		"forwarding", Error, []string{"IPv6 is not forwarded"}, []string{"sysctl -w net.ipv6.conf.all.forwarding=1"}},
	{"IPv6 off", master, func(f *Facts) { f.sysctl("net/ipv6/conf/eth0.2/disable_ipv6", "1") },
		"forwarding", Error, []string{"IPv6 is switched off on eth0.2"}, []string{"disable_ipv6=0"}},
	{"vmac strict by all", master, func(f *Facts) { f.addVMAC(); f.sysctl("net/ipv4/conf/all/rp_filter", "1"); f.Machine.RPFDrops = 0 },
		"rp_filter", Error, []string{"vrrp4.10", "strict"}, []string{"sysctl -w net/ipv4/conf/vrrp4.10/rp_filter=2"}},
	{"strict with two ways out", master, func(f *Facts) { f.sysctl("net/ipv4/conf/eth0.20/rp_filter", "1") },
		"rp_filter", Warning, []string{"5 packets", "eth0.20"}, []string{"net/ipv4/conf/eth0.20/rp_filter=2"}},
	{"no masquerade", master, func(f *Facts) { f.Machine.NAT.Rules = nil },
		"masquerade", Error, []string{"no rule masquerades IPv4", "eth0.20"}, []string{`oifname "eth0.20" masquerade`}},
	{"masquerade of the other family", master, func(f *Facts) { f.Machine.NAT.Rules[0].IPv4 = false },
		"masquerade", Error, []string{"no rule masquerades IPv4 to eth0.20"}, []string{`oifname "eth0.20" masquerade`}},
	{"IPv4 not, IPv6 masqueraded", master, func(f *Facts) { f.Machine.NAT.Rules[0].IPv4 = false },
		"masquerade", Error, []string{"no rule masquerades IPv4 to eth0.2 "}, nil},
	{"only SNAT to another address", master, func(f *Facts) {
		rule := &f.Machine.NAT.Rules[0]
		rule.Masquerade, rule.From, rule.To = false, netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("198.51.100.9")
	}, "masquerade", Error, []string{"no rule masquerades IPv4"}, nil},
	{"masquerade elsewhere", master, func(f *Facts) { f.Machine.NAT.Rules[0].Out = []policy.OutMatch{{Names: []string{"eth0.2"}}} },
		"masquerade", Error, []string{"eth0.20"}, []string{`oifname "eth0.20" masquerade`}},
	{"masquerade everywhere but there", master, func(f *Facts) {
		f.Machine.NAT.Rules[0].Out = []policy.OutMatch{{Names: []string{"eth0.20"}, Not: true}}
	},
		"masquerade", Error, []string{"eth0.20"}, nil},
	{"masquerade by index elsewhere", master, func(f *Facts) { f.Machine.NAT.Rules[0].Out = []policy.OutMatch{{Indexes: []int{vlan2Index}}} },
		"masquerade", Error, []string{"eth0.20"}, nil},
	{"snat to the VIP", master, func(f *Facts) {
		f.Machine.NAT.Rules = append(f.Machine.NAT.Rules, policy.NATRule{Where: "table ip n, chain c, handle 9", IPv4: true,
			From: netip.MustParseAddr("198.51.100.1"), To: netip.MustParseAddr("198.51.100.2")})
	}, "snat", Warning, []string{"198.51.100.2", "handle 9"}, []string{"nft -a list table ip n"}},
	{"hardware offload", master, func(f *Facts) {
		f.Machine.Flowtables = []policy.Flowtable{{Table: "table inet f", Name: "ft", Devices: []string{"eth0", "eth1"}, Hardware: true}}
	}, "flow_offload", Error, []string{"ft", "eth0.2 (VLAN 2)", "NIC of eth0"}, []string{"nft delete flowtable inet f ft"}},
	{"a bridge's port in a flow table", master, func(f *Facts) {
		f.bridge(vlan2Index)
		f.Observed.Links = append(f.Observed.Links, policy.Link{Index: 50, Name: "eth9", Kind: "device", Master: vlan2Index, Up: true})
		f.Machine.Flowtables = []policy.Flowtable{{Table: "table inet f", Name: "ft", Devices: []string{"eth0.2", "eth9"}}}
	}, "flow_offload", Error, []string{"ft of table inet f", "eth9, a port of the bridge eth0.2"}, []string{"nft list flowtable inet f ft"}},
	{"netfilter on a pinned bridge", master, func(f *Facts) {
		f.bridge(vlan2Index)
		f.sysctl("net/bridge/bridge-nf-call-iptables", "1")
	}, "bridge_netfilter", Error, []string{"bridge eth0.2", "198.51.100.2"}, []string{"sysctl -w net.bridge.bridge-nf-call-iptables=0"}},
	{"netfilter on a pinned bridge, IPv6", master, func(f *Facts) {
		f.bridge(vlan2Index)
		f.sysctl("net/bridge/bridge-nf-call-ip6tables", "1")
	}, "bridge_netfilter", Error, []string{"bridge eth0.2", "2001:db8:2::2"}, []string{"sysctl -w net.bridge.bridge-nf-call-ip6tables=0"}},
	{"netfilter on a bridge below a pinned VLAN", master, func(f *Facts) {
		f.bridge(trunkIndex)
		f.sysctl("net/bridge/bridge-nf-call-iptables", "1")
		f.sysctl("net/bridge/bridge-nf-filter-vlan-tagged", "1")
	}, "bridge_netfilter", Error, []string{"bridge eth0 ", "eth0.20 (VLAN 20)"}, []string{"sysctl -w net.bridge.bridge-nf-call-iptables=0"}},
	{"conntrack near full", master, func(f *Facts) { f.sysctl("net/netfilter/nf_conntrack_count", "800") },
		"conntrack_max", Warning, []string{"800 of 1000", "80 %"}, []string{"sysctl -w net.netfilter.nf_conntrack_max=2000"}},
	{"conntrack full", master, func(f *Facts) { f.sysctl("net/netfilter/nf_conntrack_count", "950") },
		"conntrack_max", Error, []string{"950 of 1000"}, []string{"nf_conntrack_max=2000"}},
	{"pins near full", master, func(f *Facts) { f.Pins[0].Flows = 230000 },
		"max_flows", Warning, []string{"230010 of 262144"}, []string{"max_flows: 524288"}},
	{"events changed", master, func(f *Facts) { f.sysctl("net/netfilter/nf_conntrack_events", "2") },
		"conntrack_events", Warning, []string{"is 2"}, []string{"nf_conntrack_events=1"}},
	{"conntrackd", master, func(f *Facts) { f.Machine.Conntrackd = []int{77, 78} },
		"conntrackd", Warning, []string{"77, 78", "EEXIST"}, []string{"disable --now conntrackd"}},
	{"VLAN missing from the trunk", backup, func(f *Facts) { f.Daemon.VRRP[2].Routers[0].LastSeen = 60000 },
		"adverts", Error, []string{"VRID 20", "eth0.20 (VLAN 20)", "eth0.2 on the same trunk", "VLAN 20 is missing from the trunk"}, []string{"let VLAN 20 pass", "tcpdump"}},
	{"VLAN missing, VRIDs not placed", backup, func(f *Facts) { f.loose(10, 20); f.Daemon.VRRP = f.Daemon.VRRP[:2] },
		"adverts", Error, []string{"VRID 20", "VLAN 20 is missing from the trunk"}, []string{"let VLAN 20 pass"}},
	{"VLAN taken from the trunk, one VRID for all", backup, func(f *Facts) {
		f.loose(10)
		f.Daemon.VRRP[2].VRID, f.Daemon.VRRP[2].Routers = 10, nil
	}, "adverts", Error, []string{"VRID 10", "eth0.20", "VLAN 20 is missing from the trunk"}, []string{"let VLAN 20 pass"}},
	{"the MASTER resigned, and nobody followed", backup, func(f *Facts) { f.Daemon.VRRP[2].Routers[0].Priority = 0 },
		"adverts", Error, []string{"VRID 20", "eth0.20"}, nil},
	{"no adverts", backup, func(f *Facts) { f.Daemon.VRRP = nil },
		"adverts", Error, []string{"eth0.2 (VLAN 2)", "multicast"}, []string{"IGMP", "unicast_peer"}},
	{"segment cut", backup, func(f *Facts) {
		f.Observed.Links[2].Kind, f.Observed.Links[2].Parent = "veth", 0
		f.replan()
		f.Daemon.VRRP[2].Routers = nil
	}, "adverts", Error, []string{"eth0.20", "eth0.2 hears some"}, []string{"IGMP"}},
	{"deaf VLAN", master, func(f *Facts) { f.Machine.Counters[vlan20Index] = policy.LinkCounters{Out: 50} },
		"adverts", Warning, []string{"nothing has arrived on eth0.20", "VLAN 20 is missing"}, []string{"let VLAN 20 pass"}},
	{"TTL", backup, func(f *Facts) { f.Daemon.VRRP[0].Ignored["ttl"] = 4 },
		"adverts_ignored", Warning, []string{"4 adverts", "VRID 10 on eth0.2", "ttl"}, []string{"tcpdump"}},
	{"echo on ESXi", master, func(f *Facts) {
		f.Daemon.VRRP[0].Ignored["echo"], f.Machine.Platform = 9, policy.Platform{Vendor: "VMware, Inc.", Product: "VMware20,1"}
	}, "adverts_ignored", Warning, []string{"echo"}, []string{"ReversePathFwdCheckPromisc"}},
	{"role conflict", master, func(f *Facts) {
		f.Daemon.Status.Groups[0].Conflict = "keepalived says BACKUP, the addresses and adverts say MASTER"
	},
		"roles", Error, []string{"RouterCore", "keepalived says BACKUP"}, []string{"vippin status"}},
	{"fault", master, func(f *Facts) {
		f.Daemon.Status.Groups[0].Role, f.Daemon.Status.Groups[0].Evidence = policy.RoleFault, []string{"eth0.2 is down"}
	},
		"roles", Error, []string{"FAULT", "eth0.2 is down"}, []string{"keepalived"}},
	{"virtual MAC eaten", master, eaten,
		"virtual_mac", Error, []string{"00:00:5e:00:01:0a", "vrrp4.10", "eth0.2"}, []string{"MacAddressSpoofing On", "AllowedVlanIdList '2,20'", "trunks='2;20'", "forged-transmits", "4095"}},
	{"virtual MAC eaten by Hyper-V", master, func(f *Facts) { eaten(f); f.Machine.Platform = hyperVFirmware },
		"virtual_mac", Error, nil, []string{"Set-VMNetworkAdapter -VMName 'router-a' -MacAddressSpoofing On",
			"Set-VMNetworkAdapterVlan -VMName 'router-a' -Trunk -AllowedVlanIdList '2,20' -NativeVlanId 0"}},
	{"nothing returns", master, func(f *Facts) { f.Pins[1].PacketsReturned = 0 },
		"returns", Warning, []string{"1000 packets", "eth0.20"}, []string{"arping -U -c 3 -I eth0.20 203.0.113.2"}},
	{"nothing returns, although the virtual MAC gets through", master, func(f *Facts) {
		f.addVMAC()
		f.Pins[0].PacketsReturned = 0
	}, "returns", Warning, []string{"1000 packets", "eth0.2 "}, []string{"arping"}},
	{"foreign", master, func(f *Facts) { f.Pins[0].PacketsForeign = 3 },
		"foreign", Warning, []string{"3 packets", "eth0.2"}, []string{"conntrack -L"}},
	{"stale role", backup, func(f *Facts) { f.Pins[0].UnpinnedBy["stale_role"] = 8 },
		"unpinned", Warning, []string{"8 packets", "stale_role", "vrrp.lease"}, []string{"journalctl"}},
	{"full", master, func(f *Facts) { f.Pins[0].UnpinnedBy["full"] = 8 },
		"unpinned", Warning, []string{"(full)"}, []string{"max_flows"}},
	{"no port", master, func(f *Facts) { f.Pins[0].UnpinnedBy["no_port"] = 8 },
		"unpinned", Warning, []string{"(no_port)"}, []string{"sources"}},
	{"rewriting failed", master, func(f *Facts) { f.Pins[0].UnpinnedBy["error"] = 8 },
		"unpinned", Warning, []string{"(error)"}, []string{"report"}},
	{"no conntrack entry, and a flow table elsewhere", master, func(f *Facts) {
		f.Machine.Flowtables = []policy.Flowtable{{Table: "table inet f", Name: "ft", Devices: []string{"eth7"}}}
		f.WithoutPin = map[string]uint64{"no_conntrack": 4}
	}, "unpinned", Warning, []string{"no_conntrack"}, []string{"notrack"}},
	{"no conntrack entry", master, func(f *Facts) { f.WithoutPin = map[string]uint64{"no_conntrack": 4} },
		"unpinned", Warning, []string{"no_conntrack"}, []string{"notrack"}},
}

// Every check, one fact at a time.
func TestMutations(t *testing.T) {
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) { m.expect(t) })
	}
}

// What is found by more than one check.
func TestMutationsSeenTwice(t *testing.T) {
	for _, c := range []struct {
		mutation
		others []string
	}{
		{mutation{"interface gone", master, func(f *Facts) {
			f.Observed.Links = f.Observed.Links[:2]
			f.replan()
			f.Daemon.Status.Warnings = waiting(f.Plan.Warnings)
		},
			"interfaces", Error, []string{"eth0.20 (VLAN 20) is absent", "pin 20"}, []string{"ip link add link eth0 name eth0.20 type vlan id 20"}}, nil},
		{mutation{"they do not hear us", master, func(f *Facts) { peer(f, 100) },
			"one_way", Error, []string{"198.51.100.4 goes on as MASTER with priority 100", "150", "do not arrive there"}, []string{"run this on 198.51.100.4"}}, []string{"masters"}},
		{mutation{"keepalived does not get them", master, func(f *Facts) { peer(f, 200) },
			"one_way", Error, []string{"priority 200 arrive", "does not get them"}, []string{"l4proto vrrp accept"}}, []string{"masters"}},
		{mutation{"equal priorities, theirs is the greater address", master, func(f *Facts) { peer(f, 150) },
			"one_way", Error, []string{"does not get them"}, nil}, []string{"masters"}},
		{mutation{"interface gone, no daemon", master, func(f *Facts) {
			f.Observed.Links = f.Observed.Links[:2]
			f.replan()
			f.Plan.Warnings = waiting(f.Plan.Warnings)
			f.Daemon = nil
		}, "interfaces", Error, []string{"eth0.20"}, nil}, []string{"daemon"}},
		{mutation{"we do not hear them", master, func(f *Facts) {
			conflict(f, "both masters: 198.51.100.2 is here, and 02:00:00:00:00:01 on eth0.2 claims the same; its adverts do not get through")
		}, "one_way", Error, []string{"do not arrive here"}, []string{"tcpdump"}}, []string{"masters"}},
		{mutation{"two masters", master, func(f *Facts) { peer(f, 100) },
			"masters", Error, []string{"RouterCore", "both masters"}, []string{"tcpdump"}}, []string{"one_way"}},
		{mutation{"two masters on Hyper-V", master, func(f *Facts) { f.addVMAC(); peer(f, 100); f.Machine.Platform = hyperVFirmware },
			"masters", Error, []string{"both masters"}, []string{"MacAddressSpoofing On", "'2,20'"}}, []string{"one_way"}},
	} {
		t.Run(c.name, func(t *testing.T) { c.expect(t, c.others...) })
	}
}
