// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"vippin/test/lab"
	"vippin/test/traffic"
)

// setBeyond is a scene with a further router, and a server behind it that is
// asked instead of the other one.
func setBeyond(t *testing.T, name string, offloads lab.Offloads) *errorScene {
	t.Helper()
	s := setErrorScene(t, name, lab.Options{Transit: true, Offloads: offloads})
	at := []netip.AddrPort{lab.Port(lab.Beyond.V4, serverPort), lab.Port(lab.Beyond.V6, serverPort)}
	s.serve(s.BeyondHost, traffic.ServerOptions{TCP: at, UDP: at})
	s.watched = []*lab.Node{s.Hosts[0]}
	return s
}

// Traceroute of an inside host shows this router, the next one and the server,
// by UDP, by echo requests and by TCP.
func TestTraceroute(t *testing.T) {
	t.Parallel()
	s := setBeyond(t, "trace", lab.OffloadsOff)
	s.inEachMode(func(s *errorScene, f family) {
		host := s.Hosts[0]
		from, to := f.of(lab.HostEnds(0)), f.of(lab.Beyond)
		s.run("udp", func(s *errorScene) {
			socket, ends := s.open(host, "udp", from, lab.Port(to, closedPort))
			s.tells(socket, syscall.ECONNREFUSED, f.portUnreachable, to)
			s.inward(host, ends, f.portUnreachable, to)
			s.hops(socket, host, ends, f)
		})
		s.run("udp without checksum", func(s *errorScene) {
			socket, ends := s.open(host, "udp", from, lab.Port(to, serverPort))
			s.must(socket.OmitChecksum())
			s.hops(socket, host, ends, f)
		})
		s.run("udp in pieces", func(s *errorScene) {
			socket, ends := s.open(host, "udp", from, lab.Port(to, serverPort))
			s.must(socket.AllowFragments())
			s.must(socket.SetTTL(2))
			s.sends(socket, "udp", 2*largeData)
			s.tells(socket, syscall.EHOSTUNREACH, f.timeExceeded, f.of(lab.TransitWAN))
			if !f.six { // a router with conntrack numbers IPv6's fragments anew
				s.inward(host, ends, f.timeExceeded, f.of(lab.TransitWAN))
			}
		})
		s.run("icmp", func(s *errorScene) {
			socket, ends := s.open(host, "icmp", from, lab.Port(to, 0))
			_, _, err := socket.Receive(s.soon())
			s.must(err)
			s.hops(socket, host, ends, f)
		})
		s.run("tcp", func(s *errorScene) { s.hopsTCP(f) })
	})
}

// hops sends packets that end at this router and at the next one.
func (s *errorScene) hops(socket *traffic.ErrorSocket, host *lab.Node, ends flowEnds, f family) {
	s.t.Helper()
	s.must(socket.SetTTL(1))
	s.must(socket.Send([]byte("one hop")))
	s.tells(socket, syscall.EHOSTUNREACH, f.timeExceeded, f.of(lab.LAN.RA))
	s.must(socket.SetTTL(2))
	if from := s.sends(socket, ends.proto, 0); from != ends.public {
		s.t.Errorf("%s leaves from %s, want %s", ends.proto, from, ends.public)
	}
	s.tells(socket, syscall.EHOSTUNREACH, f.timeExceeded, f.of(lab.TransitWAN))
	s.inward(host, ends, f.timeExceeded, f.of(lab.TransitWAN))
}

// hopsTCP makes a connection whose first packet ends at the next router.
func (s *errorScene) hopsTCP(f family) {
	remote := lab.Port(f.of(lab.Beyond), serverPort)
	inside := lab.Port(f.of(lab.HostEnds(0)), s.nextPort("tcp", remote))
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(inside), Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if failed := raw.Control(func(fd uintptr) {
			if f.six {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, 2)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TTL, 2)
			}
		}); failed != nil {
			return failed
		}
		return err
	}}
	err := s.Hosts[0].Do(func() error {
		conn, err := dialer.DialContext(s.soon(), "tcp", remote.String())
		if err == nil {
			conn.Close()
		}
		return err
	})
	if !errors.Is(err, syscall.EHOSTUNREACH) {
		s.t.Errorf("connect with a TTL of 2: %v, want %v", err, syscall.EHOSTUNREACH)
	}
	ends := flowEnds{proto: "tcp", inside: inside, remote: remote}
	ends.public = s.leftAs(inside, remote)
	s.wantPublic(ends)
	s.inward(s.Hosts[0], ends, f.timeExceeded, f.of(lab.TransitWAN))
}

// leftAs finds the public end of a connection that the server may never see:
// the initial sequence number tells it from others.
func (s *errorScene) leftAs(inside, remote netip.AddrPort) (public netip.AddrPort) {
	s.t.Helper()
	number := func(f traffic.Frame) (uint32, netip.AddrPort) {
		proto, from, to := traffic.FlowOf(f.Packet)
		tcp, is := f.Packet.TransportLayer().(*layers.TCP)
		if !is || proto != "tcp" || to != remote || !f.Outgoing {
			return 0, netip.AddrPort{}
		}
		return tcp.Seq, from
	}
	sent, err := s.seen["h1"].Await(s.soon(), 1, func(f traffic.Frame) bool {
		_, from := number(f)
		return from == inside
	})
	s.must(err)
	want, _ := number(sent[0])
	left, err := s.wan.Await(s.soon(), 1, func(f traffic.Frame) bool {
		seq, from := number(f)
		return seq == want && from.IsValid()
	})
	s.must(err)
	_, public = number(left[0])
	return public
}

// A living flow keeps its mapping when its pin is switched off: its errors find
// it, both ways.
func TestErrorsWithThePinOff(t *testing.T) {
	t.Parallel()
	s := setBeyond(t, "switched", lab.OffloadsOff)
	s.watched = append(s.watched, s.Server)
	s.public = vip
	for _, f := range families {
		s.run(f.name, func(s *errorScene) {
			s.listen()
			remote := lab.Port(f.of(lab.Beyond), serverPort)
			socket, ends := s.open(s.Hosts[0], "udp", f.of(lab.HostEnds(0)), remote)
			inside, server, told := s.talk(s.Hosts[0], f.of(lab.HostEnds(0)), f)
			s.vippin(s.RA, "pin", "off", "2")
			defer s.vippin(s.RA, "pin", "on", "2")
			s.hops(socket, s.Hosts[0], ends, f)
			s.hangUp(inside, told)
			s.must(server.Send([]byte("too late")))
			s.outward(s.Server, told, f.portUnreachable)
			s.nothingLeaks()
		})
	}
}

// Routers of old quote no more than the IP header and 8 octets (RFC 792), which
// do not have TCP's checksum.
func TestShortQuote(t *testing.T) {
	t.Parallel()
	s := setBeyond(t, "quote", lab.OffloadsOff)
	s.inEachMode(func(s *errorScene, f family) {
		host, by := s.Hosts[0], f.of(lab.TransitWAN)
		remote := lab.Port(f.of(lab.Beyond), serverPort)
		for _, proto := range []string{"udp", "icmp"} {
			s.run(proto, func(s *errorScene) {
				socket, ends := s.open(host, proto, f.of(lab.HostEnds(0)), remote)
				s.complains(f, ends)
				s.tells(socket, syscall.EPROTO, f.badParameter, by)
				s.inward(host, ends, f.badParameter, by)
			})
		}
		s.run("tcp", func(s *errorScene) {
			ends := s.uploads(f)
			s.complains(f, ends)
			s.inward(host, ends, f.badParameter, by)
		})
	})
}

// complains has the next router find fault with a packet of a flow.
func (s *errorScene) complains(f family, ends flowEnds) {
	s.t.Helper()
	frames, err := s.wan.Await(s.soon(), 1, func(f traffic.Frame) bool {
		proto, from, to := traffic.FlowOf(f.Packet)
		return f.Outgoing && proto == ends.proto && from == ends.public && to == ends.remote
	})
	s.must(err)
	ip := frames[0].Packet.NetworkLayer()
	quote := slices.Concat(make([]byte, 4), ip.LayerContents(), ip.LayerPayload()[:8])
	var kind icmp.Type = ipv4.ICMPTypeParameterProblem
	if f.six {
		kind = ipv6.ICMPTypeParameterProblem
	}
	message := icmp.Message{Type: kind, Body: &icmp.RawBody{Data: quote}}
	s.must(s.sendICMP(s.Transit, f, f.of(lab.TransitWAN), message, ends.public.Addr(), 0))
}

// The link behind the next router takes smaller packets than the others: what
// inside hosts send adapts.
func TestPathMTUBeyond(t *testing.T) {
	t.Parallel()
	s := setBeyond(t, "mtuout", lab.OffloadsOff)
	s.narrowBeyond()
	s.inEachMode(func(s *errorScene, f family) {
		host, by := s.Hosts[0], f.of(lab.TransitWAN)
		from, remote := f.of(lab.HostEnds(0)), lab.Port(f.of(lab.Beyond), serverPort)
		s.run("tcp", func(s *errorScene) { s.inward(host, s.uploads(f), f.tooBig, by) })
		for _, proto := range []string{"udp", "icmp"} {
			s.run(proto, func(s *errorScene) {
				s.forgetPaths(host)
				socket, ends := s.open(host, proto, from, remote)
				_, _, err := socket.Receive(s.soon())
				s.must(err)
				s.adapts(socket, ends, f.tooBig, by)
				s.inward(host, ends, f.tooBig, by)
				payload, _, err := socket.Receive(s.soon()) // of what fits now
				s.must(err)
				if proto == "udp" && !strings.HasPrefix(string(payload), "SOURCE "+ends.public.String()) {
					s.t.Errorf("the server answers %q, want one that sees %s", payload, ends.public)
				}
			})
		}
	})
}

// The same with packets of up to 64 KiB between the interfaces.
func TestPathMTUBeyondOffloads(t *testing.T) {
	t.Parallel()
	for name, offloads := range map[string]lab.Offloads{"mtuoutdef": lab.OffloadsDefault, "mtuouton": lab.OffloadsOn} {
		t.Run("offloads "+string(offloads), func(t *testing.T) {
			s := setBeyond(t, name, offloads)
			s.narrowBeyond()
			s.inEachMode(func(s *errorScene, f family) {
				s.inward(s.Hosts[0], s.uploads(f), f.tooBig, f.of(lab.TransitWAN))
			})
		})
	}
}

func (s *errorScene) narrowBeyond() {
	s.t.Helper()
	for _, f := range families {
		s.must(s.Transit.Narrow("eth1", f.of(lab.Beyond), narrowMTU))
	}
}

// forgetPaths lets a host forget what it knows of paths' MTUs.
func (s *errorScene) forgetPaths(n *lab.Node) {
	s.t.Helper()
	for _, ip := range []string{"-4", "-6"} {
		_, err := n.Run(s.ctx, "ip", ip, "route", "flush", "cache")
		s.must(err)
	}
}

// uploads sends a megabyte to the server behind the next router.
func (s *errorScene) uploads(f family) flowEnds {
	s.t.Helper()
	s.forgetPaths(s.Hosts[0])
	remote := lab.Port(f.of(lab.Beyond), serverPort)
	ends := flowEnds{proto: "tcp", remote: remote, inside: lab.Port(f.of(lab.HostEnds(0)), s.nextPort("tcp", remote))}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	done, err := traffic.PutFrom(ctx, s.Hosts[0].Do, ends.inside, remote, 1<<20)
	s.must(err)
	ends.public = done.Source
	s.wantPublic(ends)
	return ends
}

// adapts sends a packet that is too large for the path; its sender is told so,
// and knows from then on.
func (s *errorScene) adapts(socket *traffic.ErrorSocket, ends flowEnds, want icmpMessage, by netip.Addr) {
	s.t.Helper()
	s.must(socket.Send(make([]byte, largeData)))
	if told := s.tells(socket, syscall.EMSGSIZE, want, by); told.MTU != narrowMTU {
		s.t.Errorf("told of an MTU of %d, want %d", told.MTU, narrowMTU)
	}
	if err := socket.Send(make([]byte, largeData)); !errors.Is(err, syscall.EMSGSIZE) {
		s.t.Errorf("send %d octets of %s again: %v, want %v", largeData, ends.proto, err, syscall.EMSGSIZE)
	}
	mtu, err := socket.MTU()
	if ends.proto == "icmp" && errors.Is(err, syscall.ENOTCONN) {
		// An IPv6 ping socket does not keep its route.
	} else if err != nil || mtu != narrowMTU {
		s.t.Errorf("the path's MTU is %d (%v), want %d", mtu, err, narrowMTU)
	}
	s.must(socket.Send(make([]byte, narrowMTU-100)))
}
