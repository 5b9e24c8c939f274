// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vippin/policy"
	"vippin/policy/vrrp"
	"vippin/test/lab"
)

// mode is a way of keepalived to do VRRP, and how vippin names it on the WAN.
type mode struct {
	name       string
	keepalived lab.Keepalived
	version    uint8 // of the IPv4 instances
	checksum   string
	interval   time.Duration
	virtualMAC bool
}

// keepalived 2.2.7 has no way to leave the pseudo-header out in version 3.
var modes = []mode{
	{"v2", lab.Keepalived{Version: 2}, 2, vrrp.ChecksumRFC, time.Second, false},
	{"v2 PASS", lab.Keepalived{Version: 2, Auth: lab.AuthPass}, 2, vrrp.ChecksumRFC, time.Second, false},
	{"v2 AH", lab.Keepalived{Version: 2, Auth: lab.AuthAH}, 2, vrrp.ChecksumRFC, time.Second, false},
	{"v3", lab.Keepalived{}, 3, vrrp.ChecksumPseudo, advertInterval, false},
	{"v3 unicast", lab.Keepalived{Unicast: true}, 3, vrrp.ChecksumPseudo, advertInterval, false},
	{"v3 unicast, old checksum", lab.Keepalived{Unicast: true, Instance: "\told_unicast_checksum\n"}, 3, vrrp.ChecksumPseudo, advertInterval, false},
	{"v3 VMAC", lab.Keepalived{VMAC: true}, 3, vrrp.ChecksumPseudo, advertInterval, true},
	{"v3 VMAC, adverts from the base", lab.Keepalived{VMAC: true, VMACXmitBase: true, Instance: "\tgarp_master_refresh 1\n"}, 3, vrrp.ChecksumPseudo, advertInterval, true},
}

// Each mode of keepalived is tracked on both routers, over a takeover and
// back; its adverts are tagged, and the server sees the VIP all the while.
func TestKeepalivedModes(t *testing.T) {
	for i, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := setScene(t, fmt.Sprintf("mode%d", i), lab.Options{Hosts: 1})
			s.must(s.StartRouters(s.ctx, m.keepalived))
			for _, r := range s.Routers() {
				s.start(r, onWAN)
				s.countTags(r)
			}
			s.awaitPeace()
			s.wantVirtualRouters(m, s.RA, lab.WAN.RA, 150)
			s.wantVIPThrough(s.RA)
			s.wantTags(s.RB, vrrp.FamilyIPv4, vrrp.FamilyIPv6)

			s.must(s.RA.Keepalived().Stop())
			s.awaitRole(s.RA, policy.RoleBackup)
			s.awaitRole(s.RB, policy.RoleMaster)
			s.wantVirtualRouters(m, s.RB, lab.WAN.RB, 100)
			s.wantVIPThrough(s.RB)

			if m.version == 2 {
				return // its seconds add up, and the way back is the same
			}
			_, err := s.StartKeepalived(s.RA, m.keepalived)
			s.must(err)
			s.awaitPeace()
			s.wantVirtualRouters(m, s.RA, lab.WAN.RA, 150)
			s.wantVIPThrough(s.RA)
		})
	}
}

// wantVirtualRouters wants "vippin vrrp" of both routers to name the master of
// the WAN's virtual routers, and the version and flavours of its adverts.
func (s *scene) wantVirtualRouters(m mode, master *lab.Router, ends lab.Ends, priority uint8) {
	s.t.Helper()
	for _, r := range s.Routers() {
		vlan, err := policy.ParseVLAN(r.VLAN(lab.WAN))
		s.must(err)
		for _, family := range []string{vrrp.FamilyIPv4, vrrp.FamilyIPv6} {
			want := policy.VRRPStatus{
				Interface: lab.WAN.Name, VLAN: vlan, VRID: lab.WAN.VRID, Family: family, Version: m.version,
				Checksum: m.checksum, Role: policy.RoleBackup,
				// From the base it shows only where keepalived runs.
				VirtualMAC: m.virtualMAC && (!m.keepalived.VMACXmitBase || r.Keepalived().Alive()),
			}
			address := ends.V4
			if family == vrrp.FamilyIPv6 {
				want.Version, want.Checksum = 3, vrrp.ChecksumRFC
				address = netip.Addr{} // a link-local one, or as configured
			}
			if r == master {
				want.Role = policy.RoleMaster
			}
			var got policy.VRRPStatus
			err := s.await(fmt.Sprintf("the first adverts on %s, and a virtual MAC: %v", r.Name, want.VirtualMAC), func() (bool, error) {
				got = s.virtualRouter(r, family)
				return livingMaster(got, m.interval) != nil && got.VirtualMAC == want.VirtualMAC, nil
			})
			s.must(err)
			living := livingMaster(got, m.interval)
			if living.Self != (r == master) || living.Priority != priority ||
				living.Interval != float64(m.interval.Milliseconds()) || address.IsValid() && living.Address != address {
				s.t.Errorf("%s (%s): master is %+v, want %s, priority %d", r.Name, family, *living, address, priority)
			}
			for reason, n := range got.Ignored {
				s.t.Errorf("%s (%s): ignored %d adverts of keepalived: %s", r.Name, family, n, reason)
			}
			got.Routers, got.Ignored = nil, nil
			if fmt.Sprint(got) != fmt.Sprint(want) {
				s.t.Errorf("%s: vrrp shows\n%+v, want\n%+v", r.Name, got, want)
			}
		}
	}
}

// livingMaster is the only router that sent an advert lately, or nil.
func livingMaster(vr policy.VRRPStatus, interval time.Duration) *policy.RouterStatus {
	living := slices.DeleteFunc(slices.Clone(vr.Routers), func(r policy.RouterStatus) bool {
		return r.Priority == 0 || r.LastSeen > float64((3*interval).Milliseconds())
	})
	if len(living) != 1 {
		return nil
	}
	return &living[0]
}

// virtualRouter is the WAN's virtual router in "vippin vrrp", the zero value
// when it is not shown.
func (s *scene) virtualRouter(r *lab.Router, family string) policy.VRRPStatus {
	s.t.Helper()
	for _, vr := range s.vrrp(r) {
		if vr.Interface == lab.WAN.Name && vr.VRID == lab.WAN.VRID && vr.Family == family {
			return vr
		}
	}
	return policy.VRRPStatus{}
}

// awaitWay waits until the LAN's switch knows where the virtual MAC is. A router
// that has just become BACKUP may send from it too: what its macvlan says when
// it loses its addresses teaches the switch the old way, until the master's
// next gratuitous ARP.
func (s *scene) awaitWay(master *lab.Router) {
	s.t.Helper()
	other := s.RA
	if master == s.RA {
		other = s.RB
	}
	start, detours := time.Now(), 0
	for remote, own := range map[netip.Addr]netip.Addr{
		lab.ServerFar.V4: other.Own(lab.WAN).V4, lab.ServerFar.V6: other.Own(lab.WAN).V6,
	} {
		for s.source(s.Hosts[0], "udp", netip.AddrPort{}, remote).Addr() == own {
			detours++
			time.Sleep(advertInterval)
		}
	}
	if detours > 0 {
		s.t.Logf("the LAN led to the BACKUP, %s, for %s", other.Name, time.Since(start).Round(time.Millisecond))
	}
}

// wantVIPThrough wants new flows of every protocol and family to arrive from the
// VIP, and the master to have a mapping for each.
func (s *scene) wantVIPThrough(master *lab.Router) {
	s.t.Helper()
	s.awaitWay(master)
	before := s.pin(master, 2)
	for remote, vip := range map[netip.Addr]netip.Addr{lab.ServerFar.V4: lab.WAN.VIP4, lab.ServerFar.V6: lab.WAN.VIP6} {
		for _, proto := range []string{"tcp", "udp"} {
			if got := s.source(s.Hosts[0], proto, netip.AddrPort{}, remote); got.Addr() != vip {
				s.t.Errorf("through %s: %s to %s arrived from %s, want %s", master.Name, proto, remote, got, vip)
			}
		}
		if got := s.pingSource(s.Hosts[0], uint16(time.Now().UnixNano()), remote); got.Addr() != vip {
			s.t.Errorf("through %s: ping to %s arrived from %s, want %s", master.Name, remote, got, vip)
		}
	}
	after := s.pin(master, 2)
	// A closed TCP flow's mapping may be gone already; its packets are counted.
	if pinned := after.PacketsPinned - before.PacketsPinned; pinned < 6 {
		s.t.Errorf("%s counted %d pinned packets of 6 flows: %+v", master.Name, pinned, after)
	}
	if after.PacketsUnpinned != before.PacketsUnpinned {
		s.t.Errorf("%s left packets unpinned: %v", master.Name, after.UnpinnedBy)
	}
}
