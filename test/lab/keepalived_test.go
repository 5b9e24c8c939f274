// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"vippin/test/traffic"
)

// A crash leaves the VIPs on the dead router's interfaces; the other one takes
// them within VRRP's time, and traffic goes through it.
func TestCrashMovesVIP(t *testing.T) {
	l := ForTest(t, "crash", Options{Hosts: 1})
	ctx := testContext(t)
	if err := l.StartRouters(ctx, Keepalived{}); err != nil {
		t.Fatal(err)
	}
	server := serve(t, l)
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN.V4), WAN.RA.V4)
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN.V6), WAN.RA.V6)

	child, err := l.RA.VRRPPid()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := l.RA.Keepalived().Kill9(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(child, 0); err == nil {
		if living, _ := livingInside(l.RA.NS); len(living) > 0 {
			t.Errorf("keepalived's child %d outlived the crash", child)
		}
	}
	if err := l.RB.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("the VIPs moved after %s, want about 300 ms: an end without a word", took)
	}
	if every, _, err := l.RA.IsMaster(); err != nil || !every {
		t.Errorf("the crashed router lost its VIPs (%v): that was a graceful end", err)
	}
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN.V4), WAN.RB.V4)
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN.V6), WAN.RB.V6)
}

// What the project sets out to change: a flow that is masqueraded behind the
// dying router's own address does not survive.
func TestHardKillBreaksMasqueradedFlows(t *testing.T) {
	l := ForTest(t, "hard", Options{Hosts: 1, Firewall: true})
	ctx := testContext(t)
	if err := l.StartRouters(ctx, Keepalived{}); err != nil {
		t.Fatal(err)
	}
	server := serve(t, l)
	flow, err := traffic.StartFlow(ctx, l.Hosts[0].Do, traffic.FlowOptions{
		Proto: "tcp", Remote: Port(ServerWAN.V4, testPort), Interval: 20 * time.Millisecond, Timeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.HardKill(l.RA); err != nil {
		t.Fatal(err)
	}
	if err := l.RB.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-flow.Done():
	case <-ctx.Done():
		t.Error("the flow survived")
	}
	if report := flow.Stop(); !report.Broken() {
		t.Errorf("the flow ended without an error: %+v", report)
	}
	if err := l.PowerOn(ctx, l.RA); err != nil {
		t.Fatal(err)
	}
	if _, err := l.StartKeepalived(l.RA, Keepalived{}); err != nil {
		t.Fatal(err)
	}
	if err := l.RA.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.RB.AwaitBackup(ctx); err != nil {
		t.Fatal(err)
	}
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN.V4), WAN.RA.V4)
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN.V6), WAN.RA.V6)
}

// Adverts lost in one direction make two masters; the better one never hears
// of the other until the block is lifted.
func TestOneWayBlockMakesTwoMasters(t *testing.T) {
	l := ForTest(t, "oneway", Options{Hosts: 1})
	ctx := testContext(t)
	if err := l.StartRouters(ctx, Keepalived{}); err != nil {
		t.Fatal(err)
	}
	if err := l.BlockAdverts(ctx, l.RB, l.RA); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond) // nothing must happen: rb says nothing anyway
	if _, some, err := l.RB.IsMaster(); err != nil || some {
		t.Fatalf("the block in the wrong direction made rb MASTER (%v)", err)
	}
	if err := l.BlockAdverts(ctx, l.RA, l.RB); err != nil {
		t.Fatal(err)
	}
	for _, r := range l.Routers() {
		if err := r.AwaitMaster(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.UnblockAdverts(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.RB.AwaitBackup(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.RA.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
}

// A carrier that is lost on one segment moves every VIP: the sync group.
func TestCutCableFailsOver(t *testing.T) {
	l := ForTest(t, "cable", Options{Hosts: 1, WAN1: true})
	ctx := testContext(t)
	if err := l.StartRouters(ctx, Keepalived{}); err != nil {
		t.Fatal(err)
	}
	server := serve(t, l)
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN1.V4), WAN1.RA.V4)
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN1.V6), WAN1.RA.V6)
	if err := l.CutCable(l.RA, WAN1); err != nil {
		t.Fatal(err)
	}
	if err := l.RB.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.RA.AwaitBackup(ctx); err != nil {
		t.Fatal(err)
	}
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN1.V4), WAN1.RB.V4)
	if err := l.PlugCable(l.RA, WAN1); err != nil {
		t.Fatal(err)
	}
	if err := l.RA.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
}

// vmacOf is the virtual MAC of RFC 9568 section 7.3.
func vmacOf(s Segment) string {
	return net.HardwareAddr{0, 0, 0x5e, 0, 1, s.VRID}.String()
}

// isAdvert finds the adverts that a router sends on the IPv4 WAN.
func isAdvert(f traffic.Frame, from netip.Addr) *layers.IPv4 {
	ip, ok := f.Packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if !ok || !f.Outgoing || ip.SrcIP.String() != from.String() {
		return nil
	}
	if ip.Protocol != layers.IPProtocolVRRP && ip.Protocol != layers.IPProtocolAH {
		return nil
	}
	return ip
}

// Every mode of keepalived comes up on both routers, and its adverts are on
// the wire as the mode says.
func TestKeepalivedModes(t *testing.T) {
	const multicast = "224.0.0.18" // RFC 9568 section 1.2
	modes := []struct {
		name        string
		keepalived  Keepalived
		version     byte // first half of the VRRP header's first octet
		protocol    layers.IPProtocol
		destination string
		sourceMAC   string // "" = not the virtual one
	}{
		{"v3", Keepalived{}, 3, 112, multicast, ""},
		{"v3 nopreempt", Keepalived{NoPreempt: true}, 3, 112, multicast, ""},
		{"v2", Keepalived{Version: 2}, 2, 112, multicast, ""},
		{"v2 PASS", Keepalived{Version: 2, Auth: AuthPass}, 2, 112, multicast, ""},
		{"v2 AH", Keepalived{Version: 2, Auth: AuthAH}, 2, 51, multicast, ""},
		{"unicast", Keepalived{Unicast: true}, 3, 112, WAN.RB.V4.String(), ""},
		{"vmac", Keepalived{VMAC: true}, 3, 112, multicast, vmacOf(WAN)},
		{"vmac xmit_base", Keepalived{VMAC: true, VMACXmitBase: true}, 3, 112, multicast, ""},
	}
	for i, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			l := ForTest(t, fmt.Sprintf("mode%d", i), Options{Hosts: 1})
			ctx := testContext(t)
			wire, err := traffic.StartCapture(l.RA.Do, WAN.Name)
			if err != nil {
				t.Fatal(err)
			}
			defer wire.Close()
			if err := l.StartRouters(ctx, mode.keepalived); err != nil {
				t.Fatal(err)
			}
			fromRA := func(f traffic.Frame) bool { return isAdvert(f, WAN.RA.V4) != nil }
			// Four intervals later rb would be MASTER too if it did not hear ra.
			adverts, err := wire.Await(ctx, len(wire.Frames(fromRA))+5, fromRA)
			if err != nil {
				t.Fatal(err)
			}
			if _, some, err := l.RB.IsMaster(); err != nil || some {
				t.Errorf("both routers are MASTER (%v)", err)
			}
			ip := isAdvert(adverts[0], WAN.RA.V4)
			payload := ip.Payload
			if ip.Protocol == layers.IPProtocolAH {
				payload = payload[24:] // RFC 4302 section 2, with a 96-bit check value
			}
			if version := payload[0] >> 4; version != mode.version || ip.Protocol != mode.protocol || ip.DstIP.String() != mode.destination {
				t.Errorf("advert: version %d, protocol %s, to %s", version, ip.Protocol, ip.DstIP)
			}
			mac := adverts[0].Packet.LinkLayer().(*layers.Ethernet).SrcMAC.String()
			if virtual := strings.HasPrefix(mac, "00:00:5e:"); virtual != (mode.sourceMAC != "") || virtual && mac != mode.sourceMAC {
				t.Errorf("advert: from %s, want %q", mac, mode.sourceMAC)
			}
			if err := l.RA.Keepalived().Stop(); err != nil {
				t.Fatal(err)
			}
			if err := l.RB.AwaitMaster(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// With nopreempt a better router that comes back stays BACKUP.
func TestNoPreemptKeepsTheBackup(t *testing.T) {
	l := ForTest(t, "nopre", Options{Hosts: 1})
	ctx := testContext(t)
	if err := l.StartRouters(ctx, Keepalived{NoPreempt: true}); err != nil {
		t.Fatal(err)
	}
	if err := l.RA.Keepalived().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.RB.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
	p, err := l.StartKeepalived(l.RA, Keepalived{NoPreempt: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AwaitLog(ctx, "Entering BACKUP STATE"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(700 * time.Millisecond) // twice what taking over would need
	if _, some, err := l.RA.IsMaster(); err != nil || some {
		t.Errorf("ra took the VIPs back (%v)", err)
	}
	if every, _, err := l.RB.IsMaster(); err != nil || !every {
		t.Errorf("rb lost its VIPs (%v)", err)
	}
}
