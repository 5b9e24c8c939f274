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
	fitLeast   = 1024 // buckets
	fitSample  = 256  // buckets that are looked at
	fitCrowded = 0.75 // valid entries of a bucket, of four, that let it have twice as many
)

// fitMask is how many buckets, less one, are in use from a start on, which had as many
// before; 0: none.
func fitMask(mask uint32, buckets int) uint32 {
	return uint32(min(max(int(mask)+1, fitLeast), buckets) - 1)
}

// fitTables lets the tables grow until ctx ends.
func (f *Fastpath) fitTables(ctx context.Context) error {
	for rest(ctx, fitPace) {
		f.tables.fit()
	}
	return nil
}

// fit looks at some buckets of each table. Half of the flows have another bucket then,
// and are learnt anew.
func (t *fastTables) fit() {
	generation := t.generation()
	if generation == 0 {
		return
	}
	valid := func(fate *fastFate) int {
		if atomic.LoadUint32(&fate.Generation) == generation {
			return 1
		}
		return 0
	}
	grow(&t.state.Mask4, len(t.four), func(i int) (n int) {
		for way := range t.four[i].Way {
			n += valid(&t.four[i].Way[way].Fate)
		}
		return n
	})
	grow(&t.state.Mask6, len(t.six), func(i int) (n int) {
		for way := range t.six[i].Way {
			n += valid(&t.six[i].Way[way].Fate)
		}
		return n
	})
}

func grow(mask *uint32, buckets int, valid func(bucket int) int) {
	used := int(atomic.LoadUint32(mask)) + 1
	if used >= buckets {
		return
	}
	step := max(used/fitSample, 1)
	looked, found := 0, 0
	for i := 0; i < used; i += step {
		looked++
		found += valid(i)
	}
	crowd := float64(found) / float64(looked)
	for ; crowd > fitCrowded && used < buckets; used *= 2 {
		crowd /= 2
	}
	atomic.StoreUint32(mask, uint32(used-1))
}
