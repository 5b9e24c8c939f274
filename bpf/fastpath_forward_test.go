// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// What a link may put before an IP packet.
var tagShapes = map[string][]tag{
	"untagged": nil,
	"802.1Q":   {{0x8100, 2}},
	"802.1ad":  {{0x88a8, 2}},
	"QinQ":     {{0x88a8, 100}, {0x8100, 20}},
	"Q in Q":   {{0x8100, 100}, {0x8100, 20}},
}

func eachFast(t *testing.T, do func(t *testing.T, in frame)) {
	for _, ipv6 := range []bool{false, true} {
		for _, proto := range []layers.IPProtocol{layers.IPProtocolUDP, layers.IPProtocolTCP} {
			in := fastFrame(ipv6, proto)
			t.Run(fmt.Sprintf("%v/ipv6=%v", proto, ipv6), func(t *testing.T) { do(t, in) })
		}
	}
}

// forwards wants a frame of the flow to leave translated, and to be counted.
func (f *fastpath) forwards(t *testing.T, fl *fastFlow, way int, action uint32) {
	t.Helper()
	before := f.fateOf(t, fl, way)
	in := fl.in.bytes(t)
	got, out := f.run(t, in, nil)
	if got != action {
		t.Errorf("action %d, want %d", got, action)
	}
	sameBytes(t, "frame", out, fl.bytesOut(t))
	sameCounts(t, "exits", f.exits(t), map[FastpathFastExit]uint64{FastpathFastExitFAST_FORWARDED: 1})
	want := before
	want.PacketsSeen += 1 << 16
	want.Bytes += uint64(len(in) - etherHeader - 4*len(fl.in.tags))
	after := f.fateOf(t, fl, way)
	if lag := uint16(after.PacketsSeen) - uint16(f.tick); lag > 30000 {
		t.Errorf("last seen %d ticks ago", -lag)
	}
	want.PacketsSeen = want.PacketsSeen&^0xffff | after.PacketsSeen&0xffff
	if after != want {
		t.Errorf("entry %+v, want %+v", after, want)
	}
	if n := f.note(t); n.Digest != 0 {
		t.Errorf("noted: %+v", n)
	}
}

// TestFastForwards: every shape of tags in and out, on the trunk it came by and
// on another device.
func TestFastForwards(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		for from, tagsIn := range tagShapes {
			for to, tagsOut := range tagShapes {
				t.Run(from+" to "+to, func(t *testing.T) {
					f.reset(t)
					in.tags = tagsIn
					fl := f.snat(in, tagsOut)
					f.enter(t, fl, 0)
					f.setHop(t, tagsOut, fastIn)
					f.forwards(t, fl, 0, xdpTX)
					f.setHop(t, tagsOut, fastElsewhere)
					f.forwards(t, fl, 0, xdpRedirect)
				})
			}
		}
	})
}

// A device whose driver does not send what XDP_TX turns back has it redirected there.
func TestFastTurns(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		put(t, f.FastDevices, uint32(loopback), FastpathFastDevice{Number: fastIn, Mac: [6]uint8(routerMAC)})
		put(t, f.FastOut, uint32(fastIn), uint32(loopback))
		defer func() { mustDo(t, f.FastOut.Delete(uint32(fastIn))) }()
		fl := f.snat(in, nil)
		f.enter(t, fl, 0)
		f.setHop(t, nil, fastIn)
		f.forwards(t, fl, 0, xdpRedirect)
	})
}

// Every way of a bucket is looked at, and the priority and drop bits of tags are no
// part of the key.
func TestFastWays(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		for way := range len(FastpathFast4Bucket{}.Way) {
			f.reset(t)
			in.tags = []tag{{0x88a8, 100}, {0x8100, 20}}
			fl := f.snat(in, []tag{{0x88a8, 0x6065}, {0x8100, 0xf014}})
			f.setHop(t, fl.out.tags, fastIn)
			f.enter(t, fl, way)
			fl.in.tags = []tag{{0x88a8, 0xf064}, {0x8100, 0xe014}}
			f.forwards(t, fl, way, xdpTX)
		}
	})
}
