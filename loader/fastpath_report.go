// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink/nl"

	"vippin/bpf"
	"vippin/policy"
)

// exitNames are what became of a packet, in policy's words.
var exitNames = [bpf.FastpathFastExitFAST_EXITS]string{
	bpf.FastpathFastExitFAST_FORWARDED:  "forwarded",
	bpf.FastpathFastExitFAST_CLOSED:     "closed",
	bpf.FastpathFastExitFAST_DEVICE:     "device",
	bpf.FastpathFastExitFAST_NOT_IP:     "not_ip",
	bpf.FastpathFastExitFAST_OTHER_HOST: "other_host",
	bpf.FastpathFastExitFAST_PROTOCOL:   "protocol",
	bpf.FastpathFastExitFAST_OPTIONS:    "options",
	bpf.FastpathFastExitFAST_FRAGMENT:   "fragment",
	bpf.FastpathFastExitFAST_TTL:        "ttl",
	bpf.FastpathFastExitFAST_FLAGS:      "flags",
	bpf.FastpathFastExitFAST_MISS:       "miss",
	bpf.FastpathFastExitFAST_STALE:      "stale",
	bpf.FastpathFastExitFAST_RECHECK:    "recheck",
	bpf.FastpathFastExitFAST_DRIFT:      "drift",
	bpf.FastpathFastExitFAST_HOP_GONE:   "hop_gone",
	bpf.FastpathFastExitFAST_TOO_BIG:    "too_big",
	bpf.FastpathFastExitFAST_NO_ROOM:    "no_room",
	bpf.FastpathFastExitFAST_LEARNT:     "learnt",
	bpf.FastpathFastExitFAST_NOT_LEARNT: "not_learnt",
}

// refusalNames are why a packet taught nothing.
var refusalNames = [bpf.FastpathFastRefusalREFUSALS]string{
	bpf.FastpathFastRefusalREFUSED_NO_NOTE:         "no_note",
	bpf.FastpathFastRefusalREFUSED_GENERATION:      "generation",
	bpf.FastpathFastRefusalREFUSED_NO_CONNTRACK:    "no_conntrack",
	bpf.FastpathFastRefusalREFUSED_NOT_ESTABLISHED: "not_established",
	bpf.FastpathFastRefusalREFUSED_HELPER:          "helper",
	bpf.FastpathFastRefusalREFUSED_NOT_LIBERAL:     "not_liberal",
	bpf.FastpathFastRefusalREFUSED_NOT_PINNED:      "not_pinned",
	bpf.FastpathFastRefusalREFUSED_NOT_ACKED:       "not_acked",
	bpf.FastpathFastRefusalREFUSED_CHANGED:         "changed",
	bpf.FastpathFastRefusalREFUSED_PACKET:          "packet",
	bpf.FastpathFastRefusalREFUSED_FULL:            "full",
}

// State is what there is to show; also of a Dataplane that was only opened.
// Whether it is wanted, the caller knows.
func (f *Fastpath) State() (policy.FastpathState, error) {
	var state bpf.FastpathFastState
	if err := f.maps.State.Lookup(uint32(0), &state); err != nil {
		return policy.FastpathState{}, fmt.Errorf("read the state of the fast path: %w", err)
	}
	out := policy.FastpathState{
		All: state.All != 0, Open: state.Generation != 0, Generation: state.Generation,
		PaceS:    time.Duration(state.PaceNs).Seconds(),
		Capacity: fastWays * int(f.maps.Fast4.MaxEntries()),
		Loosened: f.loosened(),
	}
	_, out.PaceWhy = f.pace()
	switch queues := f.queues(); {
	case out.Open && !f.alive(&state):
		out.Open, out.Closed = false, "the daemon gives no sign of life"
	case !out.Open && queues != "":
		out.Closed = queues + policy.FastpathQueues
	}
	var errs [5]error
	out.Flows, errs[0] = f.tables.valid()
	out.MemoryBytes, errs[1] = f.memory()
	out.Packets, errs[2] = sumCounters(f.maps.Counters, exitNames[:])
	out.Unlearnt, errs[3] = sumCounters(f.maps.Refusals, refusalNames[:])
	out.Interfaces, errs[4] = f.devices()
	if !out.Open {
		out.Flows = 0
	}
	return out, errors.Join(errs[:]...)
}

// alive tells whether the heartbeat is younger than the lease, as the programs
// see it.
func (f *Fastpath) alive(state *bpf.FastpathFastState) bool {
	var beat uint64
	err := f.plane.maps.Heartbeat.Lookup(uint32(0), &beat)
	return err == nil && beat != 0 && int64(monotonic())-int64(beat) < int64(state.LeaseNs)
}

// memory is what the pinned tables take.
func (f *Fastpath) memory() (total uint64, err error) {
	for _, m := range f.maps.all() {
		info, err := m.Info()
		if err != nil {
			return 0, fmt.Errorf("look at map %s: %w", mapName(m), err)
		}
		octets, _ := info.Memlock()
		total += octets
	}
	return total, nil
}

// sumCounters adds up a counter per CPU for each name.
func sumCounters(m *ebpf.Map, names []string) (map[string]uint64, error) {
	sums := make(map[string]uint64, len(names))
	for i, name := range names {
		var perCPU []uint64
		if err := m.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("read map %s: %w", mapName(m), err)
		}
		for _, count := range perCPU {
			sums[name] += count
		}
	}
	return sums, nil
}

// devices are what Attach told last, or else the interfaces that somebody
// attached, as they are in the network namespace of the calling thread.
func (f *Fastpath) devices() ([]policy.FastpathDevice, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.forward != nil {
		return f.withVirtual(f.shown), nil
	}
	scene, err := lookAround()
	if err != nil {
		return nil, err
	}
	attached, err := f.plane.fastAttachments()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, ifindex := range attached {
		if link := scene.links[ifindex]; link != nil {
			names = append(names, link.Attrs().Name)
		}
	}
	slices.Sort(names)
	devices := scene.judge(names, false)
	for _, d := range devices {
		d.tellMode(xdpOn(d.link), f.numbers[d.Ifindex] != 0)
	}
	judgeTargets(devices, f.features)
	return reports(devices), nil
}

// Modes, as policy.FastpathDevice has them.
const (
	modeNative  = "native"
	modeGeneric = "generic"
)

// tellMode says how XDP is attached.
func (d *fastDevice) tellMode(on xdpOf, ours bool) {
	switch {
	case d.Refused != "":
	case on.mode == nl.XDP_ATTACHED_NONE:
		d.refuse("it has no XDP program any more")
	case !ours:
		d.refuse("%s", foreignXDP(on))
	case on.mode == nl.XDP_ATTACHED_SKB:
		d.Mode = modeGeneric
		d.warn("its driver has no native XDP: generic XDP is slower")
	default:
		d.Mode = modeNative
	}
}

func reports(devices []*fastDevice) []policy.FastpathDevice {
	list := make([]policy.FastpathDevice, 0, len(devices))
	for _, d := range devices {
		list = append(list, d.FastpathDevice)
	}
	return list
}
