// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// A flow whose port on the VIP is somebody else's gets another one there: both
// go on, and the clash is counted.
func TestClash(t *testing.T) {
	t.Parallel()
	s := setScene(t, "clash", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.run("a service of the router", func(s *scene) {
		at := []netip.AddrPort{lab.Port(vip.V4, servicePort), lab.Port(vip.V6, servicePort)}
		s.serve(s.RA.Node, traffic.ServerOptions{TCP: at, UDP: at})
		for _, proto := range []string{"tcp", "udp"} {
			s.clashWithService(proto, lab.ServerWAN.V4, vip.V4)
			s.clashWithService(proto, lab.ServerWAN.V6, vip.V6)
		}
	})
	s.run("the router's own flow from the VIP", func(s *scene) {
		s.clashes(s.RA.Node, vip, 5100, vip)
		for _, to := range []string{lab.ServerFar.V4.String(), lab.ServerFar.V6.String()} {
			via, from := lab.ServerWAN.V4, vip.V4
			if strings.Contains(to, ":") {
				via, from = lab.ServerWAN.V6, vip.V6
			}
			// So that the router's pings leave from the VIP, as by ping -I.
			_, err := s.RA.Run(s.ctx, "ip", "route", "add", to, "via", via.String(), "src", from.String())
			s.must(err)
		}
		s.pingsClash(s.RA.Node, 5101)
	})
	s.run("the user's own SNAT to the VIP", func(s *scene) {
		s.snatSecond(s.RA, vip)
		s.clashes(s.Hosts[1], lab.Ends{}, 5200, vip)
		s.pingsClash(s.Hosts[1], 5201)
	})
	s.run("a foreign flow takes a mapped end", func(s *scene) { s.foreignFlow() })
}

// clashWithService has the server's end hold a connection to a service of the
// router on the VIP; then an inside host's flow wants the same pair of ends.
func (s *scene) clashWithService(proto string, server, vip netip.Addr) {
	s.t.Helper()
	at := lab.Port(server, serverPort+100)
	service := s.flow(s.Server, proto, at, lab.Port(vip, servicePort))
	defer service.Stop()
	s.answerBeside(proto, at)
	s.wantClashes(1, func() {
		f := s.flow(s.Hosts[0], proto, netip.AddrPortFrom(netip.Addr{}, servicePort), at)
		defer f.Stop()
		got := s.goesOn(f.Report, service.Report)
		s.wantOtherPort(proto, got[0], lab.Port(vip, servicePort))
		if got[1] != at {
			s.t.Errorf("the service sees %s, want %s", got[1], at)
		}
	})
}

// answerBeside answers on an end of the server from which it has connected.
func (s *scene) answerBeside(proto string, at netip.AddrPort) {
	s.t.Helper()
	if proto == "tcp" { // net's listeners set SO_REUSEADDR
		s.serve(s.Server, traffic.ServerOptions{TCP: []netip.AddrPort{at}})
		return
	}
	var conn net.PacketConn
	listen := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if failed := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}); failed != nil {
			return failed
		}
		return err
	}}
	s.must(s.Server.Do(func() (err error) {
		conn, err = listen.ListenPacket(context.Background(), "udp", at.String())
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(fmt.Appendf(nil, "SOURCE %s %s", from, buffer[:n]), from) // its client sees what is missing
		}
	}()
	s.t.Cleanup(func() { conn.Close(); <-done })
}

// clashes lets one node hold ends on the VIP towards the server, and then the
// first inside host ask for the same ones.
func (s *scene) clashes(holder *lab.Node, bound lab.Ends, port uint16, vip lab.Ends) {
	s.t.Helper()
	for _, e := range [][3]netip.Addr{{bound.V4, lab.ServerWAN.V4, vip.V4}, {bound.V6, lab.ServerWAN.V6, vip.V6}} {
		for _, proto := range []string{"tcp", "udp"} {
			remote, want := lab.Port(e[1], serverPort), lab.Port(e[2], port)
			first := s.flow(holder, proto, netip.AddrPortFrom(e[0], port), remote)
			if got := s.goesOn(first.Report); got[0] != want {
				s.t.Errorf("%s of %s arrives from %s, want %s", proto, holder.Name, got[0], want)
			}
			s.wantClashes(1, func() {
				second := s.flow(s.Hosts[0], proto, netip.AddrPortFrom(netip.Addr{}, port), remote)
				s.wantOtherPort(proto, s.goesOn(second.Report, first.Report)[0], want)
				second.Stop()
			})
			first.Stop()
		}
	}
}

// pingsClash is the same with an echo identifier.
func (s *scene) pingsClash(holder *lab.Node, id uint16) {
	s.t.Helper()
	for _, e := range [][2]netip.Addr{{lab.ServerFar.V4, vip.V4}, {lab.ServerFar.V6, vip.V6}} {
		first := s.ping(holder, id, e[0])
		s.wantClashes(1, func() {
			second := s.ping(s.Hosts[0], id, e[0])
			got := s.goesOn(
				func() traffic.FlowReport { return s.report(second) },
				func() traffic.FlowReport { return s.report(first) })
			if want := lab.Port(e[1], id); got[1] != want {
				s.t.Errorf("ping of %s arrives from %s, want %s", holder.Name, got[1], want)
			}
			s.wantOtherPort("ping", got[0], lab.Port(e[1], id))
			second.Stop(nil)
		})
		first.Stop(nil)
	}
}

func (s *scene) wantOtherPort(proto string, got, taken netip.AddrPort) {
	s.t.Helper()
	if got.Addr() != taken.Addr() || got.Port() == taken.Port() {
		s.t.Errorf("%s beside %s arrives from %s, want another port of the same address", proto, taken, got)
	}
}

// wantClashes checks how many clashes are counted during a step.
func (s *scene) wantClashes(want uint64, step func()) {
	s.t.Helper()
	before := s.counters(s.RA, 2)
	step()
	after := s.counters(s.RA, 2)
	if got := after.Clash - before.Clash; got != want {
		s.t.Errorf("counted %d clashes, want %d", got, want)
	}
	if n := after.TotalUnpinned() - before.TotalUnpinned(); n != 0 {
		s.t.Errorf("%d packets left unpinned (%v)", n, after.Unpinned)
	}
}

// foreignFlow: conntrack does not know of mappings, so that the router itself
// can take the end of one. It is seen, and the mapped flow lives on.
func (s *scene) foreignFlow() {
	remote := lab.Port(lab.ServerWAN.V4, serverPort)
	mapped := s.flow(s.Hosts[0], "tcp", netip.AddrPortFrom(netip.Addr{}, 5300), remote)
	if got := s.goesOn(mapped.Report); got[0] != lab.Port(vip.V4, 5300) {
		s.t.Fatalf("arrives from %s", got[0])
	}
	before := s.counters(s.RA, 2).Foreign
	ask := traffic.FlowOptions{Proto: "tcp", Local: lab.Port(vip.V4, 5300), Remote: remote, Timeout: patience / 20}
	if f, err := traffic.StartFlow(s.ctx, s.RA.Do, ask); err == nil {
		s.t.Errorf("two connections on one pair of ends: %+v", f.Stop())
	}
	if s.counters(s.RA, 2).Foreign == before {
		s.t.Error("not counted")
	}
	s.goesOn(mapped.Report)
	mapped.Stop()
}
