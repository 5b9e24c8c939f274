// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

var early = counts{DataplanePinCounterPIN_EARLY_FRAGMENT: 1}

// eachArriving calls f for every flow, for packets that arrive.
func eachArriving(t *testing.T, f func(t *testing.T, fl flow)) {
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction == ingress {
			f(t, fl)
		}
	})
}

// witness lets the programs see that the remote host talks to the mapping: the
// first fragment of an earlier datagram.
func (d *dataplane) witness(t *testing.T, fl flow) {
	t.Helper()
	in, want := fl.inPieces(t, ingress, someIdent-1)
	d.expect(t, ingress, in[0].bytes(t), want[0].bytes(t), forwarded, checksumNone, rewritten(ingress))
}

// A later fragment that arrives before the first one is sent on when the remote
// host has a mapping of that protocol; what comes after the first one is as ever.
func TestFragmentEarly(t *testing.T) {
	d := newDataplane(t)
	eachArriving(t, func(t *testing.T, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.inPieces(t, ingress, someIdent)
		for i := len(in) - 1; i > 0; i-- {
			b := in[i].bytes(t)
			d.expectBoth(t, ingress, b, b, forwarded, counts{}) // nobody has told yet
		}
		d.witness(t, fl)
		for i := len(in) - 1; i > 0; i-- {
			d.expectBoth(t, ingress, in[i].bytes(t), want[i].bytes(t), forwarded, early)
		}
		for i := range in {
			d.expectBoth(t, ingress, in[i].bytes(t), want[i].bytes(t), forwarded, rewritten(ingress))
		}
	})
}

// One change, and there is no mapping to suspect.
func TestFragmentEarlyNotOfTheRemote(t *testing.T) {
	d := newDataplane(t)
	cases := []struct {
		name   string
		mutate func(f *frame)
	}{
		{"source", func(f *frame) { f.src = netip.AddrPortFrom(f.src.Addr().Next(), 0) }},
		{"destination", func(f *frame) { f.dst = netip.AddrPortFrom(f.dst.Addr().Prev(), 0) }},
		{"protocol", func(f *frame) { f.proto = 254 }},
	}
	eachArriving(t, func(t *testing.T, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		d.witness(t, fl)
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				in, _ := fl.inPieces(t, ingress, someIdent)
				c.mutate(&in[1])
				b := in[1].bytes(t)
				d.expectBoth(t, ingress, b, b, forwarded, counts{})
			})
		}
		t.Run("interface", func(t *testing.T) {
			put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot + 1, HasL2: 1})
			defer put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot, HasL2: 1})
			in, _ := fl.inPieces(t, ingress, someIdent)
			b := in[1].bytes(t)
			d.expectBoth(t, ingress, b, b, forwarded, counts{})
		})
		t.Run("nothing of it", func(t *testing.T) {
			in, want := fl.inPieces(t, ingress, someIdent)
			d.expectBoth(t, ingress, in[1].bytes(t), want[1].bytes(t), forwarded, early)
		})
	})
}

// The witness counts while its mapping is there.
func TestFragmentEarlyMappingGone(t *testing.T) {
	d := newDataplane(t)
	eachArriving(t, func(t *testing.T, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		d.witness(t, fl)
		if err := d.ByPublic.Delete(fl.key(fl.public)); err != nil {
			t.Fatal(err)
		}
		in, _ := fl.inPieces(t, ingress, someIdent)
		b := in[1].bytes(t)
		d.expectBoth(t, ingress, b, b, forwarded, counts{})
	})
}

// Conntrack puts a native flow's fragments together as they come.
func TestFragmentEarlyNative(t *testing.T) {
	d := newDataplane(t)
	eachArriving(t, func(t *testing.T, fl flow) {
		fl.local = fl.public
		fl.flags = DataplaneMappingFlagsMAPPING_NATIVE
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		d.witness(t, fl)
		in, _ := fl.inPieces(t, ingress, someIdent)
		b := in[1].bytes(t)
		d.expectBoth(t, ingress, b, b, forwarded, counts{})
	})
}

// A datagram for the router's own service on the VIP, from a host that also has
// a mapping: its first fragment says so.
func TestFragmentsForOwnService(t *testing.T) {
	d := newDataplane(t)
	eachArriving(t, func(t *testing.T, fl flow) {
		if fl.proto == layers.IPProtocolGRE {
			return // all GRE from there is the flow's
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		d.witness(t, fl)
		own := fl
		own.public = netip.AddrPortFrom(fl.public.Addr(), 53)
		in, _ := own.inPieces(t, ingress, someIdent)
		clearMap[DataplaneFragmentKey](t, d.Fragments)
		for i := range in {
			b := in[i].bytes(t)
			d.expectBoth(t, ingress, b, b, forwarded, counts{})
		}
		d.expectNoted(t, fl.public.Addr(), 0, DataplanePinCounterPIN_COUNTERS)
		// The next datagram is the mapping's.
		in, want := fl.inPieces(t, ingress, someIdent+1)
		for i := range in {
			d.expectBoth(t, ingress, in[i].bytes(t), want[i].bytes(t), forwarded, rewritten(ingress))
		}
	})
}

// What is for no VIP needs no note.
func TestFragmentsForUniqueAddress(t *testing.T) {
	d := newDataplane(t)
	eachArriving(t, func(t *testing.T, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		other := fl
		other.public = fl.local
		in, _ := other.inPieces(t, ingress, someIdent)
		for i := range in {
			b := in[i].bytes(t)
			d.expectBoth(t, ingress, b, b, forwarded, counts{})
		}
		d.expectNothingNoted(t)
	})
}

// An ICMP error may come in pieces, too.
func TestErrorFragments(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.errorFrames(t, direction, fl.errorKind(), quotes[4])
		ins, wants := in.pieces(t, 256, someIdent), want.pieces(t, 256, someIdent)
		for i := range ins {
			d.expectBoth(t, direction, ins[i].bytes(t), wants[i].bytes(t), forwarded, rewritten(direction))
		}
	})
}
