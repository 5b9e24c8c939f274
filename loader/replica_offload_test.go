// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// offloadedFlow is an answered flow as the kernel tells of it while it is in a flow
// table: without state and timeout.
func offloadedFlow(proto uint8) *conntrack.Flow {
	inside, remote := netip.MustParseAddrPort("192.168.1.10:4000"), netip.MustParseAddrPort("203.0.113.9:7000")
	local := netip.MustParseAddrPort("198.51.100.3:4000")
	tuple := func(src, dst netip.AddrPort) conntrack.Tuple {
		return conntrack.Tuple{Src: src.Addr(), Dst: dst.Addr(), SrcPort: src.Port(), DstPort: dst.Port(), Proto: proto}
	}
	return &conntrack.Flow{
		Orig: tuple(inside, remote), Reply: tuple(remote, local),
		Status: conntrack.Confirmed | conntrack.SeenReply | conntrack.SrcNAT | conntrack.Offload,
	}
}

// A UDP flow in a flow table is no stream to conntrack, and lasts like one: at the peer,
// after vippin is unloaded, and after its interface went down, which takes it out of the
// flow table first.
func TestOffloadedFlowLasts(t *testing.T) {
	ordinary := &timeouts{udp: 30 * time.Second, udpStream: 120 * time.Second, any: 600 * time.Second}
	ordinary.tcp[conntrack.TCPEstablished] = time.Hour
	entry := offloadedFlow(unix.IPPROTO_UDP)

	x := &flowReader{index: newReplicaIndex(policy.Plan{}, policy.Observed{}), options: newReplicaOptions(policy.DefaultConfig("ra", "").Sync)}
	if reason := x.read(entry); reason != 0 || x.flow.Bits != policy.FlowSeenReply|policy.FlowAssured {
		t.Errorf("peers are told bits %v (skipped: %v), want answered and assured", x.flow.Bits, reason)
	}
	c := &converter{ordinary: ordinary}
	end := publicEnd{Port: 4000}
	if native := c.native(&conversion{flow: entry, end: end}); native.Timeout != ordinary.udpStream || native.Status&conntrack.Assured == 0 {
		t.Errorf("unload makes an entry of %v, %v", native.Timeout, native.Status)
	}
	if native := c.native(&conversion{flow: offloadedFlow(unix.IPPROTO_TCP), end: end}); native.Timeout != time.Hour || native.TCP.State != conntrack.TCPEstablished {
		t.Errorf("unload makes an entry of %v, %+v of a connection", native.Timeout, native.TCP)
	}
	restored := x.flow
	restored.Bits = policy.FlowSeenReply
	w := &installing{Installation: Installation{Flow: &restored}}
	if got := w.timeout(&installer{ordinary: ordinary}); got != ordinary.udpStream {
		t.Errorf("put back with %v, want %v", got, ordinary.udpStream)
	}
	unanswered := *entry
	unanswered.Status &^= conntrack.SeenReply
	if x.read(&unanswered); x.flow.Bits != 0 {
		t.Errorf("peers are told bits %v of a flow without answers", x.flow.Bits)
	}
	restored.Bits = 0
	if got := w.timeout(&installer{ordinary: ordinary}); got != ordinary.udp {
		t.Errorf("put back without answers with %v, want %v", got, ordinary.udp)
	}
}

// The kernel sees to the timeouts of what is in a flow table, and does not tell them.
func TestNormaliseLeavesFlowtables(t *testing.T) {
	n := &normaliser{ordinary: &timeouts{any: 600 * time.Second}, standby: 5 * time.Minute}
	entry := offloadedFlow(unix.IPPROTO_TCP)
	if got := n.due(entry); got != 0 {
		t.Errorf("a connection in a flow table is to get %v", got)
	}
	entry.Status &^= conntrack.Offload
	if got := n.due(entry); got != 600*time.Second {
		t.Errorf("another one is to get %v, want 600 s", got)
	}
}
