// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"math"
	"time"
)

// What is left of the tables is for this router's own flows: a full conntrack
// table evicts some, a full map leaves new ones unpinned.
const (
	roomPercent  = 95                     // of a table may be used when a peer's flow comes
	usageEvery   = 100 * time.Millisecond // how often conntrack is asked how many entries it has
	countEvery   = time.Second            // how often a map that is nearly full is counted
	countAtLeast = 1024                   // mappings made between two counts of a map, if there is room
)

// room says how many more flows fit in.
type room struct {
	entries int       // in conntrack, by the last look and what was made since
	looked  time.Time // at conntrack
	// mappings may be made until the map is counted again: half of what fits in,
	// since the programs make some, too.
	mappings int
	counted  time.Time
	usage    func() (entries, most uint32, err error) // in tests
}

// hasRoom tells whether one more flow fits into conntrack and, if it is pinned,
// into the maps.
func (r *Replica) hasRoom(pinned bool) (bool, error) {
	m := &r.installer.room
	if time.Since(m.looked) >= usageEvery {
		usage := m.usage
		if usage == nil {
			usage = r.conn.Usage
		}
		used, most, err := usage()
		if err != nil {
			return false, err
		}
		m.entries, m.looked = int(uint64(most)*roomPercent/100)-int(used), time.Now()
		if most == 0 { // without a limit
			m.entries = math.MaxInt32
		}
	}
	if m.entries <= 0 || !pinned {
		return m.entries > 0, nil
	}
	if m.mappings <= 0 && time.Since(m.counted) >= countEvery {
		if err := r.countMappings(); err != nil {
			return false, err
		}
	}
	return m.mappings > 0, nil
}

func (r *Replica) countMappings() error {
	m, byPublic := &r.installer.room, r.d.maps.ByPublic
	used := 0
	err := scanMap(byPublic, func(flowKey, localEnd) bool { used++; return true })
	if err != nil {
		return fmt.Errorf("count mappings: %w", err)
	}
	left := int(uint64(byPublic.MaxEntries())*roomPercent/100) - used
	m.mappings = max(left/2, min(left, countAtLeast))
	if m.counted = (time.Time{}); left <= 0 {
		m.counted = time.Now()
	}
	return nil
}
