// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// Beside all, the interfaces are those of lab.Options.Fastpath.
const (
	fastAll    = "fastpath: {enabled: true, interfaces: [lan0, wan0], all: true}\n"
	fastPinned = "fastpath: {enabled: true, interfaces: [lan0, wan0], all: false}\n"
)

// With fastpath.all every established flow takes the fast path, whatever
// translates it; without, none but pinned flows do.
func TestFastPathAll(t *testing.T) {
	t.Parallel()
	t.Run("masqueraded", func(t *testing.T) {
		s := setFast(t, "fastmasq", lab.Options{Hosts: 1})
		s.vippin(s.RA, "pin", "off", "2")
		s.allAndPinned(s.Hosts[0], func(f family) (local, remote netip.AddrPort) {
			return lab.Port(f.of(lab.HostEnds(0)), 4000), lab.Port(f.of(lab.ServerFar), serverPort)
		}, own)
	})
	t.Run("port forward", func(t *testing.T) {
		s := setFast(t, "fastdnat", lab.Options{Hosts: 1})
		s.must(s.RA.NFT(s.ctx, fmt.Sprintf(`
table inet forwards {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr %s meta l4proto { tcp, udp } th dport 8080 dnat ip to %s:%d
		ip6 daddr %s meta l4proto { tcp, udp } th dport 8080 dnat ip6 to [%s]:%d
	}
}
`, vip.V4, lab.HostEnds(0).V4, serverPort, vip.V6, lab.HostEnds(0).V6, serverPort)))
		s.serveOn(s.Hosts[0], lab.HostEnds(0))
		s.allAndPinned(s.Server, func(f family) (local, remote netip.AddrPort) {
			return lab.Port(f.of(lab.ServerWAN), 4000), lab.Port(f.of(vip), 8080)
		}, lab.ServerWAN)
	})
	t.Run("no translation", func(t *testing.T) {
		s := setFast(t, "fastplain", lab.Options{Hosts: 1, Masquerade: lab.MasqueradeNone})
		s.allAndPinned(s.Hosts[0], func(f family) (local, remote netip.AddrPort) {
			return lab.Port(f.of(lab.HostEnds(0)), 4000), lab.Port(f.of(lab.ServerFar), serverPort)
		}, lab.HostEnds(0))
	})
}

// serveOn has a host answer TCP and UDP.
func (s *scene) serveOn(host *lab.Node, at lab.Ends) {
	s.t.Helper()
	ends := []netip.AddrPort{lab.Port(at.V4, serverPort), lab.Port(at.V6, serverPort)}
	server, err := traffic.Serve(host.Do, traffic.ServerOptions{TCP: ends, UDP: ends})
	s.must(err)
	s.t.Cleanup(func() { s.must(server.Close()) })
}

// allAndPinned has one host talk by UDP and TCP, with fastpath.all and without.
func (s *scene) allAndPinned(from *lab.Node, ends func(family) (local, remote netip.AddrPort), want lab.Ends) {
	s.t.Helper()
	var drives []*traffic.Drive
	var tcp []*traffic.Flow
	for _, f := range families {
		local, remote := ends(f)
		drives = append(drives, s.drive(from, traffic.FlowOptions{Local: local, Remote: remote}))
		flow, err := traffic.StartFlow(s.ctx, from.Do, traffic.FlowOptions{
			Proto: "tcp", Local: local, Remote: remote, Interval: 5 * time.Millisecond,
		})
		s.must(err)
		s.t.Cleanup(func() { flow.Stop() })
		tcp = append(tcp, flow)
	}
	exchange := func() {
		s.answers(200, drives...)
		s.allGoOn(tcp[:1], want.V4)
		s.allGoOn(tcp[1:], want.V6)
	}
	noneFast := func() {
		s.t.Helper()
		if w := s.fastWays(s.RA, exchange); w.forwarded != 0 || w.passed == 0 {
			s.t.Errorf("%d packets took the fast path and %d the stack, want none and all", w.forwarded, w.passed)
		}
	}
	noneFast()
	s.reload(s.RA, onWAN+fastAll)
	s.awaitFast(s.RA)
	s.awaitOn(s.RA, "all flows", func(state policy.FastpathState) bool { return state.All && state.Flows >= 8 })
	s.settle(s.RA, drives...)
	s.mostlyFast(s.RA, 800, exchange)
	s.reload(s.RA, onWAN+fastPinned)
	s.awaitFast(s.RA)
	noneFast()
	for _, d := range drives {
		if sources := d.Report().Sources; len(sources) != 1 {
			s.t.Errorf("a stream of datagrams came from %v", sources)
		}
	}
}
