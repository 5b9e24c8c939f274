// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"math"

	"vippin/policy"
)

// Table is the flows that this router installed because a peer told it of them.
// A flow takes some 100 bytes.
type Table struct {
	records map[policy.FlowKey]record
	pins    names[policy.PinName]
	groups  names[string]
	peers   names[string]
	round   uint32
}

// record is compact: there are many.
type record struct {
	to    policy.End
	round uint32 // of bulks, when it was last told
	pin   uint16
	group uint16
	peer  uint8
	taken bool // this router has become MASTER of its group since
	over  bool // a TCP connection that is closing: its own timeout ends it
}

// names gives names small numbers; 0 is the zero value's. They are never given
// back: there are as many as were ever configured. A peer that invents more has
// them taken for the zero value.
type names[K comparable] struct {
	list   []K
	number map[K]int
	most   int
}

func newNames[K comparable](most int) names[K] {
	var none K
	return names[K]{list: []K{none}, number: map[K]int{none: 0}, most: most}
}

func (n *names[K]) of(name K) int {
	number, known := n.number[name]
	if !known && len(n.list) <= n.most {
		number = len(n.list)
		n.list = append(n.list, name)
		n.number[name] = number
	}
	return number
}

// Record is a flow in the table.
type Record struct {
	Key   policy.FlowKey
	To    policy.End // its public end
	Pin   policy.PinName
	Group string
	Peer  string // who told of it last
	Taken bool   // this router took it over
}

// NewTable is an empty table.
func NewTable() *Table {
	return &Table{
		records: make(map[policy.FlowKey]record),
		pins:    newNames[policy.PinName](math.MaxUint16),
		groups:  newNames[string](math.MaxUint16),
		peers:   newNames[string](math.MaxUint8),
	}
}

// Get finds a flow.
func (t *Table) Get(key policy.FlowKey) (Record, bool) {
	r, ok := t.records[key]
	if !ok {
		return Record{}, false
	}
	return t.record(key, &r), true
}

func (t *Table) record(key policy.FlowKey, r *record) Record {
	return Record{
		Key: key, To: r.to, Pin: t.pins.list[r.pin], Group: t.groups.list[r.group],
		Peer: t.peers.list[r.peer], Taken: r.taken,
	}
}

// Has tells whether a flow with this public end is installed here already.
func (t *Table) Has(f *policy.Flow) bool {
	r, ok := t.records[f.FlowKey]
	return ok && r.to == f.To && t.pins.list[r.pin] == f.Pin
}

// Put notes that a flow of which a peer told is installed.
func (t *Table) Put(peer string, f *policy.Flow) {
	t.records[f.FlowKey] = record{
		to: f.To, round: t.round,
		pin: uint16(t.pins.of(f.Pin)), group: uint16(t.groups.of(f.Group)), peer: uint8(t.peers.of(peer)),
		over: isOver(f),
	}
}

// Drop forgets a flow.
func (t *Table) Drop(key policy.FlowKey) { delete(t.records, key) }

// Begin begins a bulk: what it does not tell of is stale at its end. Bulks of
// several peers may overlap.
func (t *Table) Begin() (round uint32) {
	t.round++
	return t.round
}

// Told tells whether a flow was told of since the beginning of a round.
func (t *Table) Told(key policy.FlowKey, round uint32) bool {
	r, ok := t.records[key]
	return ok && int32(r.round-round) >= 0
}

// Stale lists the flows of a group that were not told of since the beginning of
// a round. Of the group "" these are only the flows of one peer.
func (t *Table) Stale(peer, group string, round uint32) []Record {
	var stale []Record
	for key, r := range t.records {
		if int32(r.round-round) >= 0 || t.groups.list[r.group] != group {
			continue
		}
		if group == "" && (r.taken || t.peers.list[r.peer] != peer) {
			continue
		}
		stale = append(stale, t.record(key, &r))
	}
	return stale
}

// Take makes a group's flows this router's own, since it has become MASTER of the
// group. They stay known. It returns how many it is new for, and how many there
// are.
func (t *Table) Take(group string) (taken, held int) {
	number, ok := t.groups.number[group]
	if !ok {
		return 0, 0
	}
	for key, r := range t.records {
		if int(r.group) != number {
			continue
		}
		held++
		if !r.taken {
			taken++
			r.taken = true
			t.records[key] = r
		}
	}
	return taken, held
}

// IsTaken tells whether a flow is one that this router has taken over.
func (t *Table) IsTaken(key policy.FlowKey) bool { return t.records[key].taken }

// Own notes that a flow passes here, whoever told of it.
func (t *Table) Own(key policy.FlowKey) {
	if r, ok := t.records[key]; ok && !r.taken {
		r.taken = true
		t.records[key] = r
	}
}

// Standing lists the flows that a peer told of, that were not taken over and that
// go on: those whose timeouts are to be refreshed.
func (t *Table) Standing(peer string) []policy.FlowKey {
	number, ok := t.peers.number[peer]
	if !ok {
		return nil
	}
	var keys []policy.FlowKey
	for key, r := range t.records {
		if int(r.peer) == number && !r.taken && !r.over {
			keys = append(keys, key)
		}
	}
	return keys
}

// Fixed lists the flows taken over that no packet prolongs: those of GRE, whose
// timeouts conntrack does not keep in an entry that it did not make itself.
func (t *Table) Fixed() []policy.FlowKey {
	var keys []policy.FlowKey
	for key, r := range t.records {
		if r.taken && key.Proto == ipGRE {
			keys = append(keys, key)
		}
	}
	return keys
}

// Len is how many flows there are.
func (t *Table) Len() int { return len(t.records) }
