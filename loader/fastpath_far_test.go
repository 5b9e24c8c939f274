// SPDX-License-Identifier: Apache-2.0

package loader

import "testing"

// TestFastpathFarTraffic: interfaces whose numbers are too large for fast_devices
// forward as others do, until they are taken off.
func TestFastpathFarTraffic(t *testing.T) {
	const lan, wan = nearIfaces, 70000
	l := newForwardingLabAt(t, lan, wan)
	_, f := l.open(t, testBPFFS(t), FastpathOptions{})
	far, err := readMap[uint32, fastDeviceValue](f.maps.FarDevices)
	if err != nil || len(far) != 2 || far[lan].Number == 0 || far[wan].Number == 0 {
		t.Fatalf("fast_far_devices has %+v, %v", far, err)
	}
	c := l.dial(t, "flow", "udp4", "192.168.1.10:43000")
	l.awaitForwarding(t, f, c)
	if source := l.source(t, "flow"); source.Addr().String() != vip {
		t.Errorf("the flow comes from %v, want %s", source, vip)
	}
	before, arrived := packetsOf(t, f), l.arrived("flow")
	const asked = 20
	for range asked {
		mustAsk(t, c)
	}
	if got := packetsOf(t, f)["forwarded"] - before["forwarded"]; got < 2*asked {
		t.Errorf("%d packets of %d took the fast path", got, 2*asked)
	}
	if got := l.arrived("flow") - arrived; got < asked {
		t.Errorf("%d datagrams of %d arrived", got, asked)
	}
	mustAttach(t, f)
	if far, err := readMap[uint32, fastDeviceValue](f.maps.FarDevices); err != nil || len(far) != 0 {
		t.Errorf("taken off, fast_far_devices has %+v, %v", far, err)
	}
	for _, ifindex := range []int{lan, wan} {
		if on, err := readXDP(ifindex); err != nil || on.program != 0 {
			t.Errorf("taken off, interface %d has %+v, %v", ifindex, on, err)
		}
	}
	before = packetsOf(t, f)
	mustAsk(t, c, c, c)
	if got := packetsOf(t, f)["forwarded"]; got != before["forwarded"] {
		t.Errorf("taken off, %d packets took the fast path", got-before["forwarded"])
	}
	l.source(t, "flow")
}
