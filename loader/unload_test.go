// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"vippin/policy"
)

const vip, unique = "198.51.100.2", "198.51.100.3"

// TestBornBefore: flows that live when a pin comes keep their source for ever,
// later ones get the VIP, and neither a toggle nor a second process changes
// that.
func TestBornBefore(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	oldTCP, oldUDP := l.dial(t, "old tcp", "tcp4", "192.168.1.10:41000"), l.dial(t, "old udp", "udp4", "192.168.1.10:41001")
	mustAsk(t, oldTCP, oldUDP)
	opts := Options{BPFFS: testBPFFS(t)}
	d := mustLoad(t, opts)
	l.plan(t, d, true)
	newTCP, newUDP := l.dial(t, "new tcp", "tcp4", "192.168.1.11:41000"), l.dial(t, "new udp", "udp4", "192.168.1.11:41001")
	mustAsk(t, oldTCP, oldUDP, newTCP, newUDP)
	if err := d.SetEnabled(1, false, policy.EnabledByToggle); err != nil {
		t.Fatal(err)
	}
	offUDP := l.dial(t, "off udp", "udp4", "192.168.1.11:41002")
	mustAsk(t, offUDP, newTCP)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = mustLoad(t, opts)
	l.plan(t, d, true)
	mustAsk(t, oldTCP, oldUDP, newTCP, newUDP, offUDP)
	for name, want := range map[string]string{"old tcp": unique, "old udp": unique, "new tcp": vip, "new udp": vip, "off udp": unique} {
		if got := l.source(t, name).Addr().String(); got != want {
			t.Errorf("%s came from %s, want %s", name, got, want)
		}
	}
	counters, err := d.PinCounters()
	if err != nil || counters[1].Created != 2 || counters[1].Unpinned["born_before"] == 0 || counters[1].Unpinned["off"] == 0 {
		t.Errorf("counters %+v, %v", counters[1], err)
	}
	if removed, err := d.Sweep(); err != nil || removed != 0 {
		t.Errorf("a sweep removed %d living flows (%v)", removed, err)
	}
}

// TestUnloadKeepsFlows: living flows go on with the same source, also those
// whose public port is not their own, while they are busy.
func TestUnloadKeepsFlows(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	l.plan(t, d, true)
	server := netip.MustParseAddrPort("198.51.100.9:7777")
	var clients []*client
	for i := range 5 {
		for _, network := range []string{"tcp4", "udp4"} {
			port := uint16(42000 + i)
			if i == 0 { // somebody else's: the flow must move to another port
				occupy(t, d, network, netip.AddrPortFrom(netip.MustParseAddr(vip), port), server)
			}
			for _, host := range []string{"10", "11"} { // both from the same port
				name := fmt.Sprintf("%s %s.%d", network, host, i)
				c := l.dial(t, name, network, fmt.Sprintf("192.168.1.%s:%d", host, port))
				mustAsk(t, c)
				clients = append(clients, c)
			}
		}
	}
	before := make(map[string]netip.AddrPort)
	moved := 0
	for _, c := range clients {
		before[c.name] = l.source(t, c.name)
		if before[c.name].Addr().String() != vip {
			t.Fatalf("%s comes from %v before the unload", c.name, before[c.name])
		}
	}
	err := d.Flows(func(m policy.Mapping) bool {
		if m.Local.Port() != m.Public.Port() {
			moved++
		}
		return true
	})
	if err != nil || moved < 2 {
		t.Fatalf("%d flows have another public port (%v), want 2 or more", moved, err)
	}

	var stop atomic.Bool
	var busy sync.WaitGroup
	asked := make([]int, len(clients))
	for i, c := range clients {
		busy.Go(func() {
			for !stop.Load() {
				if err := c.ask(); err != nil {
					t.Errorf("during the unload: %v", err)
					return
				}
				asked[i]++
			}
		})
	}
	report, err := d.Unload(false)
	stop.Store(true)
	busy.Wait()
	if err != nil || report != (UnloadReport{Converted: len(clients)}) {
		t.Errorf("unload: %+v, %v, want %d converted", report, err, len(clients))
	}
	if on, err := d.attached(l.ifindex); err != nil || on {
		t.Errorf("attached after unload: %v, %v", on, err)
	}
	mustAsk(t, clients...)
	for i, c := range clients {
		if got := l.source(t, c.name); got != before[c.name] {
			t.Errorf("%s came from %v, then from %v", c.name, before[c.name], got)
		}
		if asked[i] == 0 {
			t.Errorf("%s was idle during the unload", c.name)
		}
	}
	late := l.dial(t, "late", "udp4", "192.168.1.10:43000")
	mustAsk(t, late)
	if got := l.source(t, "late"); got.Addr().String() != unique {
		t.Errorf("a flow after the unload came from %v", got)
	}
}

// occupy takes a public end.
func occupy(t *testing.T, d *Dataplane, network string, public, remote netip.AddrPort) {
	t.Helper()
	proto := uint8(17)
	if network == "tcp4" {
		proto = 6
	}
	local := localEnd{Port: 1, Pin: 1, BornNs: uint64(monotonic())}
	local.Addr.Word = addrWords(netip.MustParseAddr("198.51.100.77"))
	if err := d.maps.ByPublic.Put(newFlowKey(1, proto, public, remote), local); err != nil {
		t.Fatal(err)
	}
}
