// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"vippin/loader"
	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// own are the addresses by which ra is known on the WAN without vippin, vip
// those that the pin puts in their place.
var (
	own = lab.WAN.RA
	vip = lab.Ends{V4: lab.WAN.VIP4, V6: lab.WAN.VIP6}
)

// run is t.Run in the same scene.
func (s *scene) run(name string, f func(s *scene)) {
	s.t.Helper()
	s.t.Run(name, func(t *testing.T) {
		inner := *s
		inner.t = t
		f(&inner)
	})
}

// reload gives a running daemon another configuration.
func (s *scene) reload(r *lab.Router, config string) {
	s.t.Helper()
	s.must(s.WriteVippin(r, config))
	s.vippin(r, "reload")
}

// growth is by how much a pin's counters grew during a step.
type growth struct {
	pinned     uint64
	unpinnedBy map[string]uint64 // without those that did not grow
}

// count does a step and says what the pin of a VLAN counted meanwhile.
func (s *scene) count(r *lab.Router, vlan uint16, step func()) growth {
	s.t.Helper()
	before := s.pin(r, vlan)
	step()
	after := s.pin(r, vlan)
	by := make(map[string]uint64)
	for reason, n := range after.UnpinnedBy {
		by[reason] = n - before.UnpinnedBy[reason]
	}
	maps.DeleteFunc(by, func(_ string, n uint64) bool { return n == 0 })
	return growth{pinned: after.PacketsPinned - before.PacketsPinned, unpinnedBy: by}
}

// wantNothing checks that a step meant nothing to the pin.
func (s *scene) wantNothing(g growth) {
	s.t.Helper()
	if g.pinned != 0 || len(g.unpinnedBy) != 0 {
		s.t.Errorf("counted %d pinned and %v unpinned packets, want none", g.pinned, g.unpinnedBy)
	}
}

// wantReason checks that every packet of a step stayed unpinned for one reason.
func (s *scene) wantReason(g growth, reason string) {
	s.t.Helper()
	if g.pinned != 0 || len(g.unpinnedBy) != 1 || g.unpinnedBy[reason] == 0 {
		s.t.Errorf("counted %d pinned and %v unpinned packets, want some for %q alone", g.pinned, g.unpinnedBy, reason)
	}
}

// wantPinned checks that every packet of a step left with the VIP.
func (s *scene) wantPinned(g growth) {
	s.t.Helper()
	if g.pinned == 0 || len(g.unpinnedBy) != 0 {
		s.t.Errorf("counted %d pinned and %v unpinned packets, want some pinned and no others", g.pinned, g.unpinnedBy)
	}
}

// counters are the kernel's counters of a VLAN's pin, also those that no
// command shows.
func (s *scene) counters(r *lab.Router, vlan uint16) (c loader.PinCounters) {
	s.t.Helper()
	s.inMaps(r, func(d *loader.Dataplane, all map[uint32]loader.PinCounters) {
		plan, err := d.Planned()
		s.must(err)
		for _, pin := range plan.Pins {
			if pin.VLAN.Outer == vlan && !pin.Retired {
				c = all[pin.ID]
				return
			}
		}
		s.t.Fatalf("no pin for VLAN %d in %+v", vlan, plan.Pins)
	})
	return c
}

// nobodysPackets counts the masqueraded packets of hosts that no pin takes.
func (s *scene) nobodysPackets(r *lab.Router) (packets uint64) {
	s.t.Helper()
	s.inMaps(r, func(_ *loader.Dataplane, all map[uint32]loader.PinCounters) { packets = all[0].Unpinned["source"] })
	return packets
}

func (s *scene) inMaps(r *lab.Router, read func(*loader.Dataplane, map[uint32]loader.PinCounters)) {
	s.t.Helper()
	d, err := loader.Open(r.BPFFS)
	s.must(err)
	defer d.Close()
	all, err := d.PinCounters()
	s.must(err)
	read(d, all)
}

// sees checks from which address the server sees new flows of a host: TCP, UDP
// and ping, each family.
func (s *scene) sees(from *lab.Node, to, want lab.Ends) {
	s.t.Helper()
	s.sees1(from, to.V4, want.V4)
	s.sees1(from, to.V6, want.V6)
}

func (s *scene) sees1(from *lab.Node, to, want netip.Addr) {
	s.t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		if got := s.source(from, proto, netip.AddrPort{}, to); got.Addr() != want {
			s.t.Errorf("%s from %s to %s arrived from %s, want %s", proto, from.Name, to, got, want)
		}
	}
	// Every time another identifier: the last one may still be decided on.
	if got := s.pingSource(from, uint16(time.Now().UnixNano()), to); got.Addr() != want {
		s.t.Errorf("ping from %s to %s arrived from %s, want %s", from.Name, to, got, want)
	}
}

// flow starts a flow with a request every 20 ms.
func (s *scene) flow(from *lab.Node, proto string, local, remote netip.AddrPort) *traffic.Flow {
	s.t.Helper()
	f, err := traffic.StartFlow(s.ctx, from.Do, traffic.FlowOptions{
		Proto: proto, Local: local, Remote: remote, Interval: 20 * time.Millisecond,
		ID: fmt.Sprintf("%s-%s-%d-%s-%d", from.Name, proto, local.Port(), remote, time.Now().UnixNano()),
	})
	s.must(err)
	return f
}

// ping starts to ping with one identifier every 20 ms, and waits until it is
// answered and the server has seen it.
func (s *scene) ping(from *lab.Node, id uint16, to netip.Addr) *traffic.Pinger {
	s.t.Helper()
	p, err := traffic.StartPings(s.ctx, from.Do, traffic.PingOptions{
		Remote: to, Identifiers: []uint16{id}, Name: from.Name + "-" + to.String(), Interval: 20 * time.Millisecond,
	})
	s.must(err)
	s.must(p.Await(s.ctx, 1))
	_, err = s.server.AwaitStream(s.ctx, p.Report(nil).Flows[0].ID, 1)
	s.must(err)
	return p
}

// report is what became of a ping's only flow so far.
func (s *scene) report(p *traffic.Pinger) traffic.FlowReport { return p.Report(s.server).Flows[0] }

// goesOn waits for some more answers to living flows, and checks that none of
// them broke or changed its source. It returns the sources.
func (s *scene) goesOn(reports ...func() traffic.FlowReport) (sources []netip.AddrPort) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*patience)
	defer cancel()
	var before []traffic.FlowReport
	for _, report := range reports {
		before = append(before, report())
	}
	for i, report := range reports {
		var now traffic.FlowReport
		s.must(lab.Await(ctx, "more answers to "+before[i].ID, func() (bool, error) {
			now = report()
			return now.Answered >= before[i].Answered+5 || now.Broken(), nil
		}))
		if now.Broken() || now.Moved() {
			s.t.Errorf("%s: errors %q, sources %v", now.ID, now.Errors, now.Sources)
		}
		sources = append(sources, now.Sources[0])
	}
	return sources
}

// allGoOn is goesOn for many flows, which all come from one address.
func (s *scene) allGoOn(flows traffic.Flows, want netip.Addr) {
	s.t.Helper()
	var reports []func() traffic.FlowReport
	for _, f := range flows {
		reports = append(reports, f.Report)
	}
	for i, got := range s.goesOn(reports...) {
		if got.Addr() != want {
			s.t.Errorf("flow %d (%s) arrives from %s, want %s", i, flows[i].Report().ID, got, want)
		}
	}
}

// awaitFlows waits until the pin of a VLAN has so many mappings.
func (s *scene) awaitFlows(r *lab.Router, vlan uint16, want uint64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	var last policy.PinStatus
	err := lab.Await(ctx, "mappings to go", func() (bool, error) {
		last = s.pin(r, vlan)
		return last.Flows == want, nil
	})
	if err != nil {
		s.t.Fatalf("%d mappings, want %d: %v", last.Flows, want, err)
	}
}
