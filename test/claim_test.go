// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
)

// claimText is what a conflict says that no advert bears witness of.
const claimText = "claims the same; its adverts do not get through"

// The switch loses every advert, both ways: two masters, and neither hears the
// other. What the second one says of the VIP by ARP and neighbour
// advertisements is the witness; the first one's questions make the second one
// ask too. Both show it for as long as it lasts, and no longer.
func TestMastersWithoutAdverts(t *testing.T) {
	for name, keepalived := range map[string]lab.Keepalived{
		"plain": {}, "VMAC": {VMAC: true}, "IPv4 only": {IPv4Only: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setScene(t, "claims"+strings.ToLower(name[:4]), lab.Options{Hosts: 1})
			config := onWAN
			if keepalived.IPv4Only {
				config = strings.ReplaceAll(onWAN, `, "2001:db8:100::2"`, "")
			}
			s.must(s.StartRouters(s.ctx, keepalived))
			watchers := []*watcher{s.startWatched(s.RA, config), s.startWatched(s.RB, config)}
			s.awaitPeace()
			before := []int{len(watchers[0].events()), len(watchers[1].events())}
			s.block(s.RA, s.RB)
			s.block(s.RB, s.RA)
			second := watchers[1].await(before[1], "MASTER", isRole(policy.RoleMaster))
			for i, w := range watchers {
				s.wantClaimConflict(w, before[i], second.Time)
			}
			s.wantClaimStays(watchers, before, 6*time.Second)

			mended := time.Now()
			s.unblock()
			for i, w := range watchers {
				over := w.await(before[i], "the end of the conflict", isConflictOver)
				t.Logf("%s: over %s after adverts pass again", w.r.Name, over.Time.Sub(mended).Round(time.Millisecond))
			}
			s.awaitPeace()
		})
	}
}

// wantClaimConflict wants the conflict shown by every command, soon after the
// second router became MASTER.
func (s *scene) wantClaimConflict(w *watcher, after int, since time.Time) {
	s.t.Helper()
	event := w.await(after, "a conflict", isConflict)
	delay := event.Time.Sub(since)
	s.t.Logf("%s: shown %s after the second MASTER (%.1f advert intervals): %s", w.r.Name,
		delay.Round(time.Millisecond), float64(delay)/float64(advertInterval), event.Detail)
	if delay > soon {
		s.t.Errorf("%s showed the conflict only after %s", w.r.Name, delay)
	}
	if event.Group != lab.SyncGroup || !strings.Contains(event.Detail, claimText) {
		s.t.Errorf("%s shows the conflict of %q as %q", w.r.Name, event.Group, event.Detail)
	}
	if _, _, exit := s.Vippin(w.r, "status"); exit != 3 {
		s.t.Errorf("status on %s: exit %d, want 3 (degraded)", w.r.Name, exit)
	}
}

// wantClaimStays watches both routers for a while: two masters, one conflict.
func (s *scene) wantClaimStays(watchers []*watcher, before []int, d time.Duration) {
	s.t.Helper()
	time.Sleep(d) // nothing happens, which no event tells
	for i, w := range watchers {
		s.awaitRole(w.r, policy.RoleMaster)
		conflicts := 0
		for _, event := range w.events()[before[i]:] {
			switch {
			case isConflictOver(event):
				s.t.Errorf("%s: the conflict was over while it lasted", w.r.Name)
			case isConflict(event):
				conflicts++
			}
		}
		if conflicts > 2 { // the families may come one by one
			s.t.Errorf("%s told of the conflict %d times", w.r.Name, conflicts)
		}
		group, routers := s.conflicts(w.r)
		for _, text := range append(routers, group) {
			if !strings.Contains(text, claimText) || !strings.Contains(text, lab.WAN.Name) {
				s.t.Errorf("%s shows the conflict as %q", w.r.Name, text)
			}
		}
		if len(routers) == 0 || !strings.Contains(group, lab.WAN.VIP4.String()) {
			s.t.Errorf("%s shows the conflict as %q in status and %q in vrrp", w.r.Name, group, routers)
		}
		if evidence := strings.Join(s.status(w.r).Groups[0].Evidence, "\n"); !strings.Contains(evidence, " claims "+lab.WAN.VIP4.String()) {
			s.t.Errorf("%s has no such evidence:\n%s", w.r.Name, evidence)
		}
	}
}

// lateClaim is a gratuitous ARP of a master who has given the VIP up meanwhile,
// as the new one hears it when the network is slow: from the server, who will
// not answer when asked.
func (s *scene) lateClaim() {
	s.t.Helper()
	s.must(s.Server.Do(func() error {
		link, err := net.InterfaceByName("eth0") // of the server
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		vip := lab.WAN.VIP4.AsSlice()
		arp := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, link.HardwareAddr, vip, make([]byte, 6), vip)
		return unix.Sendto(fd, arp, 0, &unix.SockaddrLinklayer{
			Protocol: binary.NativeEndian.Uint16([]byte{8, 6}), Ifindex: link.Index, Halen: 6,
			Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		})
	}))
}

// Takeovers of every kind, with the gratuitous ARP that belongs to them, with
// one that comes late, and with keepalived repeating it all the time: nobody
// sees a conflict.
func TestTakeoversRaiseNoClaimConflict(t *testing.T) {
	t.Parallel()
	s := setScene(t, "noclaims", lab.Options{Hosts: 1})
	keepalived := lab.Keepalived{Instance: "\tgarp_master_refresh 1\n"}
	s.must(s.StartRouters(s.ctx, keepalived))
	a, b := s.startWatched(s.RA, onWAN), s.startWatched(s.RB, onWAN)
	s.awaitPeace()
	before := []int{len(a.events()), len(b.events())}
	restart := func() error { _, err := s.StartKeepalived(s.RA, keepalived); return err }
	cut := func() error { return s.CutCable(s.RA, lab.WAN) }
	plug := func() error { return s.PlugCable(s.RA, lab.WAN) }
	for _, takeover := range []struct {
		name     string
		end      func() error
		comeBack func() error
	}{
		{"graceful", s.RA.Keepalived().Stop, restart},
		{"cable", cut, plug},
		{"graceful again", func() error { return s.RA.Keepalived().Stop() }, restart},
		{"cable again", cut, plug},
		{"power failure", func() error { return s.HardKill(s.RA) }, func() error {
			s.must(s.PowerOn(s.ctx, s.RA))
			return restart()
		}},
	} {
		from := len(b.events())
		s.must(takeover.end())
		b.await(from, "MASTER after "+takeover.name, isRole(policy.RoleMaster))
		s.lateClaim()
		time.Sleep(5 * advertInterval) // for what may come of it
		from = len(b.events())
		s.must(takeover.comeBack())
		b.await(from, "BACKUP after "+takeover.name, isRole(policy.RoleBackup))
		s.must(s.RA.AwaitMaster(s.ctx))
		s.lateClaim()
		time.Sleep(5 * advertInterval)
	}
	for i, w := range []*watcher{a, b} {
		for _, event := range w.events()[before[i]:] {
			if isConflict(event) {
				t.Errorf("%s: %s", w.r.Name, event.Detail)
			}
		}
	}
}
