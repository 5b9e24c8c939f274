// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"encoding/binary"
	"net/netip"
)

// Proto is one of the three kinds of flows.
type Proto uint8

// The kinds.
const (
	TCP Proto = iota
	UDP
	ICMP
	Protos = 3
)

func (p Proto) String() string { return [Protos]string{"tcp", "udp", "icmp"}[p] }

// Phase is a part of a crowd's life; its number travels in every request.
type Phase uint8

// The phases.
const (
	Living Phase = iota // before the fault, and while it happens
	After               // what is answered now has survived
	phases = 2
)

const (
	recordLen = 40         // octets, both ways; fixed, so that TCP's stream is easily cut
	magic     = 0x76707377 // "vpsw"
	decoyID   = 1 << 31    // of flows that nobody counts
)

// record is a request, and its answer with the source that the server saw. An
// ICMP answer has none: the server's kernel gives it.
type record struct {
	proto  Proto
	phase  Phase
	id     uint32 // of the flow, among those of its kind
	number uint32
	source netip.AddrPort
}

// put writes: magic, id, number (4 octets each), kind, phase, source port (2),
// source address (16), zeros.
func (r record) put(to []byte) {
	clear(to[:recordLen])
	binary.BigEndian.PutUint32(to, magic)
	binary.BigEndian.PutUint32(to[4:], r.id)
	binary.BigEndian.PutUint32(to[8:], r.number)
	to[12], to[13] = byte(r.proto), byte(r.phase)
	r.putSource(to)
}

func (r record) putSource(to []byte) {
	if r.source.IsValid() {
		binary.BigEndian.PutUint16(to[14:], r.source.Port())
		addr := r.source.Addr().As16()
		copy(to[16:32], addr[:])
	}
}

// parse reads what put wrote; anything else is not ours.
func parse(from []byte) (r record, ok bool) {
	if len(from) < recordLen || binary.BigEndian.Uint32(from) != magic || from[12] >= Protos || from[13] >= phases {
		return record{}, false
	}
	r = record{
		id: binary.BigEndian.Uint32(from[4:]), number: binary.BigEndian.Uint32(from[8:]),
		proto: Proto(from[12]), phase: Phase(from[13]),
	}
	if port := binary.BigEndian.Uint16(from[14:]); port != 0 {
		r.source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(from[16:32])).Unmap(), port)
	}
	return r, true
}
