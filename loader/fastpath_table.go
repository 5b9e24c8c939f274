// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

// fastMaps are the fast path's own maps that outlive the process.
type fastMaps struct {
	Fast4      *ebpf.Map `ebpf:"fast4"`
	Fast6      *ebpf.Map `ebpf:"fast6"`
	State      *ebpf.Map `ebpf:"fast_state"`
	Devices    *ebpf.Map `ebpf:"fast_devices"`
	FarDevices *ebpf.Map `ebpf:"fast_far_devices"`
	Places     *ebpf.Map `ebpf:"fast_places"`
	Virtual    *ebpf.Map `ebpf:"fast_virtual"`
	Out        *ebpf.Map `ebpf:"fast_out"`
	Hops       *ebpf.Map `ebpf:"fast_hops"`
	HopNumbers *ebpf.Map `ebpf:"fast_hop_numbers"`
	HopLast    *ebpf.Map `ebpf:"fast_hop_last"`
	Counters   *ebpf.Map `ebpf:"fast_counters"`
	Refusals   *ebpf.Map `ebpf:"fast_refusals"`
	Asks       *ebpf.Map `ebpf:"fast_asks"`
}

// fastTables are fast4, fast6 and fast_state, mapped into this process: what is read
// and written there needs no system call, and nothing is copied.
type fastTables struct {
	four   []bpf.FastpathFast4Bucket
	six    []bpf.FastpathFast6Bucket
	state  *bpf.FastpathFastState
	mapped [][]byte
	ticks  *tickClock

	mu     sync.Mutex // of who writes state
	last   uint32     // generation
	open   bool
	paused bool // closed for a moment, whatever open says
	barred bool // closed for as long as the firewall is as it is, whatever open says
}

// mapFastTables maps them; close unmaps, when nobody uses them any more. The last
// generation is at random: those that entries of an earlier start have cannot come
// again while such an entry is valid, which is half a minute.
func mapFastTables(maps *fastMaps) (t *fastTables, err error) {
	t = &fastTables{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("map the fast path's tables: %w", err), t.close())
			t = nil
		}
	}()
	if t.ticks, err = newTickClock(); err != nil {
		return t, err
	}
	if t.four, err = mapArray[bpf.FastpathFast4Bucket](t, maps.Fast4); err != nil {
		return t, err
	}
	if t.six, err = mapArray[bpf.FastpathFast6Bucket](t, maps.Fast6); err != nil {
		return t, err
	}
	states, err := mapArray[bpf.FastpathFastState](t, maps.State)
	if err != nil {
		return t, err
	}
	t.state = &states[0]
	t.last = uint32(randomWord())
	t.open = atomic.LoadUint32(&t.state.Generation) != 0
	return t, nil
}

// mapArray maps a mappable array map. T is a multiple of 8 octets.
func mapArray[T any](t *fastTables, m *ebpf.Map) ([]T, error) {
	var one T
	size := int(m.MaxEntries()) * int(unsafe.Sizeof(one))
	if uintptr(m.ValueSize()) != unsafe.Sizeof(one) || size == 0 {
		return nil, fmt.Errorf("%s has values of %d octets, want %d", mapName(m), m.ValueSize(), unsafe.Sizeof(one))
	}
	page := os.Getpagesize()
	memory, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", mapName(m), err)
	}
	t.mapped = append(t.mapped, memory)
	return unsafe.Slice((*T)(unsafe.Pointer(&memory[0])), m.MaxEntries()), nil
}

func (t *fastTables) close() error {
	if t == nil {
		return nil
	}
	var errs []error
	for _, memory := range t.mapped {
		errs = append(errs, unix.Munmap(memory))
	}
	*t = fastTables{ticks: t.ticks}
	return errors.Join(append(errs, t.ticks.Close())...)
}

// setOpen makes a generation that no valid entry has, or none: closed.
func (t *fastTables) setOpen(open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = open
	t.next()
}

// bump makes the next generation; closed stays closed.
func (t *fastTables) bump() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next()
}

// pause closes the fast path until it is called again with false.
func (t *fastTables) pause(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = on
	t.next()
}

// bar closes the fast path until it is called again with false.
func (t *fastTables) bar(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.barred != on {
		t.barred = on
		t.next()
	}
}

// next is called with mu. The time is there before the generation that it is about.
func (t *fastTables) next() {
	generation := uint32(0)
	if t.open && !t.paused && !t.barred {
		if t.last++; t.last == 0 {
			t.last++
		}
		generation = t.last
	}
	atomic.StoreUint64(&t.state.BumpedNs, uint64(Monotonic()))
	atomic.StoreUint32(&t.state.Generation, generation)
}

// generation is the one in force; 0: closed.
func (t *fastTables) generation() uint32 { return atomic.LoadUint32(&t.state.Generation) }

// setPace says how long an entry is valid at most. Those learnt before keep what
// they have.
func (t *fastTables) setPace(pace time.Duration) { atomic.StoreUint64(&t.state.PaceNs, uint64(pace)) }

func (t *fastTables) pace() time.Duration { return time.Duration(atomic.LoadUint64(&t.state.PaceNs)) }

// buckets4 is what is in use of four, buckets6 of six.
func (t *fastTables) buckets4() []bpf.FastpathFast4Bucket {
	return t.four[:min(int(atomic.LoadUint32(&t.state.Mask4))+1, len(t.four))]
}

func (t *fastTables) buckets6() []bpf.FastpathFast6Bucket {
	return t.six[:min(int(atomic.LoadUint32(&t.state.Mask6))+1, len(t.six))]
}

// each hands every entry to yield, until it returns false, while packets come and go.
func (t *fastTables) each(yield func(fastEntry) bool) {
	four := t.buckets4()
	for i := range four {
		for way := range four[i].Way {
			if !yield((*fast4Entry)(&four[i].Way[way])) {
				return
			}
		}
	}
	six := t.buckets6()
	for i := range six {
		for way := range six[i].Way {
			if !yield((*fast6Entry)(&six[i].Way[way])) {
				return
			}
		}
	}
}

// find is the entry of packets that come in like this in a place; nil: none.
func (t *fastTables) find(in *policy.FlowKey, place uint32) fastEntry {
	place, ports := entryPlace(in, place), fastPorts(in)
	if fastIs4(in) {
		addrs := fastAddrs4(in)
		four := t.buckets4()
		bucket := &four[fast4Index(&t.state.Keys, addrs, ports, place, uint32(len(four)-1))]
		for way := range bucket.Way {
			if e := &bucket.Way[way]; e.Addrs == addrs && e.Ports == ports && e.Place == place && atomic.LoadUint32(&e.Fate.Generation) != 0 {
				return (*fast4Entry)(e)
			}
		}
		return nil
	}
	src, dst := fastWords(&in.Src), fastWords(&in.Dst)
	six := t.buckets6()
	bucket := &six[fast6Index(&t.state.Keys, &src, &dst, ports, place, uint32(len(six)-1))]
	for way := range bucket.Way {
		if e := &bucket.Way[way]; e.Ports == ports && e.Place == place && e.Src.Word == src && e.Dst.Word == dst && atomic.LoadUint32(&e.Fate.Generation) != 0 {
			return (*fast6Entry)(e)
		}
	}
	return nil
}
