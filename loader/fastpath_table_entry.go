// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

// Of a place and of an entry's pin, bpf/fast_types.h.
const (
	fastTCP      uint32 = 0x80000000
	fastReturned uint16 = 0x8000
)

type (
	fast4Entry bpf.FastpathFast4Entry
	fast6Entry bpf.FastpathFast6Entry
	fastFate   = bpf.FastpathFastFate
)

const fastWays = len(bpf.FastpathFast4Bucket{}.Way)

// fastKeys are the digests', fast_state's.
type fastKeys = [len(bpf.FastpathFastState{}.Keys)]uint64

// fast4Index and fast6Index number the bucket of a flow, of mask + 1: bpf/fast_key.h's
// digests and fast_index.
func fast4Index(keys *fastKeys, addrs uint64, ports, place, mask uint32) int {
	return fastIndex(fastEndsSum(keys, ports, place)+(keys[3]+addrs&0xffffffff)*(keys[4]+addrs>>32), mask)
}

func fast6Index(keys *fastKeys, src, dst *[4]uint32, ports, place, mask uint32) int {
	sum := fastEndsSum(keys, ports, place)
	for i, addr := range []*[4]uint32{src, dst} {
		of := keys[3+len(addr)*i:]
		sum += (of[0]+uint64(addr[0]))*(of[1]+uint64(addr[1])) + (of[2]+uint64(addr[2]))*(of[3]+uint64(addr[3]))
	}
	return fastIndex(sum, mask)
}

func fastEndsSum(keys *fastKeys, ports, place uint32) uint64 {
	return keys[0] + (keys[1]+uint64(ports))*(keys[2]+uint64(place))
}

func fastIndex(sum uint64, mask uint32) int {
	digest := (sum ^ sum>>32) * 0x9e3779b97f4a7c15 // fast_scatter
	return int(uint32(digest>>32) & mask)
}

// fastEntry is an entry of either family, in the table itself.
type fastEntry interface {
	ends() (in, out policy.FlowKey) // as packets come in and as they leave
	fate() *fastFate
}

func (e *fast4Entry) ends() (in, out policy.FlowKey) {
	return fastEnds4(e.Addrs, e.Ports, e.Place), fastEnds4(e.NewAddrs, e.Fate.NewPorts, e.Place)
}

func (e *fast6Entry) ends() (in, out policy.FlowKey) {
	return fastEnds6(&e.Src.Word, &e.Dst.Word, e.Ports, e.Place),
		fastEnds6(&e.NewSrc.Word, &e.NewDst.Word, e.Fate.NewPorts, e.Place)
}

func (e *fast4Entry) fate() *fastFate { return &e.Fate }
func (e *fast6Entry) fate() *fastFate { return &e.Fate }

// original is the flow's key, if its original direction is a way of this entry:
// packets that come in like this, or answers that leave like this. Which of them an
// entry is only pinned ones say.
func original(e fastEntry) (ways [2]policy.FlowKey, n int) {
	in, out := e.ends()
	back, pin := turned(out), e.fate().Pin
	switch {
	case pin == 0 && in != back:
		return [2]policy.FlowKey{in, back}, 2
	case pin&fastReturned != 0:
		return [2]policy.FlowKey{back}, 1
	}
	return [2]policy.FlowKey{in}, 1
}

// fastIs4 tells the family of a flow that comes by the fast path.
func fastIs4(ends *policy.FlowKey) bool { return ends.Src.Is4() && ends.Dst.Is4() }

// fastAddrs4 has two IPv4 addresses as they stand in a packet; so has fastPorts two
// ports.
func fastAddrs4(ends *policy.FlowKey) uint64 {
	return uint64(binary.NativeEndian.Uint32(ends.Dst.Addr[12:]))<<32 | uint64(binary.NativeEndian.Uint32(ends.Src.Addr[12:]))
}

func fastPorts(ends *policy.FlowKey) uint32 {
	return uint32(swapPort(ends.Dst.Port))<<16 | uint32(swapPort(ends.Src.Port))
}

func fastWords(end *policy.End) (words [4]uint32) {
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(end.Addr[4*i:])
	}
	return words
}

// entryPlace is a place with the flow's protocol in it.
func entryPlace(ends *policy.FlowKey, place uint32) uint32 {
	if ends.Proto == unix.IPPROTO_TCP {
		return place | fastTCP
	}
	return place &^ fastTCP
}

// fastEnds4 and fastEnds6 read what entries have.
func fastEnds4(addrs uint64, ports, place uint32) (ends policy.FlowKey) {
	for i, end := range []*policy.End{&ends.Src, &ends.Dst} {
		end.Addr[10], end.Addr[11] = 0xff, 0xff // IPv4-mapped, RFC 4291 section 2.5.5.2
		binary.NativeEndian.PutUint32(end.Addr[12:], uint32(addrs>>(32*i)))
	}
	setFastPorts(&ends, ports, place)
	return ends
}

func fastEnds6(src, dst *[4]uint32, ports, place uint32) (ends policy.FlowKey) {
	for i := range src {
		binary.NativeEndian.PutUint32(ends.Src.Addr[4*i:], src[i])
		binary.NativeEndian.PutUint32(ends.Dst.Addr[4*i:], dst[i])
	}
	setFastPorts(&ends, ports, place)
	return ends
}

func setFastPorts(ends *policy.FlowKey, ports, place uint32) {
	ends.Src.Port, ends.Dst.Port = swapPort(uint16(ports)), swapPort(uint16(ports>>16))
	ends.Proto = unix.IPPROTO_UDP
	if place&fastTCP != 0 {
		ends.Proto = unix.IPPROTO_TCP
	}
}

// turned is the way back of packets.
func turned(ends policy.FlowKey) policy.FlowKey {
	ends.Src, ends.Dst = ends.Dst, ends.Src
	return ends
}
