// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
)

// pieces cuts the packet into fragments of at most so many octets (a multiple
// of 8) behind the IP header.
func (f frame) pieces(t *testing.T, octets int, ident uint16) (all []frame) {
	t.Helper()
	ip, _ := f.ip(t)
	data := ip[f.ipHeaders():]
	for off := 0; off < len(data); off += octets {
		p := f
		p.raw = data[off:min(off+octets, len(data))]
		more := uint16(1)
		if off+octets >= len(data) {
			more = 0
		}
		if f.ipv6() {
			header := binary.BigEndian.AppendUint16([]byte{0}, uint16(off)|more)
			header = append(header, 0xab, 0xcd) // the identification has 32 bits
			p.ext = append(append([]extension{}, f.ext...), extension{44, binary.BigEndian.AppendUint16(header, ident)})
		} else {
			p.fragment = uint16(off/8) | more<<13
			p.ident = ident
		}
		all = append(all, p)
	}
	return all
}

const (
	pieceSize = 24
	someIdent = uint16(0x4711)
)

// inPieces is a datagram of the flow in three fragments before and after a
// program had them.
func (f flow) inPieces(t *testing.T, direction string, ident uint16) (in, want []frame) {
	t.Helper()
	whole, rewrittenWhole := f.frames(direction)
	whole.payload = []byte("more than fits in one piece, and not a multiple of 8 oct")
	rewrittenWhole.payload = whole.payload
	in, want = whole.pieces(t, pieceSize, ident), rewrittenWhole.pieces(t, pieceSize, ident)
	if len(in) < 3 {
		t.Fatalf("%d pieces, want 3 and more", len(in))
	}
	return in, want
}

// eachFragmentedFlow calls f for all that eachFlow has, SCTP and GRE.
func eachFragmentedFlow(t *testing.T, f func(t *testing.T, direction string, fl flow)) {
	eachErrorFlow(t, f)
}

func entries[K, V any](t *testing.T, m *ebpf.Map) (all []V) {
	t.Helper()
	var (
		key   K
		value V
	)
	it := m.Iterate()
	for it.Next(&key, &value) {
		all = append(all, value)
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// expectNoted compares the one entry that the first fragment should have made.
func (d *dataplane) expectNoted(t *testing.T, addr netip.Addr, pin uint32, counter DataplanePinCounter) {
	t.Helper()
	want := DataplaneFragment{Pin: pin, Counter: uint32(counter)}
	want.Addr.Word = words(addr)
	got := entries[DataplaneFragmentKey, DataplaneFragment](t, d.Fragments)
	if len(got) != 1 || got[0] != want {
		t.Errorf("noted %+v, want %+v", got, want)
	}
}

func (d *dataplane) expectNothingNoted(t *testing.T) {
	t.Helper()
	if got := entries[DataplaneFragmentKey, DataplaneFragment](t, d.Fragments); len(got) > 0 {
		t.Errorf("noted %+v, want nothing", got)
	}
}

// forgetPieces empties what the programs know of fragments.
func (d *dataplane) forgetPieces(t *testing.T) {
	t.Helper()
	clearMap[DataplaneFragmentKey](t, d.Fragments)
	clearMap[DataplaneRemoteKey](t, d.ByRemote)
}

// The later fragments go the way of the first one.
func TestFragments(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, flags := range []uint32{checksumNone, checksumComplete} {
			d.forgetPieces(t)
			in, want := fl.inPieces(t, direction, someIdent)
			for i := range in {
				d.expect(t, direction, in[i].bytes(t), want[i].bytes(t), forwarded, flags, rewritten(direction))
			}
			ours := want[0].src
			if direction == ingress {
				ours = want[0].dst
			}
			counter := map[string]DataplanePinCounter{
				egress: DataplanePinCounterPIN_PINNED, ingress: DataplanePinCounterPIN_RETURNED,
			}[direction]
			d.expectNoted(t, ours.Addr(), pinNumber, counter)
			// In whatever order the rest comes, and however often.
			for i := len(in) - 1; i > 0; i-- {
				d.expect(t, direction, in[i].bytes(t), want[i].bytes(t), forwarded, flags, rewritten(direction))
			}
		}
	})
}

// Fragments with options and further extension headers.
func TestFragmentShapes(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.inPieces(t, direction, someIdent)
		for i := range in {
			for _, f := range []*frame{&in[i], &want[i]} {
				f.tags = []tag{{0x8100, 0x6000}}
				if routerOptions(f); f.ipv6() {
					f.ext = append([]extension{hopByHop, destinationOpt}, f.ext...)
				}
			}
			d.expectBoth(t, direction, in[i].bytes(t), want[i].bytes(t), forwarded, rewritten(direction))
		}
	})
}

// A later fragment that differs from the first one in what tells datagrams
// apart belongs to another datagram.
func TestFragmentOfAnotherDatagram(t *testing.T) {
	d := newDataplane(t)
	cases := []struct {
		name   string
		family int
		mutate func(f *frame)
	}{
		{"identification", 4, func(f *frame) { f.ident++ }},
		{"low half of the identification", 6, func(f *frame) { f.changeIdent(6) }},
		{"high half of the identification", 6, func(f *frame) { f.changeIdent(3) }},
		{"source", 0, func(f *frame) { f.src = netip.AddrPortFrom(f.src.Addr().Prev(), f.src.Port()) }},
		{"destination", 0, func(f *frame) { f.dst = netip.AddrPortFrom(f.dst.Addr().Prev(), f.dst.Port()) }},
		{"protocol", 4, func(f *frame) { f.proto = 254 }},
	}
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.inPieces(t, direction, someIdent)
		for _, c := range cases {
			if !fl.fits(c.family, 255) {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				d.expect(t, direction, in[0].bytes(t), want[0].bytes(t), skBuff{IngressIfindex: loopback}, checksumNone,
					rewritten(direction))
				clearMap[DataplaneRemoteKey](t, d.ByRemote) // suspicion is another test's
				other := in[1]
				c.mutate(&other)
				b := other.bytes(t)
				d.expectBoth(t, direction, b, b, skBuff{}, counts{})
				d.expectBoth(t, direction, in[1].bytes(t), want[1].bytes(t), skBuff{}, rewritten(direction))
			})
		}
		t.Run("direction", func(t *testing.T) {
			b := in[1].bytes(t)
			d.expectBoth(t, map[string]string{egress: ingress, ingress: egress}[direction], b, b, skBuff{}, counts{})
		})
		t.Run("interface", func(t *testing.T) {
			put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot + 1, HasL2: 1})
			defer put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot, HasL2: 1})
			b := in[1].bytes(t)
			d.expectBoth(t, direction, b, b, skBuff{}, counts{})
		})
	})
}

// changeIdent changes an octet of the fragment header, the last of the headers.
func (f *frame) changeIdent(octet int) {
	last := f.ext[len(f.ext)-1]
	rest := append([]byte{}, last.rest...)
	rest[octet] ^= 1
	f.ext = append(append([]extension{}, f.ext[:len(f.ext)-1]...), extension{last.number, rest})
}

// Identifications come round again. What was noted of an earlier datagram does
// not hold for one whose first fragment went another way.
func TestFragmentIdentificationAgain(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.inPieces(t, direction, someIdent)
		for i := range in {
			d.expect(t, direction, in[i].bytes(t), want[i].bytes(t), forwarded, checksumNone, rewritten(direction))
		}
		clearMap[DataplaneFlowKey](t, d.ByLocal)
		clearMap[DataplaneFlowKey](t, d.ByPublic)
		for i := range in {
			b := in[i].bytes(t)
			d.expectBoth(t, direction, b, b, skBuff{}, counts{})
		}
		// A mapping again: back to it.
		d.mapFlow(t, fl)
		for i := range in {
			d.expectBoth(t, direction, in[i].bytes(t), want[i].bytes(t), forwarded, rewritten(direction))
		}
	})
}

// What stays unpinned stays so as a whole, and each fragment is counted with
// the reason of the first one.
func TestFragmentsUnpinned(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction != egress {
			return
		}
		in, _ := fl.inPieces(t, egress, someIdent)
		t.Run("no conntrack entry", func(t *testing.T) {
			d.reset(t)
			for i := range in {
				b, skb := in[i].bytes(t), forwarded
				if i > 0 {
					skb = skBuff{} // of themselves they would not be counted
				}
				d.forget(t)
				got := run(t, d.VippinEgress, b, skb, checksumComplete)
				sameBytes(t, "frame", got.frame, b)
				d.expectCounts(t, counts{}, counts{DataplanePinCounterPIN_NO_CONNTRACK: 1})
			}
			d.expectNoted(t, fl.local.Addr(), 0, DataplanePinCounterPIN_NO_CONNTRACK)
			d.expectEmpty(t)
		})
		t.Run("on a mapping's public end", func(t *testing.T) {
			d.reset(t)
			d.mapFlow(t, fl)
			for i := range in {
				f := in[i]
				f.src = fl.public
				if i == 0 {
					whole, _ := fl.frames(egress)
					whole.src, whole.payload = fl.public, []byte("more than fits in one piece")
					f = whole.pieces(t, pieceSize, someIdent)[0]
				}
				b := f.bytes(t)
				d.expectBoth(t, egress, b, b, skBuff{}, counts{DataplanePinCounterPIN_FOREIGN: 1})
			}
			d.expectNoted(t, fl.public.Addr(), pinNumber, DataplanePinCounterPIN_FOREIGN)
		})
	})
}

// The router's own fragments, and later fragments whose first one nobody saw,
// are left alone at egress, whoever else has a mapping.
func TestFragmentLeavesUnknown(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction != egress {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.inPieces(t, egress, someIdent)
		out, back := fl.inPieces(t, ingress, someIdent) // a witness that the remote has a mapping
		d.expect(t, ingress, out[0].bytes(t), back[0].bytes(t), forwarded, checksumNone, rewritten(ingress))
		d.expect(t, egress, in[0].bytes(t), in[0].bytes(t), skBuff{}, checksumNone, counts{})
		for _, f := range in[1:] {
			b := f.bytes(t)
			d.expectBoth(t, egress, b, b, skBuff{}, counts{})
			d.forget(t)
			got := run(t, d.VippinEgress, b, forwarded, checksumNone)
			sameBytes(t, "frame", got.frame, b)
			d.expectCounts(t, counts{}, counts{DataplanePinCounterPIN_NO_CONNTRACK: 1})
		}
		d.expect(t, egress, in[0].bytes(t), want[0].bytes(t), forwarded, checksumNone, rewritten(egress))
	})
}

// Where conntrack itself knows the flow by its public end, every fragment is
// counted and none changed.
func TestFragmentsNative(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		fl.local = fl.public
		fl.flags = DataplaneMappingFlagsMAPPING_NATIVE
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, _ := fl.inPieces(t, direction, someIdent)
		for i := range in {
			b := in[i].bytes(t)
			d.expectBoth(t, direction, b, b, forwarded, rewritten(direction))
		}
	})
}

// The mapping decides, not the role; that the VIP is another's is counted for
// every fragment that leaves with it.
func TestFragmentsWhileBackup(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		d.reset(t)
		d.setRole(t, roleBackup)
		d.mapFlow(t, fl)
		in, want := fl.inPieces(t, direction, someIdent)
		counted := rewritten(direction)
		if direction == egress {
			counted[DataplanePinCounterPIN_VIP_WHILE_BACKUP] = 1
		}
		for i := range in {
			d.expectBoth(t, direction, in[i].bytes(t), want[i].bytes(t), forwarded, counted)
		}
	})
}

// A first fragment that does not hold its transport header is nobody's, and the
// others then are not either, although the remote host has a mapping. Ethernet
// pads short frames: that is no header.
func TestFragmentTiny(t *testing.T) {
	d := newDataplane(t)
	for _, direction := range []string{egress, ingress} {
		for _, ipv6 := range []bool{false, true} {
			for _, octets := range []int{8, 16} {
				t.Run(fmt.Sprintf("%s/ipv6 %v/%d octets", direction, ipv6, octets), func(t *testing.T) {
					fl := someFlow(ipv6, layers.IPProtocolTCP, true)
					d.unmapFlows(t)
					d.mapFlow(t, fl)
					in, want := fl.inPieces(t, ingress, someIdent+1)
					d.expect(t, ingress, in[0].bytes(t), want[0].bytes(t), forwarded, checksumNone, rewritten(ingress))
					whole, _ := fl.frames(direction)
					whole.payload = []byte("payload")
					for _, padding := range []int{0, 30} {
						for _, f := range whole.pieces(t, octets, someIdent) {
							b := append(f.bytes(t), make([]byte, padding)...)
							d.expectBoth(t, direction, b, b, skBuff{IngressIfindex: map[string]uint32{ingress: loopback}[direction]}, counts{})
						}
					}
				})
			}
		}
	}
}

// An atomic fragment (RFC 6946) is whole: nothing follows it, and none takes
// its identification for its own.
func TestFragmentAtomic(t *testing.T) {
	d := newDataplane(t)
	eachFragmentedFlow(t, func(t *testing.T, direction string, fl flow) {
		if fl.local.Addr().Is4() {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.frames(direction)
		in.payload, want.payload = []byte("payload"), []byte("payload")
		for _, f := range []*frame{&in, &want} {
			*f = f.pieces(t, 1200, someIdent)[0]
		}
		d.expectBoth(t, direction, in.bytes(t), want.bytes(t), forwarded, rewritten(direction))
		d.expectNothingNoted(t)
		later, _ := fl.inPieces(t, direction, someIdent)
		b := later[1].bytes(t)
		d.expectBoth(t, direction, b, b, skBuff{}, counts{})
	})
}
