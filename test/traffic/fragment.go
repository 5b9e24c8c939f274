// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/ipv4"
)

// fragmentSize is how many octets of a datagram go into one fragment: a
// multiple of 8, as all but the last one have to be (RFC 791 section 3.1).
const fragmentSize = 1400

// Fragment is one part of an IP datagram.
type Fragment struct {
	Offset int // in octets
	More   bool
	Data   []byte
}

// Cut takes an IP payload apart, in order.
func Cut(payload []byte) (parts []Fragment) {
	for offset := 0; offset < len(payload); offset += fragmentSize {
		end := min(offset+fragmentSize, len(payload))
		parts = append(parts, Fragment{Offset: offset, More: end < len(payload), Data: payload[offset:end]})
	}
	return parts
}

// UDPDatagram is a UDP header with its checksum, and the data.
func UDPDatagram(from, to netip.AddrPort, data []byte) ([]byte, error) {
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	var network gopacket.NetworkLayer = &layers.IPv4{SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(), Protocol: layers.IPProtocolUDP}
	if !from.Addr().Is4() {
		network = &layers.IPv6{SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(), NextHeader: layers.IPProtocolUDP}
	}
	if err := udp.SetNetworkLayerForChecksum(network); err != nil {
		return nil, fmt.Errorf("make a UDP datagram: %w", err)
	}
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, options, udp, gopacket.Payload(data)); err != nil {
		return nil, fmt.Errorf("make a UDP datagram: %w", err)
	}
	return buffer.Bytes(), nil
}

// Fragmenter sends fragments as it is told to, which no socket would. It needs
// root, and a namespace without conntrack: that would put them together.
type Fragmenter struct {
	v4 *ipv4.RawConn
	v6 *net.IPConn
}

// protoFragment is the IPv6 fragment header's number (RFC 8200 section 4.5).
const protoFragment = 44

// OpenFragmenter opens the sockets inside the namespace, one bound to each
// address: what is sent leaves from there.
func OpenFragmenter(in Enter, from4, from6 netip.Addr) (*Fragmenter, error) {
	f := new(Fragmenter)
	err := in(func() error {
		conn, err := net.ListenIP("ip4:udp", &net.IPAddr{IP: from4.AsSlice()})
		if err != nil {
			return err
		}
		if f.v4, err = ipv4.NewRawConn(conn); err != nil {
			return errors.Join(err, conn.Close())
		}
		f.v6, err = net.ListenIP(fmt.Sprintf("ip6:%d", protoFragment), &net.IPAddr{IP: from6.AsSlice()})
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open raw sockets for fragments: %w", err), f.Close())
	}
	return f, nil
}

// Send sends fragments of one datagram, in the order they are in.
func (f *Fragmenter) Send(from, to netip.Addr, proto uint8, id uint32, parts []Fragment) error {
	for _, part := range parts {
		send := f.send6
		if to.Is4() {
			send = f.send4
		}
		if err := send(from, to, proto, id, part); err != nil {
			return fmt.Errorf("send the fragment at %d to %s: %w", part.Offset, to, err)
		}
	}
	return nil
}

func (f *Fragmenter) send4(from, to netip.Addr, proto uint8, id uint32, part Fragment) error {
	header := &ipv4.Header{
		Version: ipv4.Version, Len: ipv4.HeaderLen, TotalLen: ipv4.HeaderLen + len(part.Data), TTL: 64,
		ID: int(uint16(id)), FragOff: part.Offset / 8, Protocol: int(proto), Src: from.AsSlice(), Dst: to.AsSlice(),
	}
	if part.More {
		header.Flags = ipv4.MoreFragments
	}
	return f.v4.WriteTo(header, part.Data, nil) // the kernel fills the header's checksum in
}

func (f *Fragmenter) send6(_, to netip.Addr, proto uint8, id uint32, part Fragment) error {
	offset := uint16(part.Offset)
	if part.More {
		offset |= 1
	}
	packet := []byte{proto, 0}
	packet = binary.BigEndian.AppendUint16(packet, offset)
	packet = binary.BigEndian.AppendUint32(packet, id)
	_, err := f.v6.WriteToIP(append(packet, part.Data...), &net.IPAddr{IP: to.AsSlice()})
	return err
}

// Close closes the sockets.
func (f *Fragmenter) Close() error {
	var errs []error
	if f.v4 != nil {
		errs = append(errs, f.v4.Close())
	}
	if f.v6 != nil {
		errs = append(errs, f.v6.Close())
	}
	return errors.Join(errs...)
}
