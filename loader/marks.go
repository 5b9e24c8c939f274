// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"vippin/policy"
)

// The tier without BTF. Where the kernel does not describe its own types, the
// programs cannot read conntrack's entries. There a chain of ours, after source
// NAT, writes what conntrack knows of a packet into the upper octet of its mark,
// and tc egress clears that (bpf/marks.h). The chain cannot hand over the inside
// host's address: it says by number which of the interface's pins takes the host,
// and the map sources has the pin under that number.

// The bits of the mark, as bpf/marks.h has them.
const (
	markMask        uint32 = 0xff000000
	markValid       uint32 = 0x80000000 // source NAT, original direction
	markFresh       uint32 = 0x40000000 // this packet made the entry
	markReplied     uint32 = 0x20000000
	markHelper      uint32 = 0x10000000 // has a helper, or was expected by one
	markSource      uint32 = 0x0f000000 // number of the pin among those of the interface; 0: none
	markSourceShift        = 24

	marksMost = 15 // pins of one interface that a number is left for
)

// markedInterface is what the table says of one interface.
type markedInterface struct {
	ifindex uint32
	name    string   // for people
	uppers  []uint32 // macvlans on it: what leaves by them leaves here
	sources []markedSource
}

// markedSource says under which number an inside prefix is known. The first that
// contains the host counts.
type markedSource struct {
	prefix netip.Prefix
	number uint32
}

// numberKey is where the map sources has the pin that an interface knows under a
// number: at ::n (see read_conntrack in bpf/marks.h).
func numberKey(slot, number uint32) sourceKey {
	octets := [16]byte{15: byte(number)}
	return newSourceKey(slot, netip.PrefixFrom(netip.AddrFrom16(octets), 128))
}

// isNumberKey tells the numbers from the inside prefixes.
func isNumberKey(key sourceKey) bool {
	for number := range uint32(marksMost + 1) {
		if key == numberKey(key.Slot, number) {
			return true
		}
	}
	return false
}

// marking works out the table for c, and adds the pins' numbers to c. A pin keeps
// the number that it has (now), and a number that becomes free is given away
// again by the next plan at the earliest, if possible: so the old table, which is
// in force until the new one is, says nothing wrong. A pin that no number is left
// for takes no flow; the error names the interface.
func (c content) marking(now content, plan policy.Plan) ([]markedInterface, []error) {
	planned := make(map[uint32]policy.PlanInterface)
	for _, iface := range plan.Interfaces {
		planned[uint32(iface.Index)] = iface
	}
	sources := maps.Clone(c.sources)
	maps.DeleteFunc(sources, func(key sourceKey, _ uint32) bool { return isNumberKey(key) })
	var list []markedInterface
	var errs []error
	for _, ifindex := range slices.Sorted(maps.Keys(c.ifaces)) {
		slot := c.ifaces[ifindex].Slot
		if slot == 0 {
			continue
		}
		marked := markedInterface{ifindex: ifindex, name: planned[ifindex].Name}
		for _, upper := range planned[ifindex].Uppers {
			marked.uppers = append(marked.uppers, uint32(upper))
		}
		numbers, left := c.numberPins(now, slot, sources)
		if left > 0 {
			errs = append(errs, fmt.Errorf("interface %s has %d pins: on a kernel without BTF only %d can be told apart, %d take no flow: "+
				"join some of them, or take a kernel built with CONFIG_DEBUG_INFO_BTF", cmp.Or(marked.name, fmt.Sprint(ifindex)), len(numbers)+left, marksMost, left))
		}
		for key, pin := range sources {
			if number, ok := numbers[pin]; ok && key.Slot == slot {
				marked.sources = append(marked.sources, markedSource{sourcePrefix(&key), number})
			}
		}
		slices.SortFunc(marked.sources, func(a, b markedSource) int { // the longest prefix first
			return cmp.Or(cmp.Compare(b.prefix.Bits(), a.prefix.Bits()), a.prefix.Addr().Compare(b.prefix.Addr()))
		})
		list = append(list, marked)
	}
	return list, errs
}

// numberPins gives the pins of a slot their numbers and writes these to
// c.sources. It returns them by pin, and how many pins got none.
func (c content) numberPins(now content, slot uint32, sources map[sourceKey]uint32) (numbers map[uint32]uint32, left int) {
	pins := make(map[uint32]bool)
	for key, pin := range sources {
		if key.Slot == slot && pin != 0 {
			pins[pin] = true
		}
	}
	c.sources[numberKey(slot, 0)] = 0 // else a prefix like ::/0 would take it
	numbers = make(map[uint32]uint32)
	var leaving, free []uint32
	for number := uint32(1); number <= marksMost; number++ {
		pin := now.sources[numberKey(slot, number)]
		switch _, twice := numbers[pin]; {
		case pin == 0 || twice:
			free = append(free, number)
		case !pins[pin]:
			leaving = append(leaving, number)
		default:
			numbers[pin] = number
		}
	}
	free = append(free, leaving...)
	for _, pin := range slices.Sorted(maps.Keys(pins)) {
		if _, has := numbers[pin]; has {
			continue
		}
		if len(free) == 0 {
			left++
			continue
		}
		numbers[pin], free = free[0], free[1:]
	}
	for pin, number := range numbers {
		c.sources[numberKey(slot, number)] = pin
	}
	return numbers, left
}

// marksStep is the table's part of one Apply.
type marksStep struct {
	want markTable
	held heldTable
}

// planMarks reads the table in force and works out the next one; nil where the
// kernel has BTF. What it says of single interfaces is for the caller to pass on.
func (d *Dataplane) planMarks(now, want content, plan policy.Plan) (*marksStep, []error, error) {
	if !d.marks {
		return nil, nil, nil
	}
	list, errs := want.marking(now, plan)
	held, err := readMarks()
	if err != nil {
		return nil, errs, err
	}
	return &marksStep{want: newMarkTable(list), held: held}, errs, nil
}

// shows tells whether the programs have been told about the packets of an
// interface until now.
func (s *marksStep) shows(ifindex uint32) bool { return s == nil || s.held.marks(ifindex) }

// put brings the table into force, unless it is.
func (s *marksStep) put(d *Dataplane) error {
	if s == nil {
		return nil
	}
	if !s.held.is(s.want) {
		if err := s.want.replace(); err != nil {
			return err
		}
	}
	d.tableMu.Lock()
	defer d.tableMu.Unlock()
	d.table, d.tableAt = &s.want, 0
	return nil
}

// MarksLost tells whether somebody removed or changed the nf_tables table (inet
// vippin) that tells the programs what conntrack knows, since Apply made it: Apply
// puts it back without changing the source of a living flow. Always false where
// the kernel has BTF. The look is cheap as long as no rule of nf_tables changes;
// it is for the network namespace of the calling thread.
func (d *Dataplane) MarksLost() (bool, error) {
	d.tableMu.Lock()
	defer d.tableMu.Unlock()
	if !d.marks || d.table == nil {
		return false, nil
	}
	at, err := rulesetGeneration()
	if err != nil || at == d.tableAt {
		return false, err
	}
	held, err := readMarks()
	if err != nil {
		return false, err
	}
	if !held.is(*d.table) {
		return true, nil
	}
	d.tableAt = at
	return false, nil
}
