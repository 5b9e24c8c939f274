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
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"vippin/test/lab"
	"vippin/test/traffic"
)

// setInside is a scene whose server is told the errors of what it sends.
func setInside(t *testing.T, name string, opts lab.Options) *errorScene {
	t.Helper()
	s := setErrorScene(t, name, opts)
	s.watched = []*lab.Node{s.Hosts[0], s.Server}
	return s
}

// talk has an inside host ask the server by UDP; the server's socket is then
// connected to the public end that asked.
func (s *errorScene) talk(host *lab.Node, from netip.Addr, f family) (inside, server *traffic.ErrorSocket, ends flowEnds) {
	s.t.Helper()
	remote := lab.Port(f.of(lab.ServerFar), uint16(s.ports.Add(1)))
	server, err := traffic.OpenErrorSocket(s.Server.Do, "udp", remote, netip.AddrPort{})
	s.must(err)
	s.t.Cleanup(func() { server.Close() })
	inside, ends = s.open(host, "udp", from, remote)
	for { // the other inside host may have asked before
		_, asked, err := server.Receive(s.soon())
		s.must(err)
		if asked == ends.public {
			break
		}
	}
	s.must(server.Connect(ends.public))
	return inside, server, ends
}

// hangUp has the port of an inside host's socket closed at once. Closing alone may
// take a while: a child that another test has forked holds a copy of the socket,
// which takes what comes, until it executes its program (O_CLOEXEC). Connected to
// somebody else, every copy is deaf to the server.
func (s *errorScene) hangUp(inside *traffic.ErrorSocket, ends flowEnds) {
	s.t.Helper()
	s.must(inside.Connect(lab.Port(ends.remote.Addr(), closedPort)))
	s.must(inside.Close())
}

// What the server sends meets a link inside that takes smaller packets: this
// router's own, or one behind a further router.
func TestPathMTUInside(t *testing.T) {
	t.Parallel()
	s := setInside(t, "mtuin", lab.Options{Inside: true, Offloads: lab.OffloadsOff})
	s.narrowInside()
	s.inEachMode(func(s *errorScene, f family) {
		for _, at := range s.insides() {
			s.run(at.name, func(s *errorScene) {
				s.run("tcp", func(s *errorScene) { s.outward(s.Server, s.downloads(at, f), f.tooBig) })
				s.run("udp", func(s *errorScene) {
					s.forgetPaths(s.Server)
					inside, server, ends := s.talk(at.host, f.of(at.ends), f)
					s.adapts(server, ends, f.tooBig, ends.public.Addr())
					s.outward(s.Server, ends, f.tooBig)
					payload, _, err := inside.Receive(s.soon()) // what fits now
					s.must(err)
					if len(payload) != narrowMTU-100 {
						s.t.Errorf("received %d octets, want %d", len(payload), narrowMTU-100)
					}
				})
			})
		}
	})
}

// The same with packets of up to 64 KiB between the interfaces.
func TestPathMTUInsideOffloads(t *testing.T) {
	t.Parallel()
	for name, offloads := range map[string]lab.Offloads{"mtuindef": lab.OffloadsDefault, "mtuinon": lab.OffloadsOn} {
		t.Run("offloads "+string(offloads), func(t *testing.T) {
			s := setInside(t, name, lab.Options{Inside: true, Offloads: offloads})
			s.narrowInside()
			s.inEachMode(func(s *errorScene, f family) {
				for _, at := range s.insides() {
					s.run(at.name, func(s *errorScene) { s.outward(s.Server, s.downloads(at, f), f.tooBig) })
				}
			})
		})
	}
}

// insideHost is one whose link is narrow, and where.
type insideHost struct {
	name string
	host *lab.Node
	ends lab.Ends
}

func (s *errorScene) insides() []insideHost {
	return []insideHost{
		{"at this router", s.Hosts[0], lab.HostEnds(0)},
		{"at an inside router", s.DeepHost, lab.Deep},
	}
}

func (s *errorScene) narrowInside() {
	s.t.Helper()
	for _, f := range families {
		s.must(s.RA.Narrow(lab.LAN.Name, f.of(lab.HostEnds(0)), narrowMTU))
		s.must(s.Inside.Narrow("eth1", f.of(lab.Deep), narrowMTU))
	}
}

// downloads fetches a megabyte from the server.
func (s *errorScene) downloads(at insideHost, f family) flowEnds {
	s.t.Helper()
	s.forgetPaths(s.Server)
	remote := lab.Port(f.of(lab.ServerFar), serverPort)
	ends := flowEnds{proto: "tcp", remote: remote, inside: lab.Port(f.of(at.ends), s.nextPort("tcp", remote))}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	done, err := traffic.GetFrom(ctx, at.host.Do, ends.inside, remote, 1<<20)
	s.must(err)
	ends.public = done.Source
	s.wantPublic(ends)
	return ends
}

// An inside host that has gone away says so itself.
func TestPortUnreachableInside(t *testing.T) {
	t.Parallel()
	s := setInside(t, "gone", lab.Options{Offloads: lab.OffloadsOff})
	s.inEachMode(func(s *errorScene, f family) {
		inside, server, ends := s.talk(s.Hosts[0], f.of(lab.HostEnds(0)), f)
		s.hangUp(inside, ends)
		s.must(server.Send([]byte("too late")))
		s.tells(server, syscall.ECONNREFUSED, f.portUnreachable, ends.public.Addr())
		s.outward(s.Server, ends, f.portUnreachable)
	})
}

// Answers that have come too far, or whose way has gone, end at this router.
func TestAnswersEndHere(t *testing.T) {
	t.Parallel()
	s := setInside(t, "ttl", lab.Options{Offloads: lab.OffloadsOff})
	s.inEachMode(func(s *errorScene, f family) {
		s.run("udp", func(s *errorScene) {
			_, server, ends := s.talk(s.Hosts[0], f.of(lab.HostEnds(0)), f)
			s.must(server.SetTTL(1))
			s.must(server.Send([]byte("one hop")))
			s.tells(server, syscall.EHOSTUNREACH, f.timeExceeded, ends.public.Addr())
			s.outward(s.Server, ends, f.timeExceeded)
		})
		s.run("no route", func(s *errorScene) {
			_, server, ends := s.talk(s.Hosts[0], f.of(lab.HostEnds(0)), f)
			to := ends.inside.Addr().String()
			_, err := s.RA.Run(s.ctx, "ip", "route", "add", "unreachable", to)
			s.must(err)
			defer func() {
				_, err := s.RA.Run(s.ctx, "ip", "route", "del", "unreachable", to)
				s.must(err)
			}()
			errno := syscall.EHOSTUNREACH
			if f.six {
				errno = syscall.ENETUNREACH
			}
			s.wantTold(s.insists(server), errno, f.noRoute, ends.public.Addr())
			s.outward(s.Server, ends, f.noRoute)
		})
		s.run("icmp", func(s *errorScene) {
			socket, ends := s.open(s.Hosts[0], "icmp", f.of(lab.HostEnds(0)), lab.Port(f.of(lab.ServerWAN), 0))
			_, _, err := socket.Receive(s.soon())
			s.must(err)
			var kind icmp.Type = ipv4.ICMPTypeEchoReply
			if f.six {
				kind = ipv6.ICMPTypeEchoReply
			}
			message := icmp.Message{Type: kind, Body: &icmp.Echo{ID: int(ends.public.Port()), Data: []byte("one hop")}}
			s.must(s.sendICMP(s.Server, f, f.of(lab.ServerWAN), message, ends.public.Addr(), 1))
			s.outward(s.Server, ends, f.timeExceeded)
		})
	})
}

// insists sends until it is told of an error: of a route that says "unreachable"
// IPv4 tells each host once a second, whatever icmp_ratelimit says.
func (s *errorScene) insists(socket *traffic.ErrorSocket) traffic.SocketError {
	s.t.Helper()
	for soon := s.soon(); ; {
		s.must(socket.Send([]byte("nowhere to go")))
		ctx, cancel := context.WithTimeout(soon, 100*time.Millisecond)
		told, err := socket.NextError(ctx)
		cancel()
		if err == nil {
			return told
		}
		s.must(soon.Err())
	}
}

// sendICMP sends a message of the test's own making; a TTL of 0 is the usual one.
func (s *errorScene) sendICMP(n *lab.Node, f family, from netip.Addr, message icmp.Message, to netip.Addr, ttl int) error {
	data, err := message.Marshal(nil) // the kernel fills in ICMPv6's checksum
	if err != nil {
		return err
	}
	network := "ip4:icmp"
	if f.six {
		network = "ip6:ipv6-icmp"
	}
	return n.Do(func() error {
		conn, err := icmp.ListenPacket(network, from.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if ttl != 0 && f.six {
			err = conn.IPv6PacketConn().SetHopLimit(ttl)
		} else if ttl != 0 {
			err = conn.IPv4PacketConn().SetTTL(ttl)
		}
		if err != nil {
			return err
		}
		_, err = conn.WriteTo(data, &net.IPAddr{IP: to.AsSlice()})
		return err
	})
}

// What conntrack does not take for the flow is none of it, although the mapping
// is still there: the router speaks for itself.
func TestErrorBesideTheFlow(t *testing.T) {
	t.Parallel()
	s := setInside(t, "beside", lab.Options{Offloads: lab.OffloadsOff})
	s.public = vip
	for _, f := range families {
		s.run(f.name, func(s *errorScene) {
			s.listen()
			_, server, ends := s.talk(s.Hosts[0], f.of(lab.HostEnds(0)), f)
			_, err := s.RA.Run(s.ctx, "conntrack", "-D", "-f", strings.ToLower(f.name), "-p", "udp", "--orig-src", ends.inside.Addr().String(),
				"--orig-port-src", fmt.Sprint(ends.inside.Port()))
			s.must(err)
			s.must(server.Send([]byte("whose is this?")))
			local := lab.Port(f.of(own), ends.inside.Port())
			s.errorOn(s.wan, true, flowEnds{"udp", ends.remote, ends.remote, local}, f.portUnreachable, local.Addr())
		})
	}
}
