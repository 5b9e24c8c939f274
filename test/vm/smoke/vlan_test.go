// SPDX-License-Identifier: Apache-2.0

//go:build vmsmoke

package smoke

import (
	"net/netip"
	"slices"
	"testing"
)

// TestVLAN: a pin that names only a tag finds the 802.1Q interface, is switched
// on and off, and the server sees it; living flows keep the source they have.
func TestVLAN(t *testing.T) {
	newLab(t).tryVLAN(t, "", uniqueOf)
}

// TestVLANWithoutBTF: the same by the programs that nf_tables tells what
// conntrack knows. They cannot tell explicit SNAT from masquerade.
func TestVLANWithoutBTF(t *testing.T) {
	l := newLab(t)
	l.noBTF = true
	l.tryVLAN(t, "+marks", vipOf)
}

func (l *lab) tryVLAN(t *testing.T, marks string, explicit func(family) string) {
	l.serveSources(t)
	l.start(t, `pins: [{vlan: 2, vips: [198.51.100.2, "2001:db8:2::2"], enabled: false}]`)
	row := l.awaitPin(t, "MASTER", func(p pinRow) bool { return p.Role == "MASTER" })
	if row.VLAN != wanTag || row.Interface != wan || row.Enabled || row.EnabledBy != "config" {
		t.Fatalf("pin ls shows %+v; want vlan 2 on %s, off by config", row, wan)
	}
	l.awaitDaemon(t)
	l.wantAttached(t, marks)

	before := l.openAll(t, uniqueOf)
	l.verb(t, "pin", "on", "2")
	during := l.openAll(t, vipOf)
	l.tryExplicit(t, 40001, explicit(families[0]))
	before.unmoved(t, "after the pin was switched on")
	row = l.awaitPin(t, "on", func(p pinRow) bool { return p.Enabled })
	if row.EnabledBy != "toggle" || row.Flows < len(during) || row.PacketsPinned < len(during) {
		t.Errorf("pin ls shows %+v; want on by toggle, with at least %d flows", row, len(during))
	}

	l.verb(t, "pin", "off", "2")
	l.openAll(t, uniqueOf)
	before.unmoved(t, "after the pin was switched off")
	during.unmoved(t, "after the pin was switched off")

	if said, code := l.call("pin", "on", "2,3"); code != 1 {
		t.Errorf("pin on 2,3 (no pin has VLAN 3): exit %d, want 1: %s", code, said)
	}
	if row = l.awaitPin(t, "there", func(pinRow) bool { return true }); row.Enabled {
		t.Error("pin on 2,3 failed, but switched VLAN 2 on")
	}
	vips := slices.Clone(row.VIPs)
	slices.Sort(vips)
	if !slices.Equal(vips, []string{"198.51.100.2", "2001:db8:2::2"}) {
		t.Errorf("pin ls shows the VIPs %v", row.VIPs)
	}
}

func uniqueOf(f family) string { return f.unique }
func vipOf(f family) string    { return f.vip }

// sources are living flows and the source each had at first.
type sources map[*flow]netip.AddrPort

// openAll starts one flow of each protocol and family, pings too, and wants the
// server to see a certain address of the router.
func (l *lab) openAll(t *testing.T, want func(family) string) sources {
	t.Helper()
	opened := sources{}
	for _, f := range families {
		for _, network := range []string{"tcp", "udp"} {
			flow := l.open(t, network, f.server)
			seen := flow.source(t)
			if seen.Addr().String() != want(f) {
				t.Errorf("%s %s: the server sees %v, want %s", f.name, network, seen, want(f))
			}
			opened[flow] = seen
		}
		if seen := l.pingSource(t, f.server); seen.String() != want(f) {
			t.Errorf("%s ping: the server sees %v, want %s", f.name, seen, want(f))
		}
	}
	return opened
}

// unmoved wants each flow to work and to have its old source.
func (s sources) unmoved(t *testing.T, when string) {
	t.Helper()
	for flow, old := range s {
		if seen := flow.source(t); seen != old {
			t.Errorf("%s moved from %v to %v %s", flow.what, old, seen, when)
		}
	}
}
