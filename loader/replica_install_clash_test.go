// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// udpFlow is a pinned flow as a peer tells it, from an inside end to the lab's
// server.
func udpFlow(src, public, server string) policy.Flow {
	flow := policy.Flow{
		FlowKey: policy.FlowKey{Src: end(src), Dst: end(server), Proto: unix.IPPROTO_UDP},
		From:    end(server), To: end(public), Group: "core",
		Pin: policy.PinName{VLAN: policy.VLAN{Outer: 2}, VIP: netip.MustParseAddr(vip)}, Timeout: 30 * time.Second,
	}
	if flow.To.IP().Is6() {
		flow.Pin.VIP = netip.MustParseAddr(vip6)
	}
	return flow
}

// mustBecome installs one flow.
func (l *replicaLab) mustBecome(t *testing.T, in Installation, want Outcome) {
	t.Helper()
	mustInstall(t, l.replica, []Installation{in}, want)
}

// halves counts what both maps hold of mappings.
func halves(t *testing.T, d *Dataplane) (local, public int) {
	t.Helper()
	err := scanMap(d.maps.ByLocal, func(flowKey, publicEnd) bool { local++; return true })
	if err == nil {
		err = scanMap(d.maps.ByPublic, func(flowKey, localEnd) bool { public++; return true })
	}
	if err != nil {
		t.Fatal(err)
	}
	return local, public
}

func (l *replicaLab) mustHaveMappings(t *testing.T, want int) {
	t.Helper()
	if local, public := halves(t, l.d); local != want || public != want {
		t.Errorf("%d local and %d public halves of mappings, want %d", local, public, want)
	}
}

const server7 = "198.51.100.9:7000"

// TestClashWithOthers: a public end that somebody else uses is refused, and
// nothing is left behind.
func TestClashWithOthers(t *testing.T) {
	l := newReplicaLab(t, `table inet nat { chain post { type nat hook postrouting priority srcnat;
		ip saddr 198.51.100.2 accept; udp sport 4002 oifname "wan0" snat ip to 198.51.100.2; oifname "wan0" masquerade; }; }`)
	server := socket(t, l.wan, server7)
	// A service of the router.
	own, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(vip+":4001")), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(server7)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	if _, err := own.Write([]byte("ask")); err != nil {
		t.Fatal(err)
	}
	// The user's own translation to the VIP, and a mapping.
	snat := socket(t, l.lan, "192.168.1.10:4002")
	if got := exchangeAny(t, snat, server, server7, "198.51.100.2:4002"); got.Port() != 4002 {
		t.Fatalf("the user's flow comes from %v", got)
	}
	pinned := socket(t, l.lan, "192.168.1.10:4003")
	if got := exchange(t, pinned, server, server7); got.String() != vip+":4003" {
		t.Fatalf("the pinned flow comes from %v", got)
	}
	l.mustHaveMappings(t, 1)
	for _, public := range []string{":4001", ":4002", ":4003"} {
		flow := udpFlow("192.168.1.11:5000", vip+public, server7)
		l.mustBecome(t, Installation{Flow: &flow}, RefusedClash)
		l.mustBecome(t, Installation{Flow: &flow, Replace: true}, RefusedClash)
		l.mustBecome(t, Installation{Flow: &flow, Known: true}, RefusedClash)
	}
	l.mustHaveMappings(t, 1)
	if got := exchangeAny(t, pinned, server, server7, vip+":4003"); got.String() != vip+":4003" {
		t.Errorf("the pinned flow comes from %v afterwards", got)
	}
	if got := exchangeAny(t, snat, server, server7, vip+":4002"); got.String() != vip+":4002" {
		t.Errorf("the user's flow comes from %v afterwards", got)
	}
}

// exchangeAny is exchange, over what else the server was sent.
func exchangeAny(t *testing.T, client, server *net.UDPConn, to, from string) (got netip.AddrPort) {
	t.Helper()
	for range 5 {
		if got = exchange(t, client, server, to); got.String() == from {
			break
		}
	}
	return got
}

// TestBornHere: a flow that comes back to its own router is recognised by its
// public end; with another one it is replaced only when that is wanted.
func TestBornHere(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	server, client := socket(t, l.wan, server7), socket(t, l.lan, "192.168.1.10:4000")
	for range 3 { // it has a shortcut, then
		exchange(t, client, server, server7)
	}
	flow := udpFlow("192.168.1.10:4000", vip+":4000", server7)
	l.mustBecome(t, Installation{Flow: &flow}, Here)
	entry, err := l.replica.conn.Get(origTuple(&flow.FlowKey))
	if err != nil || entry.Reply.Dst.String() != unique || entry.Timeout < 50*time.Minute {
		t.Errorf("entry %+v, %v, want its own with the standby timeout", entry, err)
	}
	if got := exchange(t, client, server, server7); got.String() != vip+":4000" {
		t.Errorf("it comes from %v", got)
	}
	l.mustHaveMappings(t, 1)
	other := udpFlow("192.168.1.10:4000", vip+":4999", server7)
	l.mustBecome(t, Installation{Flow: &other}, RefusedClash)
	l.mustHaveMappings(t, 1)
	if got := exchange(t, client, server, server7); got.String() != vip+":4000" {
		t.Errorf("it comes from %v after a refusal", got)
	}
	l.mustBecome(t, Installation{Flow: &other, Replace: true}, Installed)
	l.mustHaveMappings(t, 1)
	if got := exchange(t, client, server, server7); got.String() != vip+":4999" {
		t.Errorf("it comes from %v after it was replaced", got)
	}
}

// TestBytesPassedElsewhere: a connection that was born here went on through the
// peer, so what conntrack remembers of its numbers is of no use.
func TestBytesPassedElsewhere(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	client, server := connect(t, l.lan, l.wan, "192.168.1.10:4000", server7, server7)
	both(t, client, server)
	flow := udpFlow("192.168.1.10:4000", vip+":4000", server7)
	flow.Proto, flow.TCPState, flow.Bits = unix.IPPROTO_TCP, uint8(conntrack.TCPEstablished), policy.FlowSeenReply
	before, err := l.replica.conn.Get(origTuple(&flow.FlowKey))
	if err != nil || before.TCP.OrigFlags&conntrack.TCPMaxAckSet == 0 || before.TCP.OrigFlags&conntrack.TCPLiberal != 0 {
		t.Fatalf("entry %+v, TCP %+v, %v", before, before.TCP, err)
	}
	l.mustBecome(t, Installation{Flow: &flow}, Here)
	after, err := l.replica.conn.Get(origTuple(&flow.FlowKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, flags := range []conntrack.TCPFlags{after.TCP.OrigFlags, after.TCP.ReplyFlags} {
		if flags&(conntrack.TCPLiberal|conntrack.TCPMaxAckSet) != conntrack.TCPLiberal {
			t.Errorf("TCP %+v, want liberal windows and no highest acknowledgement", after.TCP)
		}
	}
	both(t, client, server)
}

// TestMappingInItsGrace: a public end whose flow has gone, though nobody has
// swept the mapping yet, is taken over, and no shortcut leads to the old local
// end.
func TestMappingInItsGrace(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	server, client := socket(t, l.wan, server7), socket(t, l.lan, "192.168.1.10:4000")
	for range 3 {
		exchange(t, client, server, server7)
	}
	flow := udpFlow("192.168.1.10:4000", vip+":4000", server7)
	results, err := l.replica.conn.Delete([]conntrack.Ref{{Orig: origTuple(&flow.FlowKey)}})
	if err != nil || results[0] != nil {
		t.Fatal(err, results)
	}
	l.mustBecome(t, Installation{Flow: &flow}, Installed)
	l.mustHaveMappings(t, 1)
	if got := exchangeOnce(t, client, server, server7); got.String() != vip+":4000" {
		t.Errorf("it comes from %v", got)
	}
	if m := mapped(t, l.d)[wireEndOf{unix.IPPROTO_UDP, netip.MustParseAddrPort(vip + ":4000")}]; !m.Native || m.Local != m.Public {
		t.Errorf("mapping %+v", m)
	}
}

// exchangeOnce is exchange with one datagram each way, which is sent in pieces.
func exchangeOnce(t *testing.T, client, server *net.UDPConn, to string) netip.AddrPort {
	t.Helper()
	buffer := make([]byte, 4000)
	deadline := time.Now().Add(patience)
	_, _ = client.SetDeadline(deadline), server.SetDeadline(deadline)
	if _, err := client.WriteToUDPAddrPort(buffer, netip.MustParseAddrPort(to)); err != nil {
		t.Fatal(err)
	}
	_, from, err := server.ReadFromUDPAddrPort(buffer)
	if err == nil {
		_, err = server.WriteToUDPAddrPort(buffer, from)
	}
	if err == nil {
		_, _, err = client.ReadFromUDPAddrPort(buffer)
	}
	if err != nil {
		t.Fatalf("one datagram each way: %v", err)
	}
	return unmap(from)
}

// TestAdopted: what is there already as it should be is taken for installed, with
// or without its mapping.
func TestAdopted(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	flow := udpFlow("192.168.1.10:4000", vip+":4000", server7)
	flow.Mark = 3
	l.mustBecome(t, Installation{Flow: &flow}, Installed)
	flow.Mark = 4
	l.mustBecome(t, Installation{Flow: &flow}, Adopted)
	l.mustHaveMappings(t, 1)
	bare := flow
	bare.Src, bare.To = end("192.168.1.11:4000"), end(vip+":4001")
	results, err := l.replica.conn.Create([]conntrack.Entry{{Orig: origTuple(&bare.FlowKey), NATSrc: wireEnd(bare.To), Timeout: time.Minute}})
	if err != nil || results[0] != nil {
		t.Fatal(err, results)
	}
	l.mustBecome(t, Installation{Flow: &bare}, Adopted) // conntrackd was faster
	l.mustHaveMappings(t, 2)
	for _, f := range []policy.Flow{flow, bare} {
		entry, err := l.replica.conn.Get(origTuple(&f.FlowKey))
		if err != nil || entry.Mark != 4 || entry.Timeout < 50*time.Minute {
			t.Errorf("entry %+v, %v", entry, err)
		}
	}
	// Known, but the kernel has lost it.
	if removed := mustRemove(t, l.replica, []policy.Flow{flow}); removed != 1 {
		t.Fatalf("%d removed", removed)
	}
	l.mustBecome(t, Installation{Flow: &flow, Known: true}, Installed)
	l.mustBecome(t, Installation{Flow: &flow, Known: true}, Updated)
	l.mustHaveMappings(t, 2)
}

// TestImpossibleFlows: a peer cannot make entries that no flow has, or take
// addresses that are no VIPs.
func TestImpossibleFlows(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	for want, spoilers := range map[Outcome][]func(*policy.Flow){
		RefusedNoPin: {
			func(f *policy.Flow) { f.Pin.VLAN.Outer = 3 },
			func(f *policy.Flow) { f.Pin.VIP = netip.MustParseAddr("198.51.100.77") },
			func(f *policy.Flow) { f.To = end("198.51.100.77:4000") },
		},
		RefusedInvalid: {
			func(f *policy.Flow) { f.Src = end("[2001:db8::1]:1") },
			func(f *policy.Flow) { f.From = policy.End{} },
			func(f *policy.Flow) { f.Proto = unix.IPPROTO_ICMPV6 },
			func(f *policy.Flow) { f.Proto = unix.IPPROTO_SCTP },
			func(f *policy.Flow) { f.Proto, f.TCPState = unix.IPPROTO_TCP, 12 },
			func(f *policy.Flow) { f.Proto, f.TCPScale[1] = unix.IPPROTO_TCP, 15 },
			func(f *policy.Flow) { f.Dst, f.From = end("224.0.0.1:1"), end("224.0.0.1:1") },
		},
	} {
		for i, spoil := range spoilers {
			flow := udpFlow("192.168.1.10:4000", vip+":4000", server7)
			spoil(&flow)
			outcomes, err := l.replica.Install([]Installation{{Flow: &flow}, {Flow: &flow, Known: true}})
			if err != nil || outcomes[0] != want || outcomes[1] != want {
				t.Errorf("%v, number %d: %v, %v", want, i, outcomes, err)
			}
		}
	}
	l.mustHaveMappings(t, 0)
	if used, _, err := l.replica.conn.Usage(); err != nil || used > 20 {
		t.Errorf("%d entries, %v", used, err)
	}
}

// TestNearlyFull: what does not fit is refused, whether maps or conntrack are
// short, and what is there already goes on.
func TestNearlyFull(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	list := manyFlows(4096)
	outcomes, err := l.replica.Install(list)
	if err != nil {
		t.Fatal(err)
	}
	count := make(map[Outcome]int)
	for _, outcome := range outcomes {
		count[outcome]++
	}
	room := 4096 * roomPercent / 100
	if count[Installed] != room || count[RefusedFull] != 4096-room {
		t.Errorf("%v, want %d installed", count, room)
	}
	l.mustHaveMappings(t, room)
	mustRemove(t, l.replica, []policy.Flow{*list[0].Flow})
	l.replica.installer.room = room95(1000, 900)
	l.mustBecome(t, list[0], Installed)
	mustRemove(t, l.replica, []policy.Flow{*list[0].Flow})
	l.replica.installer.room = room95(0, 950) // no limit
	l.mustBecome(t, list[0], Installed)
	l.replica.installer.room = room95(1000, 950)
	late := udpFlow("192.168.1.10:4000", vip+":4000", server7)
	l.mustBecome(t, Installation{Flow: &late}, RefusedFull)
	unpinned := late
	unpinned.Pin = policy.PinName{}
	l.mustBecome(t, Installation{Flow: &unpinned}, RefusedFull)
	l.mustBecome(t, list[1], Adopted)
	known := list[2]
	known.Known = true
	l.mustBecome(t, known, Updated)
	l.mustHaveMappings(t, room)
}

// room95 is that of a conntrack table of a size.
func room95(most, used uint32) room {
	return room{usage: func() (uint32, uint32, error) { return used, most, nil }}
}
