// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"vippin/policy"
)

// valid is how many entries packets may take, of both families.
func (t *fastTables) valid() (count int, err error) {
	now, err := t.ticks.now()
	if err != nil {
		return 0, err
	}
	generation := t.generation()
	if generation == 0 {
		return 0, nil
	}
	return t.count(func(fate *fastFate) bool {
		return atomic.LoadUint32(&fate.Generation) == generation && int32(atomic.LoadUint32(&fate.Until)-now) > 0
	}), nil
}

// used is how many entries are of a flow, be it one of long ago.
func (t *fastTables) used() int {
	return t.count(func(fate *fastFate) bool { return atomic.LoadUint32(&fate.Generation) != 0 })
}

func (t *fastTables) count(is func(*fastFate) bool) (count int) {
	four := t.buckets4()
	for i := range four {
		for way := range four[i].Way {
			if is(&four[i].Way[way].Fate) {
				count++
			}
		}
	}
	six := t.buckets6()
	for i := range six {
		for way := range six[i].Way {
			if is(&six[i].Way[way].Fate) {
				count++
			}
		}
	}
	return count
}

// Flows is what the fast path has done for each flow that it has an entry for,
// under the ends of its conntrack entry's original tuple (zone 0). One that has been
// idle for longer than its conntrack entry lives was an earlier flow between the same
// ends.
func (f *Fastpath) Flows() (map[policy.FlowKey]policy.FastpathFlow, error) {
	now, err := f.tables.ticks.now()
	if err != nil {
		return nil, err
	}
	flows := make(map[policy.FlowKey]policy.FastpathFlow, f.tables.used())
	f.tables.each(func(e fastEntry) bool {
		generation := atomic.LoadUint32(&e.fate().Generation)
		if generation == 0 {
			return true
		}
		seen := f.tables.look(e.fate(), now)
		ways, n := original(e)
		if atomic.LoadUint32(&e.fate().Generation) != generation { // being written
			return true
		}
		for _, way := range ways[:n] {
			flow := seen
			if known, ok := flows[way]; ok {
				flow.Packets, flow.Bytes = flow.Packets+known.Packets, flow.Bytes+known.Bytes
				flow.IdleS = min(flow.IdleS, known.IdleS)
			}
			flows[way] = flow
		}
		return true
	})
	return flows, nil
}

func (t *fastTables) look(fate *fastFate, now uint32) policy.FastpathFlow {
	packetsSeen := atomic.LoadUint64(&fate.PacketsSeen)
	last := fastLastTick(uint16(packetsSeen), atomic.LoadUint32(&fate.Until), now)
	return policy.FastpathFlow{
		Packets: packetsSeen >> 16, Bytes: atomic.LoadUint64(&fate.Bytes),
		IdleS: (time.Duration(now-last) * t.ticks.length).Seconds(),
	}
}

const (
	endedMost = 1 << 16 // flows that wait to be forgotten; rather than more: a bump
	// endedGather is how long others may gather after the first.
	endedGather = 5 * time.Millisecond
	// Of the time that forgetting takes, this many times as much is rest.
	endedRest = 20
)

// endedFlows wait to be forgotten.
type endedFlows struct {
	mu   sync.Mutex
	wait []policy.FlowKey
	wake chan struct{} // holds one
}

// Forget has the packets of flows take the stack that conntrack has forgotten before
// their time, under the ends of its original tuple. It does not wait: Run voids their
// entries. It knows both ways of a flow by what was learnt of the original one.
func (f *Fastpath) Forget(flows []policy.FlowKey) error {
	q := &f.follow.ended
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.wait)+len(flows) > endedMost {
		q.wait = q.wait[:0]
		f.tables.bump()
		return nil
	}
	q.wait = append(q.wait, flows...)
	wake(q.wake)
	return nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is awake already
	}
}

// forgetEnded forgets what Forget is told of, until ctx ends.
func (f *Fastpath) forgetEnded(ctx context.Context) error {
	q := &f.follow.ended
	var ended []policy.FlowKey
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.wake:
		}
		if !rest(ctx, endedGather) {
			return nil
		}
		q.mu.Lock()
		ended, q.wait = q.wait, ended[:0]
		q.mu.Unlock()
		began := time.Now()
		if err := f.forget(ended); err != nil {
			return err
		}
		if !rest(ctx, endedRest*time.Since(began)) {
			return nil
		}
	}
}

// forget looks flows up in every place, or, of many flows or places, the flows of all
// entries among them.
func (f *Fastpath) forget(ended []policy.FlowKey) error {
	places, err := f.allPlaces()
	if err != nil {
		return err
	}
	// A look-up in a table, which is not in the cache, takes ten times as long as the
	// next entry does.
	if 10*len(ended)*len(places) > fastWays*(len(f.tables.buckets4())+len(f.tables.buckets6())) {
		f.tables.forgetAmong(ended)
		return nil
	}
	for i := range ended {
		f.tables.forgetAt(&ended[i], places)
	}
	return nil
}

// forgetAt finds answers by how they leave, which the original direction's entry
// shows, whatever the way they come in.
func (t *fastTables) forgetAt(flow *policy.FlowKey, places []uint32) {
	var back policy.FlowKey
	for _, place := range places {
		if e := t.find(flow, place); e != nil {
			_, out := e.ends()
			back = turned(out)
			atomic.StoreUint32(&e.fate().Generation, 0)
		}
	}
	if back == (policy.FlowKey{}) { // never learnt, as a rule
		back = turned(*flow) // of flows without any translation
	}
	for _, place := range places {
		if e := t.find(&back, place); e != nil {
			atomic.StoreUint32(&e.fate().Generation, 0)
		}
	}
}

func (t *fastTables) forgetAmong(ended []policy.FlowKey) {
	wanted := make(map[policy.FlowKey]bool, len(ended))
	for _, flow := range ended {
		wanted[flow] = true
	}
	t.each(func(e fastEntry) bool {
		if atomic.LoadUint32(&e.fate().Generation) == 0 {
			return true
		}
		ways, n := original(e)
		for _, way := range ways[:n] {
			if wanted[way] {
				atomic.StoreUint32(&e.fate().Generation, 0)
			}
		}
		return true
	})
}

// allPlaces are those where packets can come in, each once.
func (f *Fastpath) allPlaces() ([]uint32, error) {
	content, err := readMap[uint32, fastPlaceValue](f.maps.Places)
	if err != nil {
		return nil, err
	}
	seen := make(map[uint32]bool)
	var list []uint32
	for _, place := range content {
		if !seen[place.Number] {
			seen[place.Number] = true
			list = append(list, place.Number)
		}
	}
	return list, nil
}
