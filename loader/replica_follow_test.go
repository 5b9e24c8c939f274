// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

var pin4, pin6 = policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: netip.MustParseAddr(vip)},
	policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: netip.MustParseAddr(vip6)}

// wantPinned compares a flow with what the server saw, and with its pin.
func wantPinned(t *testing.T, h heard, dst string, saw netip.AddrPort, pin policy.PinName, ifindex int) {
	t.Helper()
	f := h.flow
	if f.To.AddrPort() != saw || saw.Addr() != pin.VIP {
		t.Errorf("told of the public end %v, the server saw %v", f.To, saw)
	}
	if f.Pin != pin || f.Group != "core" || f.Dst != end(dst) || f.From != end(dst) || h.ifindex != ifindex || h.at == 0 {
		t.Errorf("told of %+v on interface %d at %v", f, h.ifindex, h.at)
	}
}

// TestFollowPinned: masqueraded flows are told with the public end that the
// server sees, from birth to death.
func TestFollowPinned(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	l.follow(t)
	for _, p := range []struct {
		client, server, other string
		pin                   policy.PinName
		icmp                  uint8
	}{
		{"192.168.1.10", "198.51.100.9", "192.168.1.11", pin4, unix.IPPROTO_ICMP},
		{"2001:db8:1::10", "2001:db8:100::9", "", pin6, unix.IPPROTO_ICMPV6},
	} {
		at := func(host, port string) string { return net.JoinHostPort(host, port) }
		// Two hosts on one port: the second one's is changed.
		server := socket(t, l.wan, at(p.server, "7777"))
		for _, host := range []string{p.client, p.other} {
			if host == "" {
				continue
			}
			saw := exchange(t, socket(t, l.lan, at(host, "4000")), server, at(p.server, "7777"))
			wantPinned(t, l.await(t, "UDP flow", seenFrom(unix.IPPROTO_UDP, at(host, "4000"))), at(p.server, "7777"), saw, p.pin, l.ifindex)
		}
		l.await(t, "its answer", func(h *heard) bool {
			return seenFrom(unix.IPPROTO_UDP, at(p.client, "4000"))(h) && h.flow.Bits&policy.FlowSeenReply != 0
		})

		client, accepted := connect(t, l.lan, l.wan, at(p.client, "5000"), at(p.server, "7778"), at(p.server, "7778"))
		isTCP := seenFrom(unix.IPPROTO_TCP, at(p.client, "5000"))
		established := l.await(t, "TCP connection", func(h *heard) bool { return isTCP(h) && h.flow.Bits&policy.FlowAssured != 0 })
		wantPinned(t, established, at(p.server, "7778"), netip.MustParseAddrPort(accepted.RemoteAddr().String()), p.pin, l.ifindex)
		if f := established.flow; conntrack.TCPState(f.TCPState) != conntrack.TCPEstablished || f.TCPScale[0] == 0 || f.Timeout == 0 {
			t.Errorf("established: %+v", f)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := accepted.Read(make([]byte, 1)); err == nil {
			t.Error("the server did not see the end")
		}
		_ = accepted.Close()
		l.await(t, "its end", func(h *heard) bool { return isTCP(h) && conntrack.TCPState(h.flow.TCPState) == conntrack.TCPTimeWait })
		var states []conntrack.TCPState
		for _, h := range l.heardOf(isTCP) {
			states = append(states, conntrack.TCPState(h.flow.TCPState))
		}
		if len(states) != 3 || states[0] != conntrack.TCPSynSent {
			t.Errorf("told of the states %v, want SYN_SENT, ESTABLISHED, TIME_WAIT", states)
		}

		saw := l.echoFrom(t, p.client, p.server, 77)
		ping := l.await(t, "ping", seenFrom(p.icmp, at(p.client, "77")))
		wantPinned(t, ping, at(p.server, "0"), saw, p.pin, l.ifindex)
	}
	l.testGone(t)
}

// testGone: the end of a flow is told with what its mapping says.
func (l *replicaLab) testGone(t *testing.T) {
	t.Helper()
	was := l.await(t, "UDP flow", seenFrom(unix.IPPROTO_UDP, "192.168.1.11:4000"))
	l.remove(t, &was.flow)
	gone := l.await(t, "its end", func(h *heard) bool { return h.kind == FlowGone && h.flow.FlowKey == was.flow.FlowKey })
	if gone.flow.To != was.flow.To || gone.flow.Pin != pin4 || gone.flow.Group != "core" || gone.ifindex != l.ifindex {
		t.Errorf("gone: %+v on interface %d", gone.flow, gone.ifindex)
	}
}

// TestDump: it hands out what Follow told of, and no more.
func TestDump(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	server, server6 := socket(t, l.wan, "198.51.100.9:7777"), socket(t, l.wan, "[2001:db8:100::9]:7777")
	saw := map[policy.End]netip.AddrPort{
		end("192.168.1.10:4000"):     exchange(t, socket(t, l.lan, "192.168.1.10:4000"), server, "198.51.100.9:7777"),
		end("192.168.1.11:4000"):     exchange(t, socket(t, l.lan, "192.168.1.11:4000"), server, "198.51.100.9:7777"),
		end("[2001:db8:1::10]:4000"): exchange(t, socket(t, l.lan, "[2001:db8:1::10]:4000"), server6, "[2001:db8:100::9]:7777"),
	}
	l.setPlan(t, switchedOff) // those go on, the next one keeps the router's own address
	exchange(t, socket(t, l.lan, "192.168.1.10:4001"), server, "198.51.100.9:7777")
	for _, scope := range []policy.SyncScope{policy.ScopePinned, policy.ScopeNAT} {
		l.setSync(func(s *policy.SyncConfig) { s.Scope = scope })
		told := map[policy.End]netip.AddrPort{}
		err := l.replica.Dump(context.Background(), func(f *policy.Flow) error {
			told[f.Src] = f.To.AddrPort()
			if f.Group != "core" || f.Pin != pin4 && f.Pin != pin6 {
				t.Errorf("dumped %+v", f)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(told) != len(saw) {
			t.Errorf("scope %s: dumped %v, the server saw %v", scope, told, saw)
		}
		for src, to := range saw {
			if told[src] != to {
				t.Errorf("scope %s: dumped %v as %v, the server saw %v", scope, src, told[src], to)
			}
		}
	}
}

// TestBackupIsQuiet: a router that is MASTER of nothing tells of ends only. When
// it becomes MASTER, the flows of before are for a dump.
func TestBackupIsQuiet(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	l.follow(t)
	server := socket(t, l.wan, "198.51.100.9:7777")
	exchange(t, socket(t, l.lan, "192.168.1.10:4000"), server, "198.51.100.9:7777")
	first := l.await(t, "a flow", seenFrom(unix.IPPROTO_UDP, "192.168.1.10:4000"))
	l.replica.SetActive(false)
	exchange(t, socket(t, l.lan, "192.168.1.10:4001"), server, "198.51.100.9:7777")
	l.remove(t, &first.flow)
	l.await(t, "its end", func(h *heard) bool { return h.kind == FlowGone && h.flow.FlowKey == first.flow.FlowKey })
	l.notTold(t, "192.168.1.10:4001")

	before := len(l.heardOf(func(h *heard) bool { return h.kind == FlowsLost }))
	l.replica.SetActive(true)
	await(t, "a dump is wanted", func() bool {
		return len(l.heardOf(func(h *heard) bool { return h.kind == FlowsLost })) == before+1
	})
	exchange(t, socket(t, l.lan, "192.168.1.10:4002"), server, "198.51.100.9:7777")
	l.await(t, "a flow", seenFrom(unix.IPPROTO_UDP, "192.168.1.10:4002"))
}

// remove deletes the conntrack entry of a flow.
func (l *replicaLab) remove(t *testing.T, f *policy.Flow) {
	t.Helper()
	results, err := l.admin.Delete([]conntrack.Ref{{Orig: conntrack.Tuple{
		Src: f.Src.IP(), Dst: f.Dst.IP(), Proto: f.Proto, SrcPort: f.Src.Port, DstPort: f.Dst.Port, Zone: f.Zone,
	}}})
	if err := errors.Join(append(results, err)...); err != nil {
		t.Fatal(err)
	}
}

// TestOverrunIsTold: while the handler is held up, more happens than the socket
// takes.
func TestOverrunIsTold(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	l.follow(t)
	stall := make(chan struct{})
	l.mu.Lock()
	l.stall = stall
	l.mu.Unlock()
	var entries []conntrack.Entry
	for i := range 60000 {
		src := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		entries = append(entries, conntrack.Entry{
			Orig:    conntrack.Tuple{Src: src, Dst: netip.MustParseAddr("203.0.113.9"), Proto: 17, SrcPort: 1, DstPort: 2},
			NATSrc:  netip.AddrPortFrom(netip.MustParseAddr(vip), uint16(i+1024)),
			Timeout: time.Minute,
		})
	}
	results, err := l.admin.Create(entries)
	if err := errors.Join(append(results[:1:1], err)...); err != nil {
		t.Fatal(err)
	}
	before := len(l.heardOf(func(h *heard) bool { return h.kind == FlowsLost }))
	l.mu.Lock()
	l.stall = nil
	l.mu.Unlock()
	close(stall)
	await(t, "the loss is told", func() bool {
		return len(l.heardOf(func(h *heard) bool { return h.kind == FlowsLost })) > before
	})
	if n := len(l.heardOf(func(h *heard) bool { return h.kind == FlowSeen })); n == 0 || n >= len(entries) {
		t.Errorf("told of %d flows of %d: nothing overran", n, len(entries))
	}
}
