// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// An error's quote begins behind Ethernet, IP and ICMP.
const (
	quoteAt4 = 14 + 20 + 8
	quoteAt6 = 14 + 40 + 8
)

func serialized(t *testing.T, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, options, parts...); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

// errorFrames are port-unreachable errors about whole UDP datagrams, and the
// frames that they are about.
func errorFrames(t *testing.T) (errors, about [2][]byte) {
	ether := func(kind layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: make(net.HardwareAddr, 6), DstMAC: make(net.HardwareAddr, 6), EthernetType: kind}
	}
	ip4 := func(from, to string, proto layers.IPProtocol, ttl uint8) *layers.IPv4 {
		return &layers.IPv4{Version: 4, TTL: ttl, Protocol: proto, SrcIP: net.ParseIP(from), DstIP: net.ParseIP(to)}
	}
	ip6 := func(from, to string, proto layers.IPProtocol, ttl uint8) *layers.IPv6 {
		return &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: proto, SrcIP: net.ParseIP(from), DstIP: net.ParseIP(to)}
	}
	udp := func(ip gopacket.NetworkLayer) *layers.UDP {
		u := &layers.UDP{SrcPort: 4000, DstPort: 7000}
		if err := u.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		return u
	}
	data := gopacket.Payload("what was sent, too long for Ethernet to pad it")
	for i, ttl := range []uint8{1, 64} { // as it was when it ended, as it was sent
		inner4 := ip4("198.51.100.2", "198.18.0.10", layers.IPProtocolUDP, ttl)
		inner6 := ip6("2001:db8::2", "2001:db8::10", layers.IPProtocolUDP, ttl)
		if i == 1 {
			about[0] = serialized(t, ether(layers.EthernetTypeIPv4), inner4, udp(inner4), data)
			about[1] = serialized(t, ether(layers.EthernetTypeIPv6), inner6, udp(inner6), data)
			continue
		}
		errors[0] = serialized(t, ether(layers.EthernetTypeIPv4), ip4("198.18.0.10", "198.51.100.2", layers.IPProtocolICMPv4, 64),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1280},
			gopacket.Payload(serialized(t, inner4, udp(inner4), data)))
		outer := ip6("2001:db8::10", "2001:db8::2", layers.IPProtocolICMPv6, 64)
		message := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(2, 0)}
		if err := message.SetNetworkLayerForChecksum(outer); err != nil {
			t.Fatal(err)
		}
		errors[1] = serialized(t, ether(layers.EthernetTypeIPv6), outer, message,
			gopacket.Payload([]byte{0, 0, 5, 0}), gopacket.Payload(serialized(t, inner6, udp(inner6), data)))
	}
	return errors, about
}

func frameOf(data []byte) Frame {
	return Frame{Packet: gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)}
}

func TestICMPErrorIn(t *testing.T) {
	errors, about := errorFrames(t)
	ends := [2][2]string{{"198.51.100.2:4000", "198.18.0.10:7000"}, {"[2001:db8::2]:4000", "[2001:db8::10]:7000"}}
	for i := range errors {
		e, ok := ICMPErrorIn(frameOf(errors[i]))
		if !ok || len(e.Faults) != 0 {
			t.Fatalf("is an error: %t: %s", ok, e)
		}
		from, to := netip.MustParseAddrPort(ends[i][0]), netip.MustParseAddrPort(ends[i][1])
		if e.Proto != "udp" || e.QuotedFrom != from || e.QuotedTo != to || e.From != to.Addr() || e.To != from.Addr() || e.MTU != 1280 {
			t.Errorf("read as %s", e)
		}
		if !e.Quotes(frameOf(about[i])) {
			t.Errorf("does not quote %x: %s", about[i], e)
		}
		if _, ok := ICMPErrorIn(frameOf(about[i])); ok {
			t.Error("a datagram is no error")
		}
		changed := append([]byte(nil), about[i]...)
		changed[len(changed)-1] ^= 1
		if e.Quotes(frameOf(changed)) {
			t.Error("quotes another datagram")
		}
	}
}

// A single wrong bit in any of the headers is seen, and it is said where.
func TestICMPErrorFaults(t *testing.T) {
	errors, _ := errorFrames(t)
	for _, c := range []struct {
		name       string
		frame, bit int
		want       []string
	}{
		{"TTL", 0, 14 + 8, []string{"outside IPv4"}},
		{"MTU", 0, quoteAt4 - 1, []string{"outside ICMPv4"}},
		{"quoted address", 0, quoteAt4 + 12, []string{"outside ICMPv4", "quoted IPv4", "quoted UDP"}},
		{"quoted port", 0, quoteAt4 + 20, []string{"outside ICMPv4", "quoted UDP"}},
		{"address", 1, 14 + 8, []string{"outside ICMPv6"}},
		{"quoted address of IPv6", 1, quoteAt6 + 8, []string{"outside ICMPv6", "quoted UDP"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := append([]byte(nil), errors[c.frame]...)
			data[c.bit] ^= 1
			e, ok := ICMPErrorIn(frameOf(data))
			if !ok {
				t.Fatal("no error")
			}
			told := strings.Join(e.Faults, "; ")
			for _, want := range c.want {
				if !strings.Contains(told, want) {
					t.Errorf("faults %q, want one of %q", e.Faults, want)
				}
			}
		})
	}
}

// A quote that is cut off keeps its ends; its transport checksum is not judged.
func TestICMPErrorCutOff(t *testing.T) {
	errors, about := errorFrames(t)
	whole, _ := ICMPErrorIn(frameOf(errors[0]))
	cut := whole
	cut.Quote, cut.Faults = whole.Quote[:28], nil
	cut.readQuote(gopacket.NewPacket(cut.Quote, layers.LayerTypeIPv4, gopacket.Default))
	if cut.Proto != "udp" || cut.QuotedFrom != whole.QuotedFrom || cut.QuotedTo != whole.QuotedTo || len(cut.Faults) != 0 {
		t.Errorf("read as %s", cut)
	}
	if !cut.Quotes(frameOf(about[0])) {
		t.Error("does not quote what it is about")
	}
}
