// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	routerMAC = net.HardwareAddr{0, 0, 0, 0, 0, 0} // loopback's: there the programs run
	otherMAC  = net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
)

// icmp stands for the echo of whichever family the addresses are of.
const icmp = layers.IPProtocol(0)

// frame describes a packet on the wire. Its checksums are gopacket's, so a
// rewritten packet is compared with one that was built rewritten.
type frame struct {
	src, dst netip.AddrPort    // ICMP: the echo identifier is the port of the end that asks
	proto    layers.IPProtocol // TCP, UDP, SCTP or icmp; of others the payload is all there is
	reply    bool              // an echo reply
	err      *quotation        // icmp: an error instead of an echo
	payload  []byte
	raw      []byte              // instead of all that stands behind the IP header: a fragment
	noSum    bool                // UDP without a checksum
	options  []layers.IPv4Option // IPv4
	ext      []extension         // IPv6
	fragment uint16              // IPv4: flags and offset as on the wire
	ident    uint16              // IPv4; 0: some
	tags     []tag
	to       net.HardwareAddr // nil: routerMAC
}

// quotation is what an ICMP error says: type, code, the four octets that differ
// by type, and the quoted packet with anything behind it.
type quotation struct {
	kind, code uint8
	rest       [4]byte
	packet     []byte
}

// extension is an IPv6 extension header: its number, and its octets behind the
// number of the next one.
type extension struct {
	number layers.IPProtocol
	rest   []byte
}

// tag is a VLAN tag: 802.1Q or 802.1ad.
type tag struct {
	ethertype uint16
	id        uint16
}

var (
	hopByHop       = extension{0, []byte{0, 5, 2, 0, 0, 1, 0}}                                             // router alert, padding
	destinationOpt = extension{60, append([]byte{1, 1, 12}, make([]byte, 12)...)}                          // 16 octets of padding
	routingHeader  = extension{43, append([]byte{2, 4, 0, 0, 0, 0, 0}, netip.IPv6Loopback().AsSlice()...)} // nothing left to visit
	atomicFragment = extension{44, []byte{0, 0, 0, 1, 2, 3, 4}}
	firstFragment  = extension{44, []byte{0, 0, 1, 1, 2, 3, 4}}
	laterFragment  = extension{44, []byte{0, 0x05, 0xa8, 1, 2, 3, 4}}
)

func (f frame) ipv6() bool {
	return f.src.Addr().Is6()
}

// ipProto is the number in the IP header or the last extension header.
func (f frame) ipProto() layers.IPProtocol {
	switch {
	case f.proto != icmp:
		return f.proto
	case f.ipv6():
		return layers.IPProtocolICMPv6
	}
	return layers.IPProtocolICMPv4
}

// ipHeaders is how many octets stand before the transport header of an IP packet.
func (f frame) ipHeaders() int {
	if f.ipv6() {
		n := 40
		for _, e := range f.ext {
			n += 1 + len(e.rest)
		}
		return n
	}
	n := 20
	for _, o := range f.options {
		n += int(o.OptionLength)
	}
	return n
}

// headers is how many octets the frame has up to the end of its transport header.
func (f frame) headers() int {
	n := etherHeader + 4*len(f.tags) + f.ipHeaders()
	if f.proto == layers.IPProtocolTCP {
		return n + 20
	}
	return n + 8
}

// bytes is the frame on the wire.
func (f frame) bytes(t *testing.T) []byte {
	t.Helper()
	ip, ethertype := f.ip(t)
	to := f.to
	if to == nil {
		to = routerMAC
	}
	b := append(append([]byte{}, to...), otherMAC...)
	for _, tag := range f.tags {
		b = binary.BigEndian.AppendUint16(b, tag.ethertype)
		b = binary.BigEndian.AppendUint16(b, tag.id)
	}
	b = binary.BigEndian.AppendUint16(b, ethertype)
	return append(b, ip...)
}

func (f frame) ip(t *testing.T) ([]byte, uint16) {
	t.Helper()
	if f.ipv6() {
		ip := &layers.IPv6{
			Version: 6, TrafficClass: 8, FlowLabel: 0x54321, HopLimit: 63,
			SrcIP: f.src.Addr().AsSlice(), DstIP: f.dst.Addr().AsSlice(),
		}
		return serialize(t, ip, gopacket.Payload(f.chain(ip, f.transport(t, ip)))), uint16(layers.EthernetTypeIPv6)
	}
	ip := &layers.IPv4{
		Version: 4, TOS: 8, Id: cmp.Or(f.ident, 0x1234), TTL: 63, Protocol: f.ipProto(), Options: f.options,
		SrcIP: f.src.Addr().AsSlice(), DstIP: f.dst.Addr().AsSlice(),
		Flags: layers.IPv4Flag(f.fragment >> 13), FragOffset: f.fragment & 0x1fff,
	}
	return serialize(t, ip, gopacket.Payload(f.transport(t, ip))), uint16(layers.EthernetTypeIPv4)
}

// chain puts the extension headers before the transport header.
func (f frame) chain(ip *layers.IPv6, transport []byte) []byte {
	b := transport
	next := f.ipProto()
	for i := len(f.ext) - 1; i >= 0; i-- {
		b = bytes.Join([][]byte{{byte(next)}, f.ext[i].rest, b}, nil)
		next = f.ext[i].number
	}
	ip.NextHeader = next
	return b
}

func (f frame) transport(t *testing.T, ip gopacket.NetworkLayer) []byte {
	t.Helper()
	payload := gopacket.Payload(f.payload)
	switch {
	case f.raw != nil:
		return f.raw
	case f.err != nil:
		return f.error(t, ip)
	case f.proto == layers.IPProtocolTCP:
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(f.src.Port()), DstPort: layers.TCPPort(f.dst.Port()),
			Seq: 0x11223344, Ack: 0x55667788, ACK: true, PSH: true, Window: 501,
		}
		mustNetwork(t, tcp.SetNetworkLayerForChecksum(ip))
		return serialize(t, tcp, payload)
	case f.proto == layers.IPProtocolUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(f.src.Port()), DstPort: layers.UDPPort(f.dst.Port())}
		mustNetwork(t, udp.SetNetworkLayerForChecksum(ip))
		b := serialize(t, udp, payload)
		if f.noSum {
			b[6], b[7] = 0, 0
		}
		return b
	case f.proto == layers.IPProtocolSCTP:
		return serialize(t, &layers.SCTP{
			SrcPort: layers.SCTPPort(f.src.Port()), DstPort: layers.SCTPPort(f.dst.Port()), VerificationTag: 0x11223344,
		}, payload)
	case f.proto == icmp:
		return f.echo(t, ip)
	}
	return f.payload
}

func (f frame) error(t *testing.T, ip gopacket.NetworkLayer) []byte {
	t.Helper()
	e := f.err
	if !f.ipv6() {
		return serialize(t, &layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(e.kind, e.code),
			Id:       binary.BigEndian.Uint16(e.rest[:]), Seq: binary.BigEndian.Uint16(e.rest[2:]),
		}, gopacket.Payload(e.packet))
	}
	v6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(e.kind, e.code)}
	mustNetwork(t, v6.SetNetworkLayerForChecksum(ip))
	return serialize(t, v6, gopacket.Payload(e.rest[:]), gopacket.Payload(e.packet))
}

func (f frame) echo(t *testing.T, ip gopacket.NetworkLayer) []byte {
	t.Helper()
	id := f.src.Port()
	if f.reply {
		id = f.dst.Port()
	}
	payload := gopacket.Payload(f.payload)
	if !f.ipv6() {
		kind := uint8(layers.ICMPv4TypeEchoRequest)
		if f.reply {
			kind = layers.ICMPv4TypeEchoReply
		}
		return serialize(t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: id, Seq: 7}, payload)
	}
	kind := uint8(layers.ICMPv6TypeEchoRequest)
	if f.reply {
		kind = layers.ICMPv6TypeEchoReply
	}
	v6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	mustNetwork(t, v6.SetNetworkLayerForChecksum(ip))
	return serialize(t, v6, &layers.ICMPv6Echo{Identifier: id, SeqNumber: 7}, payload)
}

func serialize(t *testing.T, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, all...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func mustNetwork(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sameBytes compares frames octet by octet.
func sameBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\ngot\n%swant\n%s", what, hex.Dump(got), hex.Dump(want))
	}
}
