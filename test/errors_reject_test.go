// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"vippin/test/lab"
	"vippin/test/traffic"
)

// The user's firewall on this router refuses packets of a flow, in either
// direction: the answer comes from where the refused packet went.
func TestReject(t *testing.T) {
	t.Parallel()
	s := setInside(t, "reject", lab.Options{Offloads: lab.OffloadsOff})
	const reset, unreachable = "tcp reset", "icmpx port-unreachable"
	s.inEachMode(func(s *errorScene, f family) {
		s.run("reset answers", func(s *errorScene) {
			_, server, ends := s.connect(f)
			s.refuse(lab.WAN.Name, ends, reset)
			s.breaks(server, syscall.ECONNRESET)
			s.resets(ends)
		})
		s.run("reset questions", func(s *errorScene) {
			inside, _, ends := s.connect(f)
			s.refuse(lab.LAN.Name, ends, reset)
			s.breaks(inside, syscall.ECONNRESET)
		})
		s.run("unreachable for answers", func(s *errorScene) {
			_, server, ends := s.talk(s.Hosts[0], f.of(lab.HostEnds(0)), f)
			s.refuse(lab.WAN.Name, ends, unreachable)
			s.must(server.Send([]byte("refused")))
			s.tells(server, syscall.ECONNREFUSED, f.portUnreachable, ends.public.Addr())
			s.outward(s.Server, ends, f.portUnreachable)
		})
		s.run("unreachable for answers of a connection", func(s *errorScene) {
			_, server, ends := s.connect(f)
			s.refuse(lab.WAN.Name, ends, unreachable)
			_, err := server.Write([]byte("refused"))
			s.must(err)
			s.outward(s.Server, ends, f.portUnreachable)
		})
		s.run("unreachable for questions", func(s *errorScene) {
			inside, _, ends := s.talk(s.Hosts[0], f.of(lab.HostEnds(0)), f)
			s.refuse(lab.LAN.Name, ends, unreachable)
			s.must(inside.Send([]byte("refused")))
			s.tells(inside, syscall.ECONNREFUSED, f.portUnreachable, f.of(lab.LAN.RA))
			s.quotes(s.Hosts[0], s.errorOn(s.seen["h1"], false, ends, f.portUnreachable, f.of(lab.LAN.RA)))
		})
	})
}

// refuse has this router's firewall refuse what comes in by an interface from
// or to the flow's remote end.
func (s *errorScene) refuse(by string, ends flowEnds, how string) {
	s.t.Helper()
	way := "sport"
	if by == lab.LAN.Name {
		way = "dport"
	}
	s.must(s.RA.NFT(s.ctx, fmt.Sprintf(`
table inet refuse {
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname %q meta l4proto %s th %s %d reject with %s
	}
}
`, by, ends.proto, way, ends.remote.Port(), how)))
	s.t.Cleanup(func() { s.must(s.RA.NFT(context.Background(), "delete table inet refuse")) })
}

// connect makes a TCP connection of the first inside host, to a port of its own.
func (s *errorScene) connect(f family) (inside, server net.Conn, ends flowEnds) {
	s.t.Helper()
	remote := lab.Port(f.of(lab.ServerFar), uint16(s.ports.Add(1)))
	var listener net.Listener
	var listen net.ListenConfig
	listen.SetMultipathTCP(false)
	s.must(s.Server.Do(func() (err error) {
		listener, err = listen.Listen(s.ctx, "tcp", remote.String())
		return err
	}))
	defer listener.Close()
	ends = flowEnds{proto: "tcp", remote: remote, inside: lab.Port(f.of(lab.HostEnds(0)), s.nextPort("tcp", remote))}
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(ends.inside)}
	s.must(s.Hosts[0].Do(func() (err error) {
		inside, err = dialer.DialContext(s.soon(), "tcp", remote.String())
		return err
	}))
	s.t.Cleanup(func() { abort(inside) })
	for server == nil || s.mode.clash && ends.public.Port() == ends.inside.Port() { // the other inside host's comes first
		var err error
		server, err = listener.Accept()
		s.must(err)
		conn := server
		s.t.Cleanup(func() { abort(conn) })
		ends.public = server.RemoteAddr().(*net.TCPAddr).AddrPort()
	}
	s.wantPublic(ends)
	return inside, server, ends
}

// abort ends a connection so that nothing of it is sent again later, when other packets
// are counted.
func abort(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// breaks writes to a connection that the firewall refuses, and waits for its
// end.
func (s *errorScene) breaks(conn net.Conn, want syscall.Errno) {
	s.t.Helper()
	_, err := conn.Write([]byte("refused"))
	s.must(err)
	s.must(conn.SetReadDeadline(time.Now().Add(patience)))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, want) {
		s.t.Errorf("the refused connection ends with %v, want %v", err, want)
	}
}

// resets checks the RST that this router sent in the inside host's name.
func (s *errorScene) resets(ends flowEnds) {
	s.t.Helper()
	frames, err := s.wan.Await(s.soon(), 1, func(f traffic.Frame) bool {
		_, from, to := traffic.FlowOf(f.Packet)
		tcp, is := f.Packet.TransportLayer().(*layers.TCP)
		return is && tcp.RST && f.Outgoing && from == ends.public && to == ends.remote
	})
	s.must(err)
	if wrong := traffic.Faults(frames[0].Packet); len(wrong) > 0 {
		s.t.Errorf("the RST has wrong checksums: %q", wrong)
	}
}

// Errors of the router's own flows and of its own services are none of
// vippin's business.
func TestErrorsOfTheRouter(t *testing.T) {
	t.Parallel()
	s := setBeyond(t, "ownerr", lab.OffloadsOff)
	s.watched = []*lab.Node{s.Server}
	for _, f := range families {
		for name, at := range map[string]lab.Ends{"unique": own, "VIP": vip} {
			s.run(f.name+" "+name, func(s *errorScene) {
				s.listen()
				s.wantNothing(s.count(s.RA, 2, func() {
					s.ownFlow(f, f.of(at))
					s.ownService(f, f.of(at))
				}))
			})
		}
	}
}

// A flow that the user translates to the VIP himself is none of vippin's either,
// although its errors come to the VIP.
func TestErrorsOfExplicitSNAT(t *testing.T) {
	t.Parallel()
	s := setBeyond(t, "snaterr", lab.OffloadsOff)
	host := s.Hosts[1]
	s.watched = []*lab.Node{host}
	s.snatSecond(s.RA, vip)
	s.public = vip
	for _, f := range families {
		s.run(f.name, func(s *errorScene) {
			s.listen()
			s.wantNothing(s.count(s.RA, 2, func() {
				remote := lab.Port(f.of(lab.Beyond), closedPort)
				socket, ends := s.open(host, "udp", f.of(lab.HostEnds(1)), remote)
				s.tells(socket, syscall.ECONNREFUSED, f.portUnreachable, remote.Addr())
				s.inward(host, ends, f.portUnreachable, remote.Addr())
				s.hops(socket, host, ends, f)
			}))
		})
	}
}

// ownFlow traces the way from an address of the router.
func (s *errorScene) ownFlow(f family, from netip.Addr) {
	s.t.Helper()
	remote := lab.Port(f.of(lab.Beyond), closedPort)
	ends := flowEnds{proto: "udp", inside: lab.Port(from, uint16(s.ports.Add(1))), remote: remote}
	ends.public = ends.inside
	socket, err := traffic.OpenErrorSocket(s.RA.Do, "udp", ends.inside, remote)
	s.must(err)
	defer socket.Close()
	s.must(socket.SetTTL(1))
	s.must(socket.Send([]byte("one hop")))
	s.tells(socket, syscall.EHOSTUNREACH, f.timeExceeded, f.of(lab.TransitWAN))
	s.errorOn(s.wan, false, ends, f.timeExceeded, f.of(lab.TransitWAN))
	s.must(socket.SetTTL(64))
	s.must(socket.Send([]byte("all the way")))
	s.tells(socket, syscall.ECONNREFUSED, f.portUnreachable, remote.Addr())
	s.errorOn(s.wan, false, ends, f.portUnreachable, remote.Addr())
}

// ownService asks the router on a port where nobody listens.
func (s *errorScene) ownService(f family, at netip.Addr) {
	s.t.Helper()
	asker := lab.Port(f.of(lab.ServerWAN), uint16(s.ports.Add(1)))
	socket, err := traffic.OpenErrorSocket(s.Server.Do, "udp", asker, lab.Port(at, closedPort))
	s.must(err)
	defer socket.Close()
	s.must(socket.Send([]byte("anybody there?")))
	s.tells(socket, syscall.ECONNREFUSED, f.portUnreachable, at)
	s.outward(s.Server, flowEnds{proto: "udp", public: lab.Port(at, closedPort), remote: asker}, f.portUnreachable)
}
