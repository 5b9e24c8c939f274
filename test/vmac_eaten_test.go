// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// virtualMACs matches both families' of all virtual routers.
const virtualMACs = "& ff:ff:ff:ff:fc:00 == 00:00:5e:00:00:00"

// hypervise makes a switch treat ra's port as a hypervisor does: it takes no frame
// from a foreign MAC there (forged transmits), or delivers none to one (MAC
// address changes).
func (s *scene) hypervise(at *lab.Node, from, to bool) {
	s.t.Helper()
	var rules [2]string
	if from {
		rules[0] = `iifname "ra" ether saddr ` + virtualMACs + " drop"
	}
	if to {
		rules[1] = `oifname "ra" ether daddr ` + virtualMACs + " drop"
	}
	s.must(at.NFT(s.ctx, fmt.Sprintf(`
table bridge hypervisor
delete table bridge hypervisor
table bridge hypervisor {
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		%s
	}
	chain postrouting {
		type filter hook postrouting priority 0; policy accept;
		%s
	}
}
`, rules[0], rules[1])))
}

// A hypervisor that takes no frame from a virtual MAC eats ra's adverts: they leave,
// and never come in at rb, which becomes MASTER beside. Both routers' doctors see
// two masters and who does not hear whom; ra's names the virtual MAC and the ways
// out, as soon as hosts have asked for it in vain.
func TestVMACOneWayAdverts(t *testing.T) {
	t.Parallel()
	p := setVMAC(t, "vmaconeway", lab.Options{Hosts: 1}, lab.Keepalived{})
	p.listened(p.RA, p.RB)
	p.wantHealthy(p.RA, p.RB)
	p.hypervise(p.LANSwitch, true, false)
	p.hypervise(p.WANSwitch, true, false)
	p.awaitRole(p.RB, policy.RoleMaster)
	const also = "masters one_way virtual_mac adverts"
	p.wantFound(p.RA, sick{"masters", doctor.Error, "both masters", also})
	p.wantFound(p.RB, sick{"masters", doctor.Error, "both masters", also})
	f := p.wantFound(p.RA, sick{"one_way", doctor.Error, "although this router advertises 150: our adverts do not arrive there", also})
	p.wantHypervisor(f.Remedy)
	if !strings.Contains(f.Remedy, "vmac_xmit_base") {
		t.Errorf("the remedy does not name adverts from base: %q", f.Remedy)
	}
	p.wantFound(p.RB, sick{"one_way", doctor.Error, "do not arrive here", also})
	if s := p.status(p.RA).Groups[0]; s.Role != policy.RoleMaster {
		t.Errorf("a conflict changed ra's role: %+v", s)
	}
	for _, at := range []*lab.Node{p.LANSwitch, p.WANSwitch} {
		p.must(at.NFT(p.ctx, "delete table bridge hypervisor"))
	}
	p.awaitPeace()
	p.awaitHealthy(p.RA)
	p.awaitHealthy(p.RB)
}

// The same hypervisor with adverts from the interface's own MAC: nobody else becomes
// MASTER, and nobody reaches this one. On the inside no packet comes in that could
// leave with the VIP; what shows is that hosts ask for the virtual MAC, and that
// nothing ever comes to it. A healthy network, idle or not, does not look so.
func TestDoctorFindsVirtualMACEatenInside(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]struct{ from, to bool }{"what comes from it": {true, false}, "what goes to it": {false, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setScene(t, "vmaceat"+name[5:6], lab.Options{Hosts: 1})
			// A second MASTER, for a moment, would hear what is to stay unheard.
			s.must(s.StartRouters(s.ctx, lab.Keepalived{VMAC: true, VMACXmitBase: true, Interval: 3 * advertInterval}))
			for _, r := range s.Routers() {
				s.start(r, onWAN)
			}
			s.awaitPeace()
			s.listened(s.RA, s.RB)
			s.wantHealthy(s.RA, s.RB) // nobody has sent anything
			s.hypervise(s.LANSwitch, how.from, how.to)
			s.ip(s.Hosts[0], "neigh flush dev eth0")
			for above, to := range map[string]netip.Addr{"vrrp4.10": lab.ServerFar.V4, "vrrp6.10": lab.ServerFar.V6} {
				s.vainly(to)
				f := s.wantFound(s.RA, sick{"virtual_mac", doctor.Error, "ever arrived at " + above, ""})
				s.wantHypervisor(f.Remedy)
				if !strings.Contains(f.Remedy, "use_vmac") {
					t.Errorf("the remedy does not name keepalived's setting: %q", f.Remedy)
				}
			}
			s.awaitRole(s.RB, policy.RoleBackup)
			s.wantHealthy(s.RB)
			s.must(s.LANSwitch.NFT(s.ctx, "delete table bridge hypervisor"))
			for _, to := range []netip.Addr{lab.ServerFar.V4, lab.ServerFar.V6} { // the host's caches know of failures
				s.must(s.await("an answer from "+to.String(), func() (bool, error) { return s.answered(to), nil }))
			}
			s.sees(s.Hosts[0], lab.ServerFar, vip)
			s.wantHealthy(s.RA, s.RB)
		})
	}
}

// vainly sends from a host what is not answered.
func (s *scene) vainly(to netip.Addr) {
	s.t.Helper()
	if s.answered(to) {
		s.t.Errorf("the hypervisor let packets to %s through", to)
	}
}

// answered tells whether the server answers a host within a moment.
func (s *scene) answered(to netip.Addr) bool {
	_, err := traffic.Ask(s.ctx, s.Hosts[0].Do, "udp", netip.AddrPort{}, lab.Port(to, serverPort), time.Second/2)
	return err == nil
}
