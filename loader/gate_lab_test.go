// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// gateLab is a replicaLab in strict mode.
type gateLab struct {
	*replicaLab
	gate   *Gate
	router netns.NsHandle
	stop   func() // ends Run and looks at what it says
}

const (
	gateNumber = 747
	server4    = "198.51.100.9:7777"
	server6    = "[2001:db8:100::9]:7777"
)

var gateMark = policy.MarkConfig{Value: 0x100, Mask: 0x100}

// newGateLab has answers wait for so long at most.
func newGateLab(t *testing.T, change func(*GateOptions)) *gateLab {
	t.Helper()
	l := &gateLab{replicaLab: newReplicaLab(t, masqueradeWAN)}
	router, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	l.router = router
	t.Cleanup(func() { _ = router.Close() })
	l.alive(t)
	options := GateOptions{Queue: gateNumber, Mark: gateMark, Timeout: time.Hour}
	change(&options)
	if l.gate, err = l.replica.NewGate(options); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- inNamespace(router, func() error { return l.gate.Run(ctx) }) }()
	stopped := false
	l.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(func() {
		l.stop()
		if err := l.gate.Close(); err != nil {
			t.Error(err)
		}
	})
	l.hold(t, true)
	return l
}

// alive is a sign of life that lasts as long as a test.
func (l *replicaLab) alive(t *testing.T) {
	t.Helper()
	if err := l.d.SetSettings(Settings{Lease: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if err := l.d.Heartbeat(Monotonic()); err != nil {
		t.Fatal(err)
	}
}

// hold waits until Run has taken it up.
func (l *gateLab) hold(t *testing.T, on bool) {
	t.Helper()
	if err := l.gate.SetHolding(on); err != nil {
		t.Fatal(err)
	}
	await(t, fmt.Sprintf("holding %v", on), func() bool {
		l.gate.mu.Lock()
		defer l.gate.mu.Unlock()
		return l.gate.holding == on
	})
}

func (l *gateLab) counts(t *testing.T) GateCounts {
	t.Helper()
	counts, err := l.gate.Counts()
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

// expectCounts waits until the counters are these, but for the time waited.
func (l *gateLab) expectCounts(t *testing.T, want GateCounts) {
	t.Helper()
	var got GateCounts
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		got = l.counts(t)
		got.Waited = 0
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("counts %+v, want %+v", got, want)
		}
	}
}

// talk is a flow of UDP between an inside host and a server.
type talk struct {
	client, server *net.UDPConn
	from           netip.AddrPort // as the server sees the client
	flow           policy.Flow    // as peers are told of it
}

// begin sends the first packet of a flow from an inside end.
func (l *replicaLab) begin(t *testing.T, client, server *net.UDPConn) *talk {
	t.Helper()
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := client.WriteToUDPAddrPort([]byte("ask"), to); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 64)
	_ = server.SetReadDeadline(time.Now().Add(patience))
	_, from, err := server.ReadFromUDPAddrPort(buffer)
	if err != nil {
		t.Fatalf("the first packet did not come: %v", err)
	}
	c := &talk{client: client, server: server, from: unmap(from)}
	c.flow = pinnedFlow(unix.IPPROTO_UDP, unmap(client.LocalAddr().(*net.UDPAddr).AddrPort()), unmap(to), c.from)
	return c
}

func pinnedFlow(proto uint8, src, dst, to netip.AddrPort) policy.Flow {
	flow := policy.Flow{
		FlowKey: policy.FlowKey{Src: policy.MakeEnd(src), Dst: policy.MakeEnd(dst), Proto: proto},
		From:    policy.MakeEnd(dst), To: policy.MakeEnd(to), Group: "core",
		Pin: policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: addrs(vip)[0]},
	}
	if to.Addr().Is6() {
		flow.Pin.VIP = addrs(vip6)[0]
	}
	return flow
}

// bothFamilies are an inside end and a server of each.
var bothFamilies = []struct{ src, dst string }{{"192.168.1.10:5000", server4}, {"[2001:db8:1::10]:5000", server6}}

// answer sends datagrams back.
func (c *talk) answer(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if _, err := c.server.WriteToUDPAddrPort([]byte(text), c.from); err != nil {
			t.Fatal(err)
		}
	}
}

// expect wants just these to have come, in this order.
func (c *talk) expect(t *testing.T, texts ...string) {
	t.Helper()
	buffer := make([]byte, 65536)
	for _, want := range texts {
		_ = c.client.SetReadDeadline(time.Now().Add(patience))
		n, from, err := c.client.ReadFromUDPAddrPort(buffer)
		if err != nil {
			t.Fatalf("%d octets did not come: %v", len(want), err)
		}
		if string(buffer[:n]) != want {
			t.Fatalf("%d octets came that begin with %.20q, want %d that begin with %.20q", n, buffer[:n], len(want), want)
		}
		if unmap(from) != unmap(c.server.LocalAddr().(*net.UDPAddr).AddrPort()) {
			t.Errorf("from %v", from)
		}
	}
}

// expectNothing wants nothing to have come. What is to be missing must be known to
// be elsewhere.
func (c *talk) expectNothing(t *testing.T) {
	t.Helper()
	buffer := make([]byte, 65536)
	_ = c.client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, _, err := c.client.ReadFromUDPAddrPort(buffer); err == nil {
		t.Fatalf("%d octets came that begin with %.20q", n, buffer[:n])
	}
}

// udp is a flow of the first inside host's to the server.
func (l *replicaLab) udp(t *testing.T, src, dst string) *talk {
	t.Helper()
	return l.begin(t, socket(t, l.lan, src), socket(t, l.wan, dst))
}
