// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"

	"vippin/bpf"
	"vippin/loader"
)

// lease is vrrp.lease's default, and how often the daemon gives a sign of life in it.
const (
	lease         = 2 * time.Second
	beatsPerLease = 8
)

// fastpath is vippin's fast path on the router, with what the daemon does for it.
type fastpath struct {
	path     *loader.Fastpath
	counters *ebpf.Map // packets by enum fast_exit: State would count flows besides
}

// addFast opens the fast path on both interfaces. Flows must be learnt.
func (b *bed) addFast() error {
	if !b.way.fast {
		return nil
	}
	path, err := b.pin.dataplane.NewFastpath(loader.FastpathOptions{Flows: b.maxFlows()})
	if err != nil {
		return fmt.Errorf("load the fast path: %w", err)
	}
	b.undo = append(b.undo, path.Close, path.Remove)
	devices, err := path.Attach([]string{lanName, wanName})
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.Refused != "" {
			return fmt.Errorf("attach the fast path to %s: %s", d.Interface, d.Refused)
		}
	}
	b.undo = append(b.undo, b.daemon(path))
	if err := path.SetOpen(true); err != nil {
		return err
	}
	b.fast = &fastpath{path: path}
	if b.fast.counters, err = ebpf.LoadPinnedMap(filepath.Join(b.pin.bpffs, bpf.FastpathMapFastCounters), nil); err != nil {
		return fmt.Errorf("open the fast path's counters: %w", err)
	}
	b.undo = append(b.undo, b.fast.counters.Close)
	if err := b.fast.awaitPace(b.ctx); err != nil || b.part == 0 {
		return err
	}
	return b.keepFlows()
}

// keepFlows has flows stay learnt for as long as a measurement takes: the tables are in
// use as a whole, since those that grow have flows learnt anew, and no flow is asked for
// again. Nobody else writes there while nothing on the router changes.
func (b *bed) keepFlows() error {
	state, err := ebpf.LoadPinnedMap(filepath.Join(b.pin.bpffs, bpf.FastpathMapFastState), nil)
	if err != nil {
		return fmt.Errorf("open the fast path's state: %w", err)
	}
	defer func() { _ = state.Close() }()
	var now bpf.FastpathFastState
	if err := state.Lookup(uint32(0), &now); err != nil {
		return fmt.Errorf("read the fast path's state: %w", err)
	}
	for name, mask := range map[string]*uint32{bpf.FastpathMapFast4: &now.Mask4, bpf.FastpathMapFast6: &now.Mask6} {
		table, err := ebpf.LoadPinnedMap(filepath.Join(b.pin.bpffs, name), nil)
		if err != nil {
			return fmt.Errorf("open the fast path's table: %w", err)
		}
		*mask = table.MaxEntries() - 1
		_ = table.Close()
	}
	now.PaceNs = uint64(time.Hour)
	if err := state.Put(uint32(0), now); err != nil {
		return fmt.Errorf("have flows stay learnt: %w", err)
	}
	return nil
}

// daemon does what the daemon does while the fast path is open, until it is told
// to stop: it gives signs of life and follows what changes on the router.
func (b *bed) daemon(path *loader.Fastpath) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	tasks, ctx := errgroup.WithContext(ctx)
	router := b.router
	first := b.pin.dataplane.Heartbeat(loader.Monotonic())
	tasks.Go(func() error {
		ticker := time.NewTicker(lease / beatsPerLease)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
				if err := b.pin.dataplane.Heartbeat(loader.Monotonic()); err != nil {
					return err
				}
			}
		}
	})
	tasks.Go(func() error {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := netns.Set(router); err != nil {
			return fmt.Errorf("enter the router's network namespace: %w", err)
		}
		if err := path.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("follow the router: %w", err)
		}
		return nil
	})
	return func() error {
		cancel()
		return errors.Join(first, tasks.Wait())
	}
}

// awaitPace waits until the firewall has been looked at: until then flows are
// asked for again as often as if it were one that changes in silence.
func (f *fastpath) awaitPace(ctx context.Context) error {
	const plain = 30
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		state, err := f.path.State()
		if err != nil {
			return err
		}
		if state.Open && state.PaceS >= plain {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for the fast path: open %v (%s), a flow is asked for every %g s (%s)",
				state.Open, state.Closed, state.PaceS, state.PaceWhy)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// exits says what became of packets, for an error.
func (f *fastpath) exits() string {
	state, err := f.path.State()
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("all so far: %v; not learnt: %v; interfaces %+v", state.Packets, state.Unlearnt, state.Interfaces)
}

// flowBytes is what the tables take for each flow that they have room for.
func (f *fastpath) flowBytes() (float64, error) {
	state, err := f.path.State()
	if err != nil || state.Capacity == 0 {
		return 0, err
	}
	return float64(state.MemoryBytes) / (float64(state.Capacity) / 2), nil
}

// forwarded counts the packets that took the fast path; none without one.
func (b *bed) forwarded() (sum uint64, err error) {
	if b.fast == nil {
		return 0, nil
	}
	var perCPU []uint64
	if err := b.fast.counters.Lookup(uint32(bpf.FastpathFastExitFAST_FORWARDED), &perCPU); err != nil {
		return 0, fmt.Errorf("read the fast path's counters: %w", err)
	}
	for _, n := range perCPU {
		sum += n
	}
	return sum, nil
}

// settle plays some of the flows until hardly a packet takes the stack, or no fewer do:
// the fast path's tables grow with the flows, which are learnt anew then, and a few flows
// find no room.
func (b *bed) settle(first, flows int) error {
	const (
		enough   = 0.997
		better   = 0.001
		passes   = 60
		patience = 6 // passes that make nothing better: longer than tables take to grow
		pause    = 50 * time.Millisecond
	)
	most, since := 0.0, 0
	for range passes {
		if b.fast == nil {
			break
		}
		share, err := b.playBothWays(first, flows)
		if err != nil || share >= enough {
			return err
		}
		if since++; share > most+better {
			most, since = share, 0
		}
		if since == patience {
			break
		}
		time.Sleep(pause)
	}
	return nil
}

// playBothWays tells what share of the packets took the fast path.
func (b *bed) playBothWays(first, flows int) (share float64, err error) {
	before, err := b.forwarded()
	if err != nil {
		return 0, err
	}
	var sum result
	for _, back := range []bool{false, true} {
		r, err := b.playAll(b.some(first, flows, back), sizeMin, flows)
		if err != nil {
			return 0, err
		}
		sum.add(r)
	}
	after, err := b.forwarded()
	return float64(after-before) / float64(sum.arrived), err
}
