// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// TestFlowsOutliveTheirRouter: flows that were told go on through the second
// router, with the same source, behind a stateful firewall, and no other flow gets
// their public ends.
func TestFlowsOutliveTheirRouter(t *testing.T) {
	p := newPair(t, masqueradeWAN)
	streams := p.streams(t)
	flows := p.told(t)
	if len(flows) != len(streams) {
		t.Fatalf("told %d flows of %d", len(flows), len(streams))
	}
	mustInstall(t, p.peer, installations(flows), Installed)
	for public, m := range mapped(t, p.b) {
		if !m.Native || m.Local != public.end || m.Pin != 5 || m.Slot != 3 {
			t.Errorf("mapping %+v", m)
		}
	}
	if n := len(mapped(t, p.b)); n != len(flows) {
		t.Errorf("%d mappings, want %d", n, len(flows))
	}
	p.inPeer(t, func() error {
		removed, err := p.b.Sweep()
		if removed != 0 {
			t.Errorf("a sweep removed %d of them", removed)
		}
		return err
	})
	p.failOver(t)
	for _, s := range streams {
		s.goesOn(t)
	}
	late := exchange(t, socket(t, p.lan, "192.168.1.10:41002"), socket(t, p.wan, "198.51.100.9:7100"), "198.51.100.9:7100")
	if late.Addr().String() != vip {
		t.Errorf("a new flow comes from %v", late)
	}
	counters, err := p.b.PinCounters()
	if err != nil || counters[5].Returned == 0 || counters[5].Pinned == 0 || counters[5].Foreign != 0 {
		t.Errorf("counters %+v, %v", counters[5], err)
	}
	if removed := mustRemove(t, p.peer, flows); removed != len(flows) {
		t.Errorf("%d flows removed, want %d", removed, len(flows))
	}
	if left := mapped(t, p.b); len(left) != 1 || left[wireEndOf{unix.IPPROTO_UDP, late}].Native {
		t.Errorf("mappings left: %+v, want the late one's", left)
	}
}

func mustRemove(t *testing.T, r *Replica, flows []policy.Flow) (removed int) {
	t.Helper()
	list := make([]Removal, len(flows))
	for i, f := range flows {
		list[i] = Removal{Key: f.FlowKey, To: f.To, Pin: f.Pin}
	}
	gone, err := r.Remove(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, is := range gone {
		if is {
			removed++
		}
	}
	return removed
}

// TestHandshakeOutlivesItsRouter: the first router fails between SYN and SYN-ACK.
func TestHandshakeOutlivesItsRouter(t *testing.T) {
	p := newPair(t, masqueradeWAN+`
		table inet deaf { chain pre { type filter hook prerouting priority raw; iifname "wan0" tcp flags & ack == ack drop; }; }`)
	var listener net.Listener
	err := inNamespace(p.wan, func() (err error) { listener, err = net.Listen("tcp", server7); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	dialled := make(chan error, 1)
	var client net.Conn
	go func() {
		dialled <- inNamespace(p.lan, func() (err error) {
			dialer := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.168.1.10:4000"))}
			client, err = dialer.Dial("tcp", server7)
			return err
		})
	}()
	var flows []policy.Flow
	await(t, "the first router tells of the SYN", func() bool { flows = p.told(t); return len(flows) == 1 })
	if flows[0].TCPState != uint8(conntrack.TCPSynSent) || flows[0].To != end(vip+":4000") {
		t.Fatalf("told %+v", flows[0])
	}
	mustInstall(t, p.peer, installations(flows), Installed)
	p.failOver(t)
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = accepted.Close() }()
	if got := accepted.RemoteAddr().String(); got != vip+":4000" {
		t.Errorf("the connection comes from %s", got)
	}
	both(t, client, accepted)
}

// TestFragmentsOfInstalledFlows: datagrams in pieces find their way, beside those
// of a flow that was born here and talks to the same host.
func TestFragmentsOfInstalledFlows(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	server := socket(t, l.wan, server7)
	installed, born := socket(t, l.lan, "192.168.1.10:4000"), socket(t, l.lan, "192.168.1.11:4001")
	flow := udpFlow("192.168.1.10:4000", vip+":4999", server7)
	l.mustBecome(t, Installation{Flow: &flow}, Installed)
	for range 3 {
		for _, c := range []struct {
			conn *net.UDPConn
			want string
		}{{born, vip + ":4001"}, {installed, vip + ":4999"}} {
			if got := exchangeOnce(t, c.conn, server, server7); got.String() != c.want {
				t.Errorf("it comes from %v, want %s", got, c.want)
			}
		}
	}
}
