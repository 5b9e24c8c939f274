// SPDX-License-Identifier: Apache-2.0

// Package figures loads every BPF program of vippin into the running kernel and
// reads what its verifier made of them.
package figures

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"vippin/bpf"
)

// Limit is how many instructions the verifier walks through before it gives up:
// BPF_COMPLEXITY_LIMIT_INSNS in include/linux/bpf.h.
const Limit = 1_000_000

// Program is one program as a kernel has taken it.
type Program struct {
	Object, Name, Type string
	Verified           int    // instructions that the verifier walked through, of Limit
	Translated         int    // instructions that are there after it
	Stack              string // octets; several: of the program and its functions
}

// object is a collection of programs that are loaded together.
type object struct {
	name string
	read func() (*ebpf.CollectionSpec, error)
}

var objects = []object{
	{"dataplane", bpf.LoadDataplane},
	{"marks", bpf.LoadMarks},
	{"fastpath", bpf.LoadFastpath},
	{"tick", loadTick},
	{"generator", bpf.LoadGenerator},
}

// loadTick has the one program that is no part of a collection.
func loadTick() (*ebpf.CollectionSpec, error) {
	tick := bpf.Tick()
	return &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{tick.Name: tick}}, nil
}

// Names lists every program as "object/program", in the order of Measure. It
// loads nothing.
func Names() ([]string, error) {
	var names []string
	for _, o := range objects {
		spec, err := o.read()
		if err != nil {
			return nil, fmt.Errorf("read the programs of %s: %w", o.name, err)
		}
		for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
			names = append(names, o.name+"/"+name)
		}
	}
	return names, nil
}

// Measure loads every program, with maps of its own and attached to nothing, and
// unloads it again. The error names each program that the kernel refuses, with
// the verifier's last words; the others are in the list all the same.
func Measure() ([]Program, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, err
	}
	var list []Program
	var errs []error
	for _, o := range objects {
		spec, err := o.read()
		if err != nil {
			return nil, fmt.Errorf("read the programs of %s: %w", o.name, err)
		}
		if err := prepare(spec); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", o.name, err)
		}
		for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
			program, err := load(spec, name)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s/%s: %w", o.name, name, err))
				continue
			}
			program.Object = o.name
			list = append(list, program)
		}
	}
	return list, errors.Join(errs...)
}

// entries is how many entries a map gets here.
const entries = 1024

// prepare makes maps small and unpinned, and gives constants the kind of value
// that they have in use: the verifier prunes by them.
func prepare(spec *ebpf.CollectionSpec) error {
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		if m.Type == ebpf.Hash || m.Type == ebpf.LRUHash {
			m.MaxEntries = min(m.MaxEntries, entries)
		}
	}
	for _, name := range []string{bpf.FastpathMapFast4, bpf.FastpathMapFast6} {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = entries // the loader sizes them; one is a special case to the verifier
		}
	}
	for name, value := range map[string]any{"secret": uint64(0x9e3779b97f4a7c15), bpf.FastpathVarTickNs: uint32(4_000_000)} {
		if v := spec.Variables[name]; v != nil && v.Constant() {
			if err := v.Set(value); err != nil {
				return fmt.Errorf("set %s: %w", name, err)
			}
		}
	}
	return nil
}

// explain adds the end of the verifier's log.
func explain(err error) error {
	var verifier *ebpf.VerifierError
	if !errors.As(err, &verifier) {
		return fmt.Errorf("load: %w", err)
	}
	const most = 20
	return fmt.Errorf("load: %w:\n\t%s", verifier.Cause, strings.Join(verifier.Log[max(0, len(verifier.Log)-most):], "\n\t"))
}

// stackDepth is what the verifier says about it at BPF_LOG_STATS.
var stackDepth = regexp.MustCompile(`(?m)^stack depth ([0-9+]+)$`)

// load loads one program of a collection and looks at it.
func load(spec *ebpf.CollectionSpec, name string) (Program, error) {
	one := spec.Copy()
	maps.DeleteFunc(one.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	if err != nil {
		again, why := ebpf.NewCollection(one) // statistics alone do not say why
		if why == nil {
			again.Close()
			why = err
		}
		return Program{}, explain(why)
	}
	defer coll.Close()
	loaded := coll.Programs[name]
	info, err := loaded.Info()
	if err != nil {
		return Program{}, fmt.Errorf("look at it: %w", err)
	}
	verified, known := info.VerifiedInstructions()
	if !known {
		return Program{}, errors.New("look at it: the kernel does not say how many instructions it verified (Linux 5.16)")
	}
	octets, err := info.TranslatedSize()
	if err != nil {
		return Program{}, fmt.Errorf("look at it: %w", err)
	}
	p := Program{Name: name, Type: loaded.Type().String(), Verified: int(verified), Translated: octets / asm.InstructionSize, Stack: "?"}
	if found := stackDepth.FindStringSubmatch(loaded.VerifierLog); found != nil {
		p.Stack = found[1]
	}
	return p, nil
}
