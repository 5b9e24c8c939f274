// SPDX-License-Identifier: Apache-2.0

package bpf

import "testing"

const actRedirect = uint32(7) // TC_ACT_REDIRECT

// On a bridge an answer that got the local end comes in once more where netfilter may
// have seen it before, and nothing else does: it would come in for ever.
func TestComesInAgain(t *testing.T) {
	for name, c := range map[string]struct {
		d    *dataplane
		want uint32 // of an answer on a bridge
	}{
		"conntrack": {newDataplane(t), actUnspec}, // what the test run gives was on no port
		"marks":     {newMarked(t), actRedirect},
	} {
		d := c.d
		onBridge := func(bridged uint8) {
			put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot, HasL2: 1, Bridged: bridged})
		}
		expect := func(t *testing.T, what, direction string, fl flow, want uint32) {
			t.Helper()
			d.unmapFlows(t)
			d.mapFlow(t, fl)
			in, _ := fl.frames(direction)
			for _, way := range []string{"the long way", "a shortcut"} {
				if got := run(t, d.program(direction), in.bytes(t), forwarded, checksumNone); got.action != want {
					t.Errorf("%s, %s: action %d, want %d", what, way, int32(got.action), int32(want))
				}
			}
		}
		eachFlow(t, func(t *testing.T, direction string, fl flow) {
			want := actUnspec
			if direction == ingress {
				want = c.want
			}
			onBridge(1)
			expect(t, name+" on a bridge", direction, fl, want)
			native := fl
			native.local, native.flags = fl.public, DataplaneMappingFlagsMAPPING_NATIVE
			expect(t, name+" on a bridge, native", direction, native, actUnspec)
			onBridge(0)
			expect(t, name+" on no bridge", direction, fl, actUnspec)
		})
	}
}
