// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vippin/loader"
	"vippin/policy"
	"vippin/test/lab"
)

// roleTimer measures how long a role takes from the netlink message about the
// pin's last VIP to the map that the programs read, beside the daemon and
// without its help.
type roleTimer struct {
	plane   *loader.Dataplane
	stop    chan struct{}
	ended   chan struct{}
	gained  []time.Duration // became MASTER
	lost    []time.Duration // became something else
	timeout int
	failed  error // the subscription's
}

// timeRoles times the only pin of a router, on the WAN, until stop is called.
func (s *scene) timeRoles(r *lab.Router) *roleTimer {
	s.t.Helper()
	plane, err := loader.Open(r.BPFFS)
	s.must(err)
	rt := &roleTimer{plane: plane, stop: make(chan struct{}), ended: make(chan struct{})}
	updates := make(chan netlink.AddrUpdate, 256)
	s.must(r.Do(func() error {
		return netlink.AddrSubscribeWithOptions(updates, rt.stop, netlink.AddrSubscribeOptions{
			ReceiveBufferSize: 4 << 20, ReceiveBufferForceSize: true,
			ErrorCallback: func(err error) {
				select {
				case <-rt.stop: // the socket was closed
				default:
					rt.failed = err
				}
			},
		})
	}))
	every, _, err := r.IsMaster()
	s.must(err)
	go rt.follow(updates, every)
	return rt
}

func (rt *roleTimer) follow(updates <-chan netlink.AddrUpdate, held bool) {
	defer close(rt.ended)
	have := map[netip.Addr]bool{lab.WAN.VIP4: held, lab.WAN.VIP6: held}
	for update := range updates {
		addr, _ := netip.AddrFromSlice(update.LinkAddress.IP)
		addr = addr.Unmap()
		before, ours := have[addr]
		if !ours || before == update.NewAddr {
			continue
		}
		hadAll := have[lab.WAN.VIP4] && have[lab.WAN.VIP6]
		have[addr] = update.NewAddr
		switch hasAll := have[lab.WAN.VIP4] && have[lab.WAN.VIP6]; {
		case hasAll:
			rt.gained = rt.await(rt.gained, true)
		case hadAll:
			rt.lost = rt.await(rt.lost, false)
		}
	}
}

// await adds the time until the map says MASTER or no longer does.
func (rt *roleTimer) await(times []time.Duration, master bool) []time.Duration {
	const pin = 1
	start := time.Now()
	for time.Since(start) < patience {
		role, _, err := rt.plane.Role(pin)
		now := time.Since(start)
		if err == nil && (role == policy.RoleMaster) == master {
			return append(times, now)
		}
		if now > 5*time.Millisecond { // spin no longer than what is worth it
			time.Sleep(50 * time.Microsecond)
		}
	}
	rt.timeout++
	return times
}

func (rt *roleTimer) Stop() {
	close(rt.stop)
	<-rt.ended
	rt.plane.Close()
}

// spread is minimum, median, 90th percentile and maximum.
func spread(times []time.Duration) string {
	if len(times) == 0 {
		return "none"
	}
	slices.Sort(times)
	at := func(percent int) time.Duration { return times[(len(times)-1)*percent/100].Round(time.Microsecond) }
	return fmt.Sprintf("%d: min %s, median %s, 90%% %s, max %s", len(times), at(0), at(50), at(90), at(100))
}

// Takeovers and preemptions move the role with the VIPs, within milliseconds,
// and nobody sees a conflict in them; keepalived's FIFO agrees.
func TestTakeovers(t *testing.T) {
	const rounds = 10
	steady := 2 * advertInterval // what an advert that comes late would need to look like a conflict
	s := setScene(t, "takeovers", lab.Options{Hosts: 1})
	withFIFO := lab.Keepalived{NotifyFIFO: filepath.Join(s.RB.Dir, "keepalived.fifo")}
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	watchers := []*watcher{
		s.startWatched(s.RA, onWAN),
		s.startWatched(s.RB, onWAN+"vrrp: {keepalived_fifo: "+withFIFO.NotifyFIFO+"}\n"),
	}
	_, err := s.StartKeepalived(s.RB, withFIFO) // once the FIFO is there
	s.must(err)
	s.awaitPeace()
	timers := []*roleTimer{s.timeRoles(s.RA), s.timeRoles(s.RB)}
	a, b := watchers[0], watchers[1] // asking the daemon in a loop would be load
	for range rounds {
		before := []int{len(a.events()), len(b.events())}
		s.must(s.RA.Keepalived().Stop())
		b.await(before[1], "MASTER", isRole(policy.RoleMaster))
		s.must(s.await("keepalived's word on rb", func() (bool, error) {
			evidence := strings.Join(s.status(s.RB).Groups[0].Evidence, "\n")
			return strings.Contains(evidence, "keepalived said MASTER (GROUP"), nil
		}))
		time.Sleep(steady)
		_, err := s.StartKeepalived(s.RA, lab.Keepalived{})
		s.must(err)
		a.await(before[0], "MASTER", isRole(policy.RoleMaster))
		b.await(before[1], "BACKUP", isRole(policy.RoleBackup))
		time.Sleep(steady)
	}
	s.awaitPeace()
	var gained, lost []time.Duration
	for i, timer := range timers {
		timer.Stop()
		if timer.failed != nil {
			t.Errorf("the subscription on %s: %v", s.Routers()[i].Name, timer.failed)
		}
		gained, lost = append(gained, timer.gained...), append(lost, timer.lost...)
		if timer.timeout > 0 || len(timer.gained) != rounds || len(timer.lost) != rounds {
			t.Errorf("%s: %d times MASTER, %d times no longer, %d times the map did not follow; want %d, %d, 0",
				s.Routers()[i].Name, len(timer.gained), len(timer.lost), timer.timeout, rounds, rounds)
		}
	}
	t.Logf("netlink to map, became MASTER: %s", spread(gained))
	t.Logf("netlink to map, ceased to be:  %s", spread(lost))
	for i, w := range watchers {
		roles := 0
		for _, event := range w.events() {
			if event.Kind == "conflict" {
				t.Errorf("%s saw a conflict in a normal takeover: %s", w.r.Name, event.Detail)
			}
			if isRole(policy.RoleMaster)(event) {
				roles++
			}
		}
		if roles != rounds {
			t.Errorf("%s told %d times that it is MASTER, want %d", s.Routers()[i].Name, roles, rounds)
		}
	}
}

// What keepalived says in its FIFO is a witness: it is shown, and when it
// contradicts the addresses for longer than the grace that is a conflict.
func TestFIFOContradicts(t *testing.T) {
	t.Parallel()
	s := setScene(t, "fifo", lab.Options{Hosts: 1, SingleRouter: true})
	path := filepath.Join(s.RA.Dir, "keepalived.fifo")
	w := s.startWatched(s.RA, onWAN+"vrrp: {keepalived_fifo: "+path+"}\n")
	s.awaitRole(s.RA, policy.RoleMaster)
	say := func(state string) int {
		before := len(w.events())
		fifo, err := os.OpenFile(path, os.O_WRONLY, 0)
		s.must(err)
		_, err = fmt.Fprintf(fifo, "INSTANCE \"WAN0\" %[1]s 150\nGROUP \"RouterCore\" %[1]s 0\n", state)
		s.must(err)
		s.must(fifo.Close())
		s.must(s.await(state+" in the evidence", func() (bool, error) {
			return strings.Contains(strings.Join(s.status(s.RA).Groups[0].Evidence, "\n"), "keepalived said "+state+" (GROUP"), nil
		}))
		return before
	}
	say("MASTER")
	before := say("BACKUP")
	if group, _ := s.conflicts(s.RA); group != "" {
		t.Errorf("a conflict before the grace has passed: %s", group)
	}
	event := w.await(before, "a conflict", isConflict)
	const want = "keepalived says BACKUP, the addresses and adverts say MASTER"
	if group, _ := s.conflicts(s.RA); group != want || event.Detail != want {
		t.Errorf("conflict %q, event %q, want %q", group, event.Detail, want)
	}
	s.awaitRole(s.RA, policy.RoleMaster) // the addresses decide
	w.await(say("MASTER"), "the end of the conflict", isConflictOver)
}

// An interface without a pin is watched when a group names a VRID there; the
// group's role comes from the adverts alone.
func TestWatchedOnly(t *testing.T) {
	t.Parallel()
	config := strings.Replace(onWAN, "groups:", `groups:
  - {name: Edge, vrids: ["30@wan1"]}`, 1)
	s := setScene(t, "watched", lab.Options{Hosts: 1, WAN1: true})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	for _, r := range s.Routers() {
		s.start(r, config)
	}
	s.wantEdge(s.RA, policy.RoleMaster, lab.WAN1.RA)
	s.wantEdge(s.RB, policy.RoleBackup, lab.WAN1.RA)
	s.must(s.RA.Keepalived().Stop())
	s.wantEdge(s.RA, policy.RoleBackup, lab.WAN1.RB)
	s.wantEdge(s.RB, policy.RoleMaster, lab.WAN1.RB)
	plane, err := loader.Open(s.RA.BPFFS)
	s.must(err)
	defer plane.Close()
	var plan policy.Plan
	s.must(s.RA.Do(func() (err error) { // where the interfaces' numbers have their names
		plan, err = plane.Planned()
		return err
	}))
	for _, face := range plan.Interfaces {
		if (face.Name == lab.WAN1.Name) != (face.Slot == 0) {
			t.Errorf("interface %s has slot %d; only %s is watched without a pin", face.Name, face.Slot, lab.WAN1.Name)
		}
	}
}

// wantEdge wants the role of the group that is only watched, and the living
// master of its virtual routers.
func (s *scene) wantEdge(r *lab.Router, role policy.Role, master lab.Ends) {
	s.t.Helper()
	s.must(s.await(fmt.Sprintf("%s for Edge on %s", role, r.Name), func() (bool, error) {
		for _, group := range s.status(r).Groups {
			if group.Name == "Edge" {
				return group.Role == role && group.Conflict == "", nil
			}
		}
		return false, fmt.Errorf("status of %s shows no group Edge", r.Name)
	}))
	s.must(s.await(fmt.Sprintf("adverts of %s on wan1 of %s", master.V4, r.Name), func() (bool, error) {
		families := map[string]bool{}
		for _, vr := range s.vrrp(r) {
			if vr.Interface != lab.WAN1.Name || vr.VRID != lab.WAN1.VRID || vr.Role != role {
				continue
			}
			living := livingMaster(vr, advertInterval)
			families[vr.Family] = living != nil && (vr.Family == "ipv6" || living.Address == master.V4)
		}
		return families["ipv4"] && families["ipv6"], nil
	}))
}
