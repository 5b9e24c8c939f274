// SPDX-License-Identifier: Apache-2.0

package loader

import "testing"

// Of the tables as many buckets are in use as there are entries for, at once, and never
// more than there are.
func TestFastpathFit(t *testing.T) {
	const buckets = 1 << 16
	for _, c := range []struct {
		entries int // of a bucket in use
		used    int
		want    int
	}{
		{0, fitLeast, fitLeast},
		{1, fitLeast, 2 * fitLeast},
		{2, fitLeast, 4 * fitLeast},
		{4, fitLeast, 8 * fitLeast},
		{4, buckets / 4, buckets},
		{4, buckets, buckets},
		{0, buckets, buckets},
	} {
		mask := uint32(c.used - 1)
		looked := 0
		grow(&mask, buckets, func(bucket int) int {
			if looked++; bucket >= c.used {
				t.Errorf("bucket %d looked at, of %d in use", bucket, c.used)
			}
			return c.entries
		})
		if int(mask)+1 != c.want {
			t.Errorf("%d entries in each of %d buckets: %d in use, want %d", c.entries, c.used, mask+1, c.want)
		}
		if looked > 2*fitSample {
			t.Errorf("%d buckets looked at, want about %d", looked, fitSample)
		}
	}
}

func TestFastpathFitMask(t *testing.T) {
	for _, c := range []struct {
		mask    uint32
		buckets int
		want    uint32
	}{
		{0, 1 << 16, fitLeast - 1},
		{8191, 1 << 16, 8191}, // as an earlier start left it
		{1<<16 - 1, 1 << 12, 1<<12 - 1},
		{0, 16, 15},
	} {
		if got := fitMask(c.mask, c.buckets); got != c.want {
			t.Errorf("mask %d of %d buckets becomes %d, want %d", c.mask, c.buckets, got, c.want)
		}
	}
}
