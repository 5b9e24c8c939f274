// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// fieldKind says how the octets of a field are written.
type fieldKind uint8

const (
	octetsField  fieldKind = iota
	numberField            // network order, as ports are
	hostField              // host order, as marks are
	nameField              // of an interface
	indexField             // of an interface
	addressField           // of an IP header
	protoField             // layer 4
	familyField            // layer 3
)

// field is something that a rule compares: "ip saddr".
type field struct {
	text string
	kind fieldKind
	size int    // octets, 0 = not known
	mask []byte // that was laid on it, nil = none
}

// width is how many octets it takes in a concatenation.
func (f field) width() int { return (f.size + 3) &^ 3 }

// fieldOf is what a set's type says of its elements.
func fieldOf(datatype string) field {
	switch datatype {
	case "ipv4_addr":
		return field{kind: addressField, size: 4}
	case "ipv6_addr":
		return field{kind: addressField, size: 16}
	case "inet_service":
		return field{kind: numberField, size: 2}
	}
	return field{}
}

// values writes a range of values, inclusive.
func (f field) values(from, to []byte) policy.NATWord {
	switch f.kind {
	case nameField:
		return policy.NATWord{Interface: nameOf(from)}
	case indexField:
		if index, ok := indexOf(from); ok {
			return policy.NATWord{Interface: linkName(index)}
		}
	case addressField:
		if word, ok := f.addresses(from, to); ok {
			return word
		}
	}
	if bytes.Equal(from, to) {
		return policy.NATWord{Text: f.value(from)}
	}
	return policy.NATWord{Text: f.value(from) + "-" + f.value(to)}
}

// linkName is what an interface's index means, "#7" when it is none.
func linkName(index int) string {
	if link, err := net.InterfaceByIndex(index); err == nil {
		return link.Name
	}
	return "#" + strconv.Itoa(index)
}

// addresses completes what nft(8) compares a part of: a prefix.
func (f field) addresses(from, to []byte) (policy.NATWord, bool) {
	whole := 4
	if f.size > 4 || len(from) > 4 {
		whole = 16
	}
	if len(from) > whole || len(to) > whole {
		return policy.NATWord{}, false
	}
	first, last := make([]byte, whole), bytes.Repeat([]byte{0xff}, whole)
	copy(first, from)
	copy(last, to)
	if f.mask != nil && bytes.Equal(from, to) {
		for i := range min(len(f.mask), whole) {
			last[i] |= ^f.mask[i]
		}
	}
	low, _ := netip.AddrFromSlice(first)
	high, _ := netip.AddrFromSlice(last)
	return policy.NATWord{From: low, To: high}, true
}

func (f field) value(data []byte) string {
	switch {
	case f.kind == numberField && len(data) <= 4:
		var wide [4]byte
		copy(wide[4-len(data):], data)
		return strconv.FormatUint(uint64(binary.BigEndian.Uint32(wide[:])), 10)
	case f.kind == hostField && len(data) == 4:
		return fmt.Sprintf("%#x", binary.NativeEndian.Uint32(data))
	case f.kind == protoField && len(data) == 1:
		if name := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmpv6"}[data[0]]; name != "" {
			return name
		}
		return strconv.Itoa(int(data[0]))
	case f.kind == familyField && len(data) == 1:
		return map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}[data[0]]
	}
	return "0x" + hex.EncodeToString(data)
}

// keyWords writes a key, of one field or a concatenation.
func keyWords(fields []field, from, to []byte) []policy.NATWord {
	if len(fields) == 1 {
		return []policy.NATWord{fields[0].values(cut(fields[0], from), cut(fields[0], to))}
	}
	var words []policy.NATWord
	for i, f := range fields {
		width := min(f.width(), len(from), len(to))
		if i > 0 {
			words = append(words, policy.NATWord{Text: "."})
		}
		words = append(words, f.values(cut(f, from[:width]), cut(f, to[:width])))
		from, to = from[width:], to[width:]
	}
	return words
}

// cut leaves the padding off.
func cut(f field, data []byte) []byte {
	if f.size > 0 && len(data) > f.size {
		return data[:f.size]
	}
	return data
}

// interval is an element of a set, or all from one to another.
type interval struct {
	nftables.SetElement
	key, last []byte
}

// intervals puts the ends of intervals to their beginnings. The kernel lists an
// end as an element of its own, one above the last; one without an end goes to
// the highest.
func intervals(set *nftables.Set, elements []nftables.SetElement) (list []interval) {
	if !set.Interval || set.Concatenation {
		for _, e := range elements {
			last := e.Key
			if len(e.KeyEnd) > 0 {
				last = e.KeyEnd
			}
			list = append(list, interval{e, e.Key, last})
		}
		return list
	}
	slices.SortStableFunc(elements, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	for i, e := range elements {
		if e.IntervalEnd {
			continue
		}
		last := bytes.Repeat([]byte{0xff}, len(e.Key))
		for _, end := range elements[i+1:] {
			if bytes.Compare(end.Key, e.Key) > 0 {
				last = below(end.Key)
				break
			}
		}
		list = append(list, interval{e, e.Key, last})
	}
	return list
}

// below is the number before one, in network order.
func below(key []byte) []byte {
	key = slices.Clone(key)
	for i := len(key) - 1; i >= 0; i-- {
		key[i]--
		if key[i] != 0xff {
			break
		}
	}
	return key
}
