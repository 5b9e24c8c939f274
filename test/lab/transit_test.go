// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"vippin/test/traffic"
)

// Hosts behind the further routers and the others reach each other, and a way
// that was narrowed says so to who sends more.
func TestFurtherRouters(t *testing.T) {
	t.Parallel()
	l := ForTest(t, "further", Options{Hosts: 1, SingleRouter: true, Transit: true, Inside: true})
	at := []netip.AddrPort{Port(Beyond.V4, testPort), Port(Beyond.V6, testPort)}
	server, err := traffic.Serve(l.BeyondHost.Do, traffic.ServerOptions{TCP: at, UDP: at})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ctx := testContext(t)
	for _, e := range [][2]netip.Addr{{Beyond.V4, WAN.RA.V4}, {Beyond.V6, WAN.RA.V6}} {
		for _, host := range []*Node{l.Hosts[0], l.DeepHost} {
			for _, proto := range []string{"tcp", "udp"} {
				seen, err := traffic.Ask(ctx, host.Do, proto, netip.AddrPort{}, Port(e[0], testPort), defaultTimeout)
				if err != nil || seen.Addr() != e[1] {
					t.Errorf("%s from %s arrives from %s (%v), want %s", proto, host.Name, seen, err, e[1])
				}
			}
		}
	}
	for _, e := range [][2]netip.Addr{{Beyond.V4, TransitWAN.V4}, {Beyond.V6, TransitWAN.V6}} {
		if err := l.Transit.Narrow("eth1", e[0], 1280); err != nil {
			t.Fatal(err)
		}
		socket, err := traffic.OpenErrorSocket(l.DeepHost.Do, "udp", netip.AddrPort{}, Port(e[0], testPort))
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		if err := socket.Send(make([]byte, 1400)); err != nil {
			t.Fatal(err)
		}
		told, err := socket.NextError(ctx)
		if err != nil || told.Errno != syscall.EMSGSIZE || told.MTU != 1280 || told.Offender != e[1] || told.Local {
			t.Errorf("told of %+v (%v), want an MTU of 1280 by %s", told, err, e[1])
		}
		if mtu, err := socket.MTU(); err != nil || mtu != 1280 {
			t.Errorf("the path's MTU is %d (%v), want 1280", mtu, err)
		}
		if err := socket.Send(make([]byte, 1400)); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("send too much: %v, want %v", err, syscall.EMSGSIZE)
		}
	}
}
