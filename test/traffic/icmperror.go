// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// ICMPError is an ICMP error (RFC 792) or an ICMPv6 one (RFC 4443) as it passed
// an interface.
type ICMPError struct {
	Type, Code uint8
	MTU        int // octets, of fragmentation-needed and packet-too-big
	From, To   netip.Addr
	Quote      []byte         // the start of the packet that it is about, from its IP header on
	Proto      string         // of the quoted packet: tcp, udp, icmp, or a number
	QuotedFrom netip.AddrPort // its ends; an echo's identifier is the port of the end that asked
	QuotedTo   netip.AddrPort
	Faults     []string // checksums that are wrong, outside and in the quote
}

// ICMPErrorIn reads a frame as an ICMP error; ok is false when it is none.
func ICMPErrorIn(f Frame) (e ICMPError, ok bool) {
	var quoted gopacket.LayerType
	if message, is := f.Packet.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); is {
		e.Type, e.Code, e.Quote = message.TypeCode.Type(), message.TypeCode.Code(), message.Payload
		switch e.Type {
		case layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4TypeTimeExceeded, layers.ICMPv4TypeParameterProblem:
		default:
			return e, false
		}
		quoted, e.MTU = layers.LayerTypeIPv4, int(message.Seq)
	} else if message, is := f.Packet.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); is {
		e.Type, e.Code = message.TypeCode.Type(), message.TypeCode.Code()
		if e.Type > 127 || len(message.Payload) < 4 { // RFC 4443 section 2.1: errors have the high bit clear
			return e, false
		}
		quoted, e.MTU, e.Quote = layers.LayerTypeIPv6, int(binary.BigEndian.Uint32(message.Payload)), message.Payload[4:]
	} else {
		return e, false
	}
	_, from, to := FlowOf(f.Packet)
	e.From, e.To = from.Addr(), to.Addr()
	e.Faults = faults("outside", f.Packet)
	e.readQuote(gopacket.NewPacket(slices.Clone(e.Quote), quoted, gopacket.Default))
	return e, true
}

// FlowOf says whose packet it is, by its outermost IP header: tcp, udp, icmp (an
// echo of either family, whose identifier is the port of the end that asked), or
// another protocol's number, without ports. A first fragment is as good as whole.
// What is not IP has no ends.
func FlowOf(p gopacket.Packet) (proto string, from, to netip.AddrPort) {
	network := p.NetworkLayer()
	if network == nil {
		return "", from, to
	}
	var number layers.IPProtocol
	data := network.LayerPayload()
	switch ip := network.(type) {
	case *layers.IPv4:
		number = ip.Protocol
	case *layers.IPv6:
		number = ip.NextHeader
		if number == layers.IPProtocolIPv6Fragment && len(data) > 8 && binary.BigEndian.Uint16(data[2:])&^7 == 0 {
			number, data = layers.IPProtocol(data[0]), data[8:]
		}
	}
	src, _ := netip.AddrFromSlice(network.NetworkFlow().Src().Raw())
	dst, _ := netip.AddrFromSlice(network.NetworkFlow().Dst().Raw())
	proto, fromPort, toPort := portsOf(number, data)
	return proto, netip.AddrPortFrom(src, fromPort), netip.AddrPortFrom(dst, toPort)
}

// readQuote fills in what the quoted packet says. Its transport checksum can be
// judged when it is there as a whole.
func (e *ICMPError) readQuote(quote gopacket.Packet) {
	network := quote.NetworkLayer()
	if network == nil {
		e.Faults = append(e.Faults, "the quote is no IP packet")
		return
	}
	e.Proto, e.QuotedFrom, e.QuotedTo = FlowOf(quote)
	var octets int
	switch ip := network.(type) {
	case *layers.IPv4:
		octets = int(ip.Length)
		if err, sum := ip.VerifyChecksum(); err != nil || !sum.Valid {
			e.Faults = append(e.Faults, fmt.Sprintf("quoted IPv4 header: checksum %#04x, want %#04x (%v)", sum.Actual, sum.Correct, err))
		}
	case *layers.IPv6:
		octets = 40 + int(ip.Length)
	}
	if len(e.Quote) >= octets {
		e.Faults = append(e.Faults, faults("quoted", quote)...)
	}
}

func portsOf(proto layers.IPProtocol, data []byte) (name string, from, to uint16) {
	if len(data) < 8 { // an error quotes at least so much (RFC 792)
		return fmt.Sprint(uint8(proto)), 0, 0
	}
	switch proto {
	case layers.IPProtocolTCP:
		return "tcp", binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:])
	case layers.IPProtocolUDP:
		return "udp", binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:])
	case layers.IPProtocolICMPv4, layers.IPProtocolICMPv6:
		id := binary.BigEndian.Uint16(data[4:])
		switch data[0] {
		case layers.ICMPv4TypeEchoRequest, layers.ICMPv6TypeEchoRequest:
			return "icmp", id, 0
		case layers.ICMPv4TypeEchoReply, layers.ICMPv6TypeEchoReply:
			return "icmp", 0, id
		}
	}
	return fmt.Sprint(uint8(proto)), 0, 0
}

// Faults lists the wrong checksums of all layers of a packet.
func Faults(p gopacket.Packet) []string { return faults("outside", p) }

func faults(where string, p gopacket.Packet) (found []string) {
	for _, layer := range p.Layers() {
		switch l := layer.(type) {
		case *layers.TCP:
			_ = l.SetNetworkLayerForChecksum(p.NetworkLayer()) // never fails for IP
		case *layers.UDP:
			_ = l.SetNetworkLayerForChecksum(p.NetworkLayer())
		case *layers.ICMPv6:
			_ = l.SetNetworkLayerForChecksum(p.NetworkLayer())
		}
	}
	err, wrong := p.VerifyChecksums()
	if err != nil {
		found = append(found, fmt.Sprintf("%s: %v", where, err))
	}
	for _, w := range wrong {
		found = append(found, fmt.Sprintf("%s %s: checksum %#04x, want %#04x", where, w.Layer.LayerType(), w.Actual, w.Correct))
	}
	return found
}

// Quotes says whether the error quotes the packet of a frame, octet by octet,
// but for what routers change: TTL or hop limit and the checksum over it. A
// frame that was captured on its sender should not await checksum offload.
func (e ICMPError) Quotes(f Frame) bool {
	network := f.Packet.NetworkLayer()
	if network == nil {
		return false
	}
	sent := slices.Concat(network.LayerContents(), network.LayerPayload())
	return len(e.Quote) >= 28 && len(sent) >= len(e.Quote) &&
		bytes.Equal(asSent(sent)[:len(e.Quote)], asSent(e.Quote))
}

// asSent blanks what routers change.
func asSent(packet []byte) []byte {
	packet = slices.Clone(packet)
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		packet[8], packet[10], packet[11] = 0, 0, 0
	case len(packet) >= 40 && packet[0]>>4 == 6:
		packet[7] = 0
	}
	return packet
}

// String tells what one needs to know of an error that is not as it should be.
func (e ICMPError) String() string {
	return fmt.Sprintf("type %d code %d mtu %d from %s to %s about %s from %s to %s, quote %x, faults %q",
		e.Type, e.Code, e.MTU, e.From, e.To, e.Proto, e.QuotedFrom, e.QuotedTo, e.Quote[:min(len(e.Quote), 64)], e.Faults)
}
