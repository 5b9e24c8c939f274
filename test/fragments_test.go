// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// large is the size of the datagrams: some 46 fragments.
const large = 65000

// remoteAlone are addresses of the server that no inside host talks to.
var remoteAlone = lab.Ends{V4: netip.MustParseAddr("198.51.100.20"), V6: netip.MustParseAddr("2001:db8:100::20")}

// addRemoteAlone gives the server its addresses.
func (s *scene) addRemoteAlone() {
	s.t.Helper()
	s.ip(s.Server, fmt.Sprintf("addr add %s/24 dev eth0", remoteAlone.V4), fmt.Sprintf("addr add %s/64 dev eth0 nodad", remoteAlone.V6))
}

// eachFamily does something for both families, of which one end is given each.
func (s *scene) eachFamily(do func(s *scene, to, vip, own netip.Addr), to lab.Ends) {
	s.t.Helper()
	s.run("IPv4", func(s *scene) { do(s, to.V4, vip.V4, own.V4) })
	s.run("IPv6", func(s *scene) { do(s, to.V6, vip.V6, own.V6) })
}

// Datagrams of 65,000 octets and large pings pass a pinned VLAN whole, both
// ways, and every fragment of them leaves with the VIP.
func TestFragments(t *testing.T) {
	t.Parallel()
	s := setScene(t, "frag", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.run("both ways", func(s *scene) { s.eachFamily((*scene).largeBothWays, lab.ServerFar) })
	s.run("ping", func(s *scene) { s.eachFamily((*scene).largePing, lab.ServerFar) })
	s.run("many at once", func(s *scene) { s.eachFamily((*scene).largeAtOnce, lab.ServerFar) })
	s.run("same port", func(s *scene) { s.eachFamily((*scene).largeSamePort, lab.ServerFar) })
	s.run("another port", func(s *scene) { s.eachFamily((*scene).largeOtherPort, lab.ServerFar) })
	s.run("out of order", func(s *scene) { s.eachFamily((*scene).outOfOrder, lab.ServerWAN) })
	s.run("tunnel out of order", func(s *scene) { s.eachFamily((*scene).tunnelOutOfOrder, lab.ServerWAN) })
	s.run("in smaller pieces", func(s *scene) {
		if s.Options.Trunk == lab.TrunkNative {
			s.t.Skip("the LAN is a VLAN on wan0 here, and its MTU no larger")
		}
		// The router cuts anew what it has put together, which IPv6 does not allow.
		s.ip(s.RA.Node, "link set wan0 mtu 1280")
		s.ip(s.Server, "link set eth0 mtu 1280")
		s.largeBothWays(lab.ServerFar.V4, vip.V4, own.V4)
		s.largePing(lab.ServerFar.V4, vip.V4, own.V4)
	})
}

// Fragments of flows without a mapping pass as they are.
func TestFragmentsUntouched(t *testing.T) {
	t.Parallel()
	s := setScene(t, "fragun", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.run("unpinned flow", func(s *scene) { s.eachFamily((*scene).largeUnpinned, lab.ServerWAN) })
	s.run("the router's own", func(s *scene) {
		s.wantNothing(s.count(s.RA, 2, func() {
			for _, from := range []lab.Ends{own, vip} {
				s.wantLarge(s.RA.Node, netip.AddrPortFrom(from.V4, 0), lab.ServerFar.V4, from.V4)
				s.wantLarge(s.RA.Node, netip.AddrPortFrom(from.V6, 0), lab.ServerFar.V6, from.V6)
			}
		}))
	})
	s.addRemoteAlone()
	s.serveOnRouter()
	s.run("service on the VIP", func(s *scene) { s.eachFamily((*scene).largeToService, remoteAlone) })
}

// longFlow is a UDP socket that asks in large datagrams.
type longFlow struct {
	s    *scene
	conn net.Conn
}

func (s *scene) longFlow(from *lab.Node, local netip.AddrPort, to netip.AddrPort) *longFlow {
	s.t.Helper()
	conn, err := traffic.Dial(s.ctx, from.Do, "udp", local, to, patience)
	s.must(err)
	f := &longFlow{s: s, conn: conn}
	s.t.Cleanup(func() { f.conn.Close() })
	return f
}

// noise is text that no other datagram has.
func noise(size int) string {
	b := make([]byte, (size+1)/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)[:size]
}

// echo sends a request of so many octets and reads the answer, which must have
// every one of them. It returns the source that the server saw.
func (f *longFlow) echo(size int) (source netip.AddrPort, err error) {
	request := noise(size)
	if err := f.conn.SetDeadline(time.Now().Add(patience / 2)); err != nil {
		return source, err
	}
	if _, err := f.conn.Write([]byte(request)); err != nil {
		return source, fmt.Errorf("send %d octets: %w", size, err)
	}
	answer := make([]byte, 1<<16)
	n, err := f.conn.Read(answer)
	if err != nil {
		return source, fmt.Errorf("wait for the answer to %d octets: %w", size, err)
	}
	fields := strings.Fields(string(answer[:n])) // SOURCE address:port request
	if len(fields) != 3 || fields[2] != request {
		return source, fmt.Errorf("answered %d octets in %d words to %d octets, or others", n, len(fields), size)
	}
	return netip.ParseAddrPort(fields[1])
}

// wantLarge sends large datagrams from a new socket, checks that they are
// answered and from which address they arrive, and returns the source.
func (s *scene) wantLarge(from *lab.Node, local netip.AddrPort, to, want netip.Addr) netip.AddrPort {
	s.t.Helper()
	f := s.longFlow(from, local, lab.Port(to, serverPort))
	var first netip.AddrPort
	for i, size := range []int{large, large, 10, 3000, large} {
		source, err := f.echo(size)
		s.must(err)
		if i == 0 {
			first = source
		}
		if source.Addr() != want || source != first {
			s.t.Errorf("datagram %d from %s to %s arrived from %s, want %s, and %s at first", i, from.Name, to, source, want, first)
			break
		}
	}
	return first
}

// wantFragmentsFrom checks that every UDP and ICMP packet, and every fragment,
// that the server gets during a step comes from one address.
func (s *scene) wantFragmentsFrom(want netip.Addr, step func()) {
	s.t.Helper()
	capture, err := traffic.StartCapture(s.Server.Do, "eth0")
	s.must(err)
	step()
	_, err = capture.Await(s.ctx, 3, func(f traffic.Frame) bool { // they are read after they were answered
		source, fragment, _ := fragmentSource(f)
		return !f.Outgoing && fragment && source.Is4() == want.Is4()
	})
	s.must(err)
	s.must(capture.Close())
	for _, f := range capture.Frames(func(f traffic.Frame) bool { return !f.Outgoing }) {
		source, fragment, ok := fragmentSource(f)
		if ok && source.Is4() == want.Is4() && source != want {
			s.t.Errorf("a packet came from %s (fragment: %t), want %s", source, fragment, want)
			return
		}
	}
}

// fragmentSource is the source of a UDP or ICMP packet, or of a fragment; ok is
// false for what is none of these, and for neighbour discovery.
func fragmentSource(f traffic.Frame) (source netip.Addr, fragment, ok bool) {
	if ip, is := f.Packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4); is {
		source, _ = netip.AddrFromSlice(ip.SrcIP)
		fragment = ip.FragOffset != 0 || ip.Flags&layers.IPv4MoreFragments != 0
		return source.Unmap(), fragment, fragment || ip.Protocol == unix.IPPROTO_UDP || ip.Protocol == unix.IPPROTO_ICMP
	}
	if ip, is := f.Packet.Layer(layers.LayerTypeIPv6).(*layers.IPv6); is {
		source, _ = netip.AddrFromSlice(ip.SrcIP)
		fragment = ip.NextHeader == unix.IPPROTO_FRAGMENT
		return source, fragment, fragment || ip.NextHeader == unix.IPPROTO_UDP
	}
	return source, false, false
}

// largeBothWays: the mapping is made by a first fragment, and by a packet that
// is none.
func (s *scene) largeBothWays(to, vip, _ netip.Addr) {
	s.wantPinned(s.count(s.RA, 2, func() {
		s.wantFragmentsFrom(vip, func() { s.wantLarge(s.Hosts[0], netip.AddrPort{}, to, vip) })
	}))
	f := s.longFlow(s.Hosts[0], netip.AddrPort{}, lab.Port(to, serverPort))
	first, err := f.echo(10)
	s.must(err)
	for range 30 {
		source, err := f.echo(large)
		s.must(err)
		if source != first || source.Addr() != vip {
			s.t.Errorf("arrived from %s after %s, want %s", source, first, vip)
			break
		}
	}
	shown := slices.ContainsFunc(s.flows(s.RA), func(f policy.FlowStatus) bool {
		return f.Proto == "udp" && f.Public == first.String() && f.Remote == lab.Port(to, serverPort).String()
	})
	if !shown {
		s.t.Errorf("flows does not show %s: %+v", first, s.flows(s.RA))
	}
}

func (s *scene) largePing(to, vip, _ netip.Addr) {
	s.wantPinned(s.count(s.RA, 2, func() {
		s.wantFragmentsFrom(vip, func() {
			for _, size := range []string{"3000", "65000"} {
				out, err := s.Hosts[0].Run(s.ctx, "ping", "-c", "5", "-i", "0.05", "-W", "2", "-s", size, to.String())
				s.must(err)
				if !strings.Contains(out, "5 received") {
					s.t.Errorf("%s octets: %s", size, out)
				}
			}
		})
	}))
}

func (s *scene) largeAtOnce(to, vip, _ netip.Addr) {
	var tasks sync.WaitGroup
	for _, host := range s.Hosts {
		for range 3 {
			f := s.longFlow(host, netip.AddrPort{}, lab.Port(to, serverPort))
			// An address that is not resolved yet has room for the fragments of two.
			_, err := f.echo(10)
			s.must(err)
			tasks.Go(func() {
				for i := range 15 {
					source, err := f.echo(large)
					if err != nil || source.Addr() != vip {
						s.t.Errorf("datagram %d of %s arrived from %s: %v", i, host.Name, source, err)
						return
					}
				}
			})
		}
	}
	tasks.Wait()
}

// largeSamePort: two inside hosts on one port, which masquerade tells apart.
func (s *scene) largeSamePort(to, vip, _ netip.Addr) {
	var sources [2]netip.AddrPort
	for i, host := range s.Hosts {
		sources[i] = s.wantLarge(host, netip.AddrPortFrom(netip.Addr{}, 5500), to, vip)
	}
	if sources[0] == sources[1] {
		s.t.Errorf("both hosts arrive from %s", sources[0])
	}
}

// largeOtherPort: the port is taken on the VIP, so that the first fragment is
// given another one.
func (s *scene) largeOtherPort(to, vip, _ netip.Addr) {
	const port = 5600
	holder := s.flow(s.RA.Node, "udp", lab.Port(vip, port), lab.Port(to, serverPort))
	defer holder.Stop()
	if got := s.goesOn(holder.Report)[0]; got != lab.Port(vip, port) {
		s.t.Fatalf("the router's own flow arrives from %s", got)
	}
	s.wantClashes(1, func() {
		source := s.wantLarge(s.Hosts[0], netip.AddrPortFrom(netip.Addr{}, port), to, vip)
		s.wantOtherPort("udp", source, lab.Port(vip, port))
	})
	s.goesOn(holder.Report)
}

// asker is an inside host's flow whose answers the test makes itself.
type asker struct {
	*longFlow
	server netip.AddrPort
	seen   netip.AddrPort // its end as the server sees it
}

// ask starts a flow to a socket of the server that does not answer.
func (s *scene) ask(from *lab.Node, to netip.Addr) *asker {
	s.t.Helper()
	var conn *net.UDPConn
	s.must(s.Server.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(lab.Port(to, 0)))
		return err
	}))
	s.t.Cleanup(func() { conn.Close() })
	a := &asker{server: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	a.longFlow = s.longFlow(from, netip.AddrPort{}, a.server)
	_, err := a.conn.Write([]byte("go"))
	s.must(err)
	s.must(conn.SetDeadline(time.Now().Add(patience)))
	_, source, err := conn.ReadFromUDPAddrPort(make([]byte, 100))
	s.must(err)
	a.seen = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	return a
}

// orders are ways for fragments to arrive.
var orders = map[string]func(parts []traffic.Fragment){
	"in order":       func([]traffic.Fragment) {},
	"reversed":       func(parts []traffic.Fragment) { slices.Reverse(parts) },
	withOptions:      func([]traffic.Fragment) {},
	"first one last": func(parts []traffic.Fragment) { copy(parts, append(slices.Clone(parts[1:]), parts[0])) },
}

// withOptions is an order, too: as they are, behind IPv6 destination options, so
// that no later fragment says of which protocol it is.
const withOptions = "with options"

// answered sends the flow an answer in fragments and checks that it arrives
// whole.
func (a *asker) answered(sender *traffic.Fragmenter, id uint32, order string) error {
	text := noise(large)
	datagram, err := traffic.UDPDatagram(a.server, a.seen, []byte(text))
	if err != nil {
		return err
	}
	proto := uint8(unix.IPPROTO_UDP)
	if order == withOptions { // RFC 8200 section 4.6: next header, length, PadN of 6 octets
		datagram = append([]byte{proto, 0, 1, 4, 0, 0, 0, 0}, datagram...)
		proto = unix.IPPROTO_DSTOPTS
	}
	parts := traffic.Cut(datagram)
	orders[order](parts)
	if err := sender.Send(a.server.Addr(), a.seen.Addr(), proto, id, parts); err != nil {
		return err
	}
	if err := a.conn.SetReadDeadline(time.Now().Add(patience / 4)); err != nil {
		return err
	}
	buffer := make([]byte, 1<<16)
	n, err := a.conn.Read(buffer)
	if err != nil {
		return fmt.Errorf("wait for an answer %s: %w", order, err)
	}
	if string(buffer[:n]) != text {
		return fmt.Errorf("the answer %s has %d octets, want %d, or others", order, n, len(text))
	}
	return nil
}

func (s *scene) fragmenter(from lab.Ends) *traffic.Fragmenter {
	s.t.Helper()
	sender, err := traffic.OpenFragmenter(s.Server.Do, from.V4, from.V6)
	s.must(err)
	s.t.Cleanup(func() { sender.Close() })
	return sender
}

// outOfOrder: a later fragment cannot say which flow it is of before the first
// one came; it is enough that the remote end has one.
func (s *scene) outOfOrder(to, vip, _ netip.Addr) {
	sender := s.fragmenter(lab.ServerWAN)
	a := s.ask(s.Hosts[0], to)
	if a.seen.Addr() != vip {
		s.t.Errorf("arrived from %s, want %s", a.seen, vip)
	}
	id := uint32(1000)
	sequence := []string{"in order", "reversed", "first one last", "reversed", "in order"}
	if to.Is6() {
		sequence = append(sequence, withOptions)
	}
	for _, order := range sequence {
		before := s.earlyFragments(s.RA)
		for range 5 {
			id++
			s.must(a.answered(sender, id, order))
		}
		early := s.earlyFragments(s.RA) - before
		if (early > 0) != (order == "reversed" || order == "first one last") {
			s.t.Errorf("%s: counted %d later fragments before their first one", order, early)
		}
	}
}

// tunnelOutOfOrder: packets without ports have no first fragment that says more
// than the others, but are dealt with alike.
func (s *scene) tunnelOutOfOrder(to, vip, _ netip.Addr) {
	sender := s.fragmenter(lab.ServerWAN)
	tunnel := s.tunnel(esp, s.Hosts[0], hostAddr(0, to), s.farEnd(esp, to), to)
	tunnel.goesOn(vip)
	for id, order := range slices.Sorted(maps.Keys(orders)) {
		packet := []byte(esp.header + tunnel.name + " " + noise(5000))
		parts := traffic.Cut(packet)
		orders[order](parts)
		s.must(sender.Send(to, vip, esp.proto, uint32(4000+id), parts))
		ctx, cancel := context.WithTimeout(s.ctx, patience/4)
		_, err := tunnel.raw.Await(ctx, 1, func(p traffic.RawPacket) bool { return slices.Equal(p.Payload, packet) })
		cancel()
		if err != nil {
			s.t.Errorf("%s: %v", order, err)
		}
	}
}

// earlyFragments is what "vippin pin ls -j" says of the pin.
func (s *scene) earlyFragments(r *lab.Router) uint64 {
	s.t.Helper()
	var rows []struct {
		VLAN  policy.VLAN `json:"vlan"`
		Early *uint64     `json:"packets_early_fragments"`
	}
	s.must(json.Unmarshal([]byte(s.vippin(r, "pin", "ls", "-j")), &rows))
	if len(rows) != 1 || rows[0].Early == nil {
		s.t.Fatalf("pin ls -j does not say: %+v", rows)
	}
	return *rows[0].Early
}

// largeUnpinned: what began while the pin was off stays as it is.
func (s *scene) largeUnpinned(to, _, own netip.Addr) {
	s.vippin(s.RA, "pin", "off", "2")
	sender := s.fragmenter(lab.ServerWAN)
	a := s.ask(s.Hosts[0], to)
	f := s.longFlow(s.Hosts[0], netip.AddrPort{}, lab.Port(to, serverPort))
	check := func() {
		s.t.Helper()
		g := s.count(s.RA, 2, func() {
			s.wantFragmentsFrom(own, func() {
				for range 3 {
					source, err := f.echo(large)
					s.must(err)
					if source.Addr() != own || a.seen.Addr() != own {
						s.t.Errorf("arrived from %s and %s, want %s", source, a.seen, own)
					}
				}
			})
			for id, order := range []string{"in order", "reversed"} {
				s.must(a.answered(sender, uint32(2000+id), order))
			}
		})
		// Later fragments may be counted by themselves.
		if g.pinned != 0 || g.unpinnedBy["off"] == 0 {
			s.t.Errorf("counted %d pinned and %v unpinned packets, want some for \"off\"", g.pinned, g.unpinnedBy)
		}
	}
	check()
	s.vippin(s.RA, "pin", "on", "2")
	check()
}

// largeToService: a remote end without any mapping sends to a service of the
// router on the VIP.
func (s *scene) largeToService(remote, vip, _ netip.Addr) {
	sender := s.fragmenter(remoteAlone)
	var conn *net.UDPConn
	s.must(s.Server.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(lab.Port(remote, 0)))
		return err
	}))
	defer conn.Close()
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	id := uint32(3000)
	served := func(order string) {
		s.t.Helper()
		id++
		text := noise(30000)
		datagram, err := traffic.UDPDatagram(at, lab.Port(vip, servicePort), []byte(text))
		s.must(err)
		parts := traffic.Cut(datagram)
		orders[order](parts)
		s.must(sender.Send(remote, vip, unix.IPPROTO_UDP, id, parts))
		s.must(conn.SetReadDeadline(time.Now().Add(patience / 4)))
		answer := make([]byte, 1<<16)
		n, err := conn.Read(answer)
		if err != nil || string(answer[:n]) != fmt.Sprintf("SOURCE %s %s", at, text) {
			s.t.Fatalf("%s: the service answered %d octets: %v", order, n, err)
		}
	}
	s.wantNothing(s.count(s.RA, 2, func() {
		for range 3 {
			served("in order")
			served("reversed")
			served("first one last")
		}
	}))
	// Once an inside host talks to that remote end, too, the first fragment tells.
	s.ask(s.Hosts[0], remote)
	served("in order")
}
