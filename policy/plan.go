// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
)

// MakePlan decides what the dataplane must look like: configuration, toggles
// and what the kernel says in, the whole state out. Current is the plan in
// force, read back from the dataplane; from it pins (by VLAN and name), groups
// (by name) and interfaces keep their numbers. A pin of current that left the
// configuration is in the new plan as retired, after the others, until the
// caller leaves it out of current (DropRetired). What cannot be planned is a
// warning that names the thing and the way out; the rest is planned anyway.
func MakePlan(cfg *Config, toggles Toggles, seen Observed, current Plan) Plan {
	p := &planner{
		cfg: cfg, current: current,
		before: map[PinKey]PlanPin{}, links: map[string]*Link{}, tagged: map[VLAN][]*Link{},
		slotOf: map[int]uint32{}, faces: map[int]int{}, onPort: seen.OnPort,
	}
	for i := range seen.Links {
		link := &seen.Links[i]
		p.links[link.Name] = link
		p.tagged[link.VLAN] = append(p.tagged[link.VLAN], link)
	}
	for _, pin := range current.Pins {
		if _, twice := p.before[pin.Key()]; !twice {
			p.before[pin.Key()] = pin
		}
	}
	if len(cfg.Pins) == 0 {
		p.warn("no pin is configured, every flow keeps the router's own address: add one under \"pins\" in %s", cfg.File)
	}
	p.numberGroups()
	p.placePins(toggles)
	p.retirePins()
	p.assignSlots()
	p.buildInterfaces()
	p.watchVRIDs()
	return p.plan
}

// DropRetired returns the plan without those retired pins of which no mapping
// lives any more. The receiver stays as it is.
func (p Plan) DropRetired(lives func(pin uint32) bool) Plan {
	p.Pins = slices.DeleteFunc(slices.Clone(p.Pins), func(pin PlanPin) bool {
		return pin.Retired && !lives(pin.ID)
	})
	return p
}

// planner is a plan in the making.
type planner struct {
	cfg     *Config
	current Plan
	before  map[PinKey]PlanPin // current.Pins by key
	onPort  OnPort
	links   map[string]*Link // seen.Links by name
	tagged  map[VLAN][]*Link // seen.Links by their tags
	plan    Plan
	planned []plannedPin // beside plan.Pins, without the retired ones
	groups  map[string]uint32
	slotOf  map[int]uint32 // by ifindex, of interfaces with a pin
	faces   map[int]int    // place in plan.Interfaces, by ifindex
}

// plannedPin is the part of a pin that only the planner needs.
type plannedPin struct {
	config PinConfig
	id     uint32
	group  uint32
	link   *Link // nil while the interface is absent
}

func (p *planner) warn(format string, args ...any) {
	p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf(format, args...))
}

// numbers gives out the smallest free numbers from 1.
type numbers struct {
	taken map[uint32]bool
	next  uint32
}

func (n *numbers) take(number uint32) { n.taken[number] = true }

func (n *numbers) free() uint32 {
	for n.next = max(n.next, 1); n.taken[n.next]; n.next++ {
	}
	n.take(n.next)
	return n.next
}

// numberGroups numbers the groups of the configuration, then those that pins
// have of their own. A number of current that is still in use there is not
// given to another group.
func (p *planner) numberGroups() {
	p.groups = map[string]uint32{}
	before := map[string]uint32{}
	ids := &numbers{taken: map[uint32]bool{}}
	for _, group := range p.current.Groups {
		before[group.Name] = group.ID
	}
	for _, pin := range p.current.Pins {
		ids.take(pin.Group)
	}
	for _, group := range p.cfg.Groups {
		ids.take(before[group.Name])
	}
	for _, pin := range p.cfg.Pins {
		ids.take(before[pin.GroupName()])
	}
	add := func(name string) {
		if _, there := p.groups[name]; there {
			return
		}
		id, known := before[name]
		if !known {
			id = ids.free()
		}
		if id > GroupsMax {
			p.warn("group %s does not fit, there are %d already: put pins together in groups", name, GroupsMax)
			return
		}
		p.groups[name] = id
		p.plan.Groups = append(p.plan.Groups, PlanGroup{ID: id, Name: name})
	}
	for _, group := range p.cfg.Groups {
		add(group.Name)
	}
	for _, pin := range p.cfg.Pins {
		add(pin.GroupName())
	}
}

// placePins numbers the pins and finds their interfaces. Slots come later.
func (p *planner) placePins(toggles Toggles) {
	ids := &numbers{taken: map[uint32]bool{}}
	for _, pin := range p.current.Pins {
		ids.take(pin.ID)
	}
	for _, config := range p.cfg.Pins {
		before, known := p.before[config.Key()]
		id := before.ID
		if !known {
			id = ids.free()
		}
		group, grouped := p.groups[config.GroupName()]
		if id > PinsMax {
			p.warn("pin %s does not fit, there are %d already: remove some, retired ones go with their last flow", config.Key(), PinsMax)
			continue
		}
		if !grouped {
			continue
		}
		link, name := p.findLink(config, before.Interface)
		pin := PlanPin{
			ID: id, Slot: before.Slot, Group: group,
			VLAN: config.VLAN, Name: config.Name, Interface: name,
			VIP4: config.VIP4(), VIP6: config.VIP6(), VIPs: slices.Clone(config.VIPs),
		}
		if link != nil {
			pin.Ifindex = link.Index
			p.seenOnPort(&pin, link)
		}
		pin.Enabled, pin.EnabledBy = toggles.Decide(config.Key(), config.Enabled)
		p.plan.Pins = append(p.plan.Pins, pin)
		p.planned = append(p.planned, plannedPin{config: config, id: id, group: group, link: link})
	}
}

// retirePins keeps the pins that left the configuration, and their groups.
func (p *planner) retirePins() {
	stays := map[uint32]bool{}
	for _, pin := range p.plan.Pins {
		stays[pin.ID] = true
	}
	shown := map[uint32]bool{}
	for _, group := range p.plan.Groups {
		shown[group.ID] = true
	}
	for _, pin := range p.current.Pins {
		if stays[pin.ID] {
			continue
		}
		pin.Retired, pin.Enabled, pin.EnabledBy, pin.Ifindex = true, false, EnabledByConfig, 0
		if link := p.links[pin.Interface]; link != nil {
			pin.Ifindex = link.Index
		}
		p.plan.Pins = append(p.plan.Pins, pin)
		for _, group := range p.current.Groups {
			if group.ID == pin.Group && !shown[group.ID] {
				shown[group.ID] = true
				p.plan.Groups = append(p.plan.Groups, group)
			}
		}
	}
}

// assignSlots gives every interface with a pin one slot, shared by the pins on
// it. First an interface claims the slot that it has, as its pins tell; then
// the slots of pins that were absent or retired come into question, then those
// of pins that have moved. So no two interfaces share a slot, and living
// mappings stay where they are. A retired or absent pin keeps its slot.
func (p *planner) assignSlots() {
	slots := &numbers{taken: map[uint32]bool{0: true}}
	owned := map[uint32]bool{} // slots
	claim := func(counts func(now, before PlanPin) bool) {
		for _, pin := range p.plan.Pins {
			if pin.Ifindex != 0 && pin.Slot != 0 && !owned[pin.Slot] && p.slotOf[pin.Ifindex] == 0 && counts(pin, p.before[pin.Key()]) {
				owned[pin.Slot], p.slotOf[pin.Ifindex] = true, pin.Slot
			}
		}
	}
	claim(func(now, before PlanPin) bool {
		return before.Interface == now.Interface && before.Ifindex != 0 && !before.Retired
	})
	claim(func(now, before PlanPin) bool { return before.Interface == now.Interface })
	claim(func(now, before PlanPin) bool { return true })
	for _, pin := range p.current.Pins {
		slots.take(pin.Slot)
	}
	for i := range p.plan.Pins {
		pin := &p.plan.Pins[i]
		if pin.Ifindex == 0 || pin.Retired && pin.Slot != 0 {
			continue
		}
		if p.slotOf[pin.Ifindex] == 0 {
			p.slotOf[pin.Ifindex] = slots.free()
		}
		pin.Slot = p.slotOf[pin.Ifindex]
	}
}
