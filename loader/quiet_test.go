// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// quietScene is a router (the test's own namespace) with the VIPs, and an outside
// host that sends it segments of its own making.
type quietScene struct {
	*testing.T
	outside netns.NsHandle
	raw     map[bool]int // socket of the outside host by "is IPv4"

	unanswered map[uint16]bool // ports of the outside host
}

var (
	quietVIP4, quietVIP6     = netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:100::2")
	quietHost4, quietHost6   = netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:100::9")
	quietOther4, quietOther6 = netip.MustParseAddr("198.51.100.3"), netip.MustParseAddr("2001:db8:100::3") // the router's own
)

func newQuietScene(t *testing.T) *quietScene {
	t.Helper()
	router := enterNamespace(t)
	s := &quietScene{T: t, raw: make(map[bool]int), unanswered: make(map[uint16]bool)}
	s.outside = (&lab{}).side(t, router, "wan0", "198.51.100.3/24", "198.51.100.9/24")
	wan := up(t, "wan0")
	addAddr(t, wan, "198.51.100.2/32")
	if err := addAddr6(wan, "2001:db8:100::2/128", "2001:db8:100::3/64"); err != nil {
		t.Fatal(err)
	}
	err := inNamespace(s.outside, func() error {
		peer, err := netlink.LinkByName("peer")
		if err == nil {
			err = addAddr6(peer, "2001:db8:100::9/64")
		}
		if err != nil {
			return err
		}
		for v4, at := range map[bool]netip.Addr{true: quietHost4, false: quietHost6} {
			fd, err := rawTCP(at)
			if err != nil {
				return err
			}
			s.raw[v4] = fd
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range s.raw {
			_ = unix.Close(fd)
		}
	})
	// The answer to a SYN is the router's first word to the host: neighbours are
	// known after it.
	for _, vip := range []netip.Addr{quietVIP4, quietVIP6} {
		s.expect("before anything", vip, tcpSYN, true)
	}
	return s
}

// addAddr6 adds addresses that can be used at once.
func addAddr6(l netlink.Link, list ...string) error {
	for _, text := range list {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s: %w", text, err)
		}
	}
	return nil
}

// rawTCP is a socket that sends and sees TCP segments; it is not waited at for
// long.
func rawTCP(at netip.Addr) (int, error) {
	family := unix.AF_INET6
	if at.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return 0, err
	}
	if at.Is6() { // the kernel fills the checksum in
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, 16)
	}
	patience := unix.NsecToTimeval(int64(patience))
	return fd, errors.Join(err, unix.Bind(fd, sockaddr(at)), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience))
}

func sockaddr(addr netip.Addr) unix.Sockaddr {
	if addr.Is4() {
		return &unix.SockaddrInet4{Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Addr: addr.As16()}
}

// segment is a TCP header alone.
func segment(from, to netip.AddrPort, flags byte) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], 1000)
	binary.BigEndian.PutUint32(tcp[8:], 2000)
	tcp[12], tcp[13] = 5<<4, flags
	binary.BigEndian.PutUint16(tcp[14:], 1024)
	if to.Addr().Is4() {
		sum := uint32(unix.IPPROTO_TCP + len(tcp)) // of the pseudo-header, RFC 9293 section 3.1
		from4, to4 := from.Addr().As4(), to.Addr().As4()
		for _, part := range [][]byte{from4[:], to4[:], tcp} {
			for i := 0; i < len(part); i += 2 {
				sum += uint32(part[i])<<8 + uint32(part[i+1])
			}
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	}
	return tcp
}

var quietPort uint16 = 20000 // of the outside host: each segment is of another flow

const closedPort = 4444 // of the router

// send sends a segment to a closed port of the router and returns its own port.
func (s *quietScene) send(to netip.Addr, flags byte) uint16 {
	s.Helper()
	quietPort++
	host := quietHost6
	if to.Is4() {
		host = quietHost4
	}
	tcp := segment(netip.AddrPortFrom(host, quietPort), netip.AddrPortFrom(to, closedPort), flags)
	if err := unix.Sendto(s.raw[to.Is4()], tcp, 0, sockaddr(to)); err != nil {
		s.Fatalf("send a segment to %v: %v", to, err)
	}
	return quietPort
}

// resets waits for the RST that answers one segment, and returns which others
// were answered before.
func (s *quietScene) resets(v4 bool, last uint16) map[uint16]bool {
	s.Helper()
	answered := make(map[uint16]bool)
	buffer := make([]byte, 2000)
	for !answered[last] {
		n, err := unix.Read(s.raw[v4], buffer)
		if err != nil {
			s.Fatalf("wait for the RST to port %d: %v (answered before: %v)", last, err, answered)
		}
		tcp := buffer[:n]
		if v4 {
			tcp = tcp[int(tcp[0]&0xf)*4:]
		}
		if tcp[13]&tcpRST != 0 {
			answered[binary.BigEndian.Uint16(tcp[2:])] = true
		}
	}
	return answered
}

// expect tells whether the router answers a segment by RST: one that it must
// answer is sent behind it.
func (s *quietScene) expect(when string, to netip.Addr, flags byte, answered bool) {
	s.Helper()
	port := s.send(to, flags)
	last := port
	if !answered {
		s.unanswered[port] = true
		last = s.send(to, tcpSYN)
	}
	if got := s.resets(to.Is4(), last)[port]; got != answered {
		s.Errorf("%s: flags %#x to %v: answered by RST %v, want %v", when, flags, to, got, answered)
	}
}

func (s *quietScene) held(want uint64) {
	s.Helper()
	if got, err := ResetsHeld(); err != nil || got != want {
		s.Errorf("%d segments were held (%v), want %d", got, err, want)
	}
}

func (s *quietScene) hold(d time.Duration, vips ...netip.Addr) {
	s.Helper()
	if err := HoldResets(vips, d); err != nil {
		s.Fatalf("hold resets: %v", err)
	}
}

const (
	tcpFIN byte = 0x01
	tcpPSH byte = 0x08
)

// TestHoldResets: the segments of flows that nobody knows are dropped and
// counted, whether conntrack would pick them up or not; what begins is still
// refused; other addresses are as ever; and all is as ever afterwards.
func TestHoldResets(t *testing.T) {
	s := newQuietScene(t)
	nft(t, `table inet theirs { set vips4 { type ipv4_addr; }; chain input { type filter hook input priority -10; counter; }; }
		table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }; }`)
	theirs := nftList(t, "ip", "nat")
	s.held(0)
	want := uint64(0)
	for _, loose := range []string{"1", "0"} {
		if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte(loose), 0o644); err != nil {
			t.Fatal(err)
		}
		when := "loose " + loose
		for _, vip := range []netip.Addr{quietVIP4, quietVIP6} {
			s.expect(when+", before", vip, tcpACK, true)
		}
		s.hold(time.Hour, quietVIP4, quietVIP6)
		for _, vip := range []netip.Addr{quietVIP4, quietVIP6} {
			for _, flags := range []byte{tcpACK, tcpACK | tcpPSH, tcpACK | tcpFIN, tcpSYN | tcpACK, 0, tcpFIN} {
				s.expect(when, vip, flags, false)
				want++
				s.held(want)
			}
			s.expect(when, vip, tcpSYN, true)
			s.send(vip, tcpRST)
			s.send(vip, tcpRST|tcpACK)
		}
		s.expect(when+", the router's own address", quietOther4, tcpACK, true)
		s.expect(when+", the router's own address", quietOther6, tcpACK, true)
		s.held(want)
		s.noEntries()
		if err := EndHoldResets(); err != nil {
			t.Fatal(err)
		}
		want = 0
		s.held(0)
		for _, vip := range []netip.Addr{quietVIP4, quietVIP6} {
			s.expect(when+", after", vip, tcpACK, true)
		}
	}
	if nftList(t, "inet", "vippin-quiet") != "" {
		t.Error("the table is still there")
	}
	if got := nftList(t, "ip", "nat"); got != theirs || nftList(t, "inet", "theirs") == "" {
		t.Errorf("the tables of others are now\n%s%s", got, nftList(t, "inet", "theirs"))
	}
	if err := EndHoldResets(); err != nil {
		t.Errorf("end it again: %v", err)
	}
}

// noEntries: no held segment has left a conntrack entry, which would take the
// place of the flow's own.
func (s *quietScene) noEntries() {
	s.Helper()
	conn, err := conntrack.Dial()
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	err = conn.Dump(context.Background(), conntrack.Filter{}, func(flow *conntrack.Flow) error {
		if s.unanswered[flow.Orig.Source().Port()] {
			s.Errorf("conntrack has taken %v", flow.Orig)
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
}

// TestHoldResetsEnds: the kernel ends it by itself; the time begins anew when it
// is asked for again, for those VIPs alone; the count goes on.
func TestHoldResetsEnds(t *testing.T) {
	s := newQuietScene(t)
	s.hold(patience, quietVIP4)
	s.expect("held", quietVIP4, tcpACK, false)
	s.hold(time.Hour, quietVIP6)
	s.hold(time.Hour, quietVIP4, netip.MustParseAddr("198.51.100.7"))
	s.hold(500*time.Millisecond, quietVIP6)
	const most = 500 * time.Millisecond
	if got, err := readQuiet(); err != nil || got.left[quietVIP4] < 59*time.Minute || got.left[quietVIP6] > most {
		t.Fatalf("held now: %v, %v", got.left, err)
	}
	held, err := ResetsHeld()
	if err != nil || held != 1 {
		t.Errorf("held %d (%v), want 1", held, err)
	}
	for start := time.Now(); ; {
		port := s.send(quietVIP6, tcpACK)
		if s.resets(false, s.send(quietVIP6, tcpSYN))[port] {
			break
		}
		if time.Since(start) > patience {
			t.Fatal("the kernel does not answer by RST again")
		}
		held++
	}
	s.expect("the other VIP", quietVIP4, tcpACK, false)
	s.held(held + 1)
	if got, err := readQuiet(); err != nil || len(got.left) != 2 {
		t.Errorf("held now: %v, %v", got.left, err)
	}
}

// TestHoldResetsService: a service of the router on the VIP goes on, one whose
// packets are not tracked too, and takes new connections.
func TestHoldResetsService(t *testing.T) {
	s := newQuietScene(t)
	nft(t, `table inet theirs {
		chain in { type filter hook prerouting priority raw; tcp dport 81 notrack; };
		chain out { type filter hook output priority raw; tcp sport 81 notrack; };
		chain track { type filter hook input priority 0; ct state established counter; };
	}`)
	for _, vip := range []netip.Addr{quietVIP4, quietVIP6} {
		for _, port := range []uint16{80, 81} {
			at := netip.AddrPortFrom(vip, port)
			l, err := net.Listen("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan bool)
			go echoAll(l, served)
			before := s.dial(at)
			s.talk(before)
			s.hold(time.Hour, vip)
			s.talk(before)
			during := s.dial(at)
			s.talk(during)
			if err := EndHoldResets(); err != nil {
				t.Fatal(err)
			}
			s.talk(before)
			_, _, _ = before.Close(), during.Close(), l.Close()
			<-served
		}
	}
}

func echoAll(l net.Listener, done chan<- bool) {
	defer close(done)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}()
	}
}

// dial connects from the outside host.
func (s *quietScene) dial(to netip.AddrPort) (conn net.Conn) {
	s.Helper()
	err := inNamespace(s.outside, func() (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), patience)
		return err
	})
	if err != nil {
		s.Fatalf("connect to %v: %v", to, err)
	}
	return conn
}

func (s *quietScene) talk(conn net.Conn) {
	s.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("word\n")); err != nil {
		s.Fatalf("write to %v: %v", conn.RemoteAddr(), err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		s.Fatalf("hear of %v: %v", conn.RemoteAddr(), err)
	}
}

// TestUnloadRemovesTables: unload leaves no table of ours.
func TestUnloadRemovesTables(t *testing.T) {
	enterNamespace(t)
	ifindex := addVeth(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	mustApply(t, d, onePin(ifindex, "wan0", true))
	if err := InstallHold(HoldRule{Mark: policy.MarkConfig{Value: 1, Mask: 1}, Queue: 747}); err != nil {
		t.Fatal(err)
	}
	if err := HoldResets([]netip.Addr{quietVIP4}, time.Hour); err != nil {
		t.Fatal(err)
	}
	rules, tables, err := readRuleset()
	if err != nil || len(rules) != 0 || len(tables) != 0 {
		t.Errorf("doctor reads %v, %v, %v of them", rules, tables, err)
	}
	if _, err := d.Unload(false); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{holdTable, quietTable} {
		if left := nftList(t, "inet", name); left != "" {
			t.Errorf("left after unload:\n%s", left)
		}
	}
}
