// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"errors"
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
	pins, sums, err := d.sumUsed()
	if err != nil {
		return nil, err
	}
	all := make(map[uint32]PinCounters)
	for _, id := range append(slices.Collect(maps.Keys(pins)), 0) {
		all[id] = sums.of(id)
	}
	return all, nil
}

// UnpinnedWithoutPin counts the packets that no pin can answer for, by reason.
func (d *Dataplane) UnpinnedWithoutPin() (map[string]uint64, error) {
	sums, err := d.sumPins(nil)
	if err != nil {
		return nil, err
	}
	unpinned := sums.of(0).Unpinned
	maps.DeleteFunc(unpinned, func(_ string, packets uint64) bool { return packets == 0 })
	return unpinned, nil
}

// pinSums are the counters of pins 0 to some other, all CPUs together, as the map has
// them: pinCounters of each.
type pinSums []uint64

// count is one of a pin's, 0 for a pin that was not read.
func (sums pinSums) count(pin uint32, counter bpf.DataplanePinCounter) uint64 {
	if i := int(pin*pinCounters + uint32(counter)); i < len(sums) {
		return sums[i]
	}
	return 0
}

// of is all of a pin's.
func (sums pinSums) of(pin uint32) PinCounters {
	packets := func(counter bpf.DataplanePinCounter) uint64 { return sums.count(pin, counter) }
	c := PinCounters{
		Pinned:         packets(bpf.DataplanePinCounterPIN_PINNED),
		Returned:       packets(bpf.DataplanePinCounterPIN_RETURNED),
		Created:        packets(bpf.DataplanePinCounterPIN_CREATED),
		VIPWhileBackup: packets(bpf.DataplanePinCounterPIN_VIP_WHILE_BACKUP),
		Foreign:        packets(bpf.DataplanePinCounterPIN_FOREIGN),
		Clash:          packets(bpf.DataplanePinCounterPIN_CLASH),
		EarlyFragments: packets(bpf.DataplanePinCounterPIN_EARLY_FRAGMENT),
		Held:           packets(bpf.DataplanePinCounterPIN_HELD),
		Resets:         packets(bpf.DataplanePinCounterPIN_RESET),
		Unpinned:       make(map[string]uint64),
	}
	for counter, reason := range unpinnedReasons {
		c.Unpinned[reason] = packets(counter)
	}
	return c
}

// sumUsed reads the counters of all pins.
func (d *Dataplane) sumUsed() (map[uint32]pinValue, pinSums, error) {
	pins, err := d.usedPins()
	if err != nil {
		return nil, nil, err
	}
	sums, err := d.sumPins(slices.Collect(maps.Keys(pins)))
	return pins, sums, err
}

// sumPins reads the counters of pin 0 and of these, and of those between: in large
// portions, since a system call for each of 22 counters of hundreds of pins takes
// longer than all the rest of a look.
func (d *Dataplane) sumPins(pins []uint32) (pinSums, error) {
	last := uint32(0)
	for _, pin := range pins {
		last = max(last, pin)
	}
	cpus := ebpf.MustPossibleCPU()
	sums := make(pinSums, 0, (last+1)*pinCounters)
	keys, perCPU := make([]uint32, scanChunk), make([]uint64, scanChunk*cpus)
	var cursor ebpf.MapBatchCursor
	for len(sums) < cap(sums) {
		want := min(scanChunk, cap(sums)-len(sums))
		n, err := d.maps.PinCounters.BatchLookup(&cursor, keys[:want], perCPU[:want*cpus], nil)
		if err != nil && (n < want || !errors.Is(err, ebpf.ErrKeyNotExist)) { // that one is the map's end
			return nil, fmt.Errorf("read map %s: %w", mapName(d.maps.PinCounters), err)
		}
		for i := range n {
			sum := uint64(0)
			for _, packets := range perCPU[i*cpus : (i+1)*cpus] {
				sum += packets
			}
			sums = append(sums, sum)
		}
	}
	return sums, nil
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
	_, sums, err := d.sumUsed()
	if err != nil {
		return nil, err
	}
	rows := []policy.PinStatus{}
	err = d.eachPin(func(id uint32, state policy.PinState) error {
		counters := sums.of(id)
		rows = append(rows, policy.PinStatus{
			PinState: state, Flows: flows[id],
			PacketsPinned: counters.Pinned, PacketsUnpinned: counters.TotalUnpinned(), UnpinnedBy: counters.Unpinned,
			PacketsVIPWhileBackup: counters.VIPWhileBackup, PacketsReturned: counters.Returned,
			PacketsForeign: counters.Foreign, MappingsCreated: counters.Created, PortClashes: counters.Clash,
			PacketsEarlyFragments: counters.EarlyFragments,
			PacketsHeld:           counters.Held, PacketsReset: counters.Resets,
		})
		return nil
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
	pins, sums, err := d.sumUsed()
	if err != nil {
		return 0, err
	}
	for id := range pins {
		packets += sums.count(id, bpf.DataplanePinCounterPIN_HELD)
	}
	return packets, nil
}
