// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vippin/bpf"
)

const (
	fastPrefix = "fast" // of the fast path's own maps' names
	// The default of dataplane.max_flows.
	defaultFlows = 262144
	// The pace and the lease until somebody says what they are.
	slowPace     = 4 * time.Second
	defaultLease = 2 * time.Second
)

// fastBuckets is how many buckets a table of one family has: room for both
// directions of every flow, a power of two.
func fastBuckets(flows uint32) uint32 {
	if flows == 0 {
		flows = defaultFlows
	}
	entries := uint64(1) << bits.Len64(2*uint64(flows)-1)
	return uint32(max(entries/uint64(fastWays), 1))
}

// NewFastpath loads the fast path beside the dataplane, or takes over the tables
// of an earlier start. It is closed, and attached to no device that was not
// attached before. An *UnsupportedError names what the kernel lacks.
func (d *Dataplane) NewFastpath(opts FastpathOptions) (*Fastpath, error) {
	f := d.newFastpath(opts)
	if d.marks {
		return nil, &UnsupportedError{"BTF (" + btfPath + "), which the fast path reads conntrack by", "take a kernel with CONFIG_DEBUG_INFO_BTF", nil}
	}
	if d.egress == nil {
		return nil, errors.New("load the fast path: the dataplane is only opened")
	}
	unlock, err := lockDir(d.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.closeFastpath(); err != nil { // what is attached knows the old tables
		return nil, err
	}
	if err := f.load(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (d *Dataplane) newFastpath(opts FastpathOptions) *Fastpath {
	f := &Fastpath{plane: d, opts: opts, log: opts.Log, tables: &fastTables{}, follow: newFastFollow(),
		numbers: make(map[int]uint8), refused: make(map[int]refusal), told: make(map[string]string)}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	return f
}

// load makes the maps and programs, and puts them in the place of those of an
// earlier start.
func (f *Fastpath) load() error {
	spec, err := bpf.LoadFastpath()
	if err != nil {
		return fmt.Errorf("read the built-in programs of the fast path: %w", err)
	}
	tracer := splitTracer(spec)
	if err := f.prepare(spec); err != nil {
		return err
	}
	kept, own, err := f.keptMaps(spec)
	defer closeMaps(kept)
	if err != nil {
		return err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: kept})
	if err != nil {
		return explainFastpath(err, f.log)
	}
	defer coll.Close()
	var objects struct {
		fastMaps
		Forward *ebpf.Program `ebpf:"vippin_fastpath"`
		Learn   *ebpf.Program `ebpf:"vippin_learn"`
	}
	fresh := make(map[string]*ebpf.Map)
	for _, name := range own {
		if kept[name] == nil {
			fresh[name] = coll.Maps[name]
		}
	}
	shared := maps.Clone(coll.Maps)
	if err := coll.Assign(&objects); err != nil {
		return fmt.Errorf("sort out maps and programs of the fast path: %w", err)
	}
	f.maps, f.forward, f.learn = objects.fastMaps, objects.Forward, objects.Learn
	for name, m := range fresh {
		if err := pinAside(m, filepath.Join(f.plane.dir, name)); err != nil {
			return err
		}
	}
	if err := f.begin(); err != nil {
		return err
	}
	if err := f.trace(tracer, shared); err != nil {
		f.log.Info("devices that refuse redirected frames will not be noticed", "why", err)
	}
	return f.replacePrograms()
}

// prepare sizes the tables, says how long a tick is, and leaves out the
// dataplane's maps that the fast path has no use for.
func (f *Fastpath) prepare(spec *ebpf.CollectionSpec) error {
	used := usedMaps(spec)
	for name := range spec.Maps {
		if !used[name] && !strings.HasPrefix(name, fastPrefix) && name[0] != '.' {
			delete(spec.Maps, name)
		}
	}
	buckets := fastBuckets(f.opts.Flows)
	spec.Maps[bpf.FastpathMapFast4].MaxEntries = buckets
	spec.Maps[bpf.FastpathMapFast6].MaxEntries = buckets
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return fmt.Errorf("read the length of the kernel's tick: %w", err)
	}
	if err := spec.Variables[bpf.FastpathVarTickNs].Set(uint32(tick.Nano())); err != nil {
		return fmt.Errorf("tell the fast path the length of the kernel's tick: %w", err)
	}
	return nil
}

// fastOwn tells whether a map is one of the fast path's own that outlive the
// process.
func fastOwn(name string, spec *ebpf.MapSpec) bool {
	return strings.HasPrefix(name, fastPrefix) && spec.Pinning == ebpf.PinByName
}

// keptMaps opens the dataplane's maps, and the fast path's own that an earlier
// start left. Those are kept all together or not at all: they speak of each
// other, and what is in them is soon learnt anew. The specs are left without
// pinning: new maps are pinned once everything has loaded.
func (f *Fastpath) keptMaps(spec *ebpf.CollectionSpec) (kept map[string]*ebpf.Map, own []string, err error) {
	kept = make(map[string]*ebpf.Map)
	suits := true
	for name, want := range spec.Maps {
		if want.Pinning != ebpf.PinByName {
			continue
		}
		if fastOwn(name, want) {
			own = append(own, name)
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(f.plane.dir, name), nil)
		if fastOwn(name, want) && errors.Is(err, fs.ErrNotExist) {
			suits = false
			continue
		}
		if err != nil {
			return kept, own, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		kept[name] = m
		if flowMaps[name] {
			want.MaxEntries = m.MaxEntries()
		}
		if err := want.Compatible(m); err != nil && fastOwn(name, want) {
			f.log.Info("the fast path's tables start anew", "because of", name, "why", err)
			suits = false
		}
	}
	for _, want := range spec.Maps {
		want.Pinning = ebpf.PinNone
	}
	for _, name := range own {
		if m := kept[name]; m != nil && !suits {
			_ = m.Close()
			delete(kept, name)
		}
	}
	return kept, own, nil
}

// begin writes what the programs go by, closed.
func (f *Fastpath) begin() error {
	var state bpf.FastpathFastState
	if err := f.maps.State.Lookup(uint32(0), &state); err != nil {
		return fmt.Errorf("read the state of the fast path: %w", err)
	}
	if state.Keys == (fastKeys{}) {
		for i := range state.Keys {
			state.Keys[i] = randomWord()
		}
	}
	state.Generation, state.All = 0, 0
	if f.opts.All {
		state.All = 1
	}
	state.PaceNs = uint64(slowPace)
	netns, err := netnsOfThread()
	if err != nil {
		return err
	}
	state.Netns = netns
	state.Mask4 = fitMask(state.Mask4, int(f.maps.Fast4.MaxEntries()))
	state.Mask6 = fitMask(state.Mask6, int(f.maps.Fast6.MaxEntries()))
	if err := f.maps.State.Put(uint32(0), state); err != nil {
		return fmt.Errorf("write the state of the fast path: %w", err)
	}
	if f.numbers, err = f.readNumbers(); err != nil {
		return err
	}
	if err := errors.Join(f.clearDevices(), f.clearVirtual()); err != nil {
		return err
	}
	if f.tables, err = mapFastTables(&f.maps); err != nil {
		return err
	}
	return f.takeLease()
}

// netnsOfThread is the inode number of the calling thread's network namespace.
func netnsOfThread() (uint32, error) {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil {
		return 0, fmt.Errorf("look at this network namespace: %w", err)
	}
	return uint32(stat.Ino), nil
}

// takeLease has the heartbeat count for as long as it counts for roles.
func (f *Fastpath) takeLease() error {
	settings, err := f.plane.settings()
	if err != nil {
		return err
	}
	lease := settings.LeaseNs
	if lease == 0 {
		lease = uint64(defaultLease)
	}
	atomic.StoreUint64(&f.tables.state.LeaseNs, lease)
	return nil
}

// clearDevices takes all devices off the fast path until Attach puts them there:
// their numbers in this network namespace may be others' by now.
func (f *Fastpath) clearDevices() error {
	far, err := readMap[uint32, fastDeviceValue](f.maps.FarDevices)
	if err != nil {
		return err
	}
	for ifindex := range far {
		if err := f.putDevice(int(ifindex), fastDeviceValue{}); err != nil {
			return err
		}
	}
	near, err := readMap[uint32, fastDeviceValue](f.maps.Devices)
	if err != nil {
		return err
	}
	for ifindex, device := range near {
		if device == (fastDeviceValue{}) {
			continue
		}
		if err := f.putDevice(int(ifindex), fastDeviceValue{}); err != nil {
			return err
		}
	}
	return nil
}

// closeFastpath makes packets take the stack, whichever version's fast path is
// pinned: nobody follows for it what changes.
func (d *Dataplane) closeFastpath() error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(d.dir, bpf.FastpathMapFastState), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the state of the fast path: %w", err)
	}
	defer func() { _ = m.Close() }()
	value := make([]byte, m.ValueSize())
	err = m.Lookup(uint32(0), &value)
	if err == nil {
		clear(value[:4]) // the generation
		err = m.Put(uint32(0), value)
	}
	if err != nil {
		return fmt.Errorf("close the fast path: %w", err)
	}
	return nil
}

// explainFastpath says what a kernel lacks that refuses the fast path's programs:
// the dataplane's own were taken.
func explainFastpath(err error, log *slog.Logger) error {
	err = explainLoad(err, runningKernel(), log)
	if errors.As(err, new(*UnsupportedError)) {
		return err
	}
	return &UnsupportedError{"something that the fast path's programs need", "go on without it, or take Linux 6.1 or later with BTF (log.level: debug logs what the verifier says)", err}
}

// OpenFastpath opens the pinned tables of a fast path, for commands that work
// without a daemon. ErrNotLoaded: there is none.
func (d *Dataplane) OpenFastpath() (*Fastpath, error) {
	f := d.newFastpath(FastpathOptions{})
	spec, err := bpf.LoadFastpath()
	if err != nil {
		return nil, fmt.Errorf("read the built-in programs of the fast path: %w", err)
	}
	coll := &ebpf.Collection{Maps: make(map[string]*ebpf.Map)}
	defer coll.Close()
	for name, want := range spec.Maps {
		if !fastOwn(name, want) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(d.dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open map %s in %s: %w", name, d.dir, d.missingFastpath())
		}
		if err != nil {
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		coll.Maps[name] = m
		if name == bpf.FastpathMapFast4 || name == bpf.FastpathMapFast6 {
			want.MaxEntries = m.MaxEntries()
		}
		if err := want.Compatible(m); err != nil {
			return nil, fmt.Errorf("open map %s in %s: another version's fast path is loaded: %v", name, d.dir, err)
		}
	}
	if err := coll.Assign(&f.maps); err != nil {
		return nil, fmt.Errorf("sort out maps of the fast path: %w", err)
	}
	f.tables, err = mapFastTables(&f.maps)
	if err == nil {
		f.numbers, err = f.readNumbers()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// missingFastpath says why a pinned map is not there.
func (d *Dataplane) missingFastpath() error {
	if _, err := os.Stat(filepath.Join(d.dir, bpf.FastpathMapFastState)); err == nil {
		return errors.New("another version's fast path is loaded")
	}
	return ErrNotLoaded
}

// unpinFastpath removes its maps' names: with the programs gone, and whoever has
// them open, their memory is free.
func (d *Dataplane) unpinFastpath() error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("unpin: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), fastPrefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(d.dir, entry.Name())); err != nil {
			return fmt.Errorf("unpin: %w", err)
		}
	}
	return nil
}
