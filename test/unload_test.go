// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"vippin/loader"
	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// Unloading hands living flows over to conntrack: none breaks, none changes its
// source, and nothing of vippin stays.
func TestUnload(t *testing.T) {
	t.Parallel()
	s := setScene(t, "unload", lab.Options{SingleRouter: true})
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	var reports []func() traffic.FlowReport
	var want []netip.Addr
	// Two hosts on the same ports: one of each pair is not on its own port, as
	// masquerade alone would make it again by luck.
	for _, host := range s.Hosts {
		for _, ends := range [][2]netip.Addr{{lab.ServerFar.V4, vip.V4}, {lab.ServerFar.V6, vip.V6}} {
			for _, proto := range []string{"tcp", "udp"} {
				f := s.flow(host, proto, netip.AddrPortFrom(netip.Addr{}, 5000), lab.Port(ends[0], serverPort))
				defer f.Stop()
				reports, want = append(reports, f.Report), append(want, ends[1])
			}
			p := s.ping(host, 5000, ends[0])
			defer p.Stop(nil)
			reports = append(reports, func() traffic.FlowReport { return s.report(p) })
			want = append(want, ends[1])
		}
	}
	check := func(when string, before []netip.AddrPort) (now []netip.AddrPort) {
		now = s.goesOn(reports...)
		for i, source := range now {
			if source.Addr() != want[i] || (before != nil && source != before[i]) {
				t.Errorf("%s: %s arrives from %s, want %s, before: %v", when, reports[i]().ID, source, want[i], before)
			}
		}
		return now
	}
	sources := check("with the daemon", nil)
	if _, complaint, exit := s.Vippin(s.RA, "unload"); exit != 1 || !strings.Contains(complaint, "stop it first") {
		t.Errorf("unload beside the daemon: exit %d, %q", exit, complaint)
	}
	s.must(daemon.Stop())
	check("with the daemon stopped", sources)
	if n := s.programs(s.RA); n == 0 {
		t.Error("no program is attached after the daemon's end")
	}
	if out := s.vippin(s.RA, "unload"); !strings.Contains(out, "12 living connections") {
		t.Errorf("unload says %q, want 12 living connections", out)
	}
	check("unloaded", sources)
	s.nothingLeft(s.RA)
	s.sees(s.Hosts[0], lab.ServerFar, own)
	check("beside new flows", sources)
	for _, report := range reports {
		for _, gap := range report().Gaps {
			t.Logf("%s had no answer for %s", report().ID, gap.Length)
		}
	}
}

// programs counts the tcx programs on a router's interfaces.
func (s *scene) programs(r *lab.Router) (n int) {
	s.t.Helper()
	links, err := r.Netlink().LinkList()
	s.must(err)
	for _, l := range links {
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			s.must(r.Do(func() error {
				found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: hook})
				if err == nil {
					n += len(found.Programs)
				}
				return err
			}))
		}
	}
	return n
}

// nothingLeft checks that no program and nothing pinned stays on a router.
func (s *scene) nothingLeft(r *lab.Router) {
	s.t.Helper()
	if n := s.programs(r); n != 0 {
		s.t.Errorf("%d programs are still attached", n)
	}
	if _, err := os.Stat(r.BPFFS); !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("%s: %v, want it gone", r.BPFFS, err)
	}
	if _, err := loader.Open(r.BPFFS); !errors.Is(err, loader.ErrNotLoaded) {
		s.t.Errorf("open what is loaded: %v", err)
	}
}

// Without a daemon "load --master" pins, and the commands work from bpffs.
func TestLoadWithoutDaemon(t *testing.T) {
	t.Parallel()
	s := setScene(t, "load", lab.Options{Hosts: 1, SingleRouter: true})
	const noVRID = "pins:\n  - {vlan: 2, interface: wan0, vips: [198.51.100.2, \"2001:db8:100::2\"]}\n"
	s.must(s.WriteVippin(s.RA, noVRID))
	if _, complaint, exit := s.Vippin(s.RA, "pin", "ls"); exit != 1 || !strings.Contains(complaint, "nothing is loaded") {
		t.Errorf("pin ls before: exit %d, %q", exit, complaint)
	}
	// Nothing says that this router is MASTER.
	s.vippin(s.RA, "load")
	s.wantReason(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, own) }), "backup")
	s.vippin(s.RA, "load", "--master")
	if row := s.pin(s.RA, 2); !row.Enabled || row.Role != policy.RoleMaster {
		t.Errorf("pin ls: %+v", row)
	}
	s.wantPinned(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, vip) }))
	living := s.flow(s.Hosts[0], "tcp", netip.AddrPort{}, lab.Port(lab.ServerFar.V6, serverPort))
	defer living.Stop()
	source := s.goesOn(living.Report)[0]
	found := false
	for _, f := range s.flows(s.RA) {
		found = found || f.Public == source.String() && f.Proto == "tcp" && f.VLAN.Outer == 2 && f.Origin == "local"
	}
	if !found {
		t.Errorf("flows does not show %s: %+v", source, s.flows(s.RA))
	}
	s.vippin(s.RA, "pin", "off", "2")
	s.sees(s.Hosts[0], lab.ServerFar, own)
	s.goesOn(living.Report)
	var rows []policy.PinStatus
	s.must(json.Unmarshal([]byte(s.vippin(s.RA, "pin", "on", "2", "-j")), &rows))
	if len(rows) != 1 || !rows[0].Enabled || rows[0].EnabledBy != policy.EnabledByToggle {
		t.Errorf("pin on: %+v", rows)
	}
	s.sees(s.Hosts[0], lab.ServerFar, vip)
	s.goesOn(living.Report)
	s.collectByLoad(living)
	s.vippin(s.RA, "unload")
	s.goesOn(living.Report)
	s.nothingLeft(s.RA)
}

// collectByLoad: without a daemon, "load" run again removes the mappings of
// flows that have ended.
func (s *scene) collectByLoad(living *traffic.Flow) {
	s.t.Helper()
	mappings := s.pin(s.RA, 2).Flows
	ending := s.flow(s.Hosts[0], "udp", netip.AddrPort{}, lab.Port(lab.ServerFar.V4, serverPort))
	if n := s.pin(s.RA, 2).Flows; n != mappings+1 {
		s.t.Errorf("%d mappings, want %d", n, mappings+1)
	}
	s.forget(s.RA, traffic.Flows{ending})
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	s.must(lab.Await(ctx, "the ended flow's mapping to go", func() (bool, error) { // it must be silent for 2 s
		s.vippin(s.RA, "load", "--master")
		return s.pin(s.RA, 2).Flows == mappings, nil
	}))
	s.goesOn(living.Report)
}

// Without a daemon the role follows this router's own adverts: the VIPs that a
// crashed keepalived leaves behind pin nothing.
func TestLoadFollowsAdverts(t *testing.T) {
	t.Parallel()
	s := setScene(t, "loadvrrp", lab.Options{Hosts: 1, SingleRouter: true})
	keepalived, err := s.StartKeepalived(s.RA, lab.Keepalived{Interval: 300 * time.Millisecond}) // a pause of 900 ms is a long one
	s.must(err)
	s.must(keepalived.AwaitLog(s.ctx, "Entering MASTER STATE"))
	s.must(s.WriteVippin(s.RA, onWAN))
	s.vippin(s.RA, "load")
	advertises := func() {
		s.t.Helper()
		s.must(lab.Await(s.ctx, "MASTER by own adverts", func() (bool, error) {
			return s.pin(s.RA, 2).Role == policy.RoleMaster, nil
		}))
		s.wantPinned(s.count(s.RA, 2, func() { s.sees(s.Hosts[0], lab.ServerFar, vip) }))
	}
	advertises()
	living := s.flow(s.Hosts[0], "tcp", netip.AddrPort{}, lab.Port(lab.ServerFar.V4, serverPort))
	defer living.Stop()
	s.must(keepalived.Kill9())
	crashed := time.Now()
	for _, addr := range []netip.Addr{vip.V4, vip.V6} {
		held, err := s.RA.Holds(addr)
		s.must(err)
		if !held {
			t.Fatalf("%s went with keepalived", addr)
		}
	}
	s.must(lab.Await(s.ctx, "the role to lapse", func() (bool, error) { return s.pin(s.RA, 2).Role != policy.RoleMaster, nil }))
	t.Logf("not MASTER %s after the crash", time.Since(crashed).Round(time.Millisecond))
	s.wantOld(living)
	s.must(keepalived.Restart())
	advertises()
	if got := s.goesOn(living.Report)[0]; got.Addr() != vip.V4 {
		t.Errorf("the living flow arrives from %s", got)
	}
}

// wantOld checks that new flows keep the router's own address, while one from
// before keeps the VIP.
func (s *scene) wantOld(living *traffic.Flow) {
	s.t.Helper()
	before := s.pin(s.RA, 2).UnpinnedBy
	s.sees(s.Hosts[0], lab.ServerFar, own)
	after := s.pin(s.RA, 2).UnpinnedBy
	if after["backup"] == before["backup"] {
		s.t.Errorf("counted %v after %v, want some more for \"backup\"", after, before)
	}
	if got := s.goesOn(living.Report)[0]; got.Addr() != vip.V4 {
		s.t.Errorf("the living flow arrives from %s", got)
	}
}
