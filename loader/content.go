// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"vippin/policy"
)

// content is what the plan's maps hold, or should hold.
type content struct {
	ifaces  map[uint32]ifaceValue
	pins    map[uint32]pinValue
	groups  map[uint32]groupValue
	vips    map[slotAddr]vipValue
	uniques map[slotAddr]uniqueState
	sources map[sourceKey]uint32
	vrids   map[vridKey]uint32

	switches *switches
}

func newContent() content {
	return content{
		ifaces: make(map[uint32]ifaceValue), pins: make(map[uint32]pinValue), groups: make(map[uint32]groupValue),
		vips: make(map[slotAddr]vipValue), uniques: make(map[slotAddr]uniqueState),
		sources: make(map[sourceKey]uint32), vrids: make(map[vridKey]uint32), switches: new(switches),
	}
}

// content reads the maps.
func (d *Dataplane) content() (content, error) {
	var c content
	var err error
	read := func(do func() error) {
		if err == nil {
			err = do()
		}
	}
	read(func() (err error) { c.ifaces, err = readMap[uint32, ifaceValue](d.maps.Ifaces); return err })
	read(func() (err error) { c.vips, err = readMap[slotAddr, vipValue](d.maps.Vips); return err })
	read(func() (err error) { c.uniques, err = readMap[slotAddr, uniqueState](d.maps.Uniques); return err })
	read(func() (err error) { c.sources, err = readMap[sourceKey, uint32](d.maps.Sources); return err })
	read(func() (err error) { c.vrids, err = readMap[vridKey, uint32](d.maps.Vrids); return err })
	read(func() (err error) { c.pins, err = d.usedPins(); return err })
	read(func() (err error) { c.switches, err = d.readSwitches(); return err })
	read(func() (err error) {
		c.groups, err = readArray(d.maps.Groups, func(g groupValue) bool { return g.Name[0] != 0 })
		return err
	})
	return c, err
}

func (d *Dataplane) usedPins() (map[uint32]pinValue, error) {
	return readArray(d.maps.Pins, func(p pinValue) bool { return p.Flags&pinUsed != 0 })
}

// readArray reads the elements of an array that are in use.
func readArray[V any](m *ebpf.Map, used func(V) bool) (map[uint32]V, error) {
	content := make(map[uint32]V)
	err := scanMap(m, func(index uint32, value V) bool {
		if used(value) {
			content[index] = value
		}
		return true
	})
	return content, err
}

// wanted works out the maps' content from a plan.
func wanted(plan policy.Plan) (content, error) {
	c := newContent()
	var errs []error
	for _, group := range plan.Groups {
		errs = append(errs, c.addGroup(group))
	}
	for i := range plan.Pins {
		errs = append(errs, c.addPin(&plan.Pins[i]))
	}
	for i := range plan.Interfaces {
		errs = append(errs, c.addInterface(&plan.Interfaces[i]))
		c.addUniques(&plan.Interfaces[i])
	}
	c.nameOnlyPins()
	return c, errors.Join(errs...)
}

func (c content) addGroup(group policy.PlanGroup) error {
	var value groupValue
	if group.ID == 0 || group.ID >= maxGroups {
		return fmt.Errorf("group %s has number %d: only 1 to %d are possible", group.Name, group.ID, maxGroups-1)
	}
	if group.Name == "" {
		return fmt.Errorf("group %d has no name", group.ID)
	}
	if err := putName(value.Name[:], group.Name); err != nil {
		return fmt.Errorf("group %d: %w", group.ID, err)
	}
	c.groups[group.ID] = value
	return nil
}

func (c content) addPin(pin *policy.PlanPin) error {
	if pin.ID == 0 || pin.ID >= maxPins {
		return fmt.Errorf("pin of VLAN %v has number %d: only 1 to %d are possible", pin.VLAN, pin.ID, maxPins-1)
	}
	if pin.Group >= maxGroups {
		return fmt.Errorf("pin of VLAN %v has group %d: only 0 to %d are possible", pin.VLAN, pin.Group, maxGroups-1)
	}
	value := pinValue{
		Slot: pin.Slot, Group: pin.Group, Ifindex: uint32(pin.Ifindex), Flags: pinUsed,
		VlanOuter: pin.VLAN.Outer, VlanInner: pin.VLAN.Inner,
	}
	if pin.Retired {
		value.Flags |= pinRetired
	}
	if pin.OnPort4 {
		value.Flags |= pinBridge4
	}
	if pin.OnPort6 {
		value.Flags |= pinBridge6
	}
	c.switches.set(pin.ID, pin.Enabled && !pin.Retired, pin.EnabledBy)
	value.Vip4.Word, value.Vip6.Word = addrWords(pin.VIP4), addrWords(pin.VIP6)
	if err := errors.Join(putName(value.Name[:], pin.Name), putName(value.Interface[:], pin.Interface)); err != nil {
		return fmt.Errorf("pin of VLAN %v: %w", pin.VLAN, err)
	}
	c.pins[pin.ID] = value
	for order, vip := range pin.VIPs {
		key := newSlotAddr(pin.Slot, vip)
		if held, ok := c.vips[key]; ok && (pin.Retired || held.Pin == pin.ID) {
			continue // a living pin has it
		}
		c.vips[key] = vipValue{Pin: pin.ID, Order: uint32(order)}
	}
	return nil
}

// addUniques tells the pins of an interface which address masquerade chooses
// there as a rule: the first. Flows on others take the programs' long way.
func (c content) addUniques(iface *policy.PlanInterface) {
	first := func(v4 bool) netip.Addr {
		i := slices.IndexFunc(iface.Uniques, func(a netip.Addr) bool { return a.Is4() == v4 && !a.IsLinkLocalUnicast() })
		if i < 0 {
			return netip.Addr{}
		}
		return iface.Uniques[i]
	}
	for id, pin := range c.pins {
		if pin.Slot == iface.Slot && iface.Slot != 0 {
			pin.Unique4.Word, pin.Unique6.Word = addrWords(first(true)), addrWords(first(false))
			c.pins[id] = pin
		}
	}
}

func (c content) addInterface(iface *policy.PlanInterface) error {
	if iface.Index <= 0 {
		return fmt.Errorf("interface %s has index %d", iface.Name, iface.Index)
	}
	value := ifaceValue{Slot: iface.Slot, Known: 1}
	if iface.HasL2 {
		value.HasL2 = 1
	}
	if iface.Bridged {
		value.Bridged = 1
	}
	c.ifaces[uint32(iface.Index)] = value
	for _, vrid := range iface.VRIDs {
		c.vrids[vridKey{Ifindex: uint32(iface.Index), Vrid: uint32(vrid.VRID)}] = vrid.Group
	}
	if iface.Slot == 0 {
		return nil
	}
	for _, unique := range iface.Uniques {
		c.uniques[newSlotAddr(iface.Slot, unique)] = uniqueKnown
	}
	for _, vip := range iface.VIPs {
		key := newSlotAddr(iface.Slot, vip)
		if _, ok := c.vips[key]; !ok {
			c.vips[key] = vipValue{}
		}
	}
	mapped := newSourceKey(iface.Slot, netip.MustParsePrefix("0.0.0.0/0"))
	for _, source := range iface.Sources {
		if !source.Prefix.IsValid() {
			return fmt.Errorf("interface %s has a source without prefix", iface.Name)
		}
		key := newSourceKey(iface.Slot, source.Prefix)
		c.sources[key] = source.Pin
		// IPv4 lies inside ::/0 as the maps hold addresses, and is not meant.
		if _, ok := c.sources[mapped]; !ok && key.PrefixLen < mapped.PrefixLen && source.Prefix.Overlaps(mappedIPv4) {
			c.sources[mapped] = 0
		}
	}
	return nil
}

// mappedIPv4 is where IPv4 lies among IPv6 addresses, RFC 4291 section 2.5.5.2.
var mappedIPv4 = netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96)

func newSlotAddr(slot uint32, addr netip.Addr) (key slotAddr) {
	key.Slot, key.Addr.Word = slot, addrWords(addr)
	return key
}

// Planned reads the plan that is in force back from the maps, retired pins and
// interfaces that only their mappings keep included, so that numbers stay the
// same over restarts. Everything comes sorted; Warnings is empty.
func (d *Dataplane) Planned() (policy.Plan, error) {
	c, err := d.content()
	if err != nil {
		return policy.Plan{}, err
	}
	if d.marks {
		maps.DeleteFunc(c.sources, func(key sourceKey, _ uint32) bool { return isNumberKey(key) })
	}
	var plan policy.Plan
	for _, id := range slices.Sorted(maps.Keys(c.groups)) {
		group := c.groups[id]
		plan.Groups = append(plan.Groups, policy.PlanGroup{ID: id, Name: getName(group.Name[:])})
	}
	for _, id := range slices.Sorted(maps.Keys(c.pins)) {
		plan.Pins = append(plan.Pins, c.plannedPin(id))
	}
	for _, ifindex := range slices.Sorted(maps.Keys(c.ifaces)) {
		plan.Interfaces = append(plan.Interfaces, c.plannedInterface(ifindex))
	}
	return plan, nil
}

func (c content) plannedPin(id uint32) policy.PlanPin {
	value := c.pins[id]
	return policy.PlanPin{
		ID: id, Slot: value.Slot, Group: value.Group, Ifindex: int(value.Ifindex),
		VLAN: policy.VLAN{Outer: value.VlanOuter, Inner: value.VlanInner},
		Name: getName(value.Name[:]), Interface: getName(value.Interface[:]),
		VIP4: wordsAddr(value.Vip4.Word), VIP6: wordsAddr(value.Vip6.Word), VIPs: c.vipsOf(id),
		Enabled: c.switches.on(id), EnabledBy: c.switches.by(id), Retired: value.Flags&pinRetired != 0,
		OnPort4: value.Flags&pinBridge4 != 0, OnPort6: value.Flags&pinBridge6 != 0,
	}
}

// vipsOf lists a pin's VIPs in the order of the configuration.
func (c content) vipsOf(pin uint32) []netip.Addr {
	var keys []slotAddr
	for key, vip := range c.vips {
		if vip.Pin == pin {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b slotAddr) int { return cmp.Compare(c.vips[a].Order, c.vips[b].Order) })
	var list []netip.Addr
	for _, key := range keys {
		list = append(list, wordsAddr(key.Addr.Word))
	}
	return list
}

func (c content) plannedInterface(ifindex uint32) policy.PlanInterface {
	value := c.ifaces[ifindex]
	iface := policy.PlanInterface{Index: int(ifindex), Slot: value.Slot, HasL2: value.HasL2 != 0, Bridged: value.Bridged != 0}
	for _, pin := range c.pins {
		if pin.Ifindex == ifindex {
			iface.Name = getName(pin.Interface[:])
		}
	}
	if iface.Name == "" { // only watched
		if link, err := net.InterfaceByIndex(int(ifindex)); err == nil {
			iface.Name = link.Name
		}
	}
	for key, group := range c.vrids {
		if key.Ifindex == ifindex {
			iface.VRIDs = append(iface.VRIDs, policy.PlanVRID{VRID: uint8(key.Vrid), Group: group})
		}
	}
	slices.SortFunc(iface.VRIDs, func(a, b policy.PlanVRID) int { return cmp.Compare(a.VRID, b.VRID) })
	if value.Slot == 0 {
		return iface
	}
	iface.Uniques = addrsOf(c.uniques, value.Slot)
	iface.VIPs = addrsOf(c.vips, value.Slot)
	for key, pin := range c.sources {
		if key.Slot == value.Slot && pin != 0 {
			iface.Sources = append(iface.Sources, policy.PlanSource{Prefix: sourcePrefix(&key), Pin: pin})
		}
	}
	slices.SortFunc(iface.Sources, func(a, b policy.PlanSource) int { return a.Prefix.Compare(b.Prefix) })
	return iface
}

func addrsOf[V any](of map[slotAddr]V, slot uint32) []netip.Addr {
	var list []netip.Addr
	for key := range of {
		if key.Slot == slot {
			list = append(list, wordsAddr(key.Addr.Word))
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// put writes what is new or different.
func put[K comparable, V comparable](m *ebpf.Map, now, want map[K]V) error {
	for key, value := range want {
		if held, ok := now[key]; ok && held == value {
			continue
		}
		if err := m.Put(key, value); err != nil {
			return fmt.Errorf("write map %s: %w", mapName(m), err)
		}
	}
	return nil
}

// drop removes what is not wanted any more.
func drop[K comparable, V any](m *ebpf.Map, now, want map[K]V) error {
	for key := range now {
		if _, ok := want[key]; ok {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("clean map %s: %w", mapName(m), err)
		}
	}
	return nil
}
