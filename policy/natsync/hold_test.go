// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"vippin/policy"
)

func end(text string) policy.End { return policy.MakeEnd(netip.MustParseAddrPort(text)) }

// testFlow is the flow of one port of an inside host.
func testFlow(port uint16, proto uint8) *policy.Flow {
	from := end("203.0.113.9:443")
	return &policy.Flow{
		FlowKey: policy.FlowKey{Src: policy.MakeEnd(netip.AddrPortFrom(netip.MustParseAddr("198.18.0.10"), port)), Dst: from, Proto: proto},
		From:    from, To: policy.MakeEnd(netip.AddrPortFrom(netip.MustParseAddr("198.51.100.2"), port)), Group: core,
		Pin: policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: netip.MustParseAddr("198.51.100.2")},
	}
}

const (
	wan = 3 // an interface
	udp = 17
)

func dueAt(h *Hold, now time.Duration) (ports []uint16) {
	h.Due(now, func(flow *policy.Flow) { ports = append(ports, flow.Src.Port) })
	return ports
}

func flushedPorts(flows []policy.Flow) (ports []uint16) {
	for i := range flows {
		ports = append(ports, flows[i].Src.Port)
	}
	slices.Sort(ports)
	return ports
}

// Who gets the ends of a flow that has gone tells that it has gone for good.
func TestHoldEndsAreReused(t *testing.T) {
	h := &Hold{For: 3 * time.Second, Limit: 10}
	h.Gone(10*time.Second, testFlow(1, udp), wan)
	h.Gone(10*time.Second, testFlow(2, udp), wan)
	other := testFlow(7, udp) // of another inside host, as the wire sees it the first one
	other.To = testFlow(1, udp).To
	if over := h.Seen(other); over == nil || over.Src.Port != 1 {
		t.Errorf("over is %v", over)
	}
	if over := h.Seen(other); over != nil {
		t.Errorf("over again is %v", over)
	}
	if over := h.Seen(testFlow(2, udp)); over != nil || h.Len() != 0 || len(h.ends) != 0 {
		t.Errorf("the flow itself is back: over %v, %d wait, %d ends", over, h.Len(), len(h.ends))
	}
	unknown := testFlow(3, udp)
	unknown.To = policy.End{}
	h.Gone(10*time.Second, unknown, wan)
	nobody := testFlow(4, udp)
	nobody.To = policy.End{}
	if over := h.Seen(nobody); over != nil {
		t.Errorf("without a public end: %v", over)
	}
	if ports := dueAt(h, time.Minute); !slices.Equal(ports, []uint16{3}) {
		t.Errorf("told of %v", ports)
	}
}

func TestHoldTellsLater(t *testing.T) {
	h := &Hold{For: 3 * time.Second, Limit: 10}
	h.Gone(10*time.Second, testFlow(1, udp), wan)
	h.Gone(11*time.Second, testFlow(2, udp), wan)
	h.Gone(11*time.Second, testFlow(3, udp), wan)
	h.Seen(testFlow(2, udp))
	if next := h.Next(); next != 13*time.Second {
		t.Errorf("next at %v", next)
	}
	if ports := dueAt(h, 12999*time.Millisecond); ports != nil {
		t.Errorf("told of %v too early", ports)
	}
	if ports := dueAt(h, 13*time.Second); !slices.Equal(ports, []uint16{1}) {
		t.Errorf("told of %v", ports)
	}
	if ports := dueAt(h, time.Minute); !slices.Equal(ports, []uint16{3}) {
		t.Errorf("told of %v: the second one is back", ports)
	}
	if h.Len() != 0 || h.Next() != 0 {
		t.Errorf("%d are left", h.Len())
	}
}

func TestHoldKnowsAFlush(t *testing.T) {
	h := &Hold{For: 3 * time.Second, Limit: 10}
	ended := testFlow(4, ipTCP)
	ended.TCPState = 7 // TIME_WAIT
	h.Gone(time.Second, testFlow(9, udp), wan)
	h.Gone(10*time.Second, testFlow(1, udp), wan)
	h.Gone(10*time.Second, testFlow(2, ipTCP), wan)
	h.Gone(10*time.Second, testFlow(3, udp), wan+1)
	h.Gone(10*time.Second, ended, wan)
	if got := flushedPorts(h.Shaken(10500*time.Millisecond, wan)); !slices.Equal(got, []uint16{1, 2}) {
		t.Errorf("flushed: %v; not: one of another interface, of long before, of a connection that had ended", got)
	}
	if what := h.Gone(11*time.Second, testFlow(5, udp), wan); what != Flushed {
		t.Errorf("what goes right after the link: %v", what)
	}
	if what := h.Gone(11*time.Second, testFlow(6, udp), wan+1); what != HeldBack {
		t.Errorf("another interface's flow: %v", what)
	}
	if what := h.Gone(13*time.Second, testFlow(7, udp), wan); what != HeldBack {
		t.Errorf("long after the link: %v", what)
	}
	if ports := dueAt(h, time.Minute); !slices.Equal(ports, []uint16{9, 3, 4, 6, 7}) {
		t.Errorf("told of %v", ports)
	}
}

func TestHoldIsBounded(t *testing.T) {
	h := &Hold{For: time.Second, Limit: 2}
	for port := range uint16(2) {
		h.Gone(0, testFlow(port, udp), wan)
	}
	if what := h.Gone(0, testFlow(7, udp), wan); what != HoldFull {
		t.Errorf("beyond the limit: %v", what)
	}
	h.Drop("another")
	if h.Len() != 2 {
		t.Error("dropped another group's")
	}
	h.Drop(core)
	if ports := dueAt(h, time.Minute); ports != nil || h.Len() != 0 {
		t.Errorf("told of %v for a group that is another router's now", ports)
	}
}
