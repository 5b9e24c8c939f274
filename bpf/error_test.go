// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// Who else may send an error: a router on the way, beyond or on the inside.
var (
	hop4 = netip.MustParseAddr("203.0.113.1")
	hop6 = netip.MustParseAddr("2001:db8:2::1")
)

// errorKinds are the messages that quote a packet (RFC 792, RFC 4443).
var errorKinds = []struct {
	name   string
	family int
	quotation
}{
	{"net unreachable", 4, quotation{kind: 3}},
	{"port unreachable", 4, quotation{kind: 3, code: 3}},
	{"fragmentation needed", 4, quotation{kind: 3, code: 4, rest: [4]byte{0, 0, 5, 0}}},
	{"source quench", 4, quotation{kind: 4}},
	{"redirect", 4, quotation{kind: 5, code: 1, rest: [4]byte{203, 0, 113, 2}}},
	{"time exceeded", 4, quotation{kind: 11}},
	{"reassembly time exceeded", 4, quotation{kind: 11, code: 1}},
	{"parameter problem", 4, quotation{kind: 12, rest: [4]byte{20}}},
	{"unreachable", 6, quotation{kind: 1, code: 4}},
	{"packet too big", 6, quotation{kind: 2, rest: [4]byte{0, 0, 5, 0}}},
	{"time exceeded", 6, quotation{kind: 3}},
	{"parameter problem", 6, quotation{kind: 4, code: 1, rest: [4]byte{0, 0, 0, 40}}},
}

// quote is how an error quotes: what the quoted packet looks like, how many
// octets of it there are (0: all), and what stands behind.
type quote struct {
	name   string
	family int
	only   layers.IPProtocol // 255: any
	shape  func(*frame)
	outer  func(*frame)
	octets func(headers int) int // headers: of IP, with options and extensions
	behind []byte
}

func eight(headers int) int { return headers + 8 }

func routerOptions(f *frame) {
	f.options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
}

var quotes = []quote{
	{name: "whole", only: 255},
	{name: "eight octets", only: 255, octets: eight},
	{name: "up to the checksum of tcp", only: layers.IPProtocolTCP, octets: func(n int) int { return n + 16 }},
	{name: "udp without checksum", only: layers.IPProtocolUDP, shape: func(f *frame) { f.noSum = true }},
	{name: "the first octets of much", only: 255, shape: func(f *frame) { f.payload = make([]byte, 1371) },
		octets: func(int) int { return 549 }},
	// RFC 4884: 128 octets of the packet, then an extension structure with an MPLS label.
	{name: "extension behind", only: 255, shape: func(f *frame) { f.payload = make([]byte, 900) },
		outer:  func(f *frame) { f.err.rest[map[bool]int{false: 1, true: 0}[f.ipv6()]] = 16 },
		octets: func(int) int { return 128 }, behind: []byte{0x20, 0, 0x6f, 0xaa, 0, 8, 1, 1, 0, 1, 1, 64}},
	{name: "padding behind", only: 255, behind: make([]byte, 61)},
	{name: "options in the quotation", family: 4, only: 255, shape: routerOptions},
	{name: "options in the quotation, eight octets", family: 4, only: 255, shape: routerOptions, octets: eight},
	{name: "options outside", family: 4, only: 255, outer: routerOptions},
	{name: "options in both", family: 4, only: 255, shape: routerOptions, outer: routerOptions},
	{name: "first fragment", family: 4, only: 255, shape: func(f *frame) { f.fragment = 0x2000 }, octets: eight},
	{name: "first fragment", family: 6, only: 255, shape: func(f *frame) { f.ext = []extension{firstFragment} }},
	{name: "extension headers in the quotation", family: 6, only: 255, shape: func(f *frame) {
		f.ext = []extension{hopByHop, destinationOpt, routingHeader, atomicFragment}
	}},
	{name: "extension headers, eight octets", family: 6, only: 255, octets: eight, shape: func(f *frame) {
		f.ext = []extension{hopByHop, destinationOpt}
	}},
	{name: "extension headers outside", family: 6, only: 255, outer: func(f *frame) {
		f.ext = []extension{destinationOpt, routingHeader}
	}},
}

// fits tells whether a family (0: any) and protocol (255: any) are this flow's.
func (f flow) fits(family int, only layers.IPProtocol) bool {
	return (family == 0 || (family == 6) == f.local.Addr().Is6()) && (only == 255 || only == f.proto)
}

// quoted is a packet of the flow as an error has it before and after a program:
// one that leaves quotes a packet to us, one that arrives a packet from us.
func (f flow) quoted(direction string) (in, out frame) {
	if direction == egress {
		out, in = f.frames(ingress)
	} else {
		out, in = f.frames(egress)
	}
	in.payload, out.payload = []byte("an odd number of octets"), []byte("an odd number of octets")
	return in, out
}

// errorFrames are an error about the flow before and after a program had it.
func (f flow) errorFrames(t *testing.T, direction string, e quotation, q quote) (in, out frame) {
	t.Helper()
	qin, qout := f.quoted(direction)
	hop := netip.AddrPortFrom(hop4, 0)
	if f.local.Addr().Is6() {
		hop = netip.AddrPortFrom(hop6, 0)
	}
	if direction == egress {
		in, out = frame{src: f.local, dst: f.remote}, frame{src: f.public, dst: f.remote}
	} else {
		in, out = frame{src: hop, dst: f.public}, frame{src: hop, dst: f.local}
	}
	for outer, inner := range map[*frame]*frame{&in: &qin, &out: &qout} {
		if q.shape != nil {
			q.shape(inner)
		}
		e := e
		e.packet, _ = inner.ip(t)
		if q.octets != nil {
			e.packet = e.packet[:q.octets(inner.ipHeaders())]
		}
		e.packet = append(e.packet, q.behind...)
		outer.err = &e
		if q.outer != nil {
			q.outer(outer)
		}
	}
	return in, out
}

// eachErrorFlow calls f for every family, direction and protocol, with the same
// port and with another one where the protocol can have another.
func eachErrorFlow(t *testing.T, f func(t *testing.T, direction string, fl flow)) {
	eachFlow(t, f)
	for _, direction := range []string{egress, ingress} {
		for _, ipv6 := range []bool{false, true} {
			for _, proto := range []layers.IPProtocol{layers.IPProtocolSCTP, layers.IPProtocolGRE} {
				fl := someFlow(ipv6, proto, false)
				t.Run(fmt.Sprintf("%s/%v/%v", direction, fl.local.Addr(), proto), func(t *testing.T) { f(t, direction, fl) })
			}
		}
	}
}

// expectBoth is expect without and with skb->csum to be kept.
func (d *dataplane) expectBoth(t *testing.T, direction string, in, want []byte, skb skBuff, pin counts) {
	t.Helper()
	d.expect(t, direction, in, want, skb, checksumNone, pin)
	d.expect(t, direction, in, want, skb, checksumComplete, pin)
}

func TestError(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for i, kind := range errorKinds {
			if !fl.fits(kind.family, 255) {
				continue
			}
			for j, q := range quotes {
				// Every kind with the first two quotations, the last kind of the family with all.
				last := i+1 == len(errorKinds) || errorKinds[i+1].family != kind.family
				if !fl.fits(q.family, q.only) || j > 1 && !last {
					continue
				}
				t.Run(kind.name+"/"+q.name, func(t *testing.T) {
					in, want := fl.errorFrames(t, direction, kind.quotation, q)
					d.expectBoth(t, direction, in.bytes(t), want.bytes(t), forwarded, rewritten(direction))
				})
			}
		}
	})
}

// someError is an error about the flow in its simplest form.
func (f flow) someError(t *testing.T, direction string) (in, out frame) {
	t.Helper()
	return f.errorFrames(t, direction, f.errorKind(), quotes[0])
}

// errorKind is the error that path-MTU discovery lives on.
func (f flow) errorKind() quotation {
	if f.local.Addr().Is6() {
		return quotation{kind: 2, rest: [4]byte{0, 0, 5, 0}}
	}
	return quotation{kind: 3, code: 4, rest: [4]byte{0, 0, 5, 0}}
}

// A UDP checksum in the quotation that comes out as zero is 0xffff, and one that
// was 0xffff is like any other.
func TestErrorUDPChecksumZero(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		if fl.proto != layers.IPProtocolUDP {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, before := range []bool{false, true} {
			t.Run(fmt.Sprintf("before %v", before), func(t *testing.T) {
				qin, qout := fl.quoted(direction)
				makeZero := &qout
				if before {
					makeZero = &qin
				}
				// The checksum over two zero octets, put in their place, makes the sum zero.
				makeZero.payload = []byte{0, 0}
				b := makeZero.bytes(t)
				payload := b[len(b)-4 : len(b)-2]
				makeZero.payload = payload
				b = makeZero.bytes(t)
				if sum := binary.BigEndian.Uint16(b[len(b)-4:]); sum != 0xffff {
					t.Fatalf("checksum %#x, want the case of 0xffff", sum)
				}
				q := quote{shape: func(f *frame) { f.payload = payload }}
				in, want := fl.errorFrames(t, direction, fl.errorKind(), q)
				d.expectBoth(t, direction, in.bytes(t), want.bytes(t), forwarded, rewritten(direction))
			})
		}
	})
}

// A router on the inside speaks in its own name, which masquerade does not hide
// behind our address: the quotation is for the receiver nevertheless.
func TestErrorOfAnotherRouter(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction != egress {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.someError(t, egress)
		in.src = netip.AddrPortFrom(fl.local.Addr().Next().Next(), 0)
		want.src = in.src
		d.expectBoth(t, egress, in.bytes(t), want.bytes(t), forwarded, rewritten(egress))
	})
}

// An error that arrives for an address other than the one it quotes is not for
// the flow's inside host.
func TestErrorForAnotherAddress(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction != ingress {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for name, dst := range map[string]netip.Addr{
			"unique address": fl.local.Addr(), "some address": fl.public.Addr().Prev(),
		} {
			t.Run(name, func(t *testing.T) {
				in, _ := fl.someError(t, ingress)
				in.dst = netip.AddrPortFrom(dst, 0)
				b := in.bytes(t)
				d.expectBoth(t, ingress, b, b, forwarded, counts{})
			})
		}
	})
}

// Without padding behind it a quotation may end anywhere: from the ports on it
// is enough, and nothing behind its end is read or changed. The frame may be
// longer than the packet in it, even by what looks like the rest.
func TestErrorTruncatedQuotation(t *testing.T) {
	d := newDataplane(t)
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		q, _ := fl.quoted(direction)
		whole, _ := q.ip(t)
		enough := q.ipHeaders() + 8
		if fl.proto == layers.IPProtocolGRE {
			enough = q.ipHeaders() // there is nothing to be known behind it
		}
		for n := range len(whole) + 1 {
			in, want := fl.errorFrames(t, direction, fl.errorKind(), quote{octets: func(int) int { return n }})
			if fl.proto == layers.IPProtocolTCP && n == q.ipHeaders()+17 {
				want.err.packet[n-1] = in.err.packet[n-1] // half a checksum stays
			}
			counted := rewritten(direction)
			if n < enough {
				want, counted = in, counts{}
			}
			b, w := in.bytes(t), want.bytes(t)
			trailer := append(bytes.Clone(whole[n:]), make([]byte, 8)...)
			d.expect(t, direction, b, w, forwarded, checksumComplete, counted)
			d.expect(t, direction, append(b, trailer...), append(w, trailer...), forwarded, checksumComplete, counted)
			if t.Failed() {
				t.Fatalf("%d octets quoted", n)
			}
		}
	})
}
