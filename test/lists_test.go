// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vippin/test/lab"
	"vippin/test/traffic"
)

// A list of pins on as many interfaces is switched at once, with a daemon and without.
func TestLists(t *testing.T) {
	t.Parallel()
	s := setLists(t, "lists", "")
	s.begin("")
	s.wantSwitched("at the start", allVLANs...)
	s.toggleWatched()
	s.vippin(s.RA, "pin", "off", "20,239-240")
	s.wantSwitched("three off", 2, 101, 201, 250)
	s.vippin(s.RA, "pin", "reset", vlanList)
	s.wantSwitched("as configured", allVLANs...)

	s.must(s.RA.VippinProc().Stop())
	r := s.seesAllOrNone()
	for range 10 {
		s.vippin(s.RA, "pin", "off", vlanList)
		s.vippin(s.RA, "pin", "on", vlanList)
	}
	r.stop()
}

// When one interface's living flows cannot be noted, no pin of a list is switched, on
// disk neither; nobody is told of one; and it works when there is room again.
func TestListRefused(t *testing.T) {
	t.Parallel()
	s := setLists(t, "refused", "")
	s.begin("dataplane: {max_flows: 16}\n")
	s.vippin(s.RA, "pin", "off", vlanList)
	s.awaitRest(s.RA)
	living, err := traffic.StartFlows(s.ctx, s.Hosts[0].Do, 64, func(i int) traffic.FlowOptions {
		return traffic.FlowOptions{
			ID: "living-" + string(rune('A'+i)), Proto: "udp",
			Local: lab.Port(lab.HostEnds(0).V4, uint16(20000+i)), Remote: lab.Port(lab.ServerWAN.V4, serverPort),
		}
	})
	s.must(err)
	s.allGoOn(living, lab.WAN.RA.V4)
	disk := filepath.Join(s.RA.StateDir(), "toggles.json")
	before, err := os.ReadFile(disk)
	s.must(err)
	watch, err := s.StartCommand(s.RA, "monitor", "-j")
	s.must(err)
	_, complaint, exit := s.Vippin(s.RA, "pin", "on", vlanList)
	if exit != 1 || !strings.Contains(complaint, "pins 2, 20, 101, 201, 239, 240, 250:") || !strings.Contains(complaint, "max_flows") {
		t.Errorf("exit %d: %s", exit, complaint)
	}
	if after, err := os.ReadFile(disk); err != nil || string(after) != string(before) {
		t.Errorf("on disk is %s (%v), was %s", after, err, before)
	}
	s.wantSwitched("refused")
	s.allGoOn(living, lab.WAN.RA.V4)

	s.forget(s.RA, living)
	s.must(s.await("room", func() (bool, error) {
		_, _, exit := s.Vippin(s.RA, "pin", "on", vlanList)
		return exit == 0, nil
	}))
	s.wantSwitched("with room", allVLANs...)
	if got := s.source(s.Hosts[0], "udp", netip.AddrPort{}, lab.ServerWAN.V4); got.Addr() != lab.WAN.VIP4 {
		t.Errorf("a flow by the WAN came from %s", got)
	}
	s.must(watch.AwaitLog(s.ctx, `"kind":"pin"`))
	s.must(watch.Stop())
	if told := pinEvents(watch.Log()); len(told)%len(allVLANs) != 0 || strings.Count(strings.Join(told, "\n"), "on (toggle)") != len(allVLANs) {
		t.Errorf("told of pins: %v", told)
	}
}
