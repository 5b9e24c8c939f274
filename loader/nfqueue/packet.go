// SPDX-License-Identifier: Apache-2.0

package nfqueue

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
)

// Packet is a packet that waits for its verdict.
type Packet struct {
	ID       uint32 // of this queue; verdicts name it
	Family   uint8  // NFPROTO_IPV4, NFPROTO_IPV6, …
	Hook     uint8  // NF_INET_PRE_ROUTING, …
	Protocol uint16 // ethertype
	Mark     uint32
	InIndex  uint32 // the interface it came in by, 0 = none
	OutIndex uint32
	Length   uint32 // octets on the wire; Payload may have fewer
	Payload  []byte // from the network header on, at most Config.CopyRange octets; valid during the call only
}

var errNoID = errors.New("no packet header")

// decode reads a message NFQNL_MSG_PACKET: struct nfgenmsg, then attributes,
// <linux/netfilter/nfnetlink_queue.h>. Payload stays part of data.
func (p *Packet) decode(data []byte) error {
	*p = Packet{}
	if len(data) < genLen {
		return fmt.Errorf("read packet: %d octets", len(data))
	}
	attributes, err := netlink.NewAttributeDecoder(data[genLen:])
	if err != nil {
		return fmt.Errorf("read packet: %w", err)
	}
	attributes.ByteOrder = binary.BigEndian
	p.Family = data[0]
	known, whole := false, false
	for attributes.Next() {
		switch attributes.Type() {
		case attrPacketHeader: // be32 id, be16 protocol, u8 hook
			if header := attributes.Bytes(); len(header) >= 7 {
				p.ID, p.Protocol = binary.BigEndian.Uint32(header), binary.BigEndian.Uint16(header[4:])
				p.Hook, known = header[6], true
			}
		case attrMark:
			p.Mark = attributes.Uint32()
		case attrInIndex:
			p.InIndex = attributes.Uint32()
		case attrOutIndex:
			p.OutIndex = attributes.Uint32()
		case attrLength: // only of packets that were cut
			p.Length, whole = attributes.Uint32(), true
		case attrPayload:
			p.Payload = attributes.Bytes()
		}
	}
	if err := attributes.Err(); err != nil {
		return fmt.Errorf("read packet: %w", err)
	}
	if !known {
		return fmt.Errorf("read packet: %w", errNoID)
	}
	if !whole {
		p.Length = uint32(len(p.Payload))
	}
	return nil
}
