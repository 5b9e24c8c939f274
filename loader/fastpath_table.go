// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"github.com/cilium/ebpf"

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
type fastTables struct{}

// mapFastTables maps them; close unmaps.
func mapFastTables(maps *fastMaps) (*fastTables, error) { return &fastTables{}, nil }

func (t *fastTables) close() error { return nil }

// setOpen makes a generation that no entry has, or none.
func (t *fastTables) setOpen(open bool) {}

// bump makes the next generation; closed stays closed.
func (t *fastTables) bump() {}

// valid is how many entries packets may take, of both families.
func (t *fastTables) valid() (int, error) { return 0, nil }

// Flows is what the fast path has done for each flow that it has an entry for,
// under the ends of its conntrack entry's original tuple (zone 0).
func (f *Fastpath) Flows() (map[policy.FlowKey]policy.FastpathFlow, error) { return nil, nil }

// Forget voids the entries of flows that ended, both directions.
func (f *Fastpath) Forget(flows []policy.FlowKey) error { return nil }
