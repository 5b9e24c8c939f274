// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"sync/atomic"
	"time"
)

// Tables are allocated for all the flows that there may be, but as much of them is in
// use as there are: flows that lie in 8 MiB take the processor less time to find than the
// same in 32. What is in use grows, and shrinks only with the tables.
const (
	fitPace    = 100 * time.Millisecond
	fitLeast   = 512 // buckets
	fitSample  = 256 // buckets that are looked at
	fitCrowded = 3   // valid entries of a bucket, of eight, that let there be twice as many: one of 600 finds no room
)

// fitMask is how many buckets, less one, are in use from a start on, which had as many
// before; 0: none.
func fitMask(mask uint32, buckets int) uint32 {
	return uint32(min(max(int(mask)+1, fitLeast), buckets) - 1)
}

// fitTables lets the tables grow until ctx ends.
func (f *Fastpath) fitTables(ctx context.Context) error {
	for rest(ctx, fitPace) {
		if err := f.tables.fit(); err != nil {
			return err
		}
	}
	return nil
}

// fit looks at some buckets of each table. Half of the flows have another bucket when it
// has grown, and are learnt anew there.
func (t *fastTables) fit() error {
	generation := t.generation()
	if generation == 0 {
		return nil
	}
	valid := func(fate *fastFate) int {
		if atomic.LoadUint32(&fate.Generation) == generation {
			return 1
		}
		return 0
	}
	grown4 := grow(&t.state.Mask4, len(t.four), func(i int) (n int) {
		for way := range t.four[i].Way {
			n += valid(&t.four[i].Way[way].Fate)
		}
		return n
	})
	grown6 := grow(&t.state.Mask6, len(t.six), func(i int) (n int) {
		for way := range t.six[i].Way {
			n += valid(&t.six[i].Way[way].Fate)
		}
		return n
	})
	if grown4+grown6 == 0 {
		return nil
	}
	return t.endMisplaced(grown4, grown6)
}

// endMisplaced ends entries that nobody finds any more: those in the first buckets of
// each table whose flow has another one now. Others may have their room from the next
// tick on.
func (t *fastTables) endMisplaced(first4, first6 int) error {
	now, err := t.ticks.now()
	if err != nil {
		return err
	}
	end := func(fate *fastFate, found, looked int) {
		if found != looked && int32(atomic.LoadUint32(&fate.Until)-now) > 0 {
			atomic.StoreUint32(&fate.Until, now)
		}
	}
	for i := range t.four[:first4] {
		for way := range t.four[i].Way {
			e := &t.four[i].Way[way]
			end(&e.Fate, fast4Index(&t.state.Keys, e.Addrs, e.Ports, e.Place, t.state.Mask4), i)
		}
	}
	for i := range t.six[:first6] {
		for way := range t.six[i].Way {
			e := &t.six[i].Way[way]
			end(&e.Fate, fast6Index(&t.state.Keys, &e.Src.Word, &e.Dst.Word, e.Ports, e.Place, t.state.Mask6), i)
		}
	}
	return nil
}

// grow returns how many buckets were in use before, 0: as many as are now.
func grow(mask *uint32, buckets int, valid func(bucket int) int) int {
	before := int(atomic.LoadUint32(mask)) + 1
	if before >= buckets {
		return 0
	}
	step := max(before/fitSample, 1)
	looked, found := 0, 0
	for i := 0; i < before; i += step {
		looked++
		found += valid(i)
	}
	used := before
	for crowd := float64(found) / float64(looked); crowd > fitCrowded && used < buckets; crowd /= 2 {
		used *= 2
	}
	if used == before {
		return 0
	}
	atomic.StoreUint32(mask, uint32(used-1))
	return before
}
