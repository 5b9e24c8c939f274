// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

// What looks odd and is well: no finding.
func TestNoFalseAlarm(t *testing.T) {
	for name, c := range map[string]struct {
		role   policy.Role
		oddity func(*Facts)
	}{
		"IPv6 is routed, IPv4 masqueraded": {master, func(f *Facts) { f.Machine.NAT.Rules[0].IPv6 = false }},
		"a pin that is off needs no rule": {master, func(f *Facts) {
			f.Machine.NAT.Rules[0].Out = []policy.OutMatch{{Names: []string{"eth0.2"}}}
			f.Pins[1].Enabled, f.Pins[1].EnabledBy = false, policy.EnabledByToggle
		}},
		"legacy iptables may masquerade": {master, func(f *Facts) { f.Machine.NAT.Rules, f.Machine.NAT.Legacy = nil, []string{"IPv4", "IPv6"} }},
		"masquerade on a virtual MAC": {master, func(f *Facts) {
			f.addVMAC()
			f.Machine.NAT.Rules[0].Out = []policy.OutMatch{{Names: []string{"vrrp*", "eth0.20"}}}
		}},
		"SNAT to another address": {master, func(f *Facts) {
			f.Machine.NAT.Rules = append(f.Machine.NAT.Rules, policy.NATRule{IPv4: true})
		}},
		"SNAT to the VIP elsewhere": {master, func(f *Facts) {
			vip := f.Plan.Pins[0].VIP4
			f.Machine.NAT.Rules = append(f.Machine.NAT.Rules, policy.NATRule{IPv4: true, From: vip, To: vip, Out: []policy.OutMatch{{Names: []string{"eth9"}}}})
		}},
		"SNAT to addresses below the VIP": {master, func(f *Facts) {
			f.Machine.NAT.Rules = append(f.Machine.NAT.Rules, policy.NATRule{IPv4: true,
				From: netip.MustParseAddr("198.51.100.0"), To: netip.MustParseAddr("198.51.100.1")})
		}},
		"VLANs of another trunk receive": {master, func(f *Facts) {
			f.Machine.Counters[vlan2Index], f.Machine.Counters[vlan20Index] = policy.LinkCounters{Out: 50}, policy.LinkCounters{Out: 50}
			f.Observed.Links = append(f.Observed.Links, policy.Link{Index: 50, Name: "eth9.2", Kind: "vlan", Parent: 49, Up: true})
			f.Machine.Counters[50] = policy.LinkCounters{In: 100}
		}},
		"a strict filter on a virtual MAC of IPv6": {master, func(f *Facts) {
			f.addVMAC()
			addrs := f.Observed.Links[3].Addrs
			f.Observed.Links[3].Addrs = addrs[1:]
			f.Observed.Links[1].Addrs = append(f.Observed.Links[1].Addrs, addrs[0])
			f.replan()
			f.sysctl("net/ipv4/conf/vrrp4.10/rp_filter", "1")
		}},
		"this router advertises something else there": {backup, func(f *Facts) {
			f.Daemon.VRRP = append(f.Daemon.VRRP, policy.VRRPStatus{Interface: "eth0.2", VRID: 99, Family: "ipv4",
				Routers: []policy.RouterStatus{{Priority: 100, Interval: 1000, Self: true}}})
		}},
		"a flow table in software": {master, func(f *Facts) {
			f.Machine.Flowtables = []policy.Flowtable{{Table: "table inet f", Name: "ft", Devices: []string{"eth0"}}}
		}},
		"a flow table with a bridge, and ports of another one": {master, func(f *Facts) {
			f.bridge(vlan2Index)
			f.Observed.Links = append(f.Observed.Links, policy.Link{Index: 50, Name: "eth9", Kind: "device", Master: 49, Up: true})
			f.Machine.Flowtables = []policy.Flowtable{{Table: "table inet f", Name: "ft", Devices: []string{"eth0.2", "eth9"}}}
		}},
		"a pinned bridge that netfilter leaves alone": {master, func(f *Facts) {
			f.bridge(vlan2Index)
			f.sysctl("net/bridge/bridge-nf-call-iptables", "0")
		}},
		"a pinned bridge whose other family netfilter sees": {master, func(f *Facts) {
			f.bridge(vlan20Index)
			f.sysctl("net/bridge/bridge-nf-call-ip6tables", "1")
		}},
		"netfilter on other bridges": {master, func(f *Facts) { f.sysctl("net/bridge/bridge-nf-call-iptables", "1") }},
		"a bridge below pinned VLANs, with frames that have tags": {master, func(f *Facts) {
			f.bridge(trunkIndex)
			f.sysctl("net/bridge/bridge-nf-call-iptables", "1")
			f.sysctl("net/bridge/bridge-nf-filter-vlan-tagged", "0")
		}},
		"a flow table with a bond's device": {master, func(f *Facts) {
			f.Observed.Links = append(f.Observed.Links, policy.Link{Index: 50, Name: "eth9", Kind: "device", Master: vlan2Index, Up: true})
			f.Machine.Flowtables = []policy.Flowtable{{Table: "table inet f", Name: "ft", Devices: []string{"eth9"}}}
		}},
		"unpinned connections in a flow table": {master, func(f *Facts) {
			f.Machine.Flowtables = []policy.Flowtable{{Table: "table inet f", Name: "ft", Devices: []string{"eth0"}}}
			f.WithoutPin = map[string]uint64{"no_conntrack": 4}
		}},
		"hardware offload elsewhere": {master, func(f *Facts) {
			f.Machine.Flowtables = []policy.Flowtable{{Table: "table inet f", Name: "ft", Devices: []string{"eth7"}, Hardware: true}}
		}},
		"strict with one way out": {master, func(f *Facts) {
			f.sysctl("net/ipv4/conf/eth0.2/rp_filter", "1")
			f.Config.Pins = f.Config.Pins[:1]
			f.Pins = f.Pins[:1]
			f.replan()
		}},
		"strict with two, nothing dropped": {master, func(f *Facts) { f.sysctl("net/ipv4/conf/all/rp_filter", "1"); f.Machine.RPFDrops = 0 }},
		"loose beats strict":               {master, func(f *Facts) { f.addVMAC(); f.sysctl("net/ipv4/conf/all/rp_filter", "1"); loosen(f) }},
		"silence right after the start":    {backup, func(f *Facts) { f.Daemon.VRRP, f.Daemon.Status.Uptime = nil, 2 }},
		"MASTER hears nobody":              {master, func(f *Facts) { f.Machine.Counters[vlan20Index] = policy.LinkCounters{Out: 5} }},
		"one virtual router for two VLANs": {backup, func(f *Facts) {
			f.loose(10)
			f.Daemon.VRRP = f.Daemon.VRRP[:2]
		}},
		"two virtual routers that nobody placed": {backup, func(f *Facts) { f.loose(10, 20) }},
		"a takeover a while ago": {master, func(f *Facts) {
			vr := &f.Daemon.VRRP[0]
			vr.Routers = append(vr.Routers, policy.RouterStatus{Priority: 100, Interval: 1000, LastSeen: 20000})
		}},
		"one-way traffic, a little":   {master, func(f *Facts) { f.Pins[0].PacketsPinned, f.Pins[0].PacketsReturned = 19, 0 }},
		"one-way traffic as BACKUP":   {backup, func(f *Facts) { f.Pins[0].PacketsReturned = 0 }},
		"a virtual MAC that is quiet": {master, func(f *Facts) { f.addVMAC(); f.Machine.Counters[vmacIndex] = policy.LinkCounters{Out: 500} }},
		"a pin that is off, unplugged": {backup, func(f *Facts) {
			f.Observed.Links[2].Up, f.Pins[1].Enabled, f.Pins[1].EnabledBy = false, false, policy.EnabledByToggle
		}},
		"pid 1's mounts are not known":          {master, func(f *Facts) { f.Machine.BPFFS.Host = "" }},
		"not root: nothing attached is seen":    {master, func(f *Facts) { f.Machine.Attached, f.Machine.Loaded = nil, false }},
		"an interface that is watched and gone": {master, func(f *Facts) { f.Machine.Attached[99] = false }},
		"clsact":                                {master, func(f *Facts) { f.Tier, f.Machine.Kernel = "clsact", "6.1.0-28-amd64" }},
		"no BTF":                                {master, func(f *Facts) { f.Tier, f.Machine.BTF = "tcx+marks", false }},
		"a toggle":                              {master, func(f *Facts) { f.Pins[0].Enabled, f.Pins[0].EnabledBy = false, policy.EnabledByToggle }},
		"a pin without an interface waits": {master, func(f *Facts) {
			f.Daemon.Status.Warnings = nil
			f.Plan.Warnings = []string{"pin 9: x; the pin waits for it"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy(t, c.role)
			c.oddity(f)
			for _, one := range bad(Examine(*f)) {
				t.Errorf("%+v", one)
			}
		})
	}
}

// loose lists VRIDs of the group without their interfaces.
func (f *Facts) loose(vrids ...uint8) {
	f.Config.Groups[0].VRIDs = nil
	for _, vrid := range vrids {
		f.Config.Groups[0].VRIDs = append(f.Config.Groups[0].VRIDs, policy.VRIDConfig{VRID: vrid})
	}
	f.replan()
}

func loosen(f *Facts) {
	f.Machine.RPFDrops = 0
	f.sysctl("net/ipv4/conf/vrrp4.10/rp_filter", "2")
}

// Every hypervisor's settings name the pins' own VLANs, and MACs only where
// virtual ones are in use.
func TestHypervisors(t *testing.T) {
	for _, c := range []struct {
		platform policy.Platform
		vmac     bool
		found    string
		want     []string
		not      []string
	}{
		{hyperVFirmware, false, "Hyper-V", []string{"-Trunk -AllowedVlanIdList '2,20' -NativeVlanId 0"}, []string{"Spoofing"}},
		{hyperVFirmware, true, "virtual MACs", []string{"-VMName 'router-a' -MacAddressSpoofing On", "'2,20'"}, nil},
		{policy.Platform{Vendor: "VMware, Inc.", Product: "VMware Virtual Platform"}, false, "VMware", []string{"--vlan-id 4095", "2,20"}, []string{"forged"}},
		{policy.Platform{Vendor: "VMware, Inc.", Product: "VMware7,1"}, true, "VMware",
			[]string{"--allow-promiscuous=true --allow-mac-change=true --allow-forged-transmits=true", "ReversePathFwdCheckPromisc", "4095"}, nil},
		{policy.Platform{Vendor: "QEMU", Product: "Standard PC (Q35 + ICH9, 2009)"}, false, "Proxmox/KVM",
			[]string{"trunks='2;20'", "bridge-vlan-aware yes", "mcast_snooping 0"}, []string{"macfilter"}},
		{policy.Platform{Vendor: "Red Hat", Product: "KVM"}, true, "Proxmox/KVM", []string{"macfilter: 0", "trunks='2;20'"}, nil},
		{policy.Platform{BIOS: "Proxmox distribution of EDK II"}, false, "Proxmox/KVM", []string{"trunks='2;20'"}, nil},
		{policy.Platform{Vendor: "Microsoft Corporation", Product: "Virtual Machine", Chassis: azureTag}, true, "Azure", []string{"unicast_peer"}, []string{"Set-VM"}},
		{policy.Platform{Vendor: "Amazon EC2", Product: "t3.micro"}, false, "Amazon EC2", []string{"unicast_peer"}, nil},
		{policy.Platform{Vendor: "Google", Product: "Google Compute Engine"}, false, "Google Compute Engine", []string{"unicast_peer"}, nil},
		{policy.Platform{Vendor: "Microsoft Corporation", Product: "Surface Pro"}, false, "", nil, nil},
		{policy.Platform{Vendor: "Supermicro", Product: "X11"}, true, "", nil, nil},
		{policy.Platform{}, false, "", nil, nil},
	} {
		f := healthy(t, master)
		if c.vmac {
			f.addVMAC()
		}
		f.Machine.Platform = c.platform
		findings := Examine(*f)
		i := slices.IndexFunc(findings, func(f Finding) bool { return f.Check == "hypervisor" })
		if i < 0 || c.found == "" {
			if i >= 0 || c.found != "" {
				t.Errorf("%+v: finding %d, want %q", c.platform, i, c.found)
			}
			continue
		}
		got := findings[i]
		if got.State != OK || !strings.Contains(got.Found, c.found) || !containsAll(got.Remedy, c.want) {
			t.Errorf("%+v: %+v, want %q and %q", c.platform, got, c.found, c.want)
		}
		for _, not := range c.not {
			if strings.Contains(got.Remedy, not) {
				t.Errorf("%+v: the remedy has %q: %s", c.platform, not, got.Remedy)
			}
		}
	}
}

// The tier is named, with what the kernel lacks for a better one.
func TestTierIsNamed(t *testing.T) {
	for _, c := range []struct {
		tier, kernel string
		btf          bool
		found        []string
		remedy       string
	}{
		{"tcx", "6.6.4", true, []string{"dataplane tcx, on Linux 6.6.4"}, ""},
		{"clsact", "6.1.0-28-amd64", true, []string{"dataplane clsact, on Linux 6.1.0-28-amd64", "from Linux 6.6"}, ""},
		{"clsact+marks", "6.1.9-vyos", false, []string{"clsact+marks", "from Linux 6.6", "no BTF"}, "CONFIG_DEBUG_INFO_BTF"},
		{"tcx+marks", "6.6.9-vyos", false, []string{"tcx+marks", "no BTF", "no fast path"}, "CONFIG_DEBUG_INFO_BTF"},
		{"", "6.6.4", true, []string{"no dataplane is seen, on Linux 6.6.4"}, ""},
	} {
		f := healthy(t, master)
		f.Tier, f.Machine.Kernel, f.Machine.BTF = c.tier, c.kernel, c.btf
		got := checkTier(newView(*f))
		if len(got) != 1 || got[0].State != OK || !containsAll(got[0].Found, c.found) || !strings.Contains(got[0].Remedy, c.remedy) || (c.remedy == "") != (got[0].Remedy == "") {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

// An empty machine must not trip a check.
func TestNothingIsKnown(t *testing.T) {
	findings := Examine(Facts{})
	if Healthy(findings) {
		t.Errorf("nothing is known, and all is well: %+v", findings)
	}
	for _, f := range findings {
		if f.Check == "" || f.Found == "" || strings.Contains(f.Found, "%!") || strings.Contains(f.Remedy, "%!") {
			t.Errorf("%+v", f)
		}
	}
}

// Remedies can be pasted: every line is a command or begins with "# ".
func TestRemediesHaveNoProse(t *testing.T) {
	commands := []string{"vippin", "systemctl", "journalctl", "sysctl", "echo", "nft", "ip", "tcpdump", "conntrack", "modprobe", "nsenter",
		"sudo", "grep", "arping", "nstat", "ethtool", "iptables", "iptables-legacy-save", "ip6tables-legacy-save", "tc", "bpftool", "Set-VMNetworkAdapter", "Set-VMNetworkAdapterVlan", "esxcli", "qm"}
	for _, platform := range []policy.Platform{{}, hyperVFirmware, {Vendor: "VMware, Inc."}, {Vendor: "QEMU"}, {Vendor: "Amazon EC2"}} {
		for _, m := range append(slices.Clone(mutations), fastMutations...) {
			f := healthy(t, m.role)
			m.harm(f)
			if f.Machine.Platform == (policy.Platform{}) {
				f.Machine.Platform = platform
			}
			for _, one := range Examine(*f) {
				for line := range strings.Lines(one.Remedy) {
					word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
					if word != "#" && !slices.Contains(commands, word) {
						t.Errorf("%s: %q is neither a command nor words behind #", one.Check, line)
					}
				}
			}
		}
	}
}

// bridge makes a bridge of a link.
func (f *Facts) bridge(index int) {
	for i := range f.Observed.Links {
		if link := &f.Observed.Links[i]; link.Index == index {
			link.Kind = "bridge"
		}
	}
}
