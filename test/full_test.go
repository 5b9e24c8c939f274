// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// ended picks the conntrack entries of inside flows, by protocol and source port: the
// kernel may give a TCP and a UDP socket the same one.
type ended []traffic.FlowReport

// MatchConntrackFlow is netlink.CustomConntrackFilter's.
func (e ended) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	addr, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	from, protocols := netip.AddrPortFrom(addr.Unmap(), flow.Forward.SrcPort), map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}
	return slices.ContainsFunc(e, func(f traffic.FlowReport) bool { return f.Local == from && f.Proto == protocols[flow.Forward.Protocol] })
}

// forget ends flows and has the router's conntrack forget them at once.
func (s *scene) forget(r *lab.Router, flows traffic.Flows) {
	s.t.Helper()
	clients := ended(flows.Stop().Flows)
	n, err := r.Netlink().ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, clients)
	s.must(err)
	if int(n) != len(clients) {
		s.t.Fatalf("conntrack forgot %d of %d flows", n, len(clients))
	}
}

// When the maps are full, further flows work with the router's own address; when
// flows have ended, new ones are pinned again, and living ones stay as they are.
func TestFullMap(t *testing.T) {
	t.Parallel()
	const room = 16
	s := setScene(t, "full", lab.Options{Hosts: 1, SingleRouter: true})
	s.start(s.RA, "dataplane: {max_flows: 16}\n"+onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	start := func(n int, want netip.Addr) (flows traffic.Flows) {
		for i := range n {
			remote := lab.Port(lab.ServerFar.V4, serverPort)
			flows = append(flows, s.flow(s.Hosts[0], []string{"tcp", "udp"}[i%2], netip.AddrPort{}, remote))
		}
		s.allGoOn(flows, want)
		return flows
	}
	var fit, over traffic.Flows
	s.wantPinned(s.count(s.RA, 2, func() { fit = start(room, vip.V4) }))
	if n := s.pin(s.RA, 2).Flows; n != room {
		s.t.Errorf("%d mappings, want %d", n, room)
	}
	// More than can be remembered as unpinned, too.
	before := s.counters(s.RA, 2).Unpinned["full"]
	over = start(room+4, own.V4)
	if after := s.counters(s.RA, 2); after.Unpinned["full"] < before+room+4 || after.Unpinned["full"] != after.TotalUnpinned() {
		s.t.Errorf("counted %v, want at least %d for \"full\" alone", after.Unpinned, room+4)
	}
	s.forget(s.RA, fit)
	s.awaitFlows(s.RA, 2, 0)
	fit = start(room, vip.V4)
	// Also those that could not be remembered are unpinned for life.
	s.allGoOn(over, own.V4)
	fit.Stop()
	over.Stop()
}
