// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
)

// Two masters, and who does not hear whom: a switch that loses adverts one way,
// and a firewall on the router itself.
func TestDoctorFindsTwoMasters(t *testing.T) {
	t.Parallel()
	s := setScene(t, "docmasters", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	for _, r := range s.Routers() {
		s.start(r, onWAN)
	}
	s.awaitPeace()
	s.wantHealthy(s.RA, s.RB)
	const also = "masters one_way"
	for _, how := range []struct {
		name       string
		harm, cure func(s *scene)
		onRA, onRB string // of one_way
	}{
		{"the switch loses ra's adverts", func(s *scene) { s.block(s.RA, s.RB) }, (*scene).unblock,
			"198.51.100.4 goes on as MASTER with priority 100 although this router advertises 150", "do not arrive here"},
		{"rb's firewall drops adverts", func(s *scene) { s.dropAdverts(s.RB) }, func(s *scene) { s.hearAdverts(s.RB) },
			"goes on as MASTER", "adverts of 198.51.100.3 with priority 150 arrive, and keepalived here goes on with 100"},
	} {
		s.run(how.name, func(s *scene) {
			how.harm(s)
			s.awaitRole(s.RB, policy.RoleMaster)
			for r, text := range map[*lab.Router]string{s.RA: how.onRA, s.RB: how.onRB} {
				s.wantFound(r, sick{"masters", doctor.Error, "both masters", also})
				s.wantFound(r, sick{"one_way", doctor.Error, text, also})
			}
			how.cure(s)
			s.awaitPeace()
			s.awaitHealthy(s.RA)
			s.awaitHealthy(s.RB)
		})
	}
	s.run("keepalived crashes and leaves its VIPs", func(s *scene) {
		s.must(s.RA.Keepalived().Kill9())
		s.wantFound(s.RA, sick{"roles", doctor.Error, "adverts have stopped", ""})
		_, err := s.StartKeepalived(s.RA, lab.Keepalived{})
		s.must(err)
		s.awaitPeace()
		s.awaitHealthy(s.RA)
	})
	s.run("adverts from afar", func(s *scene) {
		s.sendFrame(s.Server, "eth0", s.advertFrame(netip.MustParseAddr("198.51.100.200"), 254), 3)
		s.wantFound(s.RA, sick{"adverts_ignored", doctor.Warning, "3 adverts of VRID 20 on wan0 (ipv4)", ""})
	})
}

// twoWANs has VRRP and a pin on both; whether the VRIDs are placed or not.
func twoWANs(vrids string) string {
	return `
groups:
  - {name: RouterCore, vrids: [` + vrids + `]}
pins:
  - {vlan: 2, interface: wan0, vips: [198.51.100.2, "2001:db8:100::2"], group: RouterCore}
  - {vlan: 20, interface: wan1, vips: [203.0.113.2, "2001:db8:113::2"], group: RouterCore}
`
}

// Adverts that are lost on one of several interfaces leave a sync group BACKUP:
// only doctor sees it.
func TestDoctorFindsMissingAdverts(t *testing.T) {
	t.Parallel()
	s := setScene(t, "docadverts", lab.Options{Hosts: 1, WAN1: true})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	placed, loose := twoWANs(`"20@wan0", "30@wan1"`), twoWANs("20, 30")
	for _, r := range s.Routers() {
		s.start(r, placed)
	}
	s.awaitPeace()
	s.listened(s.RB)
	s.wantHealthy(s.RA, s.RB)
	for name, config := range map[string]string{"placed": placed, "loose": loose} {
		s.run(name, func(s *scene) {
			s.reload(s.RB, config)
			s.awaitHealthy(s.RB)
			s.must(s.BlockAdverts(s.ctx, s.RA, s.RB, lab.WAN1))
			f := s.wantFound(s.RB, sick{"adverts", doctor.Error, "heard on wan1, while wan0 hears some", ""})
			if !strings.Contains(f.Remedy, "IGMP") {
				s.t.Errorf("the remedy is %q", f.Remedy)
			}
			s.awaitRole(s.RB, policy.RoleBackup)
			s.unblock()
			s.awaitHealthy(s.RB)
		})
	}
	s.run("no carrier", func(s *scene) {
		s.must(s.CutCable(s.RB, lab.WAN1))
		s.wantFound(s.RB, sick{"interfaces", doctor.Error, "wan1 (VLAN 20) is down", "roles"})
		s.must(s.PlugCable(s.RB, lab.WAN1))
		s.awaitHealthy(s.RB)
	})
	s.run("strict filters with two ways out", func(s *scene) {
		s.must(s.RA.Sysctl("net/ipv4/conf/wan1/rp_filter", "1"))
		s.wantHealthy(s.RA)                                              // nothing dropped yet
		for _, from := range []lab.Ends{lab.ServerWAN1, lab.ServerFar} { // the filter has the ARP of the second, too
			_, _ = s.Server.Run(s.ctx, "ping", "-c", "1", "-W", "1", "-I", from.V4.String(), lab.WAN1.RA.V4.String())
		}
		s.wantFound(s.RA, sick{"rp_filter", doctor.Warning, "those of wan1 are strict", ""})
		s.must(s.RA.Sysctl("net/ipv4/conf/wan1/rp_filter", "2"))
		s.awaitHealthy(s.RA)
	})
	s.run("nobody is MASTER", func(s *scene) {
		s.must(s.RB.Keepalived().Stop())
		s.must(s.RA.Keepalived().Stop())
		s.wantFound(s.RB, sick{"adverts", doctor.Error, "nobody is MASTER", ""})
	})
}

// eatMACs makes the WAN's switch take from ra's port no frame with a virtual
// source MAC, as a hypervisor does with MACs that it has not given.
func (s *scene) eatMACs() {
	s.t.Helper()
	s.must(s.WANSwitch.NFT(s.ctx, `
table bridge hypervisor {
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		iifname "ra" ether saddr & ff:ff:ff:ff:fc:00 == 00:00:5e:00:00:00 drop
	}
}
`))
}

// A hypervisor that eats virtual MACs: the router is MASTER, its packets leave,
// and nothing comes back. The remedy is this hypervisor's.
func TestDoctorFindsEatenVirtualMAC(t *testing.T) {
	t.Parallel()
	s := setScene(t, "doceaten", lab.Options{Hosts: 1})
	s.eatMACs()
	_, err := s.StartKeepalived(s.RA, lab.Keepalived{VMAC: true})
	s.must(err)
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.wantHealthy(s.RA) // it is too early to say

	s.must(s.RA.Sysctl("net/ipv4/conf/all/rp_filter", "1"))
	f := s.wantFound(s.RA, sick{"rp_filter", doctor.Error, "virtual MAC interface vrrp4.20 is strict", ""})
	if want := "sysctl -w net/ipv4/conf/vrrp4.20/rp_filter=2"; f.Remedy != want {
		t.Errorf("the remedy is %q, want %q", f.Remedy, want)
	}
	for _, f := range s.doctor(s.RA) { // of the inside, too
		if f.Check == "rp_filter" {
			_, err = s.RA.Run(s.ctx, "sh", "-c", f.Remedy)
			s.must(err) // it can be pasted
		}
	}
	s.awaitHealthy(s.RA)

	far := lab.Port(lab.ServerFar.V4, serverPort)
	s.shout(s.Hosts[0], far)
	f = s.wantFound(s.RA, sick{"virtual_mac", doctor.Error, "00:00:5e:00:01:14 ever arrived at vrrp4.20", ""})
	s.wantHypervisor(f.Remedy)
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", daemon.Pid()))
	s.must(err)
	for vendor, want := range map[[2]string]string{
		{"", ""}: "forged-transmits",
		{"Microsoft Corporation", "Virtual Machine"}:  "Set-VMNetworkAdapter -VMName 'ra' -MacAddressSpoofing On",
		{"VMware, Inc.", "VMware7,1"}:                 "--allow-forged-transmits=true",
		{"QEMU", "Standard PC (i440FX + PIIX, 1996)"}: "macfilter: 0",
	} {
		for _, f := range s.doctorIn(program, dmi(vendor[0], vendor[1])) {
			known := f.Check == "virtual_mac" && f.State == doctor.Error || f.Check == "hypervisor" && f.State == doctor.OK
			if known && !strings.Contains(f.Remedy, want) {
				t.Errorf("%s on %s: the remedy is %q, want %q in it", f.Check, vendor, f.Remedy, want)
			}
		}
	}
	s.must(s.WANSwitch.NFT(s.ctx, "delete table bridge hypervisor"))
	s.source(s.Hosts[0], "udp", netip.AddrPort{}, far.Addr())
	s.wantHealthy(s.RA)
}

// wantHypervisor wants the settings that let virtual MACs through in a remedy: those of
// the hypervisor that the tests run on, or, where it says nothing of itself, all.
func (s *scene) wantHypervisor(remedy string) {
	s.t.Helper()
	for _, how := range []string{"MacAddressSpoofing On", "forged-transmits", "macfilter: 0"} {
		if strings.Contains(remedy, how) {
			return
		}
	}
	if !strings.Contains(remedy, "the provider's API") { // a cloud's
		s.t.Errorf("no hypervisor's settings in the remedy %q", remedy)
	}
}

// shout sends more datagrams than doctor forgives to stay without an answer,
// and does not wait for any.
func (s *scene) shout(from *lab.Node, to netip.AddrPort) {
	s.t.Helper()
	s.must(from.Do(func() error {
		conn, err := net.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		for range 40 {
			if _, err := conn.Write([]byte("anybody there?")); err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond) // a neighbour's queue is short
		}
		return nil
	}))
}
