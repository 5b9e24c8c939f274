// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
)

// lease is short, so that the tests need not wait for long.
const lease = 500 * time.Millisecond

const onWANLeased = onWAN + "vrrp: {lease: 500ms}\n"

// routeBy sends a host's traffic to the far server through one router, be it
// MASTER or not.
func (s *scene) routeBy(h *lab.Node, r *lab.Router) {
	s.t.Helper()
	ends := r.Own(lab.LAN)
	for _, way := range [][]string{
		{"-4", "route", "replace", lab.ServerFar.V4.String(), "via", ends.V4.String()},
		{"-6", "route", "replace", lab.ServerFar.V6.String(), "via", ends.V6.String()},
	} {
		_, err := h.Run(s.ctx, "ip", way...)
		s.must(err)
	}
}

// wantSources wants a host's new flows to arrive from these addresses.
func (s *scene) wantSources(h *lab.Node, want lab.Ends) {
	s.t.Helper()
	for remote, source := range map[netip.Addr]netip.Addr{lab.ServerFar.V4: want.V4, lab.ServerFar.V6: want.V6} {
		for _, proto := range []string{"tcp", "udp"} {
			if got := s.source(h, proto, netip.AddrPort{}, remote); got.Addr() != source {
				s.t.Errorf("%s of %s to %s arrived from %s, want %s", proto, h.Name, remote, got, source)
			}
		}
	}
}

// A router whose daemon was killed hands out the VIP while it advertises, and
// no longer when it has lost the VIPs to the other, although nobody has told
// the dataplane.
func TestDeadDaemonHandsOutNoVIP(t *testing.T) {
	t.Parallel()
	s := setScene(t, "lease", lab.Options{Hosts: 2})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	daemon := s.start(s.RA, onWANLeased)
	s.start(s.RB, onWANLeased)
	s.awaitPeace()
	through := s.Hosts[1] // always by ra
	s.routeBy(through, s.RA)
	s.wantSources(through, vip)

	s.must(daemon.Kill9())
	time.Sleep(lease + advertInterval) // its last sign of life is older than the lease
	alive := s.count(s.RA, 2, func() { s.wantSources(through, vip) })
	s.wantPinned(alive)

	s.must(s.RA.Keepalived().Stop())
	s.must(s.RB.AwaitMaster(s.ctx))
	s.awaitRole(s.RB, policy.RoleMaster)
	lost := s.count(s.RA, 2, func() { s.wantSources(through, s.RA.Own(lab.WAN)) })
	s.wantReason(lost, "stale_role")
	if role := s.pin(s.RA, 2).Role; role == policy.RoleMaster {
		t.Error("pin ls of ra, without a daemon, still says MASTER")
	}
	s.wantSources(s.Hosts[0], vip) // by the LAN's VIP, which rb has now

	s.start(s.RA, onWANLeased)
	s.awaitRole(s.RA, policy.RoleBackup)
	backup := s.count(s.RA, 2, func() { s.wantSources(through, s.RA.Own(lab.WAN)) })
	s.wantReason(backup, "backup")
}

// A keepalived that crashes leaves its VIPs behind. They hand out nothing: not
// with a daemon, which sees that the adverts have stopped and the other is
// MASTER, and not without one.
func TestCrashedKeepalived(t *testing.T) {
	t.Parallel()
	s := setScene(t, "crash", lab.Options{Hosts: 2})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	daemon := s.start(s.RA, onWANLeased)
	w := s.watch(s.RA)
	b := s.startWatched(s.RB, onWANLeased)
	s.awaitPeace()
	through := s.Hosts[1]
	s.routeBy(through, s.RA)
	crash := func() time.Time {
		s.must(s.RA.Keepalived().Kill9())
		at := time.Now()
		s.must(s.RB.AwaitMaster(s.ctx))
		if every, _, err := s.RA.IsMaster(); err != nil || !every {
			t.Fatalf("the crash took VIPs from ra (%v): nothing to test", err)
		}
		return at
	}

	before, beforeB := len(w.events()), len(b.events())
	at := crash()
	gone := w.await(before, "the end of MASTER", func(e policy.Event) bool { return e.Role != nil && *e.Role != policy.RoleMaster })
	taken := b.await(beforeB, "MASTER", isRole(policy.RoleMaster))
	t.Logf("after the crash: ra gave MASTER up after %s, rb took it after %s",
		gone.Time.Sub(at).Round(time.Millisecond), taken.Time.Sub(at).Round(time.Millisecond))
	if late := gone.Time.Sub(at); late > soon {
		t.Errorf("ra was MASTER for %s after keepalived's crash", late)
	}
	s.awaitRole(s.RA, policy.RoleBackup) // not FAULT: rb is heard
	if group, _ := s.conflicts(s.RA); !strings.Contains(group, "adverts have stopped") {
		t.Errorf("ra shows the VIPs that stayed as %q", group)
	}
	s.wantReason(s.count(s.RA, 2, func() { s.wantSources(through, s.RA.Own(lab.WAN)) }), "backup")

	_, err := s.StartKeepalived(s.RA, lab.Keepalived{})
	s.must(err)
	s.awaitPeace()
	s.wantSources(through, vip)

	s.must(daemon.Kill9())
	time.Sleep(lease + advertInterval)
	s.wantSources(through, vip)
	crash()
	time.Sleep(5 * advertInterval) // the last advert speaks for 3
	s.wantReason(s.count(s.RA, 2, func() { s.wantSources(through, s.RA.Own(lab.WAN)) }), "stale_role")
}

// After a power failure the other router has the role and the VIP; the first
// one takes both back when it returns.
func TestHardKill(t *testing.T) {
	t.Parallel()
	s := setScene(t, "hardkill", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	s.start(s.RA, onWAN)
	b := s.startWatched(s.RB, onWAN)
	s.awaitPeace()
	s.wantSources(s.Hosts[0], vip)
	before := len(b.events())
	at := time.Now()
	s.must(s.HardKill(s.RA))
	taken := b.await(before, "MASTER", isRole(policy.RoleMaster))
	t.Logf("rb is MASTER %s after the power failure of ra began", taken.Time.Sub(at).Round(time.Millisecond))
	s.wantPinned(s.count(s.RB, 2, func() { s.wantSources(s.Hosts[0], vip) }))

	s.must(s.PowerOn(s.ctx, s.RA))
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleBackup)
	_, err := s.StartKeepalived(s.RA, lab.Keepalived{})
	s.must(err)
	s.awaitPeace()
	s.wantPinned(s.count(s.RA, 2, func() { s.wantSources(s.Hosts[0], vip) }))
	for _, event := range b.events() {
		if event.Kind == "conflict" {
			t.Errorf("rb saw a conflict: %s", event.Detail)
		}
	}
}
