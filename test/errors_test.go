// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// What the tests of ICMP errors have in common. Each case is run three times:
// for pinned flows; for pinned flows whose port on the VIP is another one than
// conntrack's, so that quoted ports are rewritten, too; and with the pin off,
// where errors pass as vippin finds them and name the router's own address.

const (
	closedPort = 7999 // nobody listens
	narrowMTU  = 1280 // IPv6's least (RFC 8200 section 5)
	largeData  = 1400 // octets that fit the other links, with headers
)

// icmpMessage is an error's type and code.
type icmpMessage struct{ Type, Code uint8 }

// family is IPv4 (RFC 792) or IPv6 (RFC 4443), and what an error is there.
type family struct {
	name            string
	six             bool
	timeExceeded    icmpMessage
	portUnreachable icmpMessage
	tooBig          icmpMessage
	badParameter    icmpMessage
	noRoute         icmpMessage // what an "unreachable" route answers
}

var families = []family{
	{"IPv4", false, icmpMessage{11, 0}, icmpMessage{3, 3}, icmpMessage{3, 4}, icmpMessage{12, 0}, icmpMessage{3, 1}},
	{"IPv6", true, icmpMessage{3, 0}, icmpMessage{1, 4}, icmpMessage{2, 0}, icmpMessage{4, 0}, icmpMessage{1, 0}},
}

func (f family) of(e lab.Ends) netip.Addr {
	if f.six {
		return e.V6
	}
	return e.V4
}

// errorMode is whose flows the errors are about.
type errorMode struct {
	name  string
	off   bool // not pinned
	clash bool // pinned with another port
}

var errorModes = []errorMode{{name: "pinned"}, {name: "another port", clash: true}, {name: "off", off: true}}

// errorScene is a scene that watches a case's frames.
type errorScene struct {
	*scene
	mode    errorMode
	public  lab.Ends // where the server sees inside hosts
	whole   bool     // no offloads: every frame can be judged
	ports   *atomic.Uint32
	watched []*lab.Node                 // hosts whose frames are compared with quotes
	wan     *traffic.Capture            // both ways, as they are on the wire
	seen    map[string]*traffic.Capture // by name, of the watched hosts' eth0
}

// setErrorScene builds a lab with ra pinning in it.
func setErrorScene(t *testing.T, name string, opts lab.Options) *errorScene {
	t.Helper()
	opts.SingleRouter = true
	s := &errorScene{scene: setScene(t, name, opts), ports: new(atomic.Uint32),
		whole: opts.Offloads == lab.OffloadsOff}
	s.ports.Store(6000)
	for _, n := range []*lab.Node{s.RA.Node, s.Server, s.Transit, s.BeyondHost, s.Inside, s.DeepHost, s.Hosts[0], s.Hosts[1]} {
		if n != nil {
			s.allowErrors(n)
		}
	}
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	return s
}

// allowErrors has a node send as many errors as it likes, and lets sockets ping.
func (s *errorScene) allowErrors(n *lab.Node) {
	s.t.Helper()
	for key, value := range map[string]string{
		"net/ipv4/icmp_ratelimit": "0", "net/ipv4/icmp_msgs_per_sec": "100000", "net/ipv6/icmp/ratelimit": "0",
		"net/ipv4/tcp_mtu_probing": "0", "net/ipv4/ping_group_range": "0 0",
	} {
		// Older kernels have icmp_msgs_per_sec for the whole machine only.
		if err := n.Sysctl(key, value); !errors.Is(err, fs.ErrNotExist) {
			s.must(err)
		}
	}
}

func (s *errorScene) capture(n *lab.Node, ifname string) *traffic.Capture {
	s.t.Helper()
	c, err := traffic.StartCapture(n.Do, ifname)
	s.must(err)
	s.t.Cleanup(func() { s.must(c.Close()) })
	return c
}

// listen starts to watch, until the end of the test: what the WAN sees of this
// router, and what the watched hosts send and get.
func (s *errorScene) listen() {
	s.t.Helper()
	s.wan, s.seen = s.capture(s.RA.Node, lab.WAN.Name), map[string]*traffic.Capture{}
	for _, n := range s.watched {
		s.seen[n.Name] = s.capture(n, "eth0")
	}
}

// run is t.Run in the same scene.
func (s *errorScene) run(name string, f func(*errorScene)) {
	s.t.Helper()
	s.scene.run(name, func(base *scene) {
		inner := *s
		inner.scene = base
		f(&inner)
	})
}

// inEachMode runs a case in every mode and family.
func (s *errorScene) inEachMode(f func(*errorScene, family)) {
	s.t.Helper()
	for _, mode := range errorModes {
		s.run(mode.name, func(s *errorScene) {
			s.enter(mode)
			for _, fam := range families {
				s.run(fam.name, func(s *errorScene) {
					s.listen()
					s.wantCounted(s.count(s.RA, 2, func() { f(s, fam) }))
					s.nothingLeaks()
				})
			}
		})
	}
}

// wantCounted checks that no packet of a pinned flow left unpinned, and that
// nothing else was taken for pinned.
func (s *errorScene) wantCounted(g growth) {
	s.t.Helper()
	if s.mode.off && g.pinned != 0 || !s.mode.off && (g.pinned == 0 || len(g.unpinnedBy) != 0) {
		s.t.Errorf("counted %d pinned and %v unpinned packets", g.pinned, g.unpinnedBy)
	}
}

// enter begins a mode. The other inside host, which holds the wanted ports on
// the VIP, is translated to it by a rule of the user's.
func (s *errorScene) enter(mode errorMode) {
	s.t.Helper()
	s.mode, s.public = mode, vip
	if mode.off {
		s.public = own
		s.vippin(s.RA, "pin", "off", "2")
		s.t.Cleanup(func() { s.vippin(s.RA, "pin", "on", "2") })
	}
	if mode.clash {
		s.snatSecond(s.RA, vip)
		s.t.Cleanup(func() { s.must(s.RA.NFT(context.Background(), "delete table inet explicit")) })
	}
}

// soon bounds the wait for what takes a moment.
func (s *errorScene) soon() context.Context {
	ctx, cancel := context.WithTimeout(s.ctx, patience/2)
	s.t.Cleanup(cancel)
	return ctx
}

// flowEnds is a flow's two ends, and what the WAN sees in place of the first.
type flowEnds struct {
	proto                  string
	inside, public, remote netip.AddrPort
}

// nextPort is a new port for an inside host. Where that is the mode, the second
// host has it on the VIP already, towards the same remote end.
func (s *errorScene) nextPort(proto string, remote netip.AddrPort) uint16 {
	s.t.Helper()
	port := uint16(s.ports.Add(1))
	if !s.mode.clash {
		return port
	}
	if proto == "tcp" {
		s.must(s.Hosts[1].Do(func() error {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(port)}}
			conn, err := dialer.DialContext(s.soon(), proto, remote.String())
			if err == nil {
				s.t.Cleanup(func() { abort(conn) })
			}
			return err
		}))
		return port
	}
	socket, err := traffic.OpenErrorSocket(s.Hosts[1].Do, proto, netip.AddrPortFrom(netip.Addr{}, port), remote)
	s.must(err)
	defer socket.Close()
	if got := s.sends(socket, proto, 0); got != s.publicOf(remote, port) {
		s.t.Fatalf("the other host's %s leaves from %s, want %s", proto, got, s.publicOf(remote, port))
	}
	return port
}

func (s *errorScene) publicOf(remote netip.AddrPort, port uint16) netip.AddrPort {
	if remote.Addr().Is6() {
		return lab.Port(s.public.V6, port)
	}
	return lab.Port(s.public.V4, port)
}

// sends sends a datagram or an echo request of at least so many octets, and
// returns from which end it left on the WAN.
func (s *errorScene) sends(socket *traffic.ErrorSocket, proto string, octets int) netip.AddrPort {
	s.t.Helper()
	text := fmt.Appendf(nil, "errors %d;", s.ports.Add(1))
	s.must(socket.Send(append(text, make([]byte, max(octets-len(text), 0))...)))
	frames, err := s.wan.Await(s.soon(), 1, func(f traffic.Frame) bool {
		kind, _, _ := traffic.FlowOf(f.Packet)
		return f.Outgoing && kind == proto && bytes.Contains(f.Packet.Data(), text)
	})
	s.must(err)
	_, from, _ := traffic.FlowOf(frames[0].Packet)
	return from
}

// open opens a host's socket for a flow, and learns its public end by a first
// packet.
func (s *errorScene) open(host *lab.Node, proto string, from netip.Addr, remote netip.AddrPort) (*traffic.ErrorSocket, flowEnds) {
	s.t.Helper()
	ends := flowEnds{proto: proto, remote: remote}
	if proto == "icmp" {
		remote = lab.Port(remote.Addr(), 0)
		ends.remote = remote
	}
	ends.inside = lab.Port(from, s.nextPort(proto, remote))
	socket, err := traffic.OpenErrorSocket(host.Do, proto, ends.inside, remote)
	s.must(err)
	s.t.Cleanup(func() { socket.Close() }) // twice is no harm: nobody listens to it
	ends.public = s.sends(socket, proto, 0)
	s.wantPublic(ends)
	return socket, ends
}

// wantPublic checks where the WAN sees a flow.
func (s *errorScene) wantPublic(ends flowEnds) {
	s.t.Helper()
	same := s.publicOf(ends.remote, ends.inside.Port())
	if ends.public.Addr() != same.Addr() || (ends.public == same) == s.mode.clash {
		s.t.Fatalf("%s of %s leaves from %s, want address %s, its own port: %t", ends.proto, ends.inside, ends.public, same.Addr(), !s.mode.clash)
	}
}

// tells waits for an error of a socket's packets.
func (s *errorScene) tells(socket *traffic.ErrorSocket, errno syscall.Errno, want icmpMessage, by netip.Addr) traffic.SocketError {
	s.t.Helper()
	told, err := socket.NextError(s.soon())
	s.must(err)
	s.wantTold(told, errno, want, by)
	return told
}

func (s *errorScene) wantTold(told traffic.SocketError, errno syscall.Errno, want icmpMessage, by netip.Addr) {
	s.t.Helper()
	if told.Errno != errno || told.Local || (icmpMessage{told.Type, told.Code}) != want || told.Offender != by {
		s.t.Errorf("told of %+v, want %q by message %v from %s", told, errno, want, by)
	}
}

// inward checks an error about what an inside host sent, made by somebody on
// the WAN: it comes to the public end, and reaches the host as one about its own
// packet.
func (s *errorScene) inward(host *lab.Node, ends flowEnds, want icmpMessage, by netip.Addr) {
	s.t.Helper()
	s.errorOn(s.wan, false, flowEnds{ends.proto, ends.public, ends.public, ends.remote}, want, by)
	s.quotes(host, s.errorOn(s.seen[host.Name], false, ends, want, by))
}

// outward checks an error about what the server sent, made by this router or
// inside: it comes from the public address and quotes what the server sent
// there.
func (s *errorScene) outward(server *lab.Node, ends flowEnds, want icmpMessage) {
	s.t.Helper()
	back := flowEnds{ends.proto, ends.remote, ends.remote, ends.public}
	s.quotes(server, s.errorOn(s.wan, true, back, want, ends.public.Addr()))
}

// errorOn waits for the error about a packet of a flow's inside end.
func (s *errorScene) errorOn(c *traffic.Capture, outgoing bool, ends flowEnds, want icmpMessage, by netip.Addr) (e traffic.ICMPError) {
	s.t.Helper()
	others := []traffic.ICMPError{}
	_, err := c.Await(s.soon(), 1, func(f traffic.Frame) bool {
		told, is := traffic.ICMPErrorIn(f)
		if !is || f.Outgoing != outgoing {
			return false
		}
		if (icmpMessage{told.Type, told.Code}) == want && told.From == by && told.Proto == ends.proto && told.QuotedFrom == ends.inside && told.QuotedTo == ends.remote {
			e = told
			return true
		}
		others = append(others, told)
		return false
	})
	if err != nil {
		s.t.Fatalf("no error %v by %s about %s from %s to %s: %v; the last other one: %v", want, by, ends.proto, ends.inside, ends.remote, err, others[max(0, len(others)-1):])
	}
	if e.To != ends.inside.Addr() {
		s.t.Errorf("an error to %s, want to %s: %s", e.To, ends.inside.Addr(), e)
	}
	if s.whole && len(e.Faults) > 0 {
		s.t.Errorf("wrong checksums: %s", e)
	}
	return e
}

// quotes checks that an error quotes what the host sent, octet by octet.
func (s *errorScene) quotes(host *lab.Node, e traffic.ICMPError) {
	s.t.Helper()
	if !s.whole {
		return
	}
	if _, err := s.seen[host.Name].Await(s.soon(), 1, func(f traffic.Frame) bool { return f.Outgoing && e.Quotes(f) }); err != nil {
		s.t.Errorf("no frame of %s is as quoted: %s", host.Name, e)
	}
}

// nothingLeaks checks that what left on the WAN, and what was quoted in it,
// names neither an inside address nor, of a pinned flow, the router's own. It
// tells of the first that does.
func (s *errorScene) nothingLeaks() {
	s.t.Helper()
	for _, f := range s.wan.Frames(nil) {
		kind, from, to := traffic.FlowOf(f.Packet)
		e, quoting := traffic.ICMPErrorIn(f)
		if !f.Outgoing || kind == "" || kind == "58" && !quoting || to.Addr().IsMulticast() {
			continue // not IP, or neighbour discovery
		}
		if s.Options.Trunk == lab.TrunkNative && len(tagsIn(f.Packet)) != 0 {
			continue // another VLAN's: the WAN is the untagged one of a trunk
		}
		named := []netip.Addr{from.Addr()}
		if quoting {
			named = append(named, e.QuotedTo.Addr())
		}
		for _, a := range named {
			if lab.LAN.Prefix4().Contains(a) || lab.LAN.Prefix6().Contains(a) || !s.mode.off && (a == own.V4 || a == own.V6) {
				s.t.Errorf("%s left on the WAN: %s from %s to %s (%v)", a, kind, from, to, e)
				return
			}
		}
	}
}
