// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"log/slog"

	"vippin/policy"
)

// FastpathOptions says what a fast path is to be.
type FastpathOptions struct {
	Flows uint32 // as Options.MaxFlows; every flow has an entry for each direction
	All   bool   // learn flows that are not pinned, too
	Force bool   // on devices with a shaping qdisc, too
	Log   *slog.Logger
}

// Fastpath is the XDP program, the tc program that teaches it, and their tables.
type Fastpath struct {
	plane  *Dataplane
	opts   FastpathOptions
	maps   fastMaps
	tables *fastTables
}

// NewFastpath loads the fast path beside the dataplane, or takes over the tables
// of an earlier start. It is closed, and attached to no device that was not
// attached before. An *UnsupportedError names what the kernel lacks.
func (d *Dataplane) NewFastpath(opts FastpathOptions) (*Fastpath, error) {
	return &Fastpath{plane: d, opts: opts}, errors.New("not built yet")
}

// Attach makes these interfaces, and no others, take the fast path; it is called
// again whenever links change. What cannot be attached is told in the devices.
func (f *Fastpath) Attach(interfaces []string) ([]policy.FastpathDevice, error) {
	return nil, nil
}

// SetOpen lets packets take the fast path, or none.
func (f *Fastpath) SetOpen(open bool) error { return nil }

// Bump makes every flow take the stack again before it is learnt anew: something
// changed that its packets' fate depends on.
func (f *Fastpath) Bump() error { return nil }

// State is what there is to show; also of a Dataplane that was only opened.
func (f *Fastpath) State() (policy.FastpathState, error) { return policy.FastpathState{}, nil }

// OpenFastpath opens the pinned tables of a fast path, for commands that work
// without a daemon. ErrNotLoaded: there is none.
func (d *Dataplane) OpenFastpath() (*Fastpath, error) { return nil, ErrNotLoaded }

// Remove detaches everywhere and removes the tables.
func (f *Fastpath) Remove() error { return nil }

// Close closes the file descriptors. Everything pinned stays in force.
func (f *Fastpath) Close() error { return nil }
