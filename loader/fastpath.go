// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cilium/ebpf"

	"vippin/policy"
)

// FastpathOptions says what a fast path is to be.
type FastpathOptions struct {
	Flows uint32 // as Options.MaxFlows; every flow has an entry for each direction
	All   bool   // learn flows that are not pinned, too
	Force bool   // on devices with a shaping qdisc, too
	Log   *slog.Logger

	noFeatures bool // as on a kernel that does not say what drivers can
}

// Fastpath is the XDP program, the tc program that teaches it, and their tables.
// Its methods may be called from several goroutines, until Close.
type Fastpath struct {
	plane   *Dataplane
	opts    FastpathOptions
	log     *slog.Logger
	maps    fastMaps
	tables  *fastTables
	follow  *fastFollow
	forward *ebpf.Program // XDP; nil after OpenFastpath
	learn   *ebpf.Program // tc egress; nil after OpenFastpath
	tracer  *fastTracer   // nil: this kernel cannot
	virtual virtualMACs

	mu      sync.Mutex              // guards what follows, and Attach as a whole
	named   []string                // as Attach was told last
	shown   []policy.FastpathDevice // as Attach told last
	numbers map[int]uint8           // of the devices that take part, by ifindex
	refused map[int]refusal         // by ifindex
	told    map[string]string       // by interface, the last reason to refuse it that was logged
}

// Attach makes these interfaces, and no others, take the fast path; it is called
// again whenever links change. What cannot be attached is told in the devices.
// The interfaces are those of the network namespace of the calling thread.
func (f *Fastpath) Attach(interfaces []string) ([]policy.FastpathDevice, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.forward == nil {
		return nil, errors.New("attach the fast path: its programs are not loaded here, only its maps are open")
	}
	unlock, err := lockDir(f.plane.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	scene, err := lookAround()
	if err != nil {
		return nil, fmt.Errorf("attach the fast path: %w", err)
	}
	f.named = interfaces
	return f.attach(scene)
}

// SetOpen lets packets take the fast path, or none.
func (f *Fastpath) SetOpen(open bool) error {
	f.tables.setOpen(open)
	return nil
}

// Bump makes every flow take the stack again before it is learnt anew: something
// changed that its packets' fate depends on.
func (f *Fastpath) Bump() error {
	f.tables.bump()
	return nil
}

// Remove detaches everywhere and removes the tables.
func (f *Fastpath) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tables.setOpen(false)
	return f.plane.RemoveFastpath()
}

// Close closes the file descriptors. Everything pinned stays in force.
func (f *Fastpath) Close() error {
	errs := []error{f.tracer.close(), f.tables.close(), f.forward.Close(), f.learn.Close()}
	for _, m := range f.maps.all() {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

func (m *fastMaps) all() []*ebpf.Map {
	return []*ebpf.Map{
		m.Fast4, m.Fast6, m.State, m.Devices, m.FarDevices, m.Places, m.Virtual, m.Out,
		m.Hops, m.HopNumbers, m.HopLast, m.Counters, m.Refusals, m.Asks,
	}
}
