// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic"
)

// Lists of VLANs are switched at once or not at all, and one by one; the living flows
// of one of them do not notice.
func TestTrunkLists(t *testing.T) {
	s := setLists(t, "lists", lab.TrunkTagged)
	s.begin("")
	living, err := traffic.StartFlow(s.ctx, s.Hosts[0].Do, traffic.FlowOptions{
		ID: "living", Proto: "udp", OneWay: true, Interval: lab.Slowly(5 * time.Millisecond),
		Local: lab.Port(lab.HostEnds(0).V4, 6000), Remote: lab.Port(lab.ServerWAN.V4, serverPort),
	})
	s.must(err)
	defer living.Stop()

	s.wantSwitched("at the start", allVLANs...)
	s.vippin(s.RA, "pin", "off", vlanList)
	s.wantSwitched("all off")
	for i, vlan := range allVLANs {
		s.vippin(s.RA, "pin", "on", fmt.Sprint(vlan))
		if got, want := s.switched(), allVLANs[:i+1]; !slices.Equal(got, want) {
			t.Errorf("switched on one by one: %v, want %v", got, want)
		}
	}
	s.wantSwitched("all on again", allVLANs...)
	s.vippin(s.RA, "pin", "off", "20,239-240")
	s.wantSwitched("three off", 2, 101, 201, 250)
	if _, _, exit := s.Vippin(s.RA, "pin", "on", vlanList+",999"); exit != 1 {
		t.Errorf("switched with a VLAN that has no pin: exit %d, want 1", exit)
	}
	s.wantSwitched("none of a list with an unknown one", 2, 101, 201, 250)
	s.vippin(s.RA, "pin", "reset", vlanList)
	s.wantSwitched("as configured", allVLANs...)

	s.toggleWatched()
	seen, err := s.server.AwaitStream(s.ctx, "living", s.server.Stream("living").Packets+20)
	s.must(err)
	if seen.Missing != 0 || len(seen.Sources) != 1 || seen.Sources[0] != lab.Port(lab.WAN.VIP4, 6000) {
		t.Errorf("the living flow: %d of %d datagrams lost, sources %v", seen.Missing, seen.Packets, seen.Sources)
	}
}
