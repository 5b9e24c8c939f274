// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// VLANs as network people list them; 2 is the WAN, 101 the LAN.
const vlanList = "2,20,101,201,239-240,250"

var (
	allVLANs     = []uint16{2, 20, 101, 201, 239, 240, 250}
	outsideVLANs = []uint16{20, 201, 239, 240, 250} // beside the WAN
)

// onVLAN is an address of an outside VLAN: .3 is the router's, .2 the VIP, .10 the server's.
func onVLAN(vlan uint16, last byte) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(vlan), last})
}

// lists is a router with a pin on each of these VLANs: all on its trunk, or, without
// one, on an interface for each.
type lists struct {
	*scene
	trunk lab.Trunk
}

func setLists(t *testing.T, name string, trunk lab.Trunk) *lists {
	t.Helper()
	s := &lists{trunk: trunk}
	s.scene = setScene(t, name, lab.Options{Hosts: 1, SingleRouter: true, Trunk: trunk, TrunkNames: trunk != ""})
	var listen traffic.ServerOptions
	var outside []string
	for _, vlan := range outsideVLANs {
		face := s.face(vlan)
		s.cableVLAN(vlan)
		s.ip(s.RA.Node, "link set "+face+" up",
			fmt.Sprintf("addr add %s/24 dev %s", onVLAN(vlan, 3), face),
			fmt.Sprintf("addr add %s/24 dev %s", onVLAN(vlan, 2), face))
		s.ip(s.Server, fmt.Sprintf("link set v%d up", vlan), fmt.Sprintf("addr add %s/24 dev v%d", onVLAN(vlan, 10), vlan))
		listen.UDP = append(listen.UDP, lab.Port(onVLAN(vlan, 10), serverPort))
		outside = append(outside, fmt.Sprintf("%q", face))
	}
	s.serve(s.Server, listen)
	s.must(s.RA.NFT(s.ctx, fmt.Sprintf(`
table inet more {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname { %s } ip saddr %s masquerade
	}
}
`, strings.Join(outside, ", "), lab.LAN.Prefix4())))
	return s
}

// face is ra's interface on a VLAN.
func (s *lists) face(vlan uint16) string {
	switch {
	case vlan == lab.WAN.Tag:
		return s.RA.Ifname(lab.WAN)
	case vlan == lab.LAN.Tag:
		return s.RA.Ifname(lab.LAN)
	case s.trunk == "":
		return fmt.Sprint("nic", vlan)
	}
	return fmt.Sprint("eth0.", vlan)
}

// cableVLAN connects ra and the server by an outside VLAN.
func (s *lists) cableVLAN(vlan uint16) {
	s.t.Helper()
	if s.trunk == "" {
		s.ip(s.RA.Node, fmt.Sprintf("link add %s type veth peer name v%d netns %s", s.face(vlan), vlan, s.Server.NS))
		return
	}
	s.ip(s.RA.Node, fmt.Sprintf("link add link eth0 name %s type vlan id %d", s.face(vlan), vlan))
	s.ip(s.WANSwitch, fmt.Sprintf("link add link %s name v%d netns %s type vlan id %d", s.RA.TrunkPort(), vlan, s.Server.NS, vlan))
}

// begin starts vippin with a pin for each VLAN, which on the trunk is found by its tag,
// and more configuration.
func (s *lists) begin(more string) {
	s.t.Helper()
	config := more + "pins:\n"
	vips := map[uint16]netip.Addr{lab.WAN.Tag: lab.WAN.VIP4, lab.LAN.Tag: lab.LAN.VIP4}
	for _, vlan := range allVLANs {
		vip, there := vips[vlan]
		if !there {
			vip = onVLAN(vlan, 2)
		}
		face := ""
		if s.trunk == "" {
			face = ", interface: " + s.face(vlan)
		}
		config += fmt.Sprintf("  - {vlan: %d, vips: [%s]%s}\n", vlan, vip, face)
	}
	s.start(s.RA, config)
	s.must(s.await("MASTER on every VLAN", func() (bool, error) {
		pins := s.status(s.RA).Pins
		return len(pins) == len(allVLANs) && !slices.ContainsFunc(pins, func(pin policy.PinStatus) bool { return pin.Role != policy.RoleMaster }), nil
	}))
}

// listed are the VLANs whose pins are on, in order, as "pin ls" has them.
func (s *lists) listed() (vlans []uint16, err error) {
	out, complaint, exit := s.Vippin(s.RA, "pin", "ls", "-j")
	if exit != 0 {
		return nil, fmt.Errorf("pin ls: exit %d: %s", exit, complaint)
	}
	var rows []policy.PinStatus
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		return nil, err
	}
	for _, row := range rows {
		if row.Interface != s.face(row.VLAN.Outer) {
			return nil, fmt.Errorf("the pin of VLAN %s is on %q", row.VLAN, row.Interface)
		}
		if row.Enabled {
			vlans = append(vlans, row.VLAN.Outer)
		}
	}
	return vlans, nil
}

func (s *lists) switched() []uint16 {
	s.t.Helper()
	vlans, err := s.listed()
	s.must(err)
	return vlans
}

// wantSwitched checks which pins are on, and that new flows by each outside VLAN come
// from where they should.
func (s *lists) wantSwitched(what string, want ...uint16) {
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

// reader is somebody who keeps reading "pin ls".
type reader struct {
	reads atomic.Int64
	stop  func() // and waits
}

// seesAllOrNone reads until it is stopped: all pins are on, or none is.
func (s *lists) seesAllOrNone() *reader {
	r := &reader{}
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		found := map[int]int{}
		for {
			select {
			case <-over:
				if s.t.Logf("reads by pins that were on: %v", found); found[0] == 0 || found[len(allVLANs)] == 0 {
					s.t.Error("the reader did not see both states")
				}
				return
			default:
			}
			on, err := s.listed()
			if err != nil {
				s.t.Error(err)
			} else if found[len(on)]++; len(on) != 0 && len(on) != len(allVLANs) {
				s.t.Errorf("while the list was toggled, on were %v", on)
			}
			r.reads.Add(1)
		}
	}()
	r.stop = sync.OnceFunc(func() { close(over); <-ended })
	s.t.Cleanup(r.stop)
	return r
}

// toggleWatched toggles the whole list, off and on, while somebody reads and somebody
// watches: each sees it switched as a whole.
func (s *lists) toggleWatched() {
	s.t.Helper()
	watch, err := s.StartCommand(s.RA, "monitor", "-j")
	s.must(err)
	s.must(lab.Await(s.ctx, "a toggle in monitor", func() (bool, error) {
		s.vippin(s.RA, "pin", "on", vlanList) // until it is watching
		return strings.Contains(watch.Log(), `"kind":"pin"`), nil
	}))
	enough := 20
	if testing.Short() {
		enough = 8
	}
	r := s.seesAllOrNone()
	toggles := 0
	for ; toggles < enough || r.reads.Load() < int64(enough); toggles += 2 {
		s.vippin(s.RA, "pin", "off", vlanList)
		s.vippin(s.RA, "pin", "on", vlanList)
	}
	r.stop()
	var told []string
	s.must(lab.Await(s.ctx, "every toggle in monitor", func() (bool, error) {
		told = pinEvents(watch.Log())
		return len(told) >= toggles*len(allVLANs), nil
	}))
	s.must(watch.Stop())
	if len(told)%len(allVLANs) != 0 {
		s.t.Errorf("%d events of pins: some toggle was told in part", len(told))
	}
	for list := range slices.Chunk(told, len(allVLANs)) {
		if len(slices.Compact(slices.Clone(list))) != 1 {
			s.t.Errorf("one toggle was told as %v", list)
		}
	}
}

// pinEvents is what a monitor says of pins that were switched.
func pinEvents(log string) (details []string) {
	for line := range strings.Lines(log) {
		var event policy.Event
		if json.Unmarshal([]byte(line), &event) == nil && event.Kind == "pin" {
			details = append(details, event.Detail)
		}
	}
	return details
}
