// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// timed is a flow of a protocol in a state.
type timed struct {
	name string
	flow policy.Flow
	want time.Duration // after Normalise
}

// timedFlows are pinned flows in the states that matter, with what the kernel's
// defaults give them.
func timedFlows() []timed {
	established := uint8(conntrack.TCPEstablished)
	both := policy.FlowSeenReply | policy.FlowAssured
	var list []timed
	add := func(name string, proto uint8, bits policy.FlowBits, want time.Duration, change func(*policy.Flow)) {
		port := uint16(4000 + len(list))
		flow := udpFlow("192.168.1.10:4000", vip+":4000", server7)
		if proto == unix.IPPROTO_ICMPV6 {
			flow = udpFlow("[2001:db8:1::10]:4000", "["+vip6+"]:4000", "[2001:db8:100::9]:7000")
		}
		flow.Proto, flow.Bits, flow.Src.Port, flow.To.Port = proto, bits, port, port
		change(&flow)
		list = append(list, timed{name, flow, want})
	}
	tcp := func(state conntrack.TCPState) func(*policy.Flow) {
		return func(f *policy.Flow) { f.TCPState = uint8(state) }
	}
	portless := func(f *policy.Flow) { f.Src.Port, f.To.Port, f.From.Port, f.Dst.Port = 0, 0, 0, 0 }
	echo := func(f *policy.Flow) { f.From.Port, f.Dst.Port = 0, 0 }
	add("TCP", unix.IPPROTO_TCP, both, 432000*time.Second, tcp(conntrack.TCPState(established)))
	add("TCP, begun", unix.IPPROTO_TCP, 0, 120*time.Second, tcp(conntrack.TCPSynSent))
	add("TCP, half closed", unix.IPPROTO_TCP, both, 120*time.Second, tcp(conntrack.TCPFinWait))
	add("TCP, over", unix.IPPROTO_TCP, both, 30*time.Second, tcp(conntrack.TCPTimeWait)) // as told
	add("UDP", unix.IPPROTO_UDP, 0, 30*time.Second, func(*policy.Flow) {})
	add("UDP, answered", unix.IPPROTO_UDP, policy.FlowSeenReply, 30*time.Second, func(*policy.Flow) {})
	add("UDP stream", unix.IPPROTO_UDP, both, 120*time.Second, func(*policy.Flow) {})
	add("ping", unix.IPPROTO_ICMP, policy.FlowSeenReply, 30*time.Second, echo)
	add("IPv6 ping", unix.IPPROTO_ICMPV6, policy.FlowSeenReply, 30*time.Second, echo)
	add("SCTP", unix.IPPROTO_SCTP, both, 210*time.Second, func(f *policy.Flow) {
		f.Extra = &policy.FlowExtra{SCTPState: 4, SCTPTags: [2]uint32{1, 2}}
	})
	add("ESP", unix.IPPROTO_ESP, 0, 600*time.Second, portless)
	add("GRE", unix.IPPROTO_GRE, both, time.Hour, portless) // no packet would prolong it
	return list
}

func (l *replicaLab) timeoutOf(t *testing.T, key policy.FlowKey) time.Duration {
	t.Helper()
	entry, err := l.replica.conn.Get(origTuple(&key))
	if err != nil {
		t.Fatal(err)
	}
	return entry.Timeout
}

// within tells whether a timeout was set to want not long ago.
func within(got, want time.Duration) bool { return got <= want && got > want-15*time.Second }

// TestNormalise: after a takeover flows get the timeouts of their protocol and
// state, in one go, but not those that a packet has given one, or that were not
// installed.
func TestNormalise(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	list := timedFlows()
	var flows []policy.Flow
	for _, one := range list {
		flows = append(flows, one.flow)
	}
	mustInstall(t, l.replica, installations(flows), Installed)
	for _, one := range list {
		if want := time.Hour; one.name != "TCP, over" && !within(l.timeoutOf(t, one.flow.FlowKey), want) {
			t.Errorf("%s has %v on standby", one.name, l.timeoutOf(t, one.flow.FlowKey))
		}
	}
	// One has seen a packet, one is nobody's.
	busy, strange := flows[4], udpFlow("192.168.1.11:4999", vip+":4999", server7)
	mustInstall(t, l.replica, installations([]policy.Flow{strange}), Installed)
	sooner := []conntrack.Change{{Tuple: origTuple(&busy.FlowKey), Timeout: 25 * time.Second}}
	if err := l.replica.conn.Update(sooner, func(_ int, err error) { t.Error(err) }); err != nil {
		t.Fatal(err)
	}
	changed, err := l.replica.Normalise(context.Background(), func(key *policy.FlowKey) bool { return *key != strange.FlowKey })
	if err != nil || changed != len(list)-3 { // without the busy, the one that is over, and GRE
		t.Errorf("changed %d, %v, want %d", changed, err, len(list)-3)
	}
	for _, one := range list {
		if got := l.timeoutOf(t, one.flow.FlowKey); !within(got, one.want) {
			t.Errorf("%s has %v, want %v", one.name, got, one.want)
		}
	}
	if got := l.timeoutOf(t, strange.FlowKey); !within(got, time.Hour) {
		t.Errorf("a flow that nobody named has %v", got)
	}
	if changed, err = l.replica.Normalise(context.Background(), func(*policy.FlowKey) bool { return true }); err != nil || changed != 1 {
		t.Errorf("changed %d the second time, %v, want the one left", changed, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.replica.Normalise(ctx, func(*policy.FlowKey) bool { return true }); err != nil {
		t.Errorf("a normalisation that was stopped: %v", err)
	}
}

// TestNormaliseReadsSysctls: the administrator's timeouts count.
func TestNormaliseReadsSysctls(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	if err := sysctls("net/netfilter/nf_conntrack_udp_timeout=77", "net/netfilter/nf_conntrack_tcp_timeout_established=7000"); err != nil {
		t.Fatal(err)
	}
	list := timedFlows()
	mustInstall(t, l.replica, installations([]policy.Flow{list[0].flow, list[4].flow}), Installed)
	changed, err := l.replica.Normalise(context.Background(), func(*policy.FlowKey) bool { return true })
	if err != nil || changed != 2 {
		t.Fatalf("changed %d, %v", changed, err)
	}
	if tcp, udp := l.timeoutOf(t, list[0].flow.FlowKey), l.timeoutOf(t, list[4].flow.FlowKey); !within(tcp, 7000*time.Second) || !within(udp, 77*time.Second) {
		t.Errorf("timeouts %v, %v, want 7000 s and 77 s", tcp, udp)
	}
}

// TestRefresh: every flow gets the standby timeout again, GRE too, whose own
// cannot be changed; what conntrack has lost is named.
func TestRefresh(t *testing.T) {
	l := newReplicaLab(t, masqueradeWAN)
	l.setSync(func(s *policy.SyncConfig) { s.StandbyTimeout = 10 * time.Minute })
	var flows []policy.Flow
	var keys []policy.FlowKey
	for _, one := range timedFlows() {
		if one.name != "TCP, over" {
			flows, keys = append(flows, one.flow), append(keys, one.flow.FlowKey)
		}
	}
	mustInstall(t, l.replica, installations(flows), Installed)
	lost := udpFlow("192.168.1.11:4999", vip+":4999", server7)
	keys = append(keys, lost.FlowKey)
	l.setSync(func(s *policy.SyncConfig) { s.StandbyTimeout = 20 * time.Minute })
	var missing []int
	if err := l.replica.Refresh(keys, func(i int) { missing = append(missing, i) }); err != nil {
		t.Fatal(err)
	}
	if len(missing) != 1 || missing[0] != len(keys)-1 {
		t.Errorf("missing %v, want the last of %d", missing, len(keys))
	}
	for i, f := range flows {
		entry, err := l.replica.conn.Get(wireTuple(&flows[i]))
		if err != nil || entry.Orig != origTuple(&f.FlowKey) || !within(entry.Timeout, 20*time.Minute) {
			t.Errorf("protocol %d: %+v, %v", f.Proto, entry, err)
		}
	}
	l.mustHaveMappings(t, len(flows))
}
