// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/loader/conntrack"
)

// Options says where and how large the dataplane is. The zero value is usable.
type Options struct {
	BPFFS    string       // directory for everything pinned, DefaultBPFFS if empty
	MaxFlows uint32       // mappings, and flows left alone, at most; 0 = 262144
	Log      *slog.Logger // nil: nothing is logged

	noTCX bool // attach as on a kernel without tcx
	noBTF bool // load as on a kernel without BTF
}

// pinnedMaps are the maps that outlive the process. Each is pinned under the
// name in its tag.
type pinnedMaps struct {
	Adverts      *ebpf.Map `ebpf:"adverts"`
	ByLocal      *ebpf.Map `ebpf:"by_local"`
	ByPublic     *ebpf.Map `ebpf:"by_public"`
	ByRemote     *ebpf.Map `ebpf:"by_remote"`
	Claims       *ebpf.Map `ebpf:"claims"`
	Epoch        *ebpf.Map `ebpf:"epoch"`
	Foreign      *ebpf.Map `ebpf:"foreign"`
	Fragments    *ebpf.Map `ebpf:"fragments"`
	Groups       *ebpf.Map `ebpf:"groups"`
	Heartbeat    *ebpf.Map `ebpf:"heartbeat"`
	Hold         *ebpf.Map `ebpf:"hold"`
	Ifaces       *ebpf.Map `ebpf:"ifaces"`
	NearIfaces   *ebpf.Map `ebpf:"near_ifaces"`
	OwnAdverts   *ebpf.Map `ebpf:"own_adverts"`
	Passages     *ebpf.Map `ebpf:"passages"`
	PinCounters  *ebpf.Map `ebpf:"pin_counters"`
	Pins         *ebpf.Map `ebpf:"pins"`
	Roles        *ebpf.Map `ebpf:"roles"`
	Settings     *ebpf.Map `ebpf:"settings"`
	Sources      *ebpf.Map `ebpf:"sources"`
	Switches     *ebpf.Map `ebpf:"switches"`
	Uniques      *ebpf.Map `ebpf:"uniques"`
	Unpinned     *ebpf.Map `ebpf:"unpinned"`
	Vips         *ebpf.Map `ebpf:"vips"`
	Vrids        *ebpf.Map `ebpf:"vrids"`
	VrrpCounters *ebpf.Map `ebpf:"vrrp_counters"`
}

func (m *pinnedMaps) all() []*ebpf.Map {
	return []*ebpf.Map{
		m.Adverts, m.ByLocal, m.ByPublic, m.ByRemote, m.Claims, m.Epoch, m.Foreign, m.Fragments, m.Groups,
		m.Heartbeat, m.Hold, m.Ifaces, m.NearIfaces, m.OwnAdverts, m.Passages, m.PinCounters, m.Pins, m.Roles, m.Settings, m.Sources, m.Switches, m.Uniques,
		m.Unpinned, m.Vips, m.Vrids, m.VrrpCounters,
	}
}

// flowMaps are sized by Options.MaxFlows.
var flowMaps = map[string]bool{bpf.DataplaneMapByLocal: true, bpf.DataplaneMapByPublic: true, bpf.DataplaneMapUnpinned: true}

// disposableMaps hold nothing a flow depends on: another version that lays them
// out differently starts them anew.
var disposableMaps = map[string]bool{
	bpf.DataplaneMapAdverts: true, bpf.DataplaneMapByRemote: true, bpf.DataplaneMapClaims: true,
	bpf.DataplaneMapEpoch: true, bpf.DataplaneMapForeign: true, bpf.DataplaneMapFragments: true,
	bpf.DataplaneMapHold: true, bpf.DataplaneMapPassages: true,
	bpf.DataplaneMapPinCounters: true, bpf.DataplaneMapVrrpCounters: true,
}

// Dataplane is the loaded programs and their pinned maps. Its methods may be
// called from several goroutines, and beside other processes.
type Dataplane struct {
	dir   string
	log   *slog.Logger
	noTCX bool
	marks bool // a table of ours tells the programs what conntrack knows, see marks.go

	maps    pinnedMaps
	egress  *ebpf.Program // nil after Open
	ingress *ebpf.Program // nil after Open
	ack     *ebpf.Program // nil after Open
	ids     sync.Map      // ebpf.ProgramID by *ebpf.Program, see updateLink

	ends Ends // of flows, told by Collect

	tableMu sync.Mutex
	table   *markTable // as Apply put it into force; nil: it did not
	tableAt uint32     // nf_tables' generation in which it was last seen unharmed
}

// Load brings the dataplane into force: it mounts bpffs where it is missing
// (and logs that), takes over the maps that are pinned below opts.BPFFS, loads
// the programs and replaces those of every attachment in one step each. On a
// kernel without BTF it takes the programs that nf_tables tells what conntrack
// knows. Loading again is harmless. An *UnsupportedError names what the kernel
// lacks.
func Load(opts Options) (*Dataplane, error) {
	d := newDataplane(opts.BPFFS, opts.Log)
	d.noTCX, d.marks = opts.noTCX, opts.noBTF
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, permissionError(err)
	}
	existed := false
	if _, err := os.Stat(d.dir); err == nil {
		existed = true
	}
	if err := ensureBPFFS(d.dir, d.log); err != nil {
		return nil, err
	}
	unlock, err := lockDir(d.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := d.load(opts.MaxFlows); err != nil {
		err = errors.Join(err, d.Close())
		if !existed { // leave no empty directory behind
			_ = os.Remove(filepath.Join(d.dir, linksDir))
			_ = os.Remove(d.dir)
		}
		return nil, err
	}
	return d, nil
}

func newDataplane(dir string, log *slog.Logger) *Dataplane {
	if dir == "" {
		dir = DefaultBPFFS
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Dataplane{dir: filepath.Clean(dir), log: log}
}

func (d *Dataplane) load(maxFlows uint32) error {
	d.loadConntrackModules()
	kernel := runningKernel()
	objects, err := d.loadObject(maxFlows)
	if errors.As(err, new(*objectError)) && !d.marks && !kernel.haveBTF() {
		d.log.Info("this kernel has no BTF (/sys/kernel/btf/vmlinux): nf_tables tells the programs what conntrack knows",
			"table", "inet "+marksTable, "why", err)
		d.marks = true
		objects, err = d.loadObject(maxFlows)
	}
	var failed *objectError
	if errors.As(err, &failed) {
		return explainLoad(failed.err, kernel, d.log)
	}
	if err != nil {
		return err
	}
	defer objects.close()
	return d.takeInto(objects)
}

// objectError says that the kernel refused maps or programs.
type objectError struct{ err error }

func (e *objectError) Error() string { return e.err.Error() }

// object is a loaded collection.
type object struct {
	spec *ebpf.CollectionSpec
	coll *ebpf.Collection
	kept map[string]*ebpf.Map // of an earlier start
}

func (o *object) close() {
	if o.coll != nil {
		o.coll.Close()
	}
	closeMaps(o.kept)
}

// loadObject loads the programs of the tier, with the maps that are there.
func (d *Dataplane) loadObject(maxFlows uint32) (o *object, err error) {
	read := bpf.LoadDataplane
	if d.marks {
		read = bpf.LoadMarks
	}
	o = &object{}
	if o.spec, err = read(); err != nil {
		return nil, fmt.Errorf("read the built-in programs: %w", err)
	}
	if maxFlows != 0 {
		for name := range flowMaps {
			o.spec.Maps[name].MaxEntries = maxFlows
		}
	}
	if err := setSecret(o.spec); err != nil {
		return nil, err
	}
	if o.kept, err = d.keptMaps(o.spec); err == nil {
		if o.coll, err = ebpf.NewCollectionWithOptions(o.spec, ebpf.CollectionOptions{MapReplacements: o.kept}); err != nil {
			err = &objectError{err}
		}
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// takeInto makes what was loaded the dataplane in force.
func (d *Dataplane) takeInto(o *object) error {
	if d.marks {
		if _, err := rulesetGeneration(); err != nil {
			return &UnsupportedError{"nf_tables", "load the module nf_tables, or take a kernel that has it or BTF (/sys/kernel/btf/vmlinux)", err}
		}
	}
	var objects struct {
		pinnedMaps
		Egress  *ebpf.Program `ebpf:"vippin_egress"`
		Ingress *ebpf.Program `ebpf:"vippin_ingress"`
		Ack     *ebpf.Program `ebpf:"vippin_acknowledge"`
	}
	fresh := make(map[string]*ebpf.Map)
	for name, m := range o.coll.Maps {
		if o.spec.Maps[name].Pinning == ebpf.PinNone && pinned(name) && o.kept[name] == nil {
			fresh[name] = m
		}
	}
	if err := o.coll.Assign(&objects); err != nil {
		return fmt.Errorf("sort out maps and programs: %w", err)
	}
	d.maps, d.egress, d.ingress, d.ack = objects.pinnedMaps, objects.Egress, objects.Ingress, objects.Ack
	if fresh[bpf.DataplaneMapSwitches] != nil { // before anybody else finds it
		if err := d.takeSwitches(); err != nil {
			return err
		}
	}
	for name, m := range fresh {
		if err := pinAside(m, filepath.Join(d.dir, name)); err != nil {
			return err
		}
	}
	if err := d.closeFastpath(); err != nil { // until somebody follows for it what changes
		return err
	}
	if err := d.hold(bpf.DataplaneHold{}); err != nil { // an earlier daemon may have been killed holding
		return err
	}
	return d.enterTier()
}

// pinned tells whether a map belongs to pinnedMaps.
func pinned(name string) bool {
	switch name {
	case bpf.DataplaneMapScratch, bpf.DataplaneMapBench, bpf.DataplaneMapPackets, bpf.DataplaneMapShortcuts:
		return false
	}
	return name[0] != '.'
}

// loadConntrackModules asks conntrack for something: only that makes the kernel
// load nf_conntrack, whose functions the programs call (opening the socket loads
// no more than nfnetlink). Whether it mattered shows later.
func (d *Dataplane) loadConntrackModules() {
	conn, err := conntrack.Dial()
	if err != nil {
		d.log.Debug("open conntrack", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	nobody := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	_, err = conn.Get(conntrack.Tuple{Src: nobody, Dst: nobody, Proto: unix.IPPROTO_UDP, SrcPort: 1, DstPort: 1})
	if err != nil && !errors.Is(err, conntrack.ErrNotExist) {
		d.log.Debug("ask conntrack", "error", err)
	}
}

// keptMaps opens what another version, or an earlier start, pinned. The specs
// are left without pinning: new maps are pinned once everything has loaded.
func (d *Dataplane) keptMaps(spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	kept := make(map[string]*ebpf.Map)
	for name, want := range spec.Maps {
		if !pinned(name) {
			continue
		}
		want.Pinning = ebpf.PinNone
		m, err := ebpf.LoadPinnedMap(filepath.Join(d.dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return kept, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		kept[name] = m
		if flowMaps[name] && m.MaxEntries() != want.MaxEntries {
			d.log.Warn("the size of a map is kept: a new one takes effect after \"vippin unload\" and the next start",
				"map", name, "size", m.MaxEntries(), "configured", want.MaxEntries)
			want.MaxEntries = m.MaxEntries()
		}
		err = want.Compatible(m)
		if err == nil {
			continue
		}
		if !disposableMaps[name] {
			return kept, fmt.Errorf("take over map %s in %s from another version: %v: run \"vippin unload\", then start again",
				name, d.dir, err)
		}
		d.log.Warn("another version laid out a map differently, it starts anew", "map", name)
		delete(kept, name)
		_ = m.Close()
	}
	return kept, nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		_ = m.Close()
	}
}

// Open opens the pinned maps below bpffs (DefaultBPFFS if empty), for commands
// that work without a daemon. It loads and attaches nothing. ErrNotLoaded: there
// is nothing to open.
func Open(bpffs string) (*Dataplane, error) {
	d := newDataplane(bpffs, nil)
	spec, err := bpf.LoadDataplane()
	if err != nil {
		return nil, fmt.Errorf("read the built-in programs: %w", err)
	}
	maps := make(map[string]*ebpf.Map)
	coll := &ebpf.Collection{Maps: maps}
	defer coll.Close()
	for name, want := range spec.Maps {
		if !pinned(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(d.dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open map %s in %s: %w", name, d.dir, d.missing())
		}
		if err != nil {
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		maps[name] = m
		if flowMaps[name] {
			want.MaxEntries = m.MaxEntries()
		}
		if err := want.Compatible(m); err != nil {
			return nil, fmt.Errorf("open map %s in %s: another version is loaded: %v: run \"vippin load\"", name, d.dir, err)
		}
	}
	if err := coll.Assign(&d.maps); err != nil {
		return nil, fmt.Errorf("sort out maps: %w", err)
	}
	settings, err := d.settings()
	d.marks = settings.Marks != 0
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// missing says why a pinned map is not there.
func (d *Dataplane) missing() error {
	if _, err := os.Stat(filepath.Join(d.dir, bpf.DataplaneMapByPublic)); err == nil {
		return errors.New("another version is loaded: run \"vippin load\"")
	}
	return ErrNotLoaded
}

// Close closes the file descriptors. Everything pinned stays in force.
func (d *Dataplane) Close() error {
	var errs []error
	for _, m := range d.maps.all() {
		errs = append(errs, m.Close())
	}
	errs = append(errs, d.egress.Close(), d.ingress.Close(), d.ack.Close())
	return errors.Join(errs...)
}
