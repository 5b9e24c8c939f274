// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// experiment is a protocol that nobody uses (RFC 3692).
const experiment = 253

// tunnelKind is a protocol without ports, and what its packets begin with.
type tunnelKind struct {
	name   string // as "vippin flows" shows it
	proto  uint8
	header string
}

var (
	gre         = tunnelKind{"gre", unix.IPPROTO_GRE, "\x00\x00\x08\x00"}                 // RFC 2784 section 2: version 0, IPv4
	esp         = tunnelKind{"esp", unix.IPPROTO_ESP, "\x00\x00\x10\x01\x00\x00\x00\x01"} // RFC 4303 section 2: SPI, sequence number
	tunnelKinds = []tunnelKind{gre, esp, {"4", unix.IPPROTO_IPIP, "E"}, {"253", experiment, ""}}
)

// tunnel is an inside host's, or the router's, end of a tunnel whose other end
// sends everything back.
type tunnel struct {
	s      *scene
	kind   tunnelKind
	name   string
	raw    *traffic.RawSocket
	server *traffic.RawSocket
	remote netip.Addr
	seal   func(packet []byte) // fills its checksum in; nil for kinds without one
	sent   int
}

// farEnd opens the server's end of a kind of tunnels on one of its addresses.
func (s *scene) farEnd(kind tunnelKind, at netip.Addr) *traffic.RawSocket {
	s.t.Helper()
	raw, err := traffic.OpenRaw(s.Server.Do, kind.proto, at, func(p traffic.RawPacket) []byte { return p.Payload })
	s.must(err)
	s.t.Cleanup(func() { raw.Close() })
	return raw
}

func (s *scene) tunnel(kind tunnelKind, from *lab.Node, local netip.Addr, far *traffic.RawSocket, remote netip.Addr) *tunnel {
	s.t.Helper()
	raw, err := traffic.OpenRaw(from.Do, kind.proto, local, nil)
	s.must(err)
	s.t.Cleanup(func() { raw.Close() })
	name := fmt.Sprintf("%s of %s %d", kind.name, from.Name, time.Now().UnixNano())
	return &tunnel{s: s, kind: kind, name: name, raw: raw, server: far, remote: remote}
}

// text is what a packet carries after the header.
func (t *tunnel) text(p traffic.RawPacket) string {
	return string(p.Payload[min(len(t.kind.header), len(p.Payload)):])
}

func (t *tunnel) isMine(p traffic.RawPacket) bool { return strings.HasPrefix(t.text(p), t.name+" ") }

// send sends one packet and returns its text.
func (t *tunnel) send() string {
	t.s.t.Helper()
	t.sent++
	text := fmt.Sprintf("%s %d", t.name, t.sent)
	if t.sent%5 == 3 { // one of some is larger than a frame
		text += " " + noise(4000)
	}
	packet := []byte(t.kind.header + text)
	if t.seal != nil {
		t.seal(packet)
	}
	t.s.must(t.raw.Send(t.remote, packet))
	return text
}

// goesOn exchanges some packets with the other end, and checks from where it
// sees all of them.
func (t *tunnel) goesOn(want netip.Addr) {
	t.s.t.Helper()
	for range 5 {
		text := t.send()
		ctx, cancel := context.WithTimeout(t.s.ctx, patience/4)
		_, err := t.raw.Await(ctx, 1, func(p traffic.RawPacket) bool {
			return t.text(p) == text && p.From == t.remote
		})
		cancel()
		if err != nil {
			seen := t.server.Packets(func(p traffic.RawPacket) bool { return t.text(p) == text })
			t.s.t.Errorf("%s to %s has no answer; the other end saw %+v", t.name, t.remote, seen)
			return
		}
	}
	for _, p := range t.server.Packets(t.isMine) {
		if p.From != want {
			t.s.t.Errorf("%s to %s arrived from %s, want %s", t.name, t.remote, p.From, want)
			return
		}
	}
	for _, p := range t.raw.Packets(nil) { // the host may have a tunnel to another end as well
		if p.From == t.remote && !t.isMine(p) && t.text(p) != asked {
			t.s.t.Errorf("%s got a packet of others: %q", t.name, p.Payload)
			return
		}
	}
}

// asked is the text of a packet that the server sends of its own accord.
const asked = "from outside"

// blocked sends some packets that must not come to anybody.
func (t *tunnel) blocked() {
	t.s.t.Helper()
	for range 3 {
		t.send()
		time.Sleep(20 * time.Millisecond)
	}
	if n := len(t.server.Packets(t.isMine)); n != 0 {
		t.s.t.Errorf("%d packets of %s arrived, from %s", n, t.name, t.server.Packets(t.isMine)[0].From)
	}
}

// hostAddr is an inside host's address of the family of another one.
func hostAddr(i int, like netip.Addr) netip.Addr {
	if like.Is4() {
		return lab.HostEnds(i).V4
	}
	return lab.HostEnds(i).V6
}

// wantShown checks how "vippin flows -j" shows an inside host's flow without
// ports.
func (s *scene) wantShown(proto string, client, remote, public, local netip.Addr) {
	s.t.Helper()
	want := [4]string{lab.Port(client, 0).String(), lab.Port(remote, 0).String(), lab.Port(public, 0).String(), lab.Port(local, 0).String()}
	for _, f := range s.flows(s.RA) {
		if f.Proto == proto && f.VLAN.Outer == 2 && [4]string{f.Client, f.Remote, f.Public, f.Local} == want {
			return
		}
	}
	s.t.Errorf("flows does not show %s %v: %+v", proto, want, s.flows(s.RA))
}

// GRE, ESP and other protocols without ports are pinned by their addresses.
func TestTunnels(t *testing.T) {
	t.Parallel()
	s := setScene(t, "tunnels", lab.Options{SingleRouter: true})
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	var all []*rivals
	each := func(s *scene, do func(s *scene, r *rivals)) {
		for _, r := range all {
			s.run(fmt.Sprintf("%s to %s", r.kind.name, r.to), func(s *scene) {
				for _, t := range []*tunnel{r.first, r.beside, r.second} {
					t.s = s
				}
				do(s, r)
			})
		}
	}
	for _, kind := range tunnelKinds {
		all = append(all,
			s.rivals(kind, lab.ServerFar.V4, vip.V4, own.V4),
			s.rivals(kind, lab.ServerFar.V6, vip.V6, own.V6))
	}
	s.run("pinned", func(s *scene) { each(s, (*scene).rivalsPinned) })
	// They are silent for longer than a dying mapping is left alone; then the
	// daemon starts anew, and compares all mappings with conntrack's table.
	time.Sleep(2500 * time.Millisecond)
	s.must(daemon.Restart())
	s.must(s.AwaitVippin(s.ctx, s.RA))
	s.awaitRole(s.RA, policy.RoleMaster)
	time.Sleep(1500 * time.Millisecond)
	s.run("compared", func(s *scene) {
		each(s, func(s *scene, r *rivals) {
			s.wantShown(r.kind.name, hostAddr(0, r.to), r.to, r.vip, r.own)
			r.first.goesOn(r.vip)
		})
	})
	for _, family := range []string{"ipv4", "ipv6"} {
		_, err := s.RA.Run(s.ctx, "conntrack", "-D", "-f", family, "-n")
		s.must(err)
	}
	s.awaitFlows(s.RA, 2, 0)
	s.run("the other host's turn", func(s *scene) {
		each(s, func(_ *scene, r *rivals) { r.second.goesOn(r.vip) })
	})
}

// rivals are two hosts' tunnels to one remote end, and another one.
type rivals struct {
	kind                  tunnelKind
	to, vip, own          netip.Addr
	first, second, beside *tunnel
}

func (s *scene) rivals(kind tunnelKind, to, vip, own netip.Addr) *rivals {
	s.t.Helper()
	wan := sameFamily(lab.ServerWAN, to)
	far := s.farEnd(kind, to)
	return &rivals{
		kind: kind, to: to, vip: vip, own: own,
		first:  s.tunnel(kind, s.Hosts[0], hostAddr(0, to), far, to),
		second: s.tunnel(kind, s.Hosts[1], hostAddr(1, to), far, to),
		beside: s.tunnel(kind, s.Hosts[1], hostAddr(1, to), s.farEnd(kind, wan), wan),
	}
}

func (s *scene) rivalsPinned(r *rivals) {
	s.wantPinned(s.count(s.RA, 2, func() {
		r.first.goesOn(r.vip)
		r.beside.goesOn(r.vip)
	}))
	s.wantShown(r.kind.name, hostAddr(0, r.to), r.to, r.vip, r.own)
	s.wantShown(r.kind.name, hostAddr(1, r.to), r.beside.remote, r.vip, r.own)
	// Masquerade cannot tell two hosts' tunnels to one remote end apart.
	r.second.blocked()
	r.first.goesOn(r.vip)
}

// sameFamily is the end that is of the family of another address.
func sameFamily(of lab.Ends, like netip.Addr) netip.Addr {
	if like.Is4() {
		return of.V4
	}
	return of.V6
}

// IPsec of the router itself passes as it is, in both directions, from its own
// address and from the VIP, beside that of an inside host.
func TestOwnTunnels(t *testing.T) {
	t.Parallel()
	s := setScene(t, "owntunnel", lab.Options{SingleRouter: true})
	s.addRemoteAlone()
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	for _, kind := range []tunnelKind{esp, gre} {
		s.run(kind.name, func(s *scene) {
			s.eachFamily(func(s *scene, to, vip, own netip.Addr) { s.ownTunnels(kind, to, vip, own) }, lab.ServerFar)
		})
	}
}

func (s *scene) ownTunnels(kind tunnelKind, to, vip, own netip.Addr) {
	wan := sameFamily(lab.ServerWAN, to)
	far, near := s.farEnd(kind, to), s.farEnd(kind, wan)
	inside := s.tunnel(kind, s.Hosts[0], hostAddr(0, to), far, to)
	inside.goesOn(vip)
	fromOwn := s.tunnel(kind, s.RA.Node, own, near, wan)
	fromVIP := s.tunnel(kind, s.RA.Node, vip, near, wan)
	s.wantNothing(s.count(s.RA, 2, func() {
		fromOwn.goesOn(own)
		fromVIP.goesOn(vip)
		for _, at := range []netip.Addr{own, vip} { // asked from outside
			s.must(near.Send(at, []byte(kind.header+asked)))
		}
	}))
	for _, end := range []*tunnel{fromOwn, fromVIP} {
		ctx, cancel := context.WithTimeout(s.ctx, patience/4)
		_, err := end.raw.Await(ctx, 1, func(p traffic.RawPacket) bool { return end.text(p) == asked })
		cancel()
		s.must(err)
	}
	inside.goesOn(vip)

	s.ownBefore(kind, sameFamily(remoteAlone, to), vip, own)
}

// ownBefore: the router's own tunnel from the VIP was there before an inside
// host's to the same remote end: it keeps its answers, and the host's works with
// the router's own address.
func (s *scene) ownBefore(kind tunnelKind, to, vip, own netip.Addr) {
	s.t.Helper()
	far := s.farEnd(kind, to)
	before := s.tunnel(kind, s.RA.Node, vip, far, to)
	before.goesOn(vip)
	late := s.tunnel(kind, s.Hosts[1], hostAddr(1, to), far, to)
	s.wantReason(s.count(s.RA, 2, func() { late.goesOn(own) }), "no_port")
	before.goesOn(vip)
}

// Flows without ports, and SCTP's, live on when vippin is unloaded. GRE's cannot:
// that is said before anything is done.
func TestTunnelsUnload(t *testing.T) {
	t.Parallel()
	s := setScene(t, "tununload", lab.Options{SingleRouter: true})
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	living := make(map[*tunnel]netip.Addr)
	var associations []*traffic.SCTPClient
	for _, e := range [][2]netip.Addr{{lab.ServerFar.V4, vip.V4}, {lab.ServerFar.V6, vip.V6}} {
		for _, kind := range tunnelKinds {
			living[s.tunnel(kind, s.Hosts[0], hostAddr(0, e[0]), s.farEnd(kind, e[0]), e[0])] = e[1]
		}
		s.serveSCTP(e[0])
		associations = append(associations, s.dialSCTP(0, 5000, e[0]), s.dialSCTP(1, 5000, e[0]))
	}
	check := func() {
		t.Helper()
		for tunnel, vip := range living {
			tunnel.goesOn(vip)
		}
		for _, a := range associations {
			ctx, cancel := context.WithTimeout(s.ctx, patience/4)
			s.must(a.Ask(ctx, noise(20)))
			cancel()
		}
	}
	check()
	s.must(daemon.Stop())
	_, complaint, exit := s.Vippin(s.RA, "unload")
	if exit != 1 || !strings.Contains(complaint, "2 living flows would break") {
		t.Errorf("unload beside two GRE tunnels: exit %d, %q", exit, complaint)
	}
	check()
	for _, family := range []string{"ipv4", "ipv6"} {
		_, err := s.RA.Run(s.ctx, "conntrack", "-D", "-f", family, "-p", "gre")
		s.must(err)
	}
	maps.DeleteFunc(living, func(t *tunnel, _ netip.Addr) bool { return t.kind == gre })
	out := s.vippin(s.RA, "unload")
	if want := fmt.Sprintf("%d living connections", len(living)+len(associations)); !strings.Contains(out, want) {
		t.Errorf("unload says %q, want %s", out, want)
	}
	s.nothingLeft(s.RA)
	check()
}
