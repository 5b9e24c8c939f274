// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"testing"
)

// A jumbo frame comes in several buffers, of which the program sees the first one;
// one that is shorter than its IP header says takes the stack all the same.
func TestFastJumbo(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		in.payload = bytes.Repeat([]byte("jumbo"), 1700)
		in.tags = []tag{{0x8100, 20}}
		fl := f.snat(in, nil)
		f.enter(t, fl, 0)
		hop := f.setHop(t, nil, fastElsewhere)
		hop.Mtu = 9000
		put(t, f.FastHops, uint32(fastHop), hop)
		f.forwards(t, fl, 0, xdpRedirect)
		whole := fl.in.bytes(t)
		if action, _ := f.run(t, whole[:len(whole)-1], nil); action != xdpPass {
			t.Errorf("action %d for a frame that lacks an octet, want %d", action, xdpPass)
		}
		sameCounts(t, "exits", f.exits(t), map[FastpathFastExit]uint64{FastpathFastExitFAST_NOT_IP: 1})
	})
}
