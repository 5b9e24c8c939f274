// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"vippin/bpf"
)

type fastHop = bpf.FastpathFastHop

// hopAgain is how long a packet is under way at most, which may give a dead hop a new
// number.
const hopAgain = 20 * time.Millisecond

// hopsMost is how many numbers may be given before they begin anew: FAST_HOPS in
// bpf/fast_types.h, less a quarter.
const hopsMost = 65536 / 4 * 3

// hopKiller has the neighbours' addresses whose hops are to go.
type hopKiller struct {
	mu   sync.Mutex
	wait map[mac]bool
	wake chan struct{} // holds one

	again time.Duration // hopAgain outside tests
}

func (k *hopKiller) add(gone []mac) {
	k.mu.Lock()
	if k.wait == nil {
		k.wait = make(map[mac]bool)
	}
	for _, address := range gone {
		k.wait[address] = true
	}
	k.mu.Unlock()
	wake(k.wake)
}

func (k *hopKiller) take() map[mac]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	gone := k.wait
	k.wait = nil
	return gone
}

// killHops kills hops as they are added, and once more later, and sees to it that
// there are numbers for new ones, until ctx ends.
func (f *Fastpath) killHops(ctx context.Context) error {
	look := time.NewTicker(fastPoll)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			if err := f.renewHops(ctx); err != nil {
				f.log.Error("number hops of the fast path anew", "error", err)
			}
		case <-f.follow.hops.wake:
			gone := f.follow.hops.take()
			f.killHopsOf(gone)
			if !rest(ctx, f.follow.hops.again) {
				return nil
			}
			f.killHopsOf(gone)
		}
	}
}

// killHopsOf kills the hops to neighbours' addresses.
func (f *Fastpath) killHopsOf(gone map[mac]bool) {
	if err := f.maps.killHops(gone); err != nil {
		f.log.Error("kill hops of the fast path: all flows are judged anew instead", "error", err)
		f.tables.bump()
	}
}

func (m *fastMaps) killHops(gone map[mac]bool) error {
	numbers := make(map[uint32]fastHop)
	err := scanMap(m.HopNumbers, func(hop fastHop, number uint32) bool {
		if gone[mac(hop.Macs[:6])] {
			numbers[number] = hop
		}
		return true
	})
	errs := []error{err}
	for number, hop := range numbers {
		if err := m.HopNumbers.Delete(hop); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("forget the number of a hop: %w", err))
		}
		hop.Alive = 0
		if err := m.Hops.Put(number, hop); err != nil {
			errs = append(errs, fmt.Errorf("kill a hop: %w", err))
		}
	}
	return errors.Join(errs...)
}

// renewHops begins to number hops anew when most numbers have been given. Packets take
// the stack meanwhile, and nothing is learnt, so that nobody has a number of before.
func (f *Fastpath) renewHops(ctx context.Context) error {
	var last uint64
	if err := f.maps.HopLast.Lookup(uint32(0), &last); err != nil {
		return fmt.Errorf("read the last number of a hop: %w", err)
	}
	if last < hopsMost {
		return nil
	}
	f.tables.pause(true)
	defer f.tables.pause(false)
	if !rest(ctx, hopAgain) {
		return nil
	}
	var hops []fastHop
	err := scanMap(f.maps.HopNumbers, func(hop fastHop, _ uint32) bool {
		hops = append(hops, hop)
		return true
	})
	errs := []error{err}
	for _, hop := range hops {
		errs = append(errs, f.maps.HopNumbers.Delete(hop))
	}
	errs = append(errs, f.maps.HopLast.Put(uint32(0), uint64(0)))
	return errors.Join(errs...)
}
