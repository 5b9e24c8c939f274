// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// rehearsed is a lab whose router rehearses.
type rehearsed struct {
	*replicaLab
	t *testing.T
}

// try rehearses with flows, as of a peer that is MASTER of "core".
func (l rehearsed) try(ctx context.Context, flows []policy.Flow, change ...func(*Rehearsing)) policy.Rehearsal {
	l.t.Helper()
	seen, err := Observe()
	if err != nil {
		l.t.Fatal(err)
	}
	plan := onePin(l.ifindex, "wan0", true)
	what := Rehearsing{
		Flows: flows, Believed: map[string]bool{"core": true}, Plan: plan, Seen: seen,
		Pins: []policy.PinName{{VLAN: plan.Pins[0].VLAN, VIP: netip.MustParseAddr(vip)}, {VLAN: plan.Pins[0].VLAN, VIP: netip.MustParseAddr(vip6)}},
	}
	for _, change := range change {
		change(&what)
	}
	result, err := l.replica.Rehearse(ctx, what)
	if err != nil {
		l.t.Fatal(err)
	}
	return result
}

// fits checks that there is nothing to complain of.
func (l rehearsed) fits(what string, result policy.Rehearsal, flows int) {
	l.t.Helper()
	if result.Flows != uint64(flows) || result.Fit != result.Flows || len(result.Failures)+len(result.Missing) != 0 || !result.Complete || result.Note != "" {
		l.t.Errorf("%s: %+v, want %d flows that fit", what, result, flows)
	}
}

// fails checks that a rehearsal finds one fault of one kind, in so many flows.
func (l rehearsed) fails(what string, faults []policy.RehearsalFault, kind, why, example string, flows uint64) {
	l.t.Helper()
	if len(faults) != 1 {
		l.t.Errorf("%s: found %+v, want one fault, %s", what, faults, kind)
		return
	}
	fault := faults[0]
	if fault.What != kind || fault.Flows != flows || len(fault.Example) == 0 {
		l.t.Errorf("%s: found %+v, want %s of %d flows", what, fault, kind, flows)
		return
	}
	contains(l.t, fault.Why, why)
	contains(l.t, fault.Example[0], example)
}

// tableOf is a peer's table: TCP, UDP and SCTP flows, pings and GRE of two inside
// hosts from the same ports, by IPv4, and one by IPv6.
func tableOf(each int) (flows []policy.Flow) {
	for host := range 2 {
		src := fmt.Sprintf("192.168.1.1%d", host)
		for n := range each {
			flow := udpFlow(fmt.Sprintf("%s:%d", src, 20000+n), fmt.Sprintf("%s:%d", vip, 20000+2*n+host), server7)
			tcp := flow
			tcp.Proto, tcp.TCPState, tcp.Bits = unix.IPPROTO_TCP, uint8(conntrack.TCPEstablished), policy.FlowSeenReply|policy.FlowAssured
			sctp := flow
			sctp.Proto, sctp.Extra = unix.IPPROTO_SCTP, &policy.FlowExtra{SCTPState: 4, SCTPTags: [2]uint32{1, 2}}
			ping := flow
			ping.Proto, ping.Dst.Port, ping.From.Port = unix.IPPROTO_ICMP, 0, 0
			flows = append(flows, flow, tcp, sctp, ping)
		}
	}
	gre := udpFlow("192.168.1.10:0", vip+":0", "198.51.100.9:0")
	gre.Proto = unix.IPPROTO_GRE
	return append(flows, gre, udpFlow("[2001:db8:1::10]:20000", "["+vip6+"]:20000", "[2001:db8:100::9]:7000"))
}

// TestRehearsalFits: a whole table fits, and nothing here notices: traffic goes on,
// conntrack's table stays as it is, and no thread is left elsewhere.
func TestRehearsalFits(t *testing.T) {
	l := rehearsed{newReplicaLab(t, masqueradeWAN), t}
	server, client := socket(t, l.wan, server7), socket(t, l.lan, "192.168.1.10:4000")
	for range 3 { // it is assured, then
		exchange(t, client, server, server7)
	}
	listener, err := conntrack.Listen(conntrack.News | conntrack.Destroys)
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan conntrack.EventType, 1000)
	var listening sync.WaitGroup
	listening.Go(func() {
		_ = listener.Receive(context.Background(), func(e conntrack.Event) error { events <- e.Type; return nil })
	})
	defer listening.Wait()
	defer func() { _ = listener.Close() }()
	before, _, err := l.admin.Usage()
	if err != nil {
		t.Fatal(err)
	}
	places := namespaces(t)
	router, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = router.Close() }()
	table := tableOf(400)
	var result policy.Rehearsal
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = inNamespace(router, func() error { result = l.try(context.Background(), table); return nil })
	}()
	exchanges := 0
	for running := true; running; exchanges++ {
		exchange(t, client, server, server7)
		select {
		case <-done:
			running = false
		default:
		}
	}
	l.fits("a healthy router", result, len(table))
	after, _, err := l.admin.Usage()
	if err != nil || after != before || len(events) != 0 {
		t.Errorf("conntrack had %d entries, has %d, and told of %d (%v)", before, after, len(events), err)
	}
	l.mustHaveMappings(t, 1)
	for place := range namespaces(t) {
		if !places[place] {
			t.Errorf("a thread is still in %s", place)
		}
	}
	t.Logf("%d flows in %.0f ms, %d exchanges meanwhile", result.Flows, result.Took, exchanges)
}

// namespaces lists those that threads of this process are in.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	places := make(map[string]bool)
	for _, thread := range threads {
		if place, err := os.Readlink(thread); err == nil { // else it has just ended
			places[place] = true
		}
	}
	return places
}

// TestScratchTranslates: an entry in the scratch namespace is not only there, it
// works; and nothing is forwarded there.
func TestScratchTranslates(t *testing.T) {
	enterNamespace(t)
	flow := udpFlow("198.18.0.1:4000", vip+":5000", "203.0.113.9:7000")
	err := inScratch(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, text := range []string{"198.18.0.1/32", "203.0.113.9/32"} {
			addr, err := netlink.ParseAddr(text)
			if err == nil {
				err = netlink.AddrAdd(lo, addr)
			}
			if err != nil {
				return err
			}
		}
		forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err != nil || string(forward) != "0\n" {
			return fmt.Errorf("forwarding is %q, %v", forward, err)
		}
		conn, err := conntrack.Dial()
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		w := installing{Installation: Installation{Flow: &flow}}
		var entry conntrack.Entry
		w.entry(&entry, &installer{standby: time.Hour})
		if results, err := conn.Create([]conntrack.Entry{entry}); err != nil || results[0] != nil {
			return errors.Join(err, results[0])
		}
		server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(flow.Dst.AddrPort()))
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
		client, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(flow.Src.AddrPort()), net.UDPAddrFromAddrPort(flow.Dst.AddrPort()))
		if err != nil {
			return err
		}
		defer func() { _ = client.Close() }()
		if _, err := client.Write([]byte("ask")); err != nil {
			return err
		}
		_ = server.SetReadDeadline(time.Now().Add(patience))
		_, from, err := server.ReadFromUDPAddrPort(make([]byte, 10))
		if err != nil || from != flow.To.AddrPort() {
			return fmt.Errorf("the packet comes from %v, %v, want %v", from, err, flow.To)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
