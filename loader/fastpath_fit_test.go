// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"math/bits"
	"os"
	"testing"

	"vippin/bpf"
)

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
		{3, fitLeast, fitLeast},
		{4, fitLeast, 2 * fitLeast},
		{8, fitLeast, 4 * fitLeast},
		{8, buckets / 4, buckets},
		{8, buckets, buckets},
		{0, buckets, buckets},
	} {
		mask := uint32(c.used - 1)
		looked := 0
		before := grow(&mask, buckets, func(bucket int) int {
			if looked++; bucket >= c.used {
				t.Errorf("bucket %d looked at, of %d in use", bucket, c.used)
			}
			return c.entries
		})
		if int(mask)+1 != c.want {
			t.Errorf("%d entries in each of %d buckets: %d in use, want %d", c.entries, c.used, mask+1, c.want)
		}
		if want := c.used * min(c.want-c.used, 1); before != want {
			t.Errorf("%d buckets were in use, want %d", before, want)
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

// Flows whose ports follow each other find room as any others do, whatever the keys. With
// these they would lead to few of the buckets, were it not for fast_scatter.
func TestFastpathScatters(t *testing.T) {
	const (
		buckets = 1 << 12
		flows   = buckets * 11 / 4 // of eight ways: of flows at random one in a thousand finds none
		place   = 1 << 24
	)
	far, near := [4]uint32{0x20010db8, 0, 0, 9}, [4]uint32{0x20010db8, 1, 0, 16}
	for quarter := range uint64(4) {
		keys := fastKeys{1, 2, quarter<<34 + 1 - place, 3, 5, 7, 11, 13, 17, 19, 23} // ports are big-endian: two in a row are 256 apart
		full4, full6 := 0, 0
		var used4, used6 [buckets]int
		for port := range uint16(flows) {
			ports := 443<<16 | uint32(bits.ReverseBytes16(port))
			if i := fast4Index(&keys, 0x0901a8c0_096433c6, ports, place, buckets-1); used4[i] < fastWays {
				used4[i]++
			} else {
				full4++
			}
			if i := fast6Index(&keys, &near, &far, ports, place, buckets-1); used6[i] < fastWays {
				used6[i]++
			} else {
				full6++
			}
		}
		if full4 > flows/100 || full6 > flows/100 {
			t.Errorf("keys %x: %d and %d of %d flows find no room", keys, full4, full6, flows)
		}
	}
}

// An entry that is in another bucket's place ends when the table has grown; one that can
// still be found does not.
func TestFastpathEndMisplaced(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the kernel's tick is read by a BPF program, which needs root")
	}
	ticks, err := newTickClock()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ticks.Close() }()
	now, err := ticks.now()
	if err != nil {
		t.Fatal(err)
	}
	const before, after = 4, 16
	keys := fastKeys{1, 0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb, 0xd6e8feb86659fd93, 5, 7, 11, 13, 17, 19}
	tables := &fastTables{
		four: make([]bpf.FastpathFast4Bucket, after), six: make([]bpf.FastpathFast6Bucket, after),
		state: &bpf.FastpathFastState{Keys: keys, Mask4: after - 1, Mask6: after - 1}, ticks: ticks,
	}
	until := now + 1<<20
	index4 := func(port, mask uint32) int { return fast4Index(&keys, 1, port, 2, mask) }
	index6 := func(port, mask uint32) int { return fast6Index(&keys, &[4]uint32{1}, &[4]uint32{2}, port, 2, mask) }
	entry4 := func(port uint32) *bpf.FastpathFast4Entry { return &tables.four[index4(port, before-1)].Way[port] }
	entry6 := func(port uint32) *bpf.FastpathFast6Entry { return &tables.six[index6(port, before-1)].Way[port] }
	for port := range uint32(before) { // each at a way of its own
		e, six := entry4(port), entry6(port)
		e.Addrs, e.Ports, e.Place, e.Fate.Until = 1, port, 2, until
		six.Src.Word, six.Dst.Word, six.Ports, six.Place, six.Fate.Until = [4]uint32{1}, [4]uint32{2}, port, 2, until
	}
	if err := tables.endMisplaced(before, before); err != nil {
		t.Fatal(err)
	}
	stay4, stay6 := 0, 0
	for port := range uint32(before) {
		stays4, stays6 := index4(port, after-1) == index4(port, before-1), index6(port, after-1) == index6(port, before-1)
		if e := entry4(port); stays4 != (e.Fate.Until == until) {
			t.Errorf("port %d: entry until %d, was %d, stays: %v", port, e.Fate.Until, until, stays4)
		}
		if six := entry6(port); stays6 != (six.Fate.Until == until) {
			t.Errorf("port %d: entry of IPv6 until %d, was %d, stays: %v", port, six.Fate.Until, until, stays6)
		}
		if stays4 {
			stay4++
		}
		if stays6 {
			stay6++
		}
	}
	if stay4 == 0 || stay4 == before || stay6 == 0 || stay6 == before {
		t.Errorf("%d and %d of %d entries stay: that tests half of it", stay4, stay6, before)
	}
}
