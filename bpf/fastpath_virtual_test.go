// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

const testVRID = 10

// routersMAC is a virtual router's of the packet's family.
func routersMAC(ipv6 bool) net.HardwareAddr {
	if ipv6 {
		return net.HardwareAddr{0, 0, 0x5e, 0, 2, testVRID}
	}
	return net.HardwareAddr{0, 0, 0x5e, 0, 1, testVRID}
}

// hold has the router be the MASTER of a virtual router where this frame comes in.
func (f *fastpath) hold(t *testing.T, in frame, mac net.HardwareAddr) {
	t.Helper()
	place := fastPlace(in, fastIn) &^ (fastTCP | fastVirtual)
	put(t, f.FastVirtual, FastpathFastVirtual{Place: place, Family: mac[4], Vrid: mac[5]}, uint32(77))
}

// Frames to a virtual MAC are forwarded while it is held where they come in, whatever
// their tags; the entry is not that of frames to the device's own.
func TestFastVirtual(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		for name, tags := range tagShapes {
			t.Run(name, func(t *testing.T) {
				f.reset(t)
				in.tags, in.to = tags, routersMAC(in.ipv6())
				fl := f.snat(in, nil)
				f.enter(t, fl, 0)
				f.passes(t, in.bytes(t), FastpathFastExitFAST_OTHER_HOST)
				f.notes(t, fl, false)
				f.hold(t, in, in.to)
				f.forwards(t, fl, 0, xdpTX)
				f.pinCounts(t, pinNumber)
				own := in
				own.to = nil
				f.passes(t, own.bytes(t), FastpathFastExitFAST_MISS)
				f.notes(t, f.snat(own, nil), true)
				mustDo(t, f.FastVirtual.Delete(FastpathFastVirtual{
					Place: fastPlace(in, fastIn) &^ (fastTCP | fastVirtual), Family: in.to[4], Vrid: testVRID,
				}))
				f.passes(t, in.bytes(t), FastpathFastExitFAST_OTHER_HOST)
				f.notes(t, fl, false)
			})
		}
	})
}

// A flow that is known by the device's own MAC is not by a virtual one, and is noted
// by that.
func TestFastVirtualMiss(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		virtual := in
		virtual.to = routersMAC(in.ipv6())
		other := f.snat(virtual, nil)
		fl := f.snat(in, nil)
		fl.bucket = other.digest()
		f.enter(t, fl, 0)
		f.hold(t, virtual, virtual.to)
		f.passes(t, virtual.bytes(t), FastpathFastExitFAST_MISS)
		f.notes(t, other, true)
	})
}

// One octet, the VLAN or the device: then it is not held there, and frames take the
// stack, although their flow is known.
func TestFastVirtualElsewhere(t *testing.T) {
	f := newFastpath(t)
	mac := func(at int, value byte) func(*frame) {
		return func(in *frame) {
			in.to = append(net.HardwareAddr{}, in.to...)
			in.to[at] ^= value
		}
	}
	for name, change := range map[string]func(*frame){
		"another VRID":      mac(5, 1),
		"the other family":  mac(4, 3), // 1 and 2
		"no family":         mac(4, 4),
		"first octet":       mac(0, 2),
		"second octet":      mac(1, 1),
		"third octet":       mac(2, 0x5e),
		"fourth octet":      mac(3, 1),
		"multicast":         mac(0, 1),
		"another VLAN":      func(in *frame) { in.tags = []tag{{0x8100, 3}} },
		"no VLAN":           func(in *frame) { in.tags = nil },
		"802.1ad":           func(in *frame) { in.tags = []tag{{0x88a8, 2}} },
		"one VLAN more":     func(in *frame) { in.tags = []tag{{0x8100, 2}, {0x8100, 2}} },
		"a priority tag":    func(in *frame) { in.tags = []tag{{0x8100, 0xe000}} },
		"an inner priority": func(in *frame) { in.tags = []tag{{0x8100, 2}, {0x8100, 0xe000}} },
	} {
		t.Run(name, func(t *testing.T) {
			eachFast(t, func(t *testing.T, in frame) {
				f.reset(t)
				in.tags, in.to = []tag{{0x8100, 2}}, routersMAC(in.ipv6())
				f.hold(t, in, in.to)
				change(&in)
				fl := f.snat(in, nil)
				f.enter(t, fl, 0)
				f.passes(t, in.bytes(t), FastpathFastExitFAST_OTHER_HOST)
				f.notes(t, fl, false)
			})
		})
	}
}

// A packet of one family to the other family's MAC takes the stack, though both are
// held: it may come in by another interface there.
func TestFastVirtualOtherFamily(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		f.hold(t, in, routersMAC(false))
		f.hold(t, in, routersMAC(true))
		in.to = routersMAC(!in.ipv6())
		fl := f.snat(in, nil)
		f.enter(t, fl, 0)
		f.passes(t, in.bytes(t), FastpathFastExitFAST_OTHER_HOST)
		f.notes(t, fl, false)
	})
}

// What is to be seen by the stack is, by virtual MACs as by others.
func TestFastVirtualVRRP(t *testing.T) {
	f := newFastpath(t)
	for _, ipv6 := range []bool{false, true} {
		in := fastFrame(ipv6, layers.IPProtocolVRRP)
		in.to = routersMAC(ipv6)
		f.hold(t, in, in.to)
		f.passes(t, in.bytes(t), FastpathFastExitFAST_PROTOCOL)
	}
}
