// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"testing"
)

// TestNoPort: no public end is free in the port's range, so the flow keeps the
// router's own address and works.
func TestNoPort(t *testing.T) {
	l := newLab(t)
	l.serve(t)
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	l.plan(t, d, true)
	server := netip.MustParseAddrPort("198.51.100.9:7777")
	for port := uint16(1); port < 512; port++ {
		occupy(t, d, "udp4", netip.AddrPortFrom(netip.MustParseAddr(vip), port), server)
	}
	low := l.dial(t, "low", "udp4", "192.168.1.10:300")
	high := l.dial(t, "high", "udp4", "192.168.1.10:3000")
	mustAsk(t, low, high)
	for name, want := range map[string]string{"low": unique + ":300", "high": vip + ":3000"} {
		if got := l.source(t, name).String(); got != want {
			t.Errorf("%s came from %s, want %s", name, got, want)
		}
	}
	counters, err := d.PinCounters()
	if err != nil || counters[1].Unpinned["no_port"] == 0 || counters[1].Created != 1 {
		t.Errorf("counters %+v, %v", counters[1], err)
	}
}
