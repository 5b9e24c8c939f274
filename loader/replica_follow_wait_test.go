// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// mute keeps the server's namespace from answering who has its addresses, and
// returns its MAC address.
func (l *replicaLab) mute(t *testing.T) (mac net.HardwareAddr) {
	t.Helper()
	err := inNamespace(l.wan, func() error {
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		mac = peer.Attrs().HardwareAddr
		return netlink.LinkSetARPOff(peer)
	})
	if err != nil {
		t.Fatalf("switch ARP off: %v", err)
	}
	return mac
}

// neighbour tells the router where the server is.
func (l *replicaLab) neighbour(t *testing.T, addr string, mac net.HardwareAddr) {
	t.Helper()
	err := netlink.NeighSet(&netlink.Neigh{LinkIndex: l.ifindex, State: netlink.NUD_PERMANENT, IP: net.ParseIP(addr), HardwareAddr: mac})
	if err != nil {
		t.Fatalf("add neighbour: %v", err)
	}
}

// sendUnanswered sends one datagram whose conntrack entry is there, on return.
func (l *replicaLab) sendUnanswered(t *testing.T, src, dst string) {
	t.Helper()
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	if _, err := socket(t, l.lan, src).WriteToUDPAddrPort([]byte("early"), to); err != nil {
		t.Fatal(err)
	}
	tuple := conntrack.Tuple{Src: from.Addr(), Dst: to.Addr(), Proto: unix.IPPROTO_UDP, SrcPort: from.Port(), DstPort: to.Port()}
	await(t, "conntrack knows "+src, func() bool {
		_, err := l.admin.Get(tuple)
		return err == nil
	})
}

// TestFollowWaitsForMapping: while the neighbour is being resolved a flow has no
// mapping. It is told when it has, and others are told meanwhile.
func TestFollowWaitsForMapping(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	mac := l.mute(t)
	l.neighbour(t, "2001:db8:100::9", mac)
	l.follow(t)
	server := socket(t, l.wan, "198.51.100.9:7777")
	l.sendUnanswered(t, "192.168.1.10:4000", "198.51.100.9:7777")
	l.sendUnanswered(t, "192.168.1.11:4000", "198.51.100.9:7777")
	<-time.After(300 * time.Millisecond) // several looks
	l.sendUnanswered(t, "[2001:db8:1::10]:4000", "[2001:db8:100::9]:7777")
	other := l.await(t, "a flow to another neighbour", seenFrom(unix.IPPROTO_UDP, "[2001:db8:1::10]:4000"))
	l.notTold(t, "192.168.1.10:4000")
	l.notTold(t, "192.168.1.11:4000")

	l.neighbour(t, "198.51.100.9", mac)
	saw := map[netip.AddrPort]bool{}
	for range 2 {
		_ = server.SetReadDeadline(time.Now().Add(patience))
		_, from, err := server.ReadFromUDPAddrPort(make([]byte, 64))
		if err != nil {
			t.Fatal(err)
		}
		saw[unmap(from)] = true
	}
	for _, src := range []string{"192.168.1.10:4000", "192.168.1.11:4000"} {
		h := l.await(t, src, seenFrom(unix.IPPROTO_UDP, src))
		to := h.flow.To.AddrPort()
		if !saw[to] || to.Addr() != pin4.VIP || h.flow.Pin != pin4 || h.flow.Group != "core" || h.ifindex != l.ifindex || h.at <= other.at {
			t.Errorf("told of %+v, the server saw %v", h, saw)
		}
		delete(saw, to)
		if again := l.heardOf(seenFrom(unix.IPPROTO_UDP, src)); len(again) != 1 {
			t.Errorf("%s was told %d times", src, len(again))
		}
	}
	if n := l.replica.Skipped()["no_mapping"]; n != 0 {
		t.Errorf("%d flows count as left out", n)
	}
}

// TestFollowGivesUp: a flow that never gets a mapping is counted, at its end or
// when it has waited long enough, and nothing is told of it.
func TestFollowGivesUp(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	l.mute(t)
	l.follow(t)
	l.sendUnanswered(t, "192.168.1.10:4000", "198.51.100.9:7777")
	l.sendUnanswered(t, "192.168.1.10:4001", "198.51.100.9:7777")
	start := time.Now()
	l.remove(t, &policy.Flow{FlowKey: policy.FlowKey{
		Src: end("192.168.1.10:4000"), Dst: end("198.51.100.9:7777"), Proto: unix.IPPROTO_UDP,
	}})
	l.awaitSkipped(t, "no_mapping", 1)
	l.awaitSkipped(t, "no_mapping", 2)
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("gave up after %v, though the neighbour may yet be found", took)
	}
	l.notTold(t, "192.168.1.10:4000")
	l.notTold(t, "192.168.1.10:4001")

	// Where no pin is on, nothing is waited for. So its end is told, in case it
	// was pinned once.
	l.setPlan(t, switchedOff)
	l.sendUnanswered(t, "192.168.1.10:4002", "198.51.100.9:7777")
	key := policy.FlowKey{Src: end("192.168.1.10:4002"), Dst: end("198.51.100.9:7777"), Proto: unix.IPPROTO_UDP}
	l.remove(t, &policy.Flow{FlowKey: key})
	gone := l.await(t, "its end", func(h *heard) bool { return h.kind == FlowGone && h.flow.FlowKey == key })
	if gone.flow.To != (policy.End{}) || gone.flow.Group != "core" || gone.ifindex != l.ifindex {
		t.Errorf("gone: %+v on interface %d", gone.flow, gone.ifindex)
	}
	l.awaitSkipped(t, "no_mapping", 3)
}

// TestWaitsAreBounded: too many flows without a mapping are left out and made up
// for by a dump.
func TestWaitsAreBounded(t *testing.T) {
	lost := 0
	f := &follower{
		r: &Replica{}, reader: &flowReader{local: &replicaEnd{unique: true}}, waits: newWaits(), sooner: make(chan struct{}, 1),
		handle: func(e *FlowEvent) error {
			if e.Kind == FlowsLost {
				lost++
			}
			return nil
		},
	}
	for i := range waitMost + 2 {
		f.reader.key.SelfPort, f.reader.key.Slot = uint16(i), uint32(i>>16)
		f.wait(nil, true)
	}
	if err := f.makeUp(); err != nil || lost != 0 || len(f.waits.flows) != waitMost || f.r.Skipped()["waiting"] != 2 {
		t.Errorf("%d wait, lost %d times, skipped %v, %v", len(f.waits.flows), lost, f.r.Skipped(), err)
	}
	for range waitMost / 2 {
		if _, any := f.waits.pop(Monotonic() + time.Minute); !any {
			t.Fatal("fewer wait than were added")
		}
	}
	for range 2 {
		if err := f.makeUp(); err != nil || lost != 1 {
			t.Errorf("lost %d times, %v, want once", lost, err)
		}
	}
}

// TestWaitsAreInOrder: whatever step a flow is at, the next look is the one that
// is due first, and a flow that is gone has none.
func TestWaitsAreInOrder(t *testing.T) {
	w := newWaits()
	key := func(port uint16) flowKey { return flowKey{SelfPort: port} }
	w.add(key(1), &waiting{step: 3}, 0)
	w.add(key(2), &waiting{step: 1}, 5*time.Millisecond)
	w.add(key(3), &waiting{step: 1}, 7*time.Millisecond)
	delete(w.flows, key(2))
	w.add(key(2), &waiting{step: 5}, 8*time.Millisecond)
	if at, any := w.next(); !any || at != 6*time.Millisecond {
		t.Errorf("next at %v, %v, want 6ms", at, any)
	}
	if due, any := w.pop(7 * time.Millisecond); any {
		t.Errorf("%v is due too early", due.key.SelfPort)
	}
	for at, want := range map[time.Duration]uint16{8 * time.Millisecond: 3} {
		if due, any := w.pop(at); !any || due.key != key(want) {
			t.Errorf("at %v %d is due, %v, want %d", at, due.key.SelfPort, any, want)
		}
	}
	if due, any := w.pop(200 * time.Millisecond); !any || due.key != key(1) {
		t.Errorf("%d is due, %v, want 1", due.key.SelfPort, any)
	}
	if due, any := w.pop(4 * time.Second); !any || due.key != key(2) || due.flow.step != 5 {
		t.Errorf("%d is due, %v, want 2", due.key.SelfPort, any)
	}
	if _, any := w.next(); any || len(w.flows) != 0 {
		t.Errorf("%d still wait", len(w.flows))
	}
}

// TestFollowEnds: with its context, with its handler's error, and when the
// Replica is closed.
func TestFollowEnds(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.replica.Follow(ctx, func(*FlowEvent) error { return errors.New("must not be called") }); err != nil {
		t.Errorf("with an ended context: %v", err)
	}
	enough := errors.New("enough")
	l.replica.SetActive(true)
	if err := l.replica.Follow(context.Background(), func(*FlowEvent) error { return enough }); err != enough {
		t.Errorf("whose handler fails: %v", err)
	}
	other, err := l.d.NewReplica(ReplicaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	other.SetActive(true)
	err = other.Follow(context.Background(), func(*FlowEvent) error { return other.Close() })
	if !errors.Is(err, os.ErrClosed) {
		t.Errorf("of a closed replica: %v", err)
	}
}
