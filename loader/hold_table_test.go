// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/nfqueue"
	"vippin/policy"
)

var testHold = HoldRule{Mark: policy.MarkConfig{Value: 0x100, Mask: 0x300}, Queue: 747}

// holdScene is a namespace where datagrams on the loopback interface, with marks
// of the sender's, meet the table; a table of somebody else's behind it, before
// conntrack, counts which marks are left.
type holdScene struct {
	*testing.T
	to   *net.UDPConn
	from *net.UDPConn
}

func newHoldScene(t *testing.T, loopback string) *holdScene {
	t.Helper()
	enterNamespace(t)
	nft(t, `table inet theirs {
		counter clean {}; counter marked {};
		chain p { type filter hook prerouting priority raw; udp dport 9 meta mark and 0x300 == 0x100 counter name marked; };
		chain q { type filter hook prerouting priority raw; udp dport 9 meta mark 0x40 counter name clean; };
	}`)
	s := &holdScene{T: t}
	var err error
	if s.to, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(loopback), 9))); err != nil {
		t.Fatal(err)
	}
	if s.from, err = net.DialUDP("udp", nil, s.to.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.from.Close(), s.to.Close() })
	return s
}

// send sends a datagram with a mark.
func (s *holdScene) send(mark int, text string) {
	s.Helper()
	raw, err := s.from.SyscallConn()
	if err != nil {
		s.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
	if _, sent := s.from.Write([]byte(text)); errors.Join(err, failed, sent) != nil {
		s.Fatal(errors.Join(err, failed, sent))
	}
}

// arrives waits for a datagram, and no other.
func (s *holdScene) arrives(want string) {
	s.Helper()
	buffer := make([]byte, 100)
	_ = s.to.SetReadDeadline(time.Now().Add(patience))
	n, err := s.to.Read(buffer)
	if err != nil || string(buffer[:n]) != want {
		s.Fatalf("%q arrived (%v), want %q", buffer[:n], err, want)
	}
}

// counted are packets that somebody else's rules have seen.
func (s *holdScene) counted(clean, marked int) {
	s.Helper()
	list := nftList(s.T, "inet", "theirs")
	for name, want := range map[string]int{"clean": clean, "marked": marked} {
		if text := fmt.Sprintf("counter %s {\n\t\tpackets %d ", name, want); !strings.Contains(list, text) {
			s.Errorf("want %q in\n%s", text, list)
		}
	}
}

// serve serves the queue; every packet's id is handed on.
func (s *holdScene) serve() (q *nfqueue.Queue, ids chan uint32, end func()) {
	s.Helper()
	q, err := nfqueue.Open(nfqueue.Config{Queue: testHold.Queue, CopyRange: 128, FailOpen: true})
	if err != nil {
		s.Fatal(err)
	}
	ids = make(chan uint32, 100)
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx, func(p *nfqueue.Packet) { ids <- p.ID }) }()
	return q, ids, func() {
		cancel()
		if err := errors.Join(<-done, q.Close()); err != nil {
			s.Error(err)
		}
	}
}

// queued waits for a packet in the queue.
func (s *holdScene) queued(ids <-chan uint32) uint32 {
	s.Helper()
	select {
	case id := <-ids:
		return id
	case <-time.After(patience):
		s.Fatal("no packet came to the queue")
	}
	return 0
}

// testHoldWay: marked packets wait, before anybody else has seen them, and lose
// the mark; without a listener they pass, and lose it too; others are left alone.
func testHoldWay(t *testing.T, way holdWay, loopback string) {
	s := newHoldScene(t, loopback)
	if err := testHold.install(way); err != nil {
		if errors.Is(err, unix.ENOENT) {
			t.Skipf("this kernel cannot: %v", err)
		}
		t.Fatal(err)
	}
	s.send(0x140, "nobody serves")
	s.arrives("nobody serves")
	s.counted(1, 0)
	q, ids, end := s.serve()
	s.send(0x140, "held")
	id := s.queued(ids)
	s.counted(1, 0)
	s.send(0x340, "not ours")
	s.send(0x40, "unmarked")
	s.arrives("not ours")
	s.arrives("unmarked")
	s.counted(2, 0)
	if err := q.SetVerdicts(nfqueue.Accept, id); err != nil {
		t.Fatal(err)
	}
	s.arrives("held")
	s.counted(3, 0)
	s.send(0x140, "the queue ends with it")
	s.queued(ids)
	end()
	s.send(0x140, "nobody serves now")
	s.arrives("nobody serves now")
	s.counted(4, 0)
	if err := RemoveHold(); err != nil {
		t.Fatal(err)
	}
	s.send(0x140, "no table")
	s.arrives("no table")
	s.counted(4, 1)
}

func TestHoldExpression4(t *testing.T) { testHoldWay(t, holdWays[0], "127.0.0.1") }
func TestHoldExpression6(t *testing.T) { testHoldWay(t, holdWays[0], "::1") }
func TestHoldTarget4(t *testing.T)     { testHoldWay(t, holdWays[1], "127.0.0.1") }
func TestHoldTarget6(t *testing.T)     { testHoldWay(t, holdWays[1], "::1") }
func TestHoldTargetIP4(t *testing.T)   { testHoldWay(t, holdWays[2], "127.0.0.1") }
func TestHoldTargetIP6(t *testing.T)   { testHoldWay(t, holdWays[2], "::1") }

// TestHoldInstalled: the table is seen, its damage too, installing it again mends
// it, and the tables of others stay.
func TestHoldInstalled(t *testing.T) {
	enterNamespace(t)
	nft(t, `table inet theirs { chain hold { type filter hook prerouting priority -310; counter; }; }
		table arp vippin-hold { chain c { comment "of the same name, for something else"; }; }`)
	theirs := nftList(t, "inet", "theirs")
	is := func(what string, want bool) {
		t.Helper()
		if there, err := HoldInstalled(testHold); err != nil || there != want {
			t.Errorf("%s: installed %v (%v), want %v", what, there, err, want)
		}
	}
	install := func() {
		t.Helper()
		if err := InstallHold(testHold); err != nil {
			t.Fatal(err)
		}
		is("just made", true)
	}
	is("at first", false)
	install()
	for _, what := range []string{
		"delete table inet vippin-hold", "flush chain inet vippin-hold hold", "flush chain inet vippin-hold clear",
		"flush table inet vippin-hold", "add rule inet vippin-hold hold counter", "insert rule inet vippin-hold clear accept",
		"delete chain inet vippin-hold clear",
		`delete chain inet vippin-hold clear; add chain inet vippin-hold clear { type filter hook prerouting priority -311; };
			add rule inet vippin-hold clear counter comment "mark 0x100/0x300: taken off again"`,
	} {
		nft(t, what)
		is(what, false)
		install()
	}
	other := testHold
	other.Queue++
	if err := InstallHold(other); err != nil {
		t.Fatal(err)
	}
	is("another queue", false)
	for _, half := range []string{"ip6", "ip"} {
		if err := testHold.install(holdWays[2]); err != nil {
			t.Fatal(err)
		}
		is("for both families of IP", true)
		nft(t, "delete table "+half+" vippin-hold")
		is("without "+half, false)
	}
	install()
	if nftList(t, "ip", holdTable) != "" {
		t.Error("the table of family ip is still there")
	}
	for range 2 {
		if err := RemoveHold(); err != nil {
			t.Fatal(err)
		}
		is("removed", false)
	}
	if nftList(t, "inet", "theirs") != theirs || nftList(t, "arp", holdTable) == "" {
		t.Error("somebody else's table is changed")
	}
	if err := InstallHold(HoldRule{Queue: 1}); err == nil || !strings.Contains(err.Error(), "sync.strict_mark") {
		t.Errorf("a mark without bits: %v", err)
	}
}
