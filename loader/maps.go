// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/loader/conntrack"
	"vippin/policy"
)

// The maps' own types, under the names the rest of the package uses.
type (
	flowKey     = bpf.DataplaneFlowKey
	publicEnd   = bpf.DataplanePublicEnd
	localEnd    = bpf.DataplaneLocalEnd
	leftAlone   = bpf.DataplaneUnpinnedFlow
	ifaceValue  = bpf.DataplaneIface
	pinValue    = bpf.DataplanePin
	groupValue  = bpf.DataplaneGroup
	slotAddr    = bpf.DataplaneSlotAddr
	uniqueState = bpf.DataplaneUniqueState
	vipValue    = bpf.DataplaneVip
	sourceKey   = bpf.DataplaneSourceKey
	vridKey     = bpf.DataplaneVridKey
)

// The programs' numbers, likewise.
const (
	mappingNative   = bpf.DataplaneMappingFlagsMAPPING_NATIVE
	mappingAcked    = bpf.DataplaneMappingFlagsMAPPING_ACKED
	mappingReleased = bpf.DataplaneMappingFlagsMAPPING_RELEASED

	pinUsed    = bpf.DataplanePinFlagsPIN_USED
	pinEnabled = bpf.DataplanePinFlagsPIN_ENABLED
	pinToggled = bpf.DataplanePinFlagsPIN_TOGGLED
	pinRetired = bpf.DataplanePinFlagsPIN_RETIRED
	pinBridge4 = bpf.DataplanePinFlagsPIN_BRIDGE4
	pinBridge6 = bpf.DataplanePinFlagsPIN_BRIDGE6

	uniqueKnown = bpf.DataplaneUniqueStateUNIQUE_KNOWN
	uniqueNew   = bpf.DataplaneUniqueStateUNIQUE_NEW

	pinCounters   = uint32(bpf.DataplanePinCounterPIN_COUNTERS)
	vrrpCounters  = uint32(bpf.DataplaneVrrpCounterVRRP_COUNTERS)
	vrrpRingFull  = uint32(bpf.DataplaneVrrpCounterVRRP_RING_FULL)
	vrrpClaims    = uint32(bpf.DataplaneVrrpCounterVRRP_CLAIMS)
	pinBornBefore = bpf.DataplanePinCounterPIN_BORN_BEFORE

	maxPins   = 4096 // MAX_PINS and MAX_GROUPS in bpf/maps.h: numbers below are possible
	maxGroups = 4096
)

// addrWords writes an address as the maps hold it: 16 octets in network order,
// IPv4 as ::ffff:a.b.c.d, the zero Addr as zeros.
func addrWords(addr netip.Addr) (words [4]uint32) {
	if !addr.IsValid() {
		return words
	}
	octets := addr.As16()
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(octets[4*i:])
	}
	return words
}

// wordsAddr reads what addrWords writes.
func wordsAddr(words [4]uint32) netip.Addr {
	if words == [4]uint32{} {
		return netip.Addr{}
	}
	var octets [16]byte
	for i, word := range words {
		binary.NativeEndian.PutUint32(octets[4*i:], word)
	}
	return netip.AddrFrom16(octets).Unmap()
}

// swapPort turns a port into network byte order or back.
func swapPort(port uint16) uint16 {
	var octets [2]byte
	binary.BigEndian.PutUint16(octets[:], port)
	return binary.NativeEndian.Uint16(octets[:])
}

func endAddrPort(words [4]uint32, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(wordsAddr(words), swapPort(port))
}

// newFlowKey makes the key of a flow seen from one of our ends.
func newFlowKey(slot uint32, proto uint8, self, remote netip.AddrPort) (key flowKey) {
	key.Slot, key.Proto = slot, proto
	key.Self.Word, key.SelfPort = addrWords(self.Addr()), swapPort(self.Port())
	key.Remote.Word, key.RemotePort = addrWords(remote.Addr()), swapPort(remote.Port())
	return key
}

func keySelf(key *flowKey) netip.AddrPort   { return endAddrPort(key.Self.Word, key.SelfPort) }
func keyRemote(key *flowKey) netip.AddrPort { return endAddrPort(key.Remote.Word, key.RemotePort) }

// publicKey is the key in by_public of the mapping that by_local has at key.
func publicKey(key flowKey, end *publicEnd) flowKey {
	key.Self.Word, key.SelfPort = end.Addr.Word, end.Port
	return key
}

// localKey is the key in by_local of the mapping that by_public has at key.
func localKey(key flowKey, end *localEnd) flowKey {
	key.Self.Word, key.SelfPort = end.Addr.Word, end.Port
	return key
}

// replyKey is the key of a conntrack entry whose answers come to one of our
// ends. ok is false for ICMP that is no echo.
func replyKey(slot uint32, reply conntrack.Tuple) (key flowKey, ok bool) {
	remote := reply.Source()
	if reply.IsICMP() {
		if reply.ICMPType != echoReply(reply.Proto) {
			return key, false
		}
		remote = netip.AddrPortFrom(reply.Src, 0)
	}
	return newFlowKey(slot, reply.Proto, reply.Destination(), remote), true
}

// replyTuple is the reply tuple of the conntrack entry behind a key.
func replyTuple(key *flowKey, zone uint16) conntrack.Tuple {
	self, remote := keySelf(key), keyRemote(key)
	tuple := conntrack.Tuple{Src: remote.Addr(), Dst: self.Addr(), Proto: key.Proto, Zone: zone}
	if tuple.IsICMP() {
		tuple.ICMPType, tuple.ICMPID = echoReply(key.Proto), self.Port()
	} else {
		tuple.SrcPort, tuple.DstPort = remote.Port(), self.Port()
	}
	return tuple
}

// echoReply is the type of an answered ping, RFC 792 and RFC 4443 section 4.2.
func echoReply(proto uint8) uint8 {
	if proto == unix.IPPROTO_ICMPV6 {
		return 129
	}
	return 0
}

// newSourceKey makes the longest-prefix key of an inside prefix.
func newSourceKey(slot uint32, prefix netip.Prefix) (key sourceKey) {
	prefix = prefix.Masked()
	key.Slot, key.Addr.Word = slot, addrWords(prefix.Addr())
	key.PrefixLen = 32 + uint32(prefix.Bits())
	if prefix.Addr().Is4() {
		key.PrefixLen += 96
	}
	return key
}

func sourcePrefix(key *sourceKey) netip.Prefix {
	bits := int(key.PrefixLen) - 32
	var octets [16]byte
	for i, word := range key.Addr.Word {
		binary.NativeEndian.PutUint32(octets[4*i:], word)
	}
	addr := netip.AddrFrom16(octets)
	if addr.Is4In6() && bits >= 96 {
		return netip.PrefixFrom(addr.Unmap(), bits-96)
	}
	return netip.PrefixFrom(addr, bits)
}

// putName copies a name into a map's field, with at least one zero after it.
func putName(field []byte, name string) error {
	if len(name) >= len(field) {
		return fmt.Errorf("name %q is longer than %d octets: shorten it", name, len(field)-1)
	}
	clear(field)
	copy(field, name)
	return nil
}

func getName(field []byte) string {
	name, _, _ := bytes.Cut(field, []byte{0})
	return string(name)
}

// newMapping puts the two directions of a mapping together. public is nil if
// by_public does not have it.
func newMapping(key *flowKey, local *publicEnd, public *localEnd) policy.Mapping {
	m := policy.Mapping{
		Pin: local.Pin, Slot: key.Slot, Proto: key.Proto,
		Public: endAddrPort(local.Addr.Word, local.Port),
		Local:  keySelf(key), Remote: keyRemote(key),
		Native:  local.Flags&mappingNative != 0,
		Acked:   local.Flags&mappingAcked != 0,
		LastOut: time.Duration(local.LastOutNs),
	}
	if public != nil {
		m.Born, m.LastIn = time.Duration(public.BornNs), time.Duration(public.LastInNs)
	}
	return m
}

// readMap reads a map that only user space writes.
func readMap[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	content := make(map[K]V)
	err := scanMap(m, func(key K, value V) bool {
		content[key] = value
		return true
	})
	return content, err
}

func mapName(m *ebpf.Map) string {
	if info, err := m.Info(); err == nil {
		return info.Name
	}
	return m.String()
}

// scanChunk is how many entries are copied out of a flow map at a time.
const scanChunk = 4096

// scanMap hands every entry of a hash map to yield, until it returns false. The
// programs, and yield, may change the map meanwhile: an entry there from the
// beginning to the end is seen.
func scanMap[K, V any](m *ebpf.Map, yield func(K, V) bool) error {
	chunk := scanChunk
	keys, values := make([]K, chunk), make([]V, chunk)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) { // one bucket holds more than a chunk
			chunk *= 2
			keys, values = make([]K, chunk), make([]V, chunk)
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read map %s: %w", mapName(m), err)
		}
		for i := range n {
			if !yield(keys[i], values[i]) {
				return nil
			}
		}
		if err != nil { // the end
			return nil
		}
	}
}

// raw spares a key or value the library's look at its type, which counts where there
// are tens of thousands a second. T has the layout of the map: both are made from
// the same source.
func raw[T flowKey | publicEnd | localEnd](value *T) unsafe.Pointer { return unsafe.Pointer(value) }
