// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"errors"
	"fmt"

	"vippin/policy"
)

// idTable has the ids that a State gives to names, for the sender.
type idTable struct {
	groups map[string]uint32
	pins   map[policy.PinName]pinID
}

type pinID struct {
	id    uint32
	group string // what a flow of the pin belongs to unless it says otherwise
}

// group is the id of a group, 0 of none.
func (t *idTable) group(name string) (id uint32, ok bool) {
	if name == "" {
		return 0, true
	}
	id, ok = t.groups[name]
	return id, ok
}

// pin is the id of a pin, 0 of none, and its group.
func (t *idTable) pin(name policy.PinName) (id uint32, group string, ok bool) {
	if name == (policy.PinName{}) {
		return 0, "", true
	}
	pin, ok := t.pins[name]
	return pin.id, pin.group, ok
}

// stateToWire numbers groups and pins. It leaves out what the peer would not take:
// names that are none, and what comes twice or beyond the limits.
func stateToWire(s State) (*WireState, *idTable) {
	w := &WireState{Prompt: s.Prompt}
	ids := &idTable{groups: map[string]uint32{}, pins: map[policy.PinName]pinID{}}
	for _, g := range s.Groups {
		if _, twice := ids.groups[g.Name]; twice || g.Name == "" || checkName(g.Name) != nil || len(w.Groups) == MaxGroups {
			continue
		}
		id := uint32(len(w.Groups) + 1)
		ids.groups[g.Name] = id
		w.Groups = append(w.Groups, &WireGroup{Id: id, Name: g.Name, Role: WireRole(g.Role), Epoch: g.Epoch})
	}
	for _, p := range s.Pins {
		group, known := ids.group(p.Group)
		if _, twice := ids.pins[p.Pin]; twice || !known || checkPin(p.Pin) != nil || len(w.Pins) == MaxPins {
			continue
		}
		id := uint32(len(w.Pins) + 1)
		ids.pins[p.Pin] = pinID{id, p.Group}
		w.Pins = append(w.Pins, &WirePin{
			Id:        id,
			VlanOuter: uint32(p.Pin.VLAN.Outer),
			VlanInner: uint32(p.Pin.VLAN.Inner),
			Vip:       p.Pin.VIP.AsSlice(),
			Group:     group,
		})
	}
	return w, ids
}

func checkPin(p policy.PinName) error {
	switch {
	case p.VLAN.Outer > policy.VLANMax:
		return fmt.Errorf("vlan_outer is %d, over %d", p.VLAN.Outer, policy.VLANMax)
	case p.VLAN.Inner > policy.VLANMax:
		return fmt.Errorf("vlan_inner is %d, over %d", p.VLAN.Inner, policy.VLANMax)
	case p.VLAN.Inner != 0 && p.VLAN.Outer == 0:
		return errors.New("vlan_inner is set without vlan_outer")
	case !p.VIP.IsValid() || p.VIP.IsUnspecified() || p.VIP.Is4In6() || p.VIP.Zone() != "":
		return errors.New("vip is no address")
	}
	return nil
}

// nameTable has the names of the peer's ids.
type nameTable struct {
	groups []string   // by id, 0 = ""
	pins   []PinState // by id, 0 = none
}

var noNames = nameTable{groups: []string{""}, pins: []PinState{{}}}

func (t *nameTable) group(id uint32) (string, error) {
	if int64(id) >= int64(len(t.groups)) || id != 0 && t.groups[id] == "" {
		return "", fmt.Errorf("group id %d is not in the peer's state", id)
	}
	return t.groups[id], nil
}

// name gives a flow its pin and group.
func (t *nameTable) name(r *flowReader) (err error) {
	if int64(r.pin) >= int64(len(t.pins)) || r.pin != 0 && !t.pins[r.pin].Pin.VIP.IsValid() {
		return fmt.Errorf("pin id %d is not in the peer's state", r.pin)
	}
	r.f.Pin, r.f.Group = t.pins[r.pin].Pin, t.pins[r.pin].Group
	if r.hasGroup {
		r.f.Group, err = t.group(r.group)
	}
	return err
}
