// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// forwarded is what an skb that came in on some interface carries.
var forwarded = skBuff{IngressIfindex: loopback}

// One change to a packet of a mapped flow, and it is none any more.
func TestNotOfTheFlow(t *testing.T) {
	d := newDataplane(t)
	other4, other6 := netip.MustParseAddr("203.0.113.81"), netip.MustParseAddr("2001:db8:2::81")
	other := func(a netip.AddrPort) netip.AddrPort {
		if a.Addr().Is6() {
			return netip.AddrPortFrom(other6, a.Port())
		}
		return netip.AddrPortFrom(other4, a.Port())
	}
	port := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), a.Port()+1) }
	cases := []struct {
		name   string
		family int
		only   layers.IPProtocol // 255: any
		mutate func(f *frame)
	}{
		{"source address", 0, 255, func(f *frame) { f.src = other(f.src) }},
		{"destination address", 0, 255, func(f *frame) { f.dst = other(f.dst) }},
		{"source port", 0, layers.IPProtocolTCP, func(f *frame) { f.src = port(f.src) }},
		{"destination port", 0, layers.IPProtocolTCP, func(f *frame) { f.dst = port(f.dst) }},
		{"echo identifier", 0, icmp, func(f *frame) { f.src, f.dst = port(f.src), port(f.dst) }},
		{"udp instead of tcp", 0, layers.IPProtocolTCP, func(f *frame) { f.proto = layers.IPProtocolUDP }},
		{"tcp instead of udp", 0, layers.IPProtocolUDP, func(f *frame) { f.proto = layers.IPProtocolTCP }},
		{"echo of the other direction", 0, icmp, func(f *frame) { f.reply = !f.reply }},
		{"echo of the other direction, identifier where it was", 0, icmp, func(f *frame) {
			f.reply = !f.reply
			id := max(f.src.Port(), f.dst.Port())
			f.src, f.dst = netip.AddrPortFrom(f.src.Addr(), id), netip.AddrPortFrom(f.dst.Addr(), id)
		}},
		{"nine extension headers", 6, 255, func(f *frame) {
			for range 9 {
				f.ext = append(f.ext, destinationOpt)
			}
		}},
		{"802.1Q", 0, 255, func(f *frame) { f.tags = []tag{{0x8100, 5}} }},
		{"802.1ad", 0, 255, func(f *frame) { f.tags = []tag{{0x88a8, 5}} }},
		{"802.1ad with 802.1Q", 0, 255, func(f *frame) { f.tags = []tag{{0x88a8, 5}, {0x8100, 6}} }},
		{"priority tag and 802.1Q", 0, 255, func(f *frame) { f.tags = []tag{{0x8100, 0xe000}, {0x8100, 6}} }},
		{"three tags", 0, 255, func(f *frame) { f.tags = []tag{{0x8100, 0}, {0x8100, 0}, {0x8100, 0}} }},
	}
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, c := range cases {
			in, _ := fl.frames(direction)
			if c.family == 4 && in.ipv6() || c.family == 6 && !in.ipv6() || c.only != 255 && c.only != in.proto {
				continue
			}
			in.payload = []byte("some payload")
			c.mutate(&in)
			t.Run(c.name, func(t *testing.T) {
				b := in.bytes(t)
				d.expect(t, direction, b, b, skBuff{}, checksumNone, counts{})
			})
		}
	})
}

// A packet in the wrong direction belongs to no mapping.
func TestWrongDirection(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, _ := fl.frames(direction)
		wrong := map[string]string{egress: ingress, ingress: egress}[direction]
		b := in.bytes(t)
		d.expect(t, wrong, b, b, skBuff{}, checksumNone, counts{})
	})
}

// With an echo identifier of 0 the ports of requests and replies look the same:
// the direction of the echo alone tells whose it is.
func TestEchoIdentifierZero(t *testing.T) {
	d := newDataplane(t)
	for _, direction := range []string{egress, ingress} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/ipv6 %v", direction, ipv6), func(t *testing.T) {
				fl := someFlow(ipv6, icmp, false)
				fl.local = netip.AddrPortFrom(fl.local.Addr(), 0)
				fl.public = netip.AddrPortFrom(fl.public.Addr(), 0)
				d.unmapFlows(t)
				d.mapFlow(t, fl)
				in, want := fl.frames(direction)
				d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumComplete, rewritten(direction))
				in.reply = !in.reply
				b := in.bytes(t)
				d.expect(t, direction, b, b, skBuff{}, checksumComplete, counts{})
			})
		}
	}
}

// Octets of a good packet changed one by one.
func TestMalformed(t *testing.T) {
	d := newDataplane(t)
	cases := []struct {
		name   string
		family int
		proto  layers.IPProtocol
		offset int
		value  byte
	}{
		{"ethertype arp", 4, layers.IPProtocolTCP, 13, 0x06},
		{"ethertype of length", 4, layers.IPProtocolTCP, 12, 0x00},
		{"ethertype ipv4", 6, layers.IPProtocolTCP, 12, 0x08},
		{"version 5", 4, layers.IPProtocolTCP, etherHeader, 0x55},
		{"version 6 in ipv4", 4, layers.IPProtocolTCP, etherHeader, 0x65},
		{"header length 4", 4, layers.IPProtocolTCP, etherHeader, 0x44},
		{"header length 0", 4, layers.IPProtocolTCP, etherHeader, 0x40},
		{"header length past the end", 4, layers.IPProtocolTCP, etherHeader, 0x4f},
		{"sctp", 4, layers.IPProtocolUDP, etherHeader + 9, 132},
		{"icmpv6 in ipv4", 4, icmp, etherHeader + 9, 58},
		{"destination unreachable", 4, icmp, etherHeader + 20, 3},
		{"timestamp request", 4, icmp, etherHeader + 20, 13},
		{"version 4 in ipv6", 6, layers.IPProtocolTCP, etherHeader, 0x40},
		{"sctp", 6, layers.IPProtocolUDP, etherHeader + 6, 132},
		{"no next header", 6, layers.IPProtocolUDP, etherHeader + 6, 59},
		{"esp", 6, layers.IPProtocolUDP, etherHeader + 6, 50},
		{"icmp in ipv6", 6, icmp, etherHeader + 6, 1},
		{"neighbour solicitation", 6, icmp, etherHeader + 40, 135},
		{"packet too big", 6, icmp, etherHeader + 40, 2},
	}
	for _, direction := range []string{egress, ingress} {
		for _, c := range cases {
			t.Run(fmt.Sprintf("%s/ipv%d/%s", direction, c.family, c.name), func(t *testing.T) {
				fl := someFlow(c.family == 6, c.proto, true)
				d.unmapFlows(t)
				d.mapFlow(t, fl)
				in, want := fl.frames(direction)
				b := in.bytes(t)
				d.expect(t, direction, b, want.bytes(t), forwarded, checksumNone, rewritten(direction))
				b[c.offset] = c.value
				d.expect(t, direction, b, b, skBuff{}, checksumNone, counts{})
			})
		}
	}
}

// A frame may end anywhere. With its headers complete it is rewritten like the
// whole frame, and otherwise it stays what it was.
func TestTruncated(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, s := range shapes {
			in, want := fl.frames(direction)
			if s.family == 4 && in.ipv6() || s.family == 6 && !in.ipv6() || s.udp && in.proto != layers.IPProtocolUDP {
				continue
			}
			in.payload = []byte("1234567")
			want.payload = in.payload
			s.apply(&in)
			s.apply(&want)
			t.Run(s.name, func(t *testing.T) {
				whole, rewrittenWhole := in.bytes(t), want.bytes(t)
				for n := range min(len(whole), in.headers()+8) + 1 {
					d.truncated(t, direction, whole[:n], rewrittenWhole[:n], n >= in.headers())
				}
			})
		}
	})
}

func (d *dataplane) truncated(t *testing.T, direction string, in, want []byte, complete bool) {
	t.Helper()
	res, err := tryRun(d.program(direction), in, forwarded, checksumNone)
	// Test runs refuse less than an IP header, unless a VLAN tag hides that it is one.
	if errors.Is(err, unix.EINVAL) && len(in) < minRun(in) {
		return
	}
	if err != nil {
		t.Fatalf("%d octets: %v", len(in), err)
	}
	if res.action != actUnspec {
		t.Errorf("%d octets: action %d", len(in), int32(res.action))
	}
	got := d.pinCounts(t, pinNumber)
	if complete {
		sameBytes(t, fmt.Sprintf("%d octets", len(in)), res.frame, want)
		sameCounts(t, fmt.Sprintf("%d octets", len(in)), got, rewritten(direction))
		return
	}
	if !bytes.Equal(res.frame, in) {
		t.Errorf("%d octets: changed, although its headers are incomplete", len(in))
	}
	sameCounts(t, fmt.Sprintf("%d octets", len(in)), got, nil)
}

// minRun is how many octets of a frame BPF_PROG_TEST_RUN wants at most.
func minRun(b []byte) int {
	switch {
	case len(b) < etherHeader || b[12] == 0x81 || b[12] == 0x88:
		return etherHeader
	case b[12] == 0x86:
		return etherHeader + 40
	}
	return etherHeader + 20
}

// What the interface map does not name, or names for VRRP alone, is not pinned.
func TestInterfaceNotPinned(t *testing.T) {
	d := newDataplane(t)
	for _, direction := range []string{egress, ingress} {
		fl := someFlow(false, layers.IPProtocolTCP, true)
		d.mapFlow(t, fl)
		in, _ := fl.frames(direction)
		b := in.bytes(t)
		for name, iface := range map[string]DataplaneIface{
			"watched for vrrp alone": {HasL2: 1},
			"of another slot":        {Slot: slot + 1, HasL2: 1},
		} {
			t.Run(direction+"/"+name, func(t *testing.T) {
				put(t, d.Ifaces, uint32(loopback), iface)
				d.expect(t, direction, b, b, forwarded, checksumNone, counts{})
			})
		}
		t.Run(direction+"/unknown", func(t *testing.T) {
			if err := d.Ifaces.Delete(uint32(loopback)); err != nil {
				t.Fatal(err)
			}
			d.expect(t, direction, b, b, forwarded, checksumNone, counts{})
		})
	}
}
