// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
)

const insideIndex = vmacIndex + 1

// addInsideVMAC puts an inside VIP on a virtual MAC, as keepalived does: no pin is
// there. One neighbour has asked for it, and nothing but broadcast has come.
func (f *Facts) addInsideVMAC(addrs ...policy.Addr) {
	f.Observed.Links = append(f.Observed.Links, policy.Link{
		Index: insideIndex, Name: "vrrp4.1", Kind: "macvlan", Parent: trunkIndex, Up: true, HasL2: true,
		MAC: policy.MAC{0, 0, 0x5e, 0, 1, 1}, Addrs: addrs,
	})
	f.Machine.Counters[insideIndex] = policy.LinkCounters{In: 9, InMulticast: 9, Out: 500}
	f.Machine.Neighbours = map[int]int{insideIndex: 1}
	f.replan()
}

var insideVIP = policy.Addr{Prefix: netip.MustParsePrefix("192.168.101.1/24")}

// lead says by which interfaces IPv4 routes lead.
func (f *Facts) lead(ifindexes ...int) {
	f.Machine.Ways4 = make(map[int]bool)
	for _, ifindex := range ifindexes {
		f.Machine.Ways4[ifindex] = true
	}
}

// What may be wrong with virtual MACs, one fact at a time.
func TestVirtualMACMutations(t *testing.T) {
	for _, m := range []mutation{
		{"eaten inside", master, func(f *Facts) { f.addInsideVMAC(insideVIP) },
			"virtual_mac", Error, []string{"1 of its neighbours asked vrrp4.1", "00:00:5e:00:01:01", "ever arrived"}, []string{"use_vmac", "MacAddressSpoofing On"}},
		{"routes lead by the virtual MAC, which no rule masquerades to", master, func(f *Facts) {
			f.addVMAC()
			f.lead(vmacIndex, vlan2Index)
		}, "masquerade", Error, []string{"eth0.2 (VLAN 2)", "none to vrrp4.10"}, []string{`oifname "vrrp4.10" masquerade`}},
		{"strict, and routes lead by both", master, func(f *Facts) {
			f.addVMAC()
			f.Machine.RPFDrops = 0
			f.sysctl("net/ipv4/conf/vrrp4.10/rp_filter", "1")
			f.lead(vmacIndex, vlan2Index)
			f.Machine.NAT.Rules[0].Out = nil
		}, "rp_filter", Error, []string{"vrrp4.10 is strict"}, []string{"rp_filter=2"}},
		{"a deprecated VIP, and IPv6 routes lead by it", master, func(f *Facts) { f.addVMAC(); f.deprecate() },
			"masquerade", Error, []string{"vrrp4.10", "passes the VIP 2001:db8:2::2 over"}, []string{"use_oif_addrs_only=1", "2001:db8:2::2/64"}},
		{"arp_ignore", backup, func(f *Facts) { f.addVMAC(); f.sysctl("net/ipv4/conf/all/arp_ignore", "0") },
			"arp", Warning, []string{"vrrp4.10", "answer ARP"}, []string{"net.ipv4.conf.all.arp_ignore=1"}},
		{"arp_announce", master, func(f *Facts) { f.addVMAC(); f.sysctl("net/ipv4/conf/all/arp_announce", "1") },
			"arp", Warning, []string{"eth0.2", "in the VIP's name"}, []string{"net.ipv4.conf.all.arp_announce=2"}},
	} {
		t.Run(m.name, func(t *testing.T) { m.expect(t) })
	}
}

// deprecate makes the IPv6 VIP on the virtual MAC deprecated, and routes lead there.
func (f *Facts) deprecate() {
	link := &f.Observed.Links[len(f.Observed.Links)-1]
	link.Addrs = slices.Clone(link.Addrs)
	for i := range link.Addrs {
		link.Addrs[i].Deprecated = !link.Addrs[i].Prefix.Addr().Is4()
	}
	f.Machine.Ways6 = map[int]bool{vmacIndex: true}
	f.Machine.NAT.Rules[0].Out = nil
}

// What looks odd on virtual MACs and is well: no finding.
func TestVirtualMACNoFalseAlarm(t *testing.T) {
	for name, oddity := range map[string]func(*Facts){
		"nobody has asked": func(f *Facts) {
			f.addInsideVMAC(insideVIP)
			f.Machine.Neighbours = nil
		},
		"as BACKUP, neighbours of before": func(f *Facts) { f.addInsideVMAC() },
		"a link-local address alone": func(f *Facts) {
			f.addInsideVMAC(policy.Addr{Prefix: netip.MustParsePrefix("fe80::3/64")})
		},
		"something has come": func(f *Facts) {
			f.addInsideVMAC(insideVIP)
			f.Machine.Counters[insideIndex] = policy.LinkCounters{In: 10, InMulticast: 9, Out: 500}
		},
		"another macvlan": func(f *Facts) {
			f.addInsideVMAC(insideVIP)
			f.Observed.Links[len(f.Observed.Links)-1].MAC = policy.MAC{2, 0, 0, 0, 1, 1}
		},
		"strict, and routes lead by the virtual MAC alone": func(f *Facts) {
			f.addVMAC()
			f.Machine.RPFDrops = 0
			f.sysctl("net/ipv4/conf/vrrp4.10/rp_filter", "1")
			f.lead(vmacIndex, vlan20Index)
			f.Machine.NAT.Rules[0].Out = nil
		},
		"one gets through, that hosts have learnt instead": func(f *Facts) {
			f.addInsideVMAC(insideVIP)
			f.Observed.Links = append(f.Observed.Links, policy.Link{Index: insideIndex + 1, Name: "vrrp6.1", Kind: "macvlan", Parent: trunkIndex,
				Up: true, MAC: policy.MAC{0, 0, 0x5e, 0, 2, 1}})
			f.Machine.Counters[insideIndex+1] = policy.LinkCounters{In: 10, InMulticast: 9}
		},
		"arp_ignore of the interface alone": func(f *Facts) {
			f.addVMAC()
			f.sysctl("net/ipv4/conf/all/arp_ignore", "0")
			f.sysctl("net/ipv4/conf/vrrp4.10/arp_ignore", "1")
		},
		"arp_announce, without a virtual MAC of IPv4": func(f *Facts) {
			f.addVMAC()
			f.Observed.Links[len(f.Observed.Links)-1].MAC[4] = 2
			f.sysctl("net/ipv4/conf/all/arp_announce", "0")
		},
		"arp_ignore, without virtual MACs": func(f *Facts) { f.sysctl("net/ipv4/conf/all/arp_ignore", "0") },
		"a deprecated VIP, alone to be chosen": func(f *Facts) {
			f.addVMAC()
			f.deprecate()
			f.sysctl("net/ipv6/conf/vrrp4.10/use_oif_addrs_only", "1")
		},
		"a deprecated VIP, and routes lead below": func(f *Facts) {
			f.addVMAC()
			f.deprecate()
			f.Machine.Ways6 = map[int]bool{vlan2Index: true}
		},
		"no rule for a virtual MAC that no route leads by": func(f *Facts) {
			f.addVMAC()
			f.lead(vlan2Index, vlan20Index)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy(t, master)
			oddity(f)
			for _, one := range bad(Examine(*f)) {
				t.Errorf("%+v", one)
			}
		})
	}
}

// By a peer's word alone it shows, too, who does not hear whom; and virtual MACs are
// named among the causes, where they are in use.
func TestOneWayWithVirtualMACs(t *testing.T) {
	words := func(f *Facts) {
		f.Daemon.Status.Groups[0].Conflict = "both masters: 198.51.100.2 is here, and rb says that it is MASTER over the sync link, though no adverts of another router are heard: adverts are blocked between the routers"
	}
	mutation{"a peer's word alone", master, words,
		"one_way", Error, []string{"VRID 10 on eth0.2 (ipv4)", "do not arrive here"}, []string{"tcpdump"}}.expect2(t)
	mutation{"a peer's word alone, virtual MACs", master, func(f *Facts) { f.addVMAC(); words(f); f.Daemon.VRRP[0].VirtualMAC = true },
		"one_way", Error, []string{"VRID 10 on eth0.2 (ipv4)"}, []string{"vmac_xmit_base", "MacAddressSpoofing On", "forged-transmits"}}.expect2(t)
	mutation{"they do not hear us, virtual MACs", master, func(f *Facts) { f.addVMAC(); peer(f, 100); f.Daemon.VRRP[0].VirtualMAC = true },
		"one_way", Error, []string{"do not arrive there"}, []string{"vmac_xmit_base", "forged-transmits"}}.expect2(t)

	f := healthy(t, master)
	words(f)
	f.Daemon.VRRP[2].Routers = append(f.Daemon.VRRP[2].Routers, policy.RouterStatus{Priority: 100, Interval: 1000, LastSeen: 100})
	for _, one := range bad(Examine(*f)) {
		if one.Check == "one_way" && strings.Contains(one.Found, "VRID 20") {
			t.Errorf("VRID 20 is heard, and doctor says %+v", one)
		}
	}
}

// expect2 is expect for what is found by masters, too.
func (m mutation) expect2(t *testing.T) {
	t.Helper()
	t.Run(m.name, func(t *testing.T) { m.expect(t, "masters") })
}
