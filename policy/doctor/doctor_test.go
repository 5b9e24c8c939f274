// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

const configText = `node: router-a
groups:
  - {name: RouterCore, vrids: ["10@eth0.2", "20@eth0.20"]}
pins:
  - {vlan: 2, vips: [198.51.100.2, "2001:db8:2::2"], group: RouterCore}
  - {vlan: 20, vips: [203.0.113.2], group: RouterCore}
`

const (
	trunkIndex = iota + 1
	vlan2Index
	vlan20Index
	vmacIndex
)

// links are a trunk with two VLANs; as MASTER the VIPs are there.
func links(master bool) []policy.Link {
	vlan := func(index int, name string, tag uint16, own ...string) policy.Link {
		link := policy.Link{Index: index, Name: name, Kind: "vlan", Parent: trunkIndex, VLAN: policy.VLAN{Outer: tag}, Up: true, HasL2: true,
			MAC: policy.MAC{2, 0, 0, 0, 0, byte(index)}}
		for _, text := range own {
			link.Addrs = append(link.Addrs, policy.Addr{Prefix: netip.MustParsePrefix(text)})
		}
		return link
	}
	own2, own20 := []string{"198.51.100.3/24", "2001:db8:2::3/64"}, []string{"203.0.113.3/24"}
	if master {
		own2, own20 = append(own2, "198.51.100.2/24", "2001:db8:2::2/128"), append(own20, "203.0.113.2/24")
	}
	return []policy.Link{
		{Index: trunkIndex, Name: "eth0", Kind: "device", Up: true, HasL2: true, MAC: policy.MAC{2, 0, 0, 0, 0, 9}},
		vlan(vlan2Index, "eth0.2", 2, own2...), vlan(vlan20Index, "eth0.20", 20, own20...),
	}
}

// healthy is a router with everything as it should be.
func healthy(t *testing.T, role policy.Role) *Facts {
	t.Helper()
	config, err := policy.ParseConfig([]byte(configText), "vippin.yaml", "router-a")
	if err != nil {
		t.Fatal(err)
	}
	f := &Facts{
		Node: "router-a", Config: config, Observed: policy.Observed{Links: links(role == policy.RoleMaster)},
		Machine: machine(), Tier: "tcx", WithoutPin: map[string]uint64{},
	}
	f.replan()
	for _, p := range f.Plan.Pins {
		f.Pins = append(f.Pins, policy.PinStatus{
			PinState: policy.PinState{VLAN: p.VLAN, Interface: p.Interface, VIPs: p.VIPs, Group: "RouterCore", Enabled: true, Role: role},
			Flows:    10, PacketsPinned: 1000, PacketsReturned: 900, UnpinnedBy: map[string]uint64{"off": 7, "born_before": 3, "backup": 4, "helper": 2},
		})
	}
	router := func(address string, priority uint8, self bool) policy.RouterStatus {
		return policy.RouterStatus{Address: netip.MustParseAddr(address), Priority: priority, Interval: 1000, LastSeen: 400, Self: self}
	}
	virtual := func(ifname string, vlan uint16, vrid uint8, family, own, peer string) policy.VRRPStatus {
		vr := policy.VRRPStatus{Interface: ifname, VLAN: policy.VLAN{Outer: vlan}, VRID: vrid, Family: family, Version: 3, Role: role,
			Routers: []policy.RouterStatus{router(own, 150, true)}, Ignored: map[string]uint64{}}
		if role == policy.RoleBackup {
			vr.Routers = []policy.RouterStatus{router(peer, 200, false)}
		}
		return vr
	}
	f.Daemon = &Daemon{
		Status: policy.Status{Version: "1", Tier: "tcx", Uptime: 100, Groups: []policy.GroupStatus{{Name: "RouterCore", Role: role}}, Pins: f.Pins},
		VRRP: []policy.VRRPStatus{
			virtual("eth0.2", 2, 10, "ipv4", "198.51.100.3", "198.51.100.4"),
			virtual("eth0.2", 2, 10, "ipv6", "fe80::3", "fe80::4"),
			virtual("eth0.20", 20, 20, "ipv4", "203.0.113.3", "203.0.113.4"),
		},
	}
	return f
}

func machine() policy.Machine {
	m := policy.Machine{
		Kernel: "6.6.4", BTF: true, Loaded: true, RPFDrops: 5,
		Sysctls: map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/conf/all/rp_filter": "0",
			"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2",
			"net/netfilter/nf_conntrack_max": "1000", "net/netfilter/nf_conntrack_count": "100", "net/netfilter/nf_conntrack_events": "1",
		},
		BPFFS:    policy.BPFFS{Dir: "/sys/fs/bpf/vippin", Known: true, Mounted: true, Ours: "0:39", Host: "0:39", Daemon: "0:39"},
		Attached: map[int]bool{vlan2Index: true, vlan20Index: true},
		Counters: map[int]policy.LinkCounters{vlan2Index: {In: 900, Out: 1000}, vlan20Index: {In: 900, Out: 1000}},
		NAT: policy.NAT{Known: true, Rules: []policy.NATRule{{
			Where: "table inet nat, chain postrouting, handle 3", IPv4: true, IPv6: true, Masquerade: true,
			Out: []policy.OutMatch{{Names: []string{"eth0.*"}}},
		}}},
	}
	for _, ifname := range []string{"eth0.2", "eth0.20"} {
		m.Sysctls["net/ipv4/conf/"+ifname+"/forwarding"] = "1"
		m.Sysctls["net/ipv4/conf/"+ifname+"/rp_filter"] = "0"
		m.Sysctls["net/ipv6/conf/"+ifname+"/disable_ipv6"] = "0"
	}
	return m
}

// replan makes the plan anew after a change of links or configuration.
func (f *Facts) replan() {
	f.Plan = policy.MakePlan(f.Config, policy.Toggles{}, f.Observed, policy.Plan{})
}

// addVMAC puts the VIPs of eth0.2 on a virtual MAC, as keepalived does.
func (f *Facts) addVMAC() {
	base := &f.Observed.Links[1]
	f.Observed.Links = append(f.Observed.Links, policy.Link{
		Index: vmacIndex, Name: "vrrp4.10", Kind: "macvlan", Parent: vlan2Index, VLAN: policy.VLAN{Outer: 2}, Up: true, HasL2: true,
		MAC: policy.MAC{0, 0, 0x5e, 0, 1, 10}, Addrs: base.Addrs[2:],
	})
	base.Addrs = base.Addrs[:2]
	f.Machine.Sysctls["net/ipv4/conf/vrrp4.10/forwarding"] = "1"
	f.Machine.Sysctls["net/ipv4/conf/vrrp4.10/rp_filter"] = "0"
	f.Machine.Counters[vmacIndex] = policy.LinkCounters{In: 500, InMulticast: 100, Out: 500}
	f.replan()
}

// bad lists what is worse than ok.
func bad(findings []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return f.State == OK })
}

func TestHealthyRouterHasNoFinding(t *testing.T) {
	for _, role := range []policy.Role{policy.RoleMaster, policy.RoleBackup} {
		plain, vmac := healthy(t, role), healthy(t, role)
		if role == policy.RoleMaster {
			vmac.addVMAC()
		}
		for _, f := range []*Facts{plain, vmac} {
			findings := Examine(*f)
			for _, one := range bad(findings) {
				t.Errorf("%s: %+v", role, one)
			}
			if !Healthy(findings) || len(findings) < 12 {
				t.Errorf("%s: healthy %t with %d findings", role, Healthy(findings), len(findings))
			}
		}
	}
}

// mutation is one thing that is wrong, and the finding that must tell of it.
type mutation struct {
	name   string
	role   policy.Role
	harm   func(*Facts)
	check  string
	state  State
	found  []string // parts of the text
	remedy []string // parts of the remedy
}

// expect wants the finding, and no other check to complain unless it is among
// the others.
func (m mutation) expect(t *testing.T, others ...string) {
	t.Helper()
	f := healthy(t, m.role)
	m.harm(f)
	findings := Examine(*f)
	hit := false
	for _, one := range bad(findings) {
		if one.Remedy == "" {
			t.Errorf("%s has no remedy: %s", one.Check, one.Found)
		}
		if one.Check != m.check {
			if !slices.Contains(others, one.Check) {
				t.Errorf("another check complains: %+v", one)
			}
			continue
		}
		if one.State == m.state && containsAll(one.Found, m.found) && containsAll(one.Remedy, m.remedy) {
			hit = true
		} else {
			t.Logf("not it: %+v", one)
		}
	}
	if !hit {
		t.Errorf("no %s of %s with %q and remedy %q in %+v", m.state, m.check, m.found, m.remedy, findings)
	}
	if Healthy(findings) {
		t.Error("healthy all the same")
	}
}

func containsAll(text string, parts []string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) })
}

func (f *Facts) sysctl(name, value string) {
	f.Machine.Sysctls = maps.Clone(f.Machine.Sysctls)
	f.Machine.Sysctls[name] = value
}
