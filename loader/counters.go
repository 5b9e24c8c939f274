// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"vippin/bpf"
	"vippin/policy"
)

// PinCounters counts a pin's packets since it was made, all CPUs together.
type PinCounters struct {
	Pinned         uint64 // left with the VIP
	Returned       uint64 // came to the VIP and were brought back
	Created        uint64 // mappings made
	VIPWhileBackup uint64 // left with the VIP although this router is not MASTER
	Foreign        uint64 // left from a mapping's public end without being its flow
	Clash          uint64 // mappings that could not keep their port
	EarlyFragments uint64 // came to the VIP before their first fragment and were sent on
	Held           uint64 // returned ones that were to wait for the peer
	Resets         uint64 // TCP RSTs that this router itself sent from a VIP, of no mapping
	// Unpinned are packets that left with the router's own address, by reason:
	// off, backup, stale_role, born_before, no_vip, source, helper, full,
	// no_port, no_conntrack, fragment, protocol, error, bridge. Every reason is there.
	Unpinned map[string]uint64
}

// TotalUnpinned adds the reasons up.
func (c PinCounters) TotalUnpinned() (packets uint64) {
	for _, n := range c.Unpinned {
		packets += n
	}
	return packets
}

// unpinnedReasons names the counters of packets that were left alone.
var unpinnedReasons = map[bpf.DataplanePinCounter]string{
	bpf.DataplanePinCounterPIN_OFF:          "off",
	bpf.DataplanePinCounterPIN_BACKUP:       "backup",
	bpf.DataplanePinCounterPIN_STALE_ROLE:   "stale_role",
	bpf.DataplanePinCounterPIN_BORN_BEFORE:  "born_before",
	bpf.DataplanePinCounterPIN_NO_VIP:       "no_vip",
	bpf.DataplanePinCounterPIN_SOURCE:       "source",
	bpf.DataplanePinCounterPIN_HELPER:       "helper",
	bpf.DataplanePinCounterPIN_FULL:         "full",
	bpf.DataplanePinCounterPIN_NO_PORT:      "no_port",
	bpf.DataplanePinCounterPIN_NO_CONNTRACK: "no_conntrack",
	bpf.DataplanePinCounterPIN_FRAGMENT:     "fragment",
	bpf.DataplanePinCounterPIN_PROTOCOL:     "protocol",
	bpf.DataplanePinCounterPIN_ERROR:        "error",
	bpf.DataplanePinCounterPIN_BRIDGE:       "bridge",
}

// PinCounters reads the counters of every pin, retired ones too. Pin 0 counts
// the packets that no pin takes.
func (d *Dataplane) PinCounters() (map[uint32]PinCounters, error) {
	pins, err := d.usedPins()
	if err != nil {
		return nil, err
	}
	all := make(map[uint32]PinCounters)
	for _, id := range append(slices.Collect(maps.Keys(pins)), 0) {
		if all[id], err = d.countersOf(id); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// UnpinnedWithoutPin counts the packets that no pin can answer for, by reason.
func (d *Dataplane) UnpinnedWithoutPin() (map[string]uint64, error) {
	counters, err := d.countersOf(0)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(counters.Unpinned, func(_ string, packets uint64) bool { return packets == 0 })
	return counters.Unpinned, nil
}

func (d *Dataplane) countersOf(pin uint32) (PinCounters, error) {
	var packets [pinCounters]uint64
	for i := range packets {
		n, err := sumOfCPUs(d.maps.PinCounters, pin*pinCounters+uint32(i))
		if err != nil {
			return PinCounters{}, fmt.Errorf("read counters of pin %d: %w", pin, err)
		}
		packets[i] = n
	}
	c := PinCounters{
		Pinned:         packets[bpf.DataplanePinCounterPIN_PINNED],
		Returned:       packets[bpf.DataplanePinCounterPIN_RETURNED],
		Created:        packets[bpf.DataplanePinCounterPIN_CREATED],
		VIPWhileBackup: packets[bpf.DataplanePinCounterPIN_VIP_WHILE_BACKUP],
		Foreign:        packets[bpf.DataplanePinCounterPIN_FOREIGN],
		Clash:          packets[bpf.DataplanePinCounterPIN_CLASH],
		EarlyFragments: packets[bpf.DataplanePinCounterPIN_EARLY_FRAGMENT],
		Held:           packets[bpf.DataplanePinCounterPIN_HELD],
		Resets:         packets[bpf.DataplanePinCounterPIN_RESET],
		Unpinned:       make(map[string]uint64),
	}
	for counter, reason := range unpinnedReasons {
		c.Unpinned[reason] = packets[counter]
	}
	return c, nil
}

func sumOfCPUs(m *ebpf.Map, index uint32) (sum uint64, err error) {
	var perCPU []uint64
	if err := m.Lookup(index, &perCPU); err != nil {
		return 0, err
	}
	for _, n := range perCPU {
		sum += n
	}
	return sum, nil
}

// VRRPCounters counts the VRRP packets seen, in and out, by what was wrong with
// them (policy.AdvertReason; "valid" for nothing); as "claims" what others said
// of VIPs by ARP and neighbour advertisements; and as "ring_full" those of
// either that user space did not read in time.
func (d *Dataplane) VRRPCounters() (map[string]uint64, error) {
	all := make(map[string]uint64)
	for i := range vrrpCounters {
		name := policy.AdvertReason(i).String()
		switch i {
		case vrrpRingFull:
			name = "ring_full"
		case vrrpClaims:
			name = "claims"
		}
		n, err := sumOfCPUs(d.maps.VrrpCounters, i)
		if err != nil {
			return nil, fmt.Errorf("read VRRP counters: %w", err)
		}
		all[name] = n
	}
	return all, nil
}

// PinStatus makes the rows of "vippin pin ls": without retired pins, sorted by
// VLAN and name. The role is the one the programs go by.
func (d *Dataplane) PinStatus() ([]policy.PinStatus, error) {
	flows := make(map[uint32]uint64)
	err := scanMap(d.maps.ByLocal, func(_ flowKey, end publicEnd) bool { flows[end.Pin]++; return true })
	if err != nil {
		return nil, err
	}
	rows := []policy.PinStatus{}
	err = d.eachPin(func(id uint32, state policy.PinState) error {
		counters, err := d.countersOf(id)
		rows = append(rows, policy.PinStatus{
			PinState: state, Flows: flows[id],
			PacketsPinned: counters.Pinned, PacketsUnpinned: counters.TotalUnpinned(), UnpinnedBy: counters.Unpinned,
			PacketsVIPWhileBackup: counters.VIPWhileBackup, PacketsReturned: counters.Returned,
			PacketsForeign: counters.Foreign, MappingsCreated: counters.Created, PortClashes: counters.Clash,
			PacketsEarlyFragments: counters.EarlyFragments,
			PacketsHeld:           counters.Held, PacketsReset: counters.Resets,
		})
		return err
	})
	return rows, err
}

// PinStates is PinStatus without what must be counted: it takes no longer
// because there are many flows.
func (d *Dataplane) PinStates() ([]policy.PinState, error) {
	states := []policy.PinState{}
	err := d.eachPin(func(_ uint32, state policy.PinState) error {
		states = append(states, state)
		return nil
	})
	return states, err
}

// eachPin yields the pins that are shown, sorted by VLAN and name.
func (d *Dataplane) eachPin(yield func(id uint32, state policy.PinState) error) error {
	c, err := d.content()
	if err != nil {
		return err
	}
	shown := make(map[uint32]policy.PlanPin)
	for id, pin := range c.pins {
		if pin.Flags&pinRetired == 0 {
			shown[id] = c.plannedPin(id)
		}
	}
	order := slices.SortedFunc(maps.Keys(shown), func(a, b uint32) int {
		p, q := shown[a], shown[b]
		return cmp.Or(cmp.Compare(p.VLAN.Outer, q.VLAN.Outer), cmp.Compare(p.VLAN.Inner, q.VLAN.Inner), cmp.Compare(p.Name, q.Name))
	})
	for _, id := range order {
		role, err := d.EffectiveRole(id, monotonic())
		if err != nil {
			return err
		}
		pin, group := shown[id], c.groups[c.pins[id].Group]
		err = yield(id, policy.PinState{
			VLAN: pin.VLAN, Name: pin.Name, Interface: pin.Interface, VIPs: pin.VIPs,
			Group: getName(group.Name[:]), Enabled: pin.Enabled, EnabledBy: pin.EnabledBy, Role: role,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// heldPackets counts the answers that were to wait for the peer, of all pins.
func (d *Dataplane) heldPackets() (packets uint64, err error) {
	pins, err := d.usedPins()
	if err != nil {
		return 0, err
	}
	for id := range pins {
		n, err := sumOfCPUs(d.maps.PinCounters, id*pinCounters+uint32(bpf.DataplanePinCounterPIN_HELD))
		if err != nil {
			return 0, fmt.Errorf("read counters of pin %d: %w", id, err)
		}
		packets += n
	}
	return packets, nil
}
