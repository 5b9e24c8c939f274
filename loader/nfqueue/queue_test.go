// SPDX-License-Identifier: Apache-2.0

package nfqueue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	vnl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

const testQueue = 747

// scene is a network namespace of the test's own, on its thread until the test
// ends, where UDP datagrams to port 9 of the loopback interface are queued.
type scene struct {
	*testing.T
	from, to *net.UDPConn
}

func newScene(t *testing.T) *scene {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatalf("open network namespace: %v", err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := netns.Set(before); err != nil {
			t.Errorf("return from network namespace: %v", err)
			return // and let the thread die with the test
		}
		_, _ = before.Close(), ns.Close()
		runtime.UnlockOSThread()
	})
	lo, err := vnl.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := vnl.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	s := &scene{T: t}
	s.rule("-A")
	if s.to, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}); err != nil {
		t.Fatal(err)
	}
	if s.from, err = net.DialUDP("udp4", nil, s.to.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.from.Close(), s.to.Close() })
	return s
}

// rule queues without a bypass: what nobody serves is dropped. The kernel here
// may not have nft's queue, but iptables can.
func (s *scene) rule(what string) {
	s.Helper()
	out, err := exec.Command("iptables", "-w", "-t", "raw", what, "PREROUTING", "-p", "udp", "--dport", "9",
		"-j", "NFQUEUE", "--queue-num", strconv.Itoa(testQueue)).CombinedOutput()
	if err != nil {
		s.Fatalf("iptables: %v: %s", err, out)
	}
}

func (s *scene) open(config Config) *Queue {
	s.Helper()
	config.Queue = testQueue
	q, err := Open(config)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = q.Close() })
	return q
}

// run serves a queue until the test ends, or end is called, and hands on copies.
func (s *scene) run(q *Queue) (packets chan Packet, end func()) {
	s.Helper()
	packets = make(chan Packet, 10_000)
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() {
		done <- q.Run(ctx, func(p *Packet) {
			packet := *p
			packet.Payload = append([]byte(nil), p.Payload...)
			packets <- packet
		})
	}()
	end = func() {
		cancel()
		if err := <-done; err != nil {
			s.Errorf("run: %v", err)
		}
		done <- nil
	}
	s.Cleanup(end)
	return packets, end
}

// send sends datagrams of 100 octets that begin with their numbers.
func (s *scene) send(first, count int) {
	s.Helper()
	datagram := make([]byte, 100)
	for i := range count {
		binary.BigEndian.PutUint32(datagram, uint32(first+i))
		if _, err := s.from.Write(datagram); err != nil {
			s.Fatal(err)
		}
	}
}

// handled waits until so many packets have come to the queue, or found it full. Those of
// the loopback interface do so while they are sent, unless the kernel leaves that to ksoftirqd.
func (s *scene) handled(count int) {
	s.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		table, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		if err != nil {
			s.Fatal(err)
		}
		var queue, port, waiting, mode, octets, dropped, lost, last int
		if _, err := fmt.Sscan(string(table), &queue, &port, &waiting, &mode, &octets, &dropped, &lost, &last); err != nil {
			s.Fatalf("read %q: %v", table, err)
		}
		if dropped+last >= count {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%d packets came to the queue, want %d", dropped+last, count)
		}
	}
}

// queued waits for so many packets, and returns their ids.
func (s *scene) queued(packets <-chan Packet, count int) (ids []uint32, last Packet) {
	s.Helper()
	late := time.After(patience)
	for range count {
		select {
		case last = <-packets:
			ids = append(ids, last.ID)
		case <-late:
			s.Fatalf("%d packets came to the queue, want %d", len(ids), count)
		}
	}
	return ids, last
}

// arrives waits for the datagrams with these numbers, in this order, and no
// other.
func (s *scene) arrives(numbers ...int) {
	s.Helper()
	datagram := make([]byte, 2000)
	for _, want := range numbers {
		_ = s.to.SetReadDeadline(time.Now().Add(patience))
		n, err := s.to.Read(datagram)
		if err != nil {
			s.Fatalf("wait for datagram %d: %v", want, err)
		}
		if got := int(binary.BigEndian.Uint32(datagram)); got != want || n < 4 {
			s.Fatalf("datagram %d arrived, want %d", got, want)
		}
	}
}

// nothing tells that no datagram is there; those of the loopback interface are
// delivered while they are sent, or while the verdict is.
func (s *scene) nothing() {
	s.Helper()
	raw, err := s.to.SyscallConn()
	if err != nil {
		s.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		datagram := make([]byte, 2000)
		if n, _, err := unix.Recvfrom(int(fd), datagram, unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
			s.Errorf("datagram %d arrived (%d octets, %v)", binary.BigEndian.Uint32(datagram), n, err)
		}
	})
	if err != nil {
		s.Fatal(err)
	}
}

func verdicts(t testing.TB, q *Queue, decision Verdict, ids ...uint32) {
	t.Helper()
	if err := q.SetVerdicts(decision, ids...); err != nil {
		t.Fatal(err)
	}
}

// Packets wait for their verdicts, which may come in any order and from any
// goroutine; what is told of a packet is right.
func TestVerdicts(t *testing.T) {
	s := newScene(t)
	q := s.open(Config{CopyRange: 40})
	packets, end := s.run(q)
	if raw, err := s.from.SyscallConn(); err != nil {
		t.Fatal(err)
	} else if err := raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 0x123) }); err != nil {
		t.Fatal(err)
	}
	s.send(0, 4)
	ids, last := s.queued(packets, 4)
	s.nothing()
	if len(last.Payload) != 40 || last.Payload[0] != 0x45 || binary.BigEndian.Uint32(last.Payload[28:]) != 3 {
		t.Errorf("payload %x", last.Payload)
	}
	last.Payload = nil
	want := Packet{
		ID: ids[3], Family: unix.NFPROTO_IPV4, Hook: 0, Protocol: unix.ETH_P_IP, Mark: 0x123, InIndex: 1, Length: 128,
	}
	if fmt.Sprint(last) != fmt.Sprint(want) {
		t.Errorf("packet %+v, want %+v", last, want)
	}
	done := make(chan bool)
	go func() {
		defer close(done)
		verdicts(t, q, Accept, ids[2])
	}()
	<-done
	s.arrives(2)
	verdicts(t, q, Drop, ids[1])
	verdicts(t, q, Accept, ids[3], ids[0])
	s.arrives(3, 0)
	s.nothing()
	end()
	if counts := q.Counts(); counts != (Counts{Packets: 4}) {
		t.Errorf("counts %+v", counts)
	}
}

// Packets of every length are read, to their end.
func TestLengths(t *testing.T) {
	s := newScene(t)
	q := s.open(Config{})
	packets, _ := s.run(q)
	for length := 4; length < 40; length++ {
		datagram := make([]byte, length)
		for i := range datagram {
			datagram[i] = byte(length + i)
		}
		if _, err := s.from.Write(datagram); err != nil {
			t.Fatal(err)
		}
		ids, last := s.queued(packets, 1)
		if len(last.Payload) != 28+length || string(last.Payload[28:]) != string(datagram) || int(last.Length) != 28+length {
			t.Errorf("a datagram of %d octets became %x", length, last.Payload)
		}
		verdicts(t, q, Accept, ids...)
		s.arrives(int(binary.BigEndian.Uint32(datagram)))
	}
}

// Verdicts on thousands of packets take some messages, not one each, and Run may
// be called again.
func TestVerdictBatch(t *testing.T) {
	s := newScene(t)
	q := s.open(Config{CopyRange: 40, MaxLen: 2000, ReadBuffer: 16 << 20})
	_, end := s.run(q)
	end()
	packets, _ := s.run(q)
	const count = 1000
	s.send(0, count)
	ids, _ := s.queued(packets, count)
	s.nothing()
	for i := range ids {
		if i > 0 && ids[i] != ids[i-1]+1 {
			t.Fatalf("packet %d after %d", ids[i], ids[i-1])
		}
	}
	for first := 0; first < count; first += 100 { // what the receiving socket can take
		verdicts(t, q, Accept, ids[first:first+100]...)
		for i := range 100 {
			s.arrives(first + i)
		}
	}
	s.nothing()
}

// A queue that is full, or whose socket is, lets packets go on unseen, or loses
// them.
func TestFull(t *testing.T) {
	s := newScene(t)
	for _, open := range []bool{true, false} {
		q := s.open(Config{CopyRange: 40, MaxLen: 3, FailOpen: open})
		s.send(0, 10)
		if open {
			s.arrives(3, 4, 5, 6, 7, 8, 9)
		} else {
			s.handled(10)
		}
		s.nothing()
		packets, end := s.run(q)
		ids, _ := s.queued(packets, 3)
		verdicts(t, q, Accept, ids...)
		s.arrives(0, 1, 2)
		s.send(10, 1)
		ids, _ = s.queued(packets, 1)
		verdicts(t, q, Accept, ids...)
		s.arrives(10)
		end()
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// An overrun of the socket is counted and survived.
func TestOverrun(t *testing.T) {
	s := newScene(t)
	q := s.open(Config{FailOpen: true, ReadBuffer: 1}) // the kernel makes it 2,304 octets
	const count = 50
	s.send(0, count)
	s.handled(count)
	lost := int(q.Counts().Overruns)
	if lost == 0 || lost == count {
		t.Fatalf("%d of %d packets were lost: not what is to be tested", lost, count)
	}
	packets, end := s.run(q)
	ids, _ := s.queued(packets, count-lost)
	for i := range lost {
		s.arrives(count - lost + i)
	}
	s.nothing()
	verdicts(t, q, Accept, ids...)
	for i := range ids {
		s.arrives(i)
	}
	s.send(count, 1)
	ids, _ = s.queued(packets, 1)
	verdicts(t, q, Accept, ids...)
	s.arrives(count)
	end()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if counts := q.Counts(); counts != (Counts{Packets: uint64(count - lost + 1), Overruns: uint64(lost)}) {
		t.Errorf("counts %+v", counts)
	}
}

// A verdict on a packet that is gone is counted, and the queue is served on.
func TestLateVerdict(t *testing.T) {
	s := newScene(t)
	q := s.open(Config{CopyRange: 40})
	packets, end := s.run(q)
	s.send(0, 2)
	ids, _ := s.queued(packets, 2)
	verdicts(t, q, Accept, ids[0], ids[0], 12345, ids[1])
	s.arrives(0, 1)
	s.nothing()
	s.send(2, 1)
	ids, _ = s.queued(packets, 1) // the answers to the verdicts came before
	verdicts(t, q, Accept, ids...)
	s.arrives(2)
	end()
	if counts := q.Counts(); counts != (Counts{Packets: 3, Late: 2}) {
		t.Errorf("counts %+v", counts)
	}
}

// A queue has one owner: the second is told who, and what to do.
func TestTaken(t *testing.T) {
	s := newScene(t)
	first := s.open(Config{})
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(Config{Queue: testQueue})
	if !errors.Is(err, ErrTaken) {
		t.Fatalf("open it again: %v", err)
	}
	for _, want := range []string{"open NFQUEUE 747: taken by another process", "sync.strict_queue", strings.TrimSpace(string(name))} {
		// The port is the process's number only if no other socket has it.
		if !strings.Contains(err.Error(), want) && (want != strings.TrimSpace(string(name)) || !strings.Contains(err.Error(), "netlink port")) {
			t.Errorf("%q does not contain %q", err, want)
		}
	}
	second, err := Open(Config{Queue: testQueue + 1})
	if err != nil {
		t.Fatalf("another number: %v", err)
	}
	if err := errors.Join(second.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	s.open(Config{})
}

// A super-packet comes as one with GSO, and as its segments without.
func TestGSO(t *testing.T) {
	s := newScene(t)
	for _, gso := range []bool{true, false} {
		q := s.open(Config{CopyRange: 40, GSO: gso})
		packets, end := s.run(q)
		raw, err := s.from.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 100)
		}); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Skipf("the kernel lacks UDP_SEGMENT: %v", err)
		}
		if _, err := s.from.Write(make([]byte, 300)); err != nil {
			t.Fatal(err)
		}
		count, length := 3, uint32(128)
		if gso {
			count, length = 1, 328
		}
		ids, last := s.queued(packets, count)
		if last.Length != length {
			t.Errorf("GSO %v: %d octets, want %d", gso, last.Length, length)
		}
		verdicts(t, q, Accept, ids...)
		s.arrives(0, 0, 0)
		s.nothing()
		end()
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
