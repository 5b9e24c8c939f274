// SPDX-License-Identifier: Apache-2.0

package nfqueue

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of <linux/netfilter/nfnetlink_queue.h>, which x/sys/unix does not have.
const (
	messagePacket  = 0
	messageVerdict = 1
	messageConfig  = 2

	configCommand = 1 // u8 command, padding, be16 family
	configParams  = 2 // be32 copy range, u8 copy mode
	configMaxLen  = 3
	configMask    = 4 // which flags are meant
	configFlags   = 5

	commandBind = 1
	copyPacket  = 2

	flagFailOpen = 1 << 0
	flagGSO      = 1 << 2

	attrPacketHeader  = 1
	attrVerdictHeader = 2 // be32 verdict, be32 id
	attrMark          = 3
	attrInIndex       = 5
	attrOutIndex      = 6
	attrPayload       = 10
	attrLength        = 13
)

const (
	genLen     = 4      // struct nfgenmsg: family, version, be16 number of the queue
	wholeRange = 0xffff // the kernel copies no more of a packet
)

// message is a request about a queue.
func message(kind uint16, flags netlink.HeaderFlags, queue uint16, attributes []byte) netlink.Message {
	data := make([]byte, genLen, genLen+len(attributes))
	data[0], data[1] = unix.AF_UNSPEC, unix.NFNETLINK_V0
	binary.BigEndian.PutUint16(data[2:], queue)
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_QUEUE<<8 | kind), Flags: netlink.Request | flags},
		Data:   append(data, attributes...),
	}
}

// encode writes attributes in network byte order.
func encode(write func(*netlink.AttributeEncoder)) ([]byte, error) {
	attributes := netlink.NewAttributeEncoder()
	attributes.ByteOrder = binary.BigEndian
	write(attributes)
	return attributes.Encode()
}

// bind asks for a queue. Its copy mode is none yet: no packets come.
func (c *Config) bind() (netlink.Message, error) {
	var flags uint32
	if c.FailOpen {
		flags |= flagFailOpen
	}
	if c.GSO {
		flags |= flagGSO
	}
	attributes, err := encode(func(to *netlink.AttributeEncoder) {
		to.Bytes(configCommand, []byte{commandBind, 0, 0, unix.AF_UNSPEC})
		to.Uint32(configFlags, flags)
		to.Uint32(configMask, flagFailOpen|flagGSO)
		if c.MaxLen != 0 {
			to.Uint32(configMaxLen, c.MaxLen)
		}
	})
	return message(messageConfig, netlink.Acknowledge, c.Queue, attributes), err
}

// copyRange is how much of each packet is to be copied, in octets.
func (c *Config) copyRange() uint32 {
	if c.CopyRange == 0 || c.CopyRange > wholeRange {
		return wholeRange
	}
	return c.CopyRange
}

// begin lets the packets come. It asks for no answer, which packets could
// overtake.
func (c *Config) begin() (netlink.Message, error) {
	params := append(binary.BigEndian.AppendUint32(nil, c.copyRange()), copyPacket)
	attributes, err := encode(func(to *netlink.AttributeEncoder) { to.Bytes(configParams, params) })
	return message(messageConfig, 0, c.Queue, attributes), err
}

// verdict decides on one packet. An answer comes only if that fails.
func verdict(queue uint16, verdict Verdict, id uint32) (netlink.Message, error) {
	header := binary.BigEndian.AppendUint32(nil, uint32(verdict))
	header = binary.BigEndian.AppendUint32(header, id)
	attributes, err := encode(func(to *netlink.AttributeEncoder) { to.Bytes(attrVerdictHeader, header) })
	return message(messageVerdict, 0, queue, attributes), err
}
