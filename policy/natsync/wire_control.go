// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"vippin/policy"
)

// What a router says of itself, acknowledgements, and bulks. They are rare and go
// through the generated code.

// fieldSlack is how many fields besides the repeated ones a message may have.
const fieldSlack = 64

// readWire reads a message of so many fields at most: however short a field is on
// the wire, in memory it may take a hundred octets.
func readWire(b []byte, most int, m proto.Message) error {
	for rest := b; len(rest) > 0; most-- {
		_, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if most == 0 {
			return errors.New("too many fields")
		}
		rest = rest[n:]
	}
	return discard.Unmarshal(b, m)
}

func helloToWire(h Hello) *WireHello {
	return &WireHello{
		VersionMin: h.MinVersion,
		VersionMax: h.MaxVersion,
		Node:       cleanName(h.Node),
		Build:      cleanName(h.Build),
		Boot:       h.Boot[:],
	}
}

func readHello(b []byte) (Hello, error) {
	var w WireHello
	if err := readWire(b, fieldSlack, &w); err != nil {
		return Hello{}, err
	}
	if w.GetVersionMin() == 0 || w.GetVersionMin() > w.GetVersionMax() {
		return Hello{}, fmt.Errorf("version_min is %d, version_max is %d", w.GetVersionMin(), w.GetVersionMax())
	}
	if err := checkName(w.GetNode()); err != nil {
		return Hello{}, fmt.Errorf("node: %w", err)
	}
	if err := checkName(w.GetBuild()); err != nil {
		return Hello{}, fmt.Errorf("build: %w", err)
	}
	if len(w.GetBoot()) != 16 {
		return Hello{}, fmt.Errorf("boot has %d octets, not 16", len(w.GetBoot()))
	}
	return Hello{
		MinVersion: w.GetVersionMin(),
		MaxVersion: w.GetVersionMax(),
		Node:       w.GetNode(),
		Build:      w.GetBuild(),
		Boot:       [16]byte(w.GetBoot()),
	}, nil
}

// readState reads a State and the names that it gives to ids.
func readState(b []byte) (s State, names nameTable, err error) {
	var w WireState
	if err := readWire(b, MaxGroups+MaxPins+fieldSlack, &w); err != nil {
		return s, names, err
	}
	if len(w.GetGroups()) > MaxGroups {
		return s, names, fmt.Errorf("%d groups, over %d", len(w.GetGroups()), MaxGroups)
	}
	if len(w.GetPins()) > MaxPins {
		return s, names, fmt.Errorf("%d pins, over %d", len(w.GetPins()), MaxPins)
	}
	s.Prompt = w.GetPrompt()
	names.groups = make([]string, 1, len(w.GetGroups())+1)
	for i, g := range w.GetGroups() {
		if err := readGroup(&s, &names, g); err != nil {
			return s, names, fmt.Errorf("group %d: %w", i, err)
		}
	}
	names.pins = make([]PinState, 1, len(w.GetPins())+1)
	for i, p := range w.GetPins() {
		if err := readPin(&s, &names, p); err != nil {
			return s, names, fmt.Errorf("pin %d: %w", i, err)
		}
	}
	return s, names, nil
}

func readGroup(s *State, names *nameTable, w *WireGroup) error {
	if w.GetName() == "" {
		return errors.New("name is missing")
	}
	if err := checkName(w.GetName()); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if w.GetRole() < 0 || w.GetRole() > WireRole(policy.RoleMaster) {
		return fmt.Errorf("role is %d", w.GetRole())
	}
	if err := checkID(w.GetId(), MaxGroups); err != nil {
		return err
	}
	for int(w.GetId()) >= len(names.groups) {
		names.groups = append(names.groups, "")
	}
	if names.groups[w.GetId()] != "" {
		return fmt.Errorf("id %d twice", w.GetId())
	}
	names.groups[w.GetId()] = w.GetName()
	s.Groups = append(s.Groups, GroupState{Name: w.GetName(), Role: policy.Role(w.GetRole()), Epoch: w.GetEpoch()})
	return nil
}

func readPin(s *State, names *nameTable, w *WirePin) error {
	vip, _ := netip.AddrFromSlice(w.GetVip())
	p := PinState{Pin: policy.PinName{VIP: vip, VLAN: policy.VLAN{
		Outer: uint16(min(w.GetVlanOuter(), math.MaxUint16)),
		Inner: uint16(min(w.GetVlanInner(), math.MaxUint16)),
	}}}
	err := checkPin(p.Pin)
	if err == nil {
		err = checkID(w.GetId(), MaxPins)
	}
	if err == nil {
		p.Group, err = names.group(w.GetGroup())
	}
	if err != nil {
		return err
	}
	for int(w.GetId()) >= len(names.pins) {
		names.pins = append(names.pins, PinState{})
	}
	if names.pins[w.GetId()] != (PinState{}) {
		return fmt.Errorf("id %d twice", w.GetId())
	}
	names.pins[w.GetId()] = p
	s.Pins = append(s.Pins, p)
	return nil
}

// checkID keeps the tables of ids small.
func checkID(id uint32, most uint32) error {
	if id == 0 || id > most {
		return fmt.Errorf("id is %d, not from 1 to %d", id, most)
	}
	return nil
}

func ackToWire(seq uint64, refusals []Refusal) *WireAck {
	w := &WireAck{Seq: seq}
	for _, r := range refusals {
		w.Refusals = append(w.Refusals, &WireRefusal{Index: uint32(r.Index), Reason: uint32(r.Reason)})
	}
	return w
}

func readAck(b []byte) (seq uint64, refusals []Refusal, err error) {
	var w WireAck
	if err := readWire(b, MaxBatch+fieldSlack, &w); err != nil {
		return 0, nil, err
	}
	for i, r := range w.GetRefusals() {
		if r.GetIndex() >= MaxBatch {
			return 0, nil, fmt.Errorf("refusal %d: index is %d", i, r.GetIndex())
		}
		if r.GetReason() == 0 || r.GetReason() > math.MaxUint8 {
			return 0, nil, fmt.Errorf("refusal %d: reason is %d", i, r.GetReason())
		}
		refusals = append(refusals, Refusal{int(r.GetIndex()), Reason(r.GetReason())})
	}
	return w.GetSeq(), refusals, nil
}

// bulkBegin is WireBulkBegin.
type bulkBegin struct {
	bulk, about uint64
	groups      []string
}

func readBulkBegin(b []byte) (bulkBegin, error) {
	var w WireBulkBegin
	if err := readWire(b, MaxGroups+fieldSlack, &w); err != nil {
		return bulkBegin{}, err
	}
	if w.GetBulk() == 0 {
		return bulkBegin{}, errors.New("bulk is 0")
	}
	return bulkBegin{w.GetBulk(), w.GetAbout(), w.GetGroups()}, checkGroups(w.GetGroups())
}

func readBulkEnd(b []byte) (bulk, count uint64, err error) {
	var w WireBulkEnd
	err = readWire(b, fieldSlack, &w)
	return w.GetBulk(), w.GetCount(), err
}

func readDigest(b []byte) ([]byte, error) {
	var w WireDigest
	if err := readWire(b, fieldSlack, &w); err != nil {
		return nil, err
	}
	if len(w.GetDigest()) > MaxDigest {
		return nil, fmt.Errorf("%d octets, over %d", len(w.GetDigest()), MaxDigest)
	}
	return w.GetDigest(), nil
}

func readBulkRequest(b []byte) ([]string, error) {
	var w WireBulkRequest
	if err := readWire(b, MaxGroups+fieldSlack, &w); err != nil {
		return nil, err
	}
	return w.GetGroups(), checkGroups(w.GetGroups())
}

// checkGroups looks at the names of groups, where "" is the flows without one.
func checkGroups(groups []string) error {
	if len(groups) > MaxGroups {
		return fmt.Errorf("%d groups, over %d", len(groups), MaxGroups)
	}
	for i, name := range groups {
		if err := checkName(name); err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
	}
	return nil
}
