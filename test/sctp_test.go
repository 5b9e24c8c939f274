// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// serveSCTP runs the server's SCTP on one of its addresses; packets with a wrong
// checksum fail the test.
func (s *scene) serveSCTP(at netip.Addr) *traffic.SCTPServer {
	s.t.Helper()
	server, err := traffic.ServeSCTP(s.Server.Do, at)
	s.must(err)
	s.t.Cleanup(func() {
		if err := server.Bad(); err != nil {
			s.t.Error(err)
		}
		server.Close()
	})
	return server
}

// dialSCTP makes an association of inside host i.
func (s *scene) dialSCTP(i int, port uint16, to netip.Addr) *traffic.SCTPClient {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience/2)
	defer cancel()
	c, err := traffic.DialSCTP(ctx, s.Hosts[i].Do, lab.Port(hostAddr(i, to), port), lab.Port(to, serverPort))
	s.must(err)
	s.t.Cleanup(func() { c.Close() })
	return c
}

// sctpSource lets an association go on and returns where it comes from.
func (s *scene) sctpSource(c *traffic.SCTPClient, server *traffic.SCTPServer) netip.AddrPort {
	s.t.Helper()
	var first netip.AddrPort
	for i := range 5 {
		ctx, cancel := context.WithTimeout(s.ctx, patience/4)
		text := noise(40)
		s.must(c.Ask(ctx, text))
		cancel()
		source, ok := server.Source(text)
		if i == 0 {
			first = source
		}
		if !ok || source != first {
			s.t.Errorf("packet %d came from %s (%t), the first one from %s", i, source, ok, first)
		}
	}
	return first
}

// SCTP is pinned by its ports.
func TestSCTP(t *testing.T) {
	t.Parallel()
	s := setScene(t, "sctp", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.eachFamily(func(s *scene, to, vip, _ netip.Addr) {
		server := s.serveSCTP(to)
		var first, second *traffic.SCTPClient
		var sources [2]netip.AddrPort
		s.wantPinned(s.count(s.RA, 2, func() {
			first, second = s.dialSCTP(0, 5000, to), s.dialSCTP(1, 5000, to)
			sources[0], sources[1] = s.sctpSource(first, server), s.sctpSource(second, server)
		}))
		if sources[0] != lab.Port(vip, 5000) {
			s.t.Errorf("arrives from %s, want %s", sources[0], lab.Port(vip, 5000))
		}
		s.twoEnds("sctp", vip, lab.Port(to, serverPort), sources[:])
		before := s.pin(s.RA, 2).Flows
		_, err := s.RA.Run(s.ctx, "conntrack", "-D", "-p", "sctp", "-s", hostAddr(0, to).String())
		s.must(err)
		s.awaitFlows(s.RA, 2, before-1)
		s.sctpSource(second, server)
	}, lab.ServerFar)
}

// Two flows from different unique addresses want the same public end, where no
// other port can be given: the later one keeps the router's own address.
func TestNoOtherEnd(t *testing.T) {
	t.Parallel()
	s := setScene(t, "nootherend", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.eachFamily(func(s *scene, to, vip, own netip.Addr) {
		sctp, far := s.serveSCTP(to), s.farEnd(gre, to)
		association := s.dialSCTP(0, 5000, to)
		if got := s.sctpSource(association, sctp); got != lab.Port(vip, 5000) {
			s.t.Errorf("arrives from %s, want %s", got, lab.Port(vip, 5000))
		}
		tunnel := s.tunnel(gre, s.Hosts[0], hostAddr(0, to), far, to)
		tunnel.goesOn(vip)
		second := s.secondUnique(to, own)
		s.wantReason(s.count(s.RA, 2, func() {
			late := s.dialSCTP(1, 5000, to)
			if got := s.sctpSource(late, sctp); got != lab.Port(second, 5000) {
				s.t.Errorf("the later association arrives from %s, want %s", got, lab.Port(second, 5000))
			}
			s.tunnel(gre, s.Hosts[1], hostAddr(1, to), far, to).goesOn(second)
		}), "no_port")
		if got := s.sctpSource(association, sctp); got != lab.Port(vip, 5000) {
			s.t.Errorf("the first association arrives from %s now", got)
		}
		tunnel.goesOn(vip)
	}, lab.ServerFar)
}

// secondUnique makes masquerade choose another address of ra's WAN interface
// for the second host (IPv4) or for all that is new (IPv6).
func (s *scene) secondUnique(to, own netip.Addr) (second netip.Addr) {
	s.t.Helper()
	var commands [][]string
	if to.Is4() {
		second = lab.WAN1.RA.V4
		commands = [][]string{
			{"addr", "add", second.String() + "/24", "dev", "wan0"},
			{"route", "add", "default", "via", lab.ServerWAN1.V4.String(), "table", "100"},
			{"rule", "add", "from", lab.HostEnds(1).V4.String(), "lookup", "100"},
		}
		_, err := s.Server.Run(s.ctx, "ip", "addr", "add", lab.ServerWAN1.V4.String()+"/24", "dev", "eth0")
		s.must(err)
	} else {
		second = netip.MustParseAddr("2001:db8:100::33")
		commands = [][]string{
			{"addr", "add", second.String() + "/64", "dev", "wan0", "nodad"},
			{"addr", "change", own.String() + "/64", "dev", "wan0", "preferred_lft", "0"},
		}
	}
	for _, command := range commands {
		_, err := s.RA.Run(s.ctx, "ip", command...)
		s.must(err)
	}
	s.vippin(s.RA, "reload") // the addresses are known when it answers
	return second
}

// UDP-Lite and DCCP are left alone, and work as masquerade lets them.
func TestUnpinnedProtocols(t *testing.T) {
	t.Parallel()
	s := setScene(t, "unproto", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.run("UDP-Lite", func(s *scene) {
		s.eachFamily(func(s *scene, to, _, own netip.Addr) {
			s.wantReason(s.count(s.RA, 2, func() { s.udpLite(to, own) }), "protocol")
		}, lab.ServerFar)
	})
	s.run("DCCP", func(s *scene) {
		s.eachFamily(func(s *scene, to, _, own netip.Addr) {
			// RFC 4340 section 5.1: ports, data offset, checksum, type Request.
			dccp := tunnelKind{"dccp", unix.IPPROTO_DCCP, "\x13\x88\x1b\x58\x05\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"}
			s.wantReason(s.count(s.RA, 2, func() {
				s.tunnel(dccp, s.Hosts[0], hostAddr(0, to), s.farEnd(dccp, to), to).goesOn(own)
			}), "protocol")
		}, lab.ServerFar)
	})
	s.run("other ICMP queries", func(s *scene) {
		s.wantReason(s.count(s.RA, 2, func() {
			raw, err := traffic.OpenRaw(s.Hosts[0].Do, unix.IPPROTO_ICMP, lab.HostEnds(0).V4, nil)
			s.must(err)
			defer raw.Close()
			// RFC 792: timestamp, identifier 7, sequence number 1.
			query := []byte{13, 0, 0xf2, 0xf7, 0, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			ctx, cancel := context.WithTimeout(s.ctx, patience/4)
			defer cancel()
			s.must(raw.Send(lab.ServerFar.V4, query))
			_, err = raw.Await(ctx, 1, func(p traffic.RawPacket) bool { return p.Payload[0] == 14 })
			s.must(err)
		}), "protocol")
	})
	if flows := s.flows(s.RA); len(flows) != 0 {
		t.Errorf("mappings: %+v", flows)
	}
}

// udpLite exchanges some UDP-Lite datagrams (RFC 3828) and checks from where
// they arrive. Conntrack works their checksum out as if it were UDP's, and takes
// all for invalid unless it is told not to look.
func (s *scene) udpLite(to, want netip.Addr) {
	s.t.Helper()
	s.must(s.RA.Sysctl("net/netfilter/nf_conntrack_checksum", "0"))
	from := hostAddr(0, to)
	// Something has to listen, or both ends say that nobody does.
	defer s.udpLiteSocket(s.Server, lab.Port(to, serverPort)).Close()
	defer s.udpLiteSocket(s.Hosts[0], lab.Port(from, serverPort)).Close()
	// The same port on both sides, so that what is sent back is an answer; the
	// checksum is that of all of it (coverage 0).
	kind := tunnelKind{"udplite", unix.IPPROTO_UDPLITE, "\x1b\x58\x1b\x58\x00\x00\x00\x00"}
	t := s.tunnel(kind, s.Hosts[0], from, s.farEnd(kind, to), to)
	t.seal = func(packet []byte) {
		sum := internetSum(0, from.AsSlice())
		sum = internetSum(sum, to.AsSlice())
		sum = internetSum(sum+unix.IPPROTO_UDPLITE+uint32(len(packet)), packet)
		binary.BigEndian.PutUint16(packet[6:], ^uint16(sum))
	}
	t.goesOn(want)
}

// internetSum goes on with a sum of RFC 1071.
func internetSum(sum uint32, b []byte) uint32 {
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return sum
}

func (s *scene) udpLiteSocket(on *lab.Node, at netip.AddrPort) net.PacketConn {
	s.t.Helper()
	var conn net.PacketConn
	s.must(on.Do(func() error {
		family, sockaddr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
		if at.Addr().Is4() {
			family, sockaddr = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDPLITE)
		if err != nil {
			return fmt.Errorf("open a UDP-Lite socket: %w", err)
		}
		file := os.NewFile(uintptr(fd), "udplite")
		defer file.Close()
		if err := unix.Bind(fd, sockaddr); err != nil {
			return fmt.Errorf("bind a UDP-Lite socket to %s: %w", at, err)
		}
		conn, err = net.FilePacketConn(file)
		return err
	}))
	s.t.Cleanup(func() { conn.Close() })
	return conn
}
