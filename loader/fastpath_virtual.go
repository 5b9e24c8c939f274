// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"vippin/bpf"
	"vippin/policy"
)

// virtualMACs are those of virtual routers (RFC 9568 section 7.3) that XDP takes
// frames to: of macvlans that are up and hold an address, as the MASTER's do. Attach
// knows where their frames come in, and Run is told at once when an address goes. The
// map has what both say.
type virtualMACs struct {
	mu     sync.Mutex
	places map[uint32]virtualPlace // by ifindex, of macvlans
	held   map[uint32]heldMAC      // by ifindex
	table  map[virtualKey]uint32   // what the map has
}

type virtualKey = bpf.FastpathFastVirtual

type virtualPlace struct {
	name   string
	below  uint32 // ifindex of what it is on
	number uint32 // where frames come in, as fast_virtual has it
}

type heldMAC struct {
	below uint32 // ifindex
	mac   mac
}

// isVirtual tells whether it is a virtual router's.
func (m mac) isVirtual() bool {
	return [4]byte(m[:4]) == [4]byte{0, 0, 0x5e, 0} && (m[4] == 1 || m[4] == 2)
}

// placeVirtual says where frames to macvlans come in.
func (f *Fastpath) placeVirtual(places map[uint32]virtualPlace) error {
	v := &f.virtual
	v.mu.Lock()
	defer v.mu.Unlock()
	v.places = places
	return v.settle(f.maps.Virtual)
}

// holdVirtual says whose virtual MACs this router holds. What it does not hold any
// more is out of the map when this returns.
func (f *Fastpath) holdVirtual(held map[uint32]heldMAC) {
	v := &f.virtual
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held = held
	if err := v.settle(f.maps.Virtual); err != nil {
		f.log.Error("tell the fast path of virtual MACs", "error", err)
	}
}

// settle makes the map what both sides say: first what is wrong goes.
func (v *virtualMACs) settle(m *ebpf.Map) error {
	want := make(map[virtualKey]uint32)
	for ifindex, held := range v.held {
		if at, ok := v.places[ifindex]; ok && at.below == held.below {
			want[virtualKey{Place: at.number, Family: held.mac[4], Vrid: held.mac[5]}] = ifindex
		}
	}
	var errs []error
	for key, ifindex := range v.table {
		if want[key] == ifindex {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("write map fast_virtual: %w", err))
			continue
		}
		delete(v.table, key)
	}
	for key, ifindex := range want {
		if v.table[key] == ifindex {
			continue
		}
		if err := m.Put(key, ifindex); err != nil {
			errs = append(errs, fmt.Errorf("write map fast_virtual: %w", err))
			continue
		}
		if v.table == nil {
			v.table = make(map[virtualKey]uint32)
		}
		v.table[key] = ifindex
	}
	return errors.Join(errs...)
}

// clearVirtual empties the map: an earlier start's may be others' by now.
func (f *Fastpath) clearVirtual() error {
	content, err := readMap[virtualKey, uint32](f.maps.Virtual)
	if err != nil {
		return err
	}
	for key := range content {
		if err := f.maps.Virtual.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("write map fast_virtual: %w", err)
		}
	}
	return nil
}

// virtualPlaces finds the macvlans to which frames come by their MAC.
func (f *Fastpath) virtualPlaces(scene *fastScene, devices []*fastDevice) map[uint32]virtualPlace {
	found := make(map[uint32]virtualPlace)
	for _, d := range devices {
		if d.Refused != "" {
			continue
		}
		for ifindex, place := range d.places {
			link, ok := scene.links[ifindex].(*netlink.Macvlan)
			if !ok || link.Mode == netlink.MACVLAN_MODE_SOURCE || link.Mode == netlink.MACVLAN_MODE_PASSTHRU {
				continue
			}
			found[uint32(ifindex)] = virtualPlace{
				link.Name, uint32(taggingOf(link).parent), place.number(f.numbers[d.Ifindex]) &^ fastVirtual,
			}
		}
	}
	return found
}

// withVirtual adds to devices the names of the interfaces with virtual MACs to which
// frames are taken.
func (f *Fastpath) withVirtual(devices []policy.FastpathDevice) []policy.FastpathDevice {
	v := &f.virtual
	v.mu.Lock()
	defer v.mu.Unlock()
	names := make(map[uint8][]string) // by the device's number
	for key, ifindex := range v.table {
		number := uint8(key.Place &^ placeService >> placeDevice)
		names[number] = append(names[number], v.places[ifindex].name)
	}
	devices = slices.Clone(devices)
	for i := range devices {
		list := names[f.numbers[devices[i].Ifindex]]
		slices.Sort(list)
		devices[i].Virtual = list
	}
	return devices
}
