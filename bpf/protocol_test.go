// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// Numbers that gopacket has no name for; experimental is RFC 3692's.
const (
	dccp         = layers.IPProtocol(33)
	experimental = layers.IPProtocol(253)
)

// portless are protocols that are known by addresses alone: IP in IP, IPv6 in
// IP, GRE, ESP, OSPF and an unknown one.
var portless = []layers.IPProtocol{
	layers.IPProtocolIPv4, layers.IPProtocolIPv6, layers.IPProtocolGRE, layers.IPProtocolESP, layers.IPProtocolOSPF,
	experimental,
}

// eachOtherFlow calls f for the portless protocols and SCTP in every family and
// direction.
func eachOtherFlow(t *testing.T, f func(t *testing.T, direction string, fl flow)) {
	for _, direction := range []string{egress, ingress} {
		for _, ipv6 := range []bool{false, true} {
			for _, proto := range append(portless, layers.IPProtocolSCTP) {
				fl := someFlow(ipv6, proto, false)
				t.Run(fmt.Sprintf("%s/%v/%d", direction, fl.local.Addr(), proto), func(t *testing.T) { f(t, direction, fl) })
			}
		}
	}
}

// Addresses change, nothing of what they carry: the payload looks like ports and
// checksums on purpose.
func TestProtocol(t *testing.T) {
	d := newDataplane(t)
	eachOtherFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, s := range shapes {
			if !fl.fits(s.family, 255) || s.udp {
				continue
			}
			t.Run(s.name, func(t *testing.T) {
				in, want := fl.frames(direction)
				for _, f := range []*frame{&in, &want} {
					f.payload = []byte("an odd number of octets")
					s.apply(f)
				}
				before := coarseNow(t)
				d.expectBoth(t, direction, in.bytes(t), want.bytes(t), forwarded, rewritten(direction))
				if direction == egress {
					d.expectOut(t, fl, before)
				}
			})
		}
	})
}

// expectOut looks for a packet out since then.
func (d *dataplane) expectOut(t *testing.T, fl flow, since uint64) {
	t.Helper()
	var end DataplanePublicEnd
	if err := d.ByLocal.Lookup(fl.key(fl.local), &end); err != nil {
		t.Fatal(err)
	}
	if end.LastOutNs < since {
		t.Errorf("last out at %d, want %d or later", end.LastOutNs, since)
	}
}

// A packet may end anywhere: a portless one needs no octet behind its addresses,
// SCTP eight.
func TestProtocolTruncated(t *testing.T) {
	d := newDataplane(t)
	eachOtherFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.frames(direction)
		in.payload, want.payload = []byte("1234567"), []byte("1234567")
		whole, rewrittenWhole := in.bytes(t), want.bytes(t)
		enough := etherHeader + in.ipHeaders()
		if fl.proto == layers.IPProtocolSCTP {
			enough += 8
		}
		for n := range len(whole) + 1 {
			d.truncated(t, direction, whole[:n], rewrittenWhole[:n], n >= enough)
		}
	})
}

// One change, and the packet is none of the flow's.
func TestProtocolNotOfTheFlow(t *testing.T) {
	d := newDataplane(t)
	cases := []struct {
		name   string
		only   layers.IPProtocol // 255: any
		mutate func(f *frame)
	}{
		{"source address", 255, func(f *frame) { f.src = netip.AddrPortFrom(f.src.Addr().Next(), f.src.Port()) }},
		{"destination address", 255, func(f *frame) { f.dst = netip.AddrPortFrom(f.dst.Addr().Prev(), f.dst.Port()) }},
		{"protocol", 255, func(f *frame) { f.proto = 254 }},
		{"source port", layers.IPProtocolSCTP, func(f *frame) { f.src = netip.AddrPortFrom(f.src.Addr(), f.src.Port()+1) }},
		{"destination port", layers.IPProtocolSCTP, func(f *frame) { f.dst = netip.AddrPortFrom(f.dst.Addr(), f.dst.Port()+1) }},
	}
	eachOtherFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, c := range cases {
			if !fl.fits(0, c.only) {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				in, _ := fl.frames(direction)
				in.payload = []byte("payload")
				c.mutate(&in)
				b := in.bytes(t)
				d.expectBoth(t, direction, b, b, skBuff{}, counts{})
			})
		}
		t.Run("the router's own", func(t *testing.T) {
			if direction == ingress {
				return
			}
			in, _ := fl.frames(direction)
			in.payload = []byte("payload")
			b := in.bytes(t)
			d.expectBoth(t, direction, b, b, skBuff{}, counts{})
		})
	})
}

// Any octet may be wrong, of whole packets and of fragments.
func TestProtocolMalformed(t *testing.T) {
	d := newDataplane(t)
	all := append([]layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, icmp, layers.IPProtocolSCTP}, portless...)
	for _, direction := range []string{egress, ingress} {
		for _, ipv6 := range []bool{false, true} {
			for _, proto := range all {
				fl := someFlow(ipv6, proto, proto != layers.IPProtocolSCTP)
				t.Run(fmt.Sprintf("%s/ipv6 %v/%d", direction, ipv6, proto), func(t *testing.T) {
					d.reset(t)
					d.mapFlow(t, fl)
					in, want := fl.frames(direction)
					in.payload, want.payload = []byte("some payload"), []byte("some payload")
					d.eachOctetWrong(t, direction, in.bytes(t), want.bytes(t))
					pieces, wanted := fl.inPieces(t, direction, someIdent)
					d.expect(t, direction, pieces[0].bytes(t), wanted[0].bytes(t), forwarded, checksumNone, rewritten(direction))
					for i := range pieces[:2] {
						d.eachOctetWrong(t, direction, pieces[i].bytes(t), wanted[i].bytes(t))
					}
				})
			}
		}
	}
}

// Conntrack knows the flow by its public end: no octet changes, every packet is
// counted.
func TestProtocolNative(t *testing.T) {
	d := newDataplane(t)
	eachOtherFlow(t, func(t *testing.T, direction string, fl flow) {
		fl.local = fl.public
		fl.flags = DataplaneMappingFlagsMAPPING_NATIVE
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, _ := fl.frames(direction)
		in.payload = []byte("payload")
		b := in.bytes(t)
		before := coarseNow(t)
		d.expectBoth(t, direction, b, b, forwarded, rewritten(direction))
		d.expectTouched(t, fl, direction, before)
	})
}

// What is not translated is left alone, even if a mapping seemed to fit.
func TestProtocolNotTranslated(t *testing.T) {
	d := newDataplane(t)
	timestamp := func(kind uint8) func(f *frame) {
		return func(f *frame) {
			f.err = &quotation{kind: kind, rest: [4]byte{0x9c, 0x41, 0, 1}, packet: make([]byte, 12)}
		}
	}
	nine := func(f *frame) {
		for range 9 {
			f.ext = append(f.ext, destinationOpt)
		}
	}
	cases := []struct {
		name   string
		family int
		proto  layers.IPProtocol
		mapped layers.IPProtocol // what a mapping would be of
		mutate func(f *frame)
	}{
		{"udp-lite", 0, layers.IPProtocolUDPLite, layers.IPProtocolUDPLite, nil},
		{"dccp", 0, dccp, dccp, nil},
		{"icmpv6 in ipv4", 4, layers.IPProtocolICMPv6, layers.IPProtocolICMPv6, nil},
		{"icmp in ipv6", 6, layers.IPProtocolICMPv4, layers.IPProtocolICMPv4, nil},
		{"timestamp request", 4, icmp, icmp, timestamp(13)},
		{"timestamp reply", 4, icmp, icmp, timestamp(14)},
		{"address mask request", 4, icmp, icmp, timestamp(17)},
		{"router advertisement", 4, icmp, icmp, timestamp(9)},
		{"listener report", 6, icmp, icmp, timestamp(131)},
		{"neighbour solicitation", 6, icmp, icmp, timestamp(135)},
		{"node information query", 6, icmp, icmp, timestamp(139)},
		{"gre behind nine extension headers", 6, layers.IPProtocolGRE, layers.IPProtocolGRE, nine},
		{"tcp behind nine extension headers", 6, layers.IPProtocolTCP, layers.IPProtocolTCP, nine},
		{"the ninth extension header", 6, layers.IPProtocolGRE, 60, nine},
	}
	for _, direction := range []string{egress, ingress} {
		for _, c := range cases {
			for _, ipv6 := range []bool{false, true} {
				for _, ports := range []bool{false, true} {
					fl := someFlow(ipv6, layers.IPProtocolTCP, false)
					if !fl.fits(c.family, 255) {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/ipv6 %v/ports %v", direction, c.name, ipv6, ports), func(t *testing.T) {
						in, _ := fl.frames(direction)
						in.proto, in.payload = c.proto, []byte{0x9c, 0x41, 1, 0xbb, 0, 8, 0, 0, 1, 2, 3, 4}
						if c.mutate != nil {
							c.mutate(&in)
						}
						fl.proto = c.mapped
						if fl.proto == icmp {
							fl.remote = netip.AddrPortFrom(fl.remote.Addr(), 0)
						}
						if !ports {
							for _, end := range []*netip.AddrPort{&fl.local, &fl.public, &fl.remote} {
								*end = netip.AddrPortFrom(end.Addr(), 0)
							}
						}
						d.reset(t)
						d.mapFlow(t, fl)
						b := in.bytes(t)
						d.expectBoth(t, direction, b, b, skBuff{}, counts{})
						got := run(t, d.program(direction), b, forwarded, checksumComplete)
						sameBytes(t, "frame", got.frame, b)
						sameCounts(t, "pin 1", d.pinCounts(t, pinNumber), nil)
					})
				}
			}
		}
	}
}

// Whatever leaves from a VIP and is no mapping's is remembered, since conntrack
// can be asked about TCP and UDP alone; a mapping does not get its public end.
func TestForeignProtocol(t *testing.T) {
	d := newDataplane(t)
	eachOtherFlow(t, func(t *testing.T, direction string, fl flow) {
		own, _ := fl.frames(direction)
		own.payload = []byte("payload")
		if direction == egress {
			own.src = fl.public
		}
		b := own.bytes(t)
		d.reset(t)
		if direction == ingress {
			d.expectBoth(t, ingress, b, b, skBuff{}, counts{})
			d.expectEmpty(t)
			return
		}
		for name, skb := range map[string]skBuff{"the router's own": {}, "forwarded": forwarded} {
			t.Run(name, func(t *testing.T) {
				d.reset(t)
				before := coarseNow(t)
				d.expectBoth(t, egress, b, b, skb, counts{})
				var when uint64
				if err := d.Foreign.Lookup(fl.key(fl.public), &when); err != nil {
					t.Fatal(err)
				}
				if now := coarseNow(t); when < before || when > now {
					t.Errorf("remembered at %d, want between %d and %d", when, before, now)
				}
				if all := entries[DataplaneFlowKey, uint64](t, d.Foreign); len(all) != 1 {
					t.Errorf("%d entries, want 1", len(all))
				}
			})
		}
		t.Run("on a mapping", func(t *testing.T) {
			d.reset(t)
			d.mapFlow(t, fl)
			d.expectBoth(t, egress, b, b, skBuff{}, counts{DataplanePinCounterPIN_FOREIGN: 1})
			if all := entries[DataplaneFlowKey, uint64](t, d.Foreign); len(all) > 0 {
				t.Error("the public end of a mapping was remembered as foreign")
			}
		})
		t.Run("on another address", func(t *testing.T) {
			d.reset(t)
			other := own
			other.src = netip.AddrPortFrom(fl.public.Addr().Prev(), own.src.Port())
			b := other.bytes(t)
			d.expectBoth(t, egress, b, b, skBuff{}, counts{})
			d.expectEmpty(t)
		})
	})
}

// What nobody could map is not worth remembering: TCP and UDP, of which
// conntrack tells, what is not translated, later fragments, errors.
func TestNotForeign(t *testing.T) {
	d := newDataplane(t)
	for _, ipv6 := range []bool{false, true} {
		fl := someFlow(ipv6, layers.IPProtocolTCP, false)
		base := frame{src: fl.public, dst: fl.remote, payload: []byte("some payload")}
		packet := func(mutate func(f *frame)) frame {
			f := base
			mutate(&f)
			return f
		}
		for name, f := range map[string]frame{
			"tcp":      packet(func(f *frame) { f.proto = layers.IPProtocolTCP }),
			"udp":      packet(func(f *frame) { f.proto = layers.IPProtocolUDP }),
			"udp-lite": packet(func(f *frame) { f.proto = layers.IPProtocolUDPLite }),
			"dccp":     packet(func(f *frame) { f.proto = dccp }),
			"later fragment": packet(func(f *frame) {
				f.proto, f.fragment, f.ext = layers.IPProtocolGRE, 5, []extension{laterFragment}
			}),
			"error": packet(func(f *frame) {
				e := fl.errorKind()
				in, _ := fl.frames(ingress)
				e.packet, _ = in.ip(t)
				f.err = &e
			}),
		} {
			t.Run(fmt.Sprintf("ipv6 %v/%s", ipv6, name), func(t *testing.T) {
				d.reset(t)
				b := f.bytes(t)
				d.expectBoth(t, egress, b, b, skBuff{}, counts{})
				d.expectEmpty(t)
			})
		}
	}
}
