// SPDX-License-Identifier: Apache-2.0

package nfqueue

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

// Verdict is what becomes of a packet, <linux/netfilter.h>.
type Verdict uint32

// The verdicts.
const (
	Drop   Verdict = 0
	Accept Verdict = 1 // it goes on behind the hook function that queued it
	Repeat Verdict = 4 // it goes through that hook function again
)
