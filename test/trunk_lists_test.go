// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// VLANs of a trunk as network people list them; 2 is the WAN, 101 the LAN.
const vlanList = "2,20,101,201,239-240,250"

var (
	allVLANs     = []uint16{2, 20, 101, 201, 239, 240, 250}
	outsideVLANs = []uint16{20, 201, 239, 240, 250} // beside the WAN
)

// onVLAN is an address of an outside VLAN: .3 is the router's, .2 the VIP, .10 the server's.
func onVLAN(vlan uint16, last byte) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(vlan), last})
}

// addOutside puts further VLANs on ra's trunk, with the server behind each.
func (s *scene) addOutside() {
	s.t.Helper()
	var listen traffic.ServerOptions
	for _, vlan := range outsideVLANs {
		name := fmt.Sprintf("eth0.%d", vlan)
		s.ip(s.RA.Node, fmt.Sprintf("link add link eth0 name %s type vlan id %d", name, vlan),
			"link set "+name+" up",
			fmt.Sprintf("addr add %s/24 dev %s", onVLAN(vlan, 3), name),
			fmt.Sprintf("addr add %s/24 dev %s", onVLAN(vlan, 2), name))
		s.ip(s.WANSwitch, fmt.Sprintf("link add link %s name v%d netns %s type vlan id %d", s.RA.TrunkPort(), vlan, s.Server.NS, vlan))
		s.ip(s.Server, fmt.Sprintf("link set v%d up", vlan), fmt.Sprintf("addr add %s/24 dev v%d", onVLAN(vlan, 10), vlan))
		listen.UDP = append(listen.UDP, lab.Port(onVLAN(vlan, 10), serverPort))
	}
	s.serve(s.Server, listen)
	s.must(s.RA.NFT(s.ctx, fmt.Sprintf(`
table inet more {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth0.*" ip saddr %s masquerade
	}
}
`, lab.LAN.Prefix4())))
}

// vlanPins is a pin for each VLAN of the list, found by its tag.
func vlanPins() string {
	var text strings.Builder
	text.WriteString("pins:\n")
	vips := map[uint16]netip.Addr{lab.WAN.Tag: lab.WAN.VIP4, lab.LAN.Tag: lab.LAN.VIP4}
	for _, vlan := range allVLANs {
		if vip, there := vips[vlan]; there {
			fmt.Fprintf(&text, "  - {vlan: %d, vips: [%s]}\n", vlan, vip)
			continue
		}
		fmt.Fprintf(&text, "  - {vlan: %d, vips: [%s]}\n", vlan, onVLAN(vlan, 2))
	}
	return text.String()
}

// switched are the VLANs whose pins are on, in order.
func (s *scene) switched() (vlans []uint16) {
	s.t.Helper()
	var rows []policy.PinStatus
	s.must(json.Unmarshal([]byte(s.vippin(s.RA, "pin", "ls", "-j")), &rows))
	for _, row := range rows {
		if row.Interface != fmt.Sprintf("eth0.%d", row.VLAN.Outer) {
			s.t.Errorf("the pin of VLAN %s is on %q", row.VLAN, row.Interface)
		}
		if row.Enabled {
			vlans = append(vlans, row.VLAN.Outer)
		}
	}
	return vlans
}

// wantSwitched checks which pins are on, and that new flows by each outside VLAN come
// from where they should.
func (s *scene) wantSwitched(what string, want ...uint16) {
	s.t.Helper()
	if got := s.switched(); !slices.Equal(got, want) {
		s.t.Errorf("%s: on are %v, want %v", what, got, want)
	}
	for _, vlan := range outsideVLANs {
		from := onVLAN(vlan, 3)
		if slices.Contains(want, vlan) {
			from = onVLAN(vlan, 2)
		}
		if got := s.source(s.Hosts[0], "udp", netip.AddrPort{}, onVLAN(vlan, 10)); got.Addr() != from {
			s.t.Errorf("%s: a flow by VLAN %d came from %s, want %s", what, vlan, got, from)
		}
	}
}

// Lists of VLANs are switched at once or not at all, and one by one; the living flows
// of one of them do not notice.
func TestTrunkLists(t *testing.T) {
	s := setScene(t, "lists", lab.Options{Hosts: 1, SingleRouter: true, Trunk: lab.TrunkTagged, TrunkNames: true})
	s.addOutside()
	s.start(s.RA, vlanPins())
	s.must(s.await("MASTER on every VLAN", func() (bool, error) {
		pins := s.status(s.RA).Pins
		return len(pins) == len(allVLANs) && !slices.ContainsFunc(pins, func(pin policy.PinStatus) bool { return pin.Role != policy.RoleMaster }), nil
	}))
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

	seen, err := s.server.AwaitStream(s.ctx, "living", s.server.Stream("living").Packets+20)
	s.must(err)
	if seen.Missing != 0 || len(seen.Sources) != 1 || seen.Sources[0] != lab.Port(lab.WAN.VIP4, 6000) {
		t.Errorf("the living flow: %d of %d datagrams lost, sources %v", seen.Missing, seen.Packets, seen.Sources)
	}
}
