// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"

	"golang.org/x/sys/unix"

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
