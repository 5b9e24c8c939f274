// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// The fast path is switched on and off, its daemon goes and comes, its interfaces
// change, and a busy flow loses nothing.
func TestFastpathSwitches(t *testing.T) {
	s := setFast(t, "fswitch", lab.Options{Hosts: 1})
	r := s.RA
	s.must(r.Sysctl("net/netfilter/nf_conntrack_acct", "1"))
	daemon := r.VippinProc()
	flow := s.busy()
	s.countsAll(flow)
	for _, word := range []string{"off", "on"} { // a pin that is switched makes all flows be judged anew
		before := s.fastpath(r).Generation
		s.vippin(r, "pin", word, "2")
		if after := s.fastpath(r).Generation; after == before {
			t.Errorf("generation %d before and after pin %s", before, word)
		}
	}
	s.settle(r, flow)

	s.toggleFast("off", policy.EnabledByToggle, false)
	s.toggleFast("off", policy.EnabledByToggle, false)
	s.wantFastPinned(false)
	s.wantXDP(false)
	s.answers(20, flow)
	s.must(daemon.Stop())
	s.must(daemon.Restart())
	s.must(s.AwaitVippin(s.ctx, r))
	if state := s.fastpath(r); state.Enabled || state.EnabledBy != policy.EnabledByToggle {
		t.Errorf("after a restart it is %v by %s, want off by toggle", state.Enabled, state.EnabledBy)
	}
	s.toggleFast("reset", policy.EnabledByConfig, true)
	s.toggleFast("on", policy.EnabledByToggle, true)
	s.settle(r, flow)

	// An orderly end closes it, and it stays attached; a crash leaves it to the lease.
	for _, end := range []func() error{daemon.Stop, daemon.Kill9} {
		s.must(end())
		s.awaitOn(r, "the fast path to be closed", func(state policy.FastpathState) bool {
			return !state.Open && strings.Contains(state.Closed, "no daemon runs") && len(state.Interfaces) == len(s.Segments())
		})
		s.wantXDP(true)
		if _, complaint, exit := s.Vippin(r, "fastpath", "off"); exit != 1 || !strings.Contains(complaint, "no daemon runs") {
			t.Errorf("switched without a daemon: exit %d, %s", exit, complaint)
		}
		s.answers(20, flow)
		s.must(daemon.Restart())
		s.must(s.AwaitVippin(s.ctx, r))
		s.awaitFast(r)
		s.settle(r, flow)
	}
	s.wantAnswered(flow, 0)
}

// busy sends a datagram every millisecond, most of which take the fast path.
func (s *scene) busy() *traffic.Drive {
	s.t.Helper()
	flow := s.drive(s.Hosts[0], traffic.FlowOptions{
		ID: "busy", Proto: "udp", Interval: time.Millisecond,
		Local: lab.Port(lab.HostEnds(0).V4, 6000), Remote: lab.Port(lab.ServerWAN.V4, serverPort),
	})
	s.settle(s.RA, flow)
	return flow
}

// wantAnswered ends a flow of which at most so many datagrams may be lost.
func (s *scene) wantAnswered(flow *traffic.Drive, but uint64) {
	s.t.Helper()
	if report := flow.Stop(); report.Answered+but < report.Sent {
		s.t.Errorf("%d of %d datagrams were answered", report.Answered, report.Sent)
	}
}

// toggleFast switches it and checks the answer; open is what it is to be then.
func (s *scene) toggleFast(word string, by policy.EnabledBy, open bool) {
	s.t.Helper()
	var state policy.FastpathState
	s.must(json.Unmarshal([]byte(s.vippin(s.RA, "fastpath", word, "-j")), &state))
	if state.Enabled != open || state.Open != open || state.EnabledBy != by {
		s.t.Errorf("fastpath %s: %+v", word, state)
	}
}

// wantXDP looks whether programs are on the router's interfaces.
func (s *scene) wantXDP(want bool) {
	s.t.Helper()
	for _, segment := range s.Segments() {
		link, err := s.RA.Netlink().LinkByName(segment.Name)
		s.must(err)
		if xdp := link.Attrs().Xdp; (xdp != nil && xdp.Attached) != want {
			s.t.Errorf("XDP on %s: %+v, want %v", segment.Name, xdp, want)
		}
	}
}

// wantFastPinned looks whether tables are pinned.
func (s *scene) wantFastPinned(want bool) {
	s.t.Helper()
	pinned, err := filepath.Glob(filepath.Join(s.RA.BPFFS, "fast*"))
	s.must(err)
	if (len(pinned) > 0) != want {
		s.t.Errorf("pinned: %v, want any: %v", pinned, want)
	}
}

// countsAll compares what "flows" says of the flow with what was sent: conntrack
// saw hardly any of it.
func (s *scene) countsAll(flow *traffic.Drive) {
	s.t.Helper()
	before := flow.Report()
	var seen policy.FlowStatus
	s.must(json.Unmarshal([]byte(s.vippin(s.RA, "flows", "-j")), &seen))
	after := flow.Report()
	if !seen.Fastpath || seen.Packets == nil {
		s.t.Fatalf("flows says %+v", seen)
	}
	// Both directions; two of each may be under way.
	least, most := 2*before.Answered-2, 2*after.Sent+2
	if *seen.Packets < least-20 || *seen.Packets > most {
		s.t.Errorf("flows counts %d packets, want %d to %d", *seen.Packets, least, most)
	}
	if seen.Idle > 1 {
		s.t.Errorf("idle for %v s", seen.Idle)
	}
}

// A queue discipline that shapes is noticed though no link event tells of it; so
// is its end. Other interfaces, and the switch in the configuration, are for a
// reload.
func TestFastpathFollowsItsInterfaces(t *testing.T) {
	s := setFast(t, "fqdisc", lab.Options{Hosts: 1})
	r := s.RA
	name := s.Segments()[0].Name
	flow := s.busy()
	_, err := r.Run(s.ctx, "tc", "qdisc", "replace", "dev", name, "root", "tbf", "rate", "1gbit", "burst", "100kb", "latency", "50ms")
	s.must(err)
	refused := func(state policy.FastpathState) bool {
		for _, device := range state.Interfaces {
			if device.Interface == name && strings.Contains(device.Refused, "tbf") {
				return state.Open
			}
		}
		return false
	}
	s.awaitOn(r, "the interface that is shaped to be refused", refused)
	if _, _, exit := s.Vippin(r, "status"); exit != 3 {
		t.Errorf("status exits with %d", exit)
	}
	found := s.one(s.doctor(r), "fastpath")
	if found.State != doctor.Warning || !strings.Contains(found.Remedy, "tc qdisc show dev "+name) {
		t.Errorf("doctor says %+v", found)
	}
	flow.Between(func() { // the kernel throws away what waits in it
		_, err = r.Run(s.ctx, "tc", "qdisc", "del", "dev", name, "root")
	})
	s.must(err)
	s.awaitFast(r)

	config, err := os.ReadFile(r.ConfigFile())
	s.must(err)
	elsewhere := regexp.MustCompile(`interfaces: \[.*\]`).ReplaceAllString(string(config), "interfaces: [nowhere0]")
	for _, step := range []struct {
		config string
		open   bool
		closed string
		warns  string
	}{
		{elsewhere, false, "no interface can take it", "no such interface"},
		{strings.Replace(string(config), "enabled: true, interfaces", "enabled: false, interfaces", 1), false, "switched off", ""},
		{string(config), true, "", ""},
	} {
		s.must(os.WriteFile(r.ConfigFile(), []byte(step.config), 0o644))
		out := s.vippin(r, "reload")
		if state := s.fastpath(r); state.Open != step.open || !strings.Contains(state.Closed, step.closed) {
			t.Errorf("after a reload with %q: %+v", step.config, state)
		}
		if !strings.Contains(out, step.warns) || (strings.Contains(out, "fast path") != (step.warns != "")) {
			t.Errorf("reload said %s", out)
		}
	}
	s.must(r.VippinProc().Signal(syscall.SIGHUP))
	s.awaitFast(r)
	s.settle(r, flow)
	s.wantAnswered(flow, 0)
}
