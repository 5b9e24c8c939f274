// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// Routers on a stick need 802.1Q, which not every kernel has: package vm runs the
// tests of them on ones that do.

var trunks = []lab.Trunk{lab.TrunkTagged, lab.TrunkNative, lab.TrunkQinQ}

// byTag is onWAN without the name of the interface: a trunk's VLAN is found by its tag.
func byTag(r *lab.Router) string {
	return fmt.Sprintf(`
groups:
  - {name: RouterCore, vrids: [20]}
pins:
  - {vlan: %q, vips: [198.51.100.2, "2001:db8:100::2"], group: RouterCore}
`, r.VLAN(lab.WAN))
}

// outerTag is by what pin finds the WAN's pin.
func outerTag(kind lab.Trunk) uint16 {
	return map[lab.Trunk]uint16{lab.TrunkTagged: lab.WAN.Tag, lab.TrunkNative: 0, lab.TrunkQinQ: lab.TrunkOuter}[kind]
}

// setTrunk builds a lab whose only router has one cable, and pins there.
func setTrunk(t *testing.T, name string, opts lab.Options) *scene {
	t.Helper()
	opts.SingleRouter, opts.TrunkNames = true, true
	s := setScene(t, name+string(opts.Trunk), opts)
	s.start(s.RA, byTag(s.RA))
	s.awaitRole(s.RA, policy.RoleMaster)
	return s
}

// tag is one of a frame's.
type tag struct {
	proto layers.EthernetType
	id    uint16
}

// tagsOf are the tags of a segment's frames on a trunk, outermost first.
func tagsOf(kind lab.Trunk, s lab.Segment) []tag {
	customer := tag{layers.EthernetTypeDot1Q, s.Tag}
	switch {
	case kind == lab.TrunkQinQ:
		return []tag{{layers.EthernetTypeQinQ, lab.TrunkOuter}, customer}
	case kind == lab.TrunkNative && s.Name == lab.WAN.Name:
		return nil
	}
	return []tag{customer}
}

// tagsIn are those of a frame.
func tagsIn(packet gopacket.Packet) (tags []tag) {
	var proto layers.EthernetType
	for _, layer := range packet.Layers() {
		switch l := layer.(type) {
		case *layers.Ethernet:
			proto = l.EthernetType
		case *layers.Dot1Q:
			tags = append(tags, tag{proto, l.VLANIdentifier})
			proto = l.Type
		}
	}
	return tags
}

// passing are the packets of flows on a trunk, by segment and by the address that they
// come from.
type passing map[string]map[netip.Addr]int

// onTrunk does a step and says what TCP, UDP and pings passed the router's trunk
// meanwhile, to the router and from it. Frames with other tags than the segments'
// are an error.
func (s *scene) onTrunk(r *lab.Router, kind lab.Trunk, step func()) (to, from passing) {
	s.t.Helper()
	capture, err := traffic.StartCapture(s.WANSwitch.Do, r.TrunkPort())
	s.must(err)
	step()
	s.must(capture.Close())
	to, from = make(passing), make(passing)
	for _, frame := range capture.Frames(nil) {
		proto, src, dst := traffic.FlowOf(frame.Packet)
		if !slices.Contains([]string{"tcp", "udp", "icmp"}, proto) || dst.Addr().IsMulticast() {
			continue
		}
		direction := from // as the switch has it
		if frame.Outgoing {
			direction = to
		}
		segment := segmentOf(kind, tagsIn(frame.Packet))
		if segment == "" {
			s.t.Errorf("%s from %s to %s on the trunk with the tags %v", proto, src, dst, tagsIn(frame.Packet))
			continue
		}
		if direction[segment] == nil {
			direction[segment] = make(map[netip.Addr]int)
		}
		direction[segment][src.Addr()]++
	}
	return to, from
}

// segmentOf is whose tags these are, "" for nobody's.
func segmentOf(kind lab.Trunk, tags []tag) string {
	for _, segment := range []lab.Segment{lab.LAN, lab.WAN} {
		if slices.Equal(tags, tagsOf(kind, segment)) {
			return segment.Name
		}
	}
	return ""
}

// wantOnly checks that packets left by a segment, both families, and all of them
// from these addresses.
func (s *scene) wantOnly(what string, seen passing, segment lab.Segment, ends lab.Ends) {
	s.t.Helper()
	for _, addr := range []netip.Addr{ends.V4, ends.V6} {
		if seen[segment.Name][addr] == 0 {
			s.t.Errorf("%s: no packet of %s on %s: %v", what, addr, segment.Name, seen)
		}
	}
	for addr, n := range seen[segment.Name] {
		if addr != ends.V4 && addr != ends.V6 {
			s.t.Errorf("%s: %d packets of %s on %s, want only those of %v", what, n, addr, segment.Name, ends)
		}
	}
}
