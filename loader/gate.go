// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"vippin/bpf"
	"vippin/loader/conntrack"
	"vippin/loader/nfqueue"
	"vippin/policy"
)

// GateOptions says how answers wait.
type GateOptions struct {
	Queue   uint16            // NFQUEUE number
	Mark    policy.MarkConfig // what tells those that wait
	Timeout time.Duration     // how long they do at most
	Log     *slog.Logger      // nil: nothing is logged

	length uint32 // packets that wait at most, 0 = gateQueue
}

// GateCounts counts packets since NewGate. Those that the programs marked are
// Held, Passed or PassedBy; those that were held are Acked, TimedOut, Released or
// Waiting.
type GateCounts struct {
	Held     uint64        // had to wait
	Acked    uint64        // went on since the peers had their flow
	TimedOut uint64        // went on since their time was over
	Released uint64        // went on for another reason: no peer is up, or none is told of the flow
	Waiting  uint64        // now
	Passed   uint64        // went on at once: meanwhile their flow was acknowledged
	PassedBy uint64        // never came: the queue or its socket was full, or nobody served it
	Waited   time.Duration // how long the acked ones did, together
}

// Gate holds the first answers of each flow until the peers have it (strict
// replication). The programs mark them, a table of its own puts them in a queue,
// here they wait. Its methods may be called from several goroutines.
type Gate struct {
	r       *Replica
	options GateOptions
	log     *slog.Logger
	queue   nfqueue.Source
	conn    *conntrack.Conn
	first   chan struct{} // the first of those that wait has come
	marked  uint64        // what the programs had marked before

	mu      sync.Mutex // packets of a flow go on in their order
	running bool
	wanted  bool // SetHolding's word
	holding bool
	waits   holdings
	counts  GateCounts
	reader  *flowReader
	public  localEnd // what the mapping that was looked up last says
}

const (
	gateQueue  = 1024     // packets that wait at most; what comes then goes on. A daemon that stands still holds no more of them
	gateBuffer = 16 << 20 // of the queue's socket, octets
	gateOctets = 128      // of each packet: the headers
)

// NewGate takes the queue and puts the table in force, in the network namespace of
// the calling thread. Nothing waits before Run and SetHolding.
func (r *Replica) NewGate(options GateOptions) (*Gate, error) {
	g := &Gate{r: r, options: options, log: options.Log, first: make(chan struct{}, 1), waits: newHoldings(), reader: r.newFlowReader()}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if err := g.open(); err != nil {
		return nil, fmt.Errorf("open gate: %w", errors.Join(err, g.Close()))
	}
	return g, nil
}

func (g *Gate) open() (err error) {
	if g.marked, err = g.r.d.heldPackets(); err != nil {
		return err
	}
	if g.conn, err = conntrack.Dial(); err != nil {
		return err
	}
	queue, err := nfqueue.Open(nfqueue.Config{
		Queue: g.options.Queue, MaxLen: cmp.Or(g.options.length, gateQueue), CopyRange: gateOctets, FailOpen: true, GSO: true, ReadBuffer: gateBuffer,
	})
	if err != nil {
		return err
	}
	g.queue = queue
	return InstallHold(g.rule())
}

func (g *Gate) rule() HoldRule { return HoldRule{Mark: g.options.Mark, Queue: g.options.Queue} }

// Close removes the table and gives the queue back. Run must have ended.
func (g *Gate) Close() error {
	var errs []error
	if g.queue != nil {
		errs = append(errs, RemoveHold(), g.queue.Close())
	}
	if g.conn != nil {
		errs = append(errs, g.conn.Close())
	}
	return errors.Join(errs...)
}

// Run lets answers wait and go until ctx ends, then returns nil; at its end
// nothing waits any more. It watches the table from the calling goroutine.
func (g *Gate) Run(ctx context.Context) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	tasks, failed := errgroup.WithContext(serving)
	tasks.Go(func() error { return g.queue.Run(failed, g.take) })
	tasks.Go(func() error { g.expire(failed); return nil })
	err := g.set(func() { g.running = true })
	g.watch(ctx, failed)
	err = errors.Join(err, g.set(func() { g.running = false }))
	g.drain(failed)
	stop()
	return errors.Join(err, tasks.Wait())
}

// SetHolding says whether answers wait at all: of flows that begin from now on.
// When they do not, all that wait go on.
func (g *Gate) SetHolding(on bool) error { return g.set(func() { g.wanted = on }) }

func (g *Gate) set(change func()) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
	on := g.running && g.wanted
	if on == g.holding {
		return nil
	}
	g.holding = on
	if on {
		mark := g.options.Mark
		return g.r.d.hold(bpf.DataplaneHold{SinceNs: uint64(monotonic()), Mark: mark.Value, Mask: mark.Mask})
	}
	err := g.r.d.hold(bpf.DataplaneHold{})
	g.letGo(g.waits.all(), &g.counts.Released)
	return err
}

// Acked tells of flows that every peer has.
func (g *Gate) Acked(flows []policy.Flow) { g.settle(flows, mappingAcked, &g.counts.Acked) }

// Release tells of flows that no peer will have.
func (g *Gate) Release(flows []policy.Flow) { g.settle(flows, mappingReleased, &g.counts.Released) }

func (g *Gate) settle(flows []policy.Flow, flag bpf.DataplaneMappingFlags, count *uint64) {
	keys := g.r.publicKeys(flows)
	g.flag(keys, flag)
	g.mu.Lock()
	defer g.mu.Unlock()
	var some []*holding
	for i := range keys {
		if w := g.waits.of(keys[i]); w != nil {
			some = append(some, w)
		}
	}
	g.letGo(some, count)
}

// flag has the programs let the answers of mappings pass. It comes before those
// that wait are let go: what is queued after that finds the flag here.
func (g *Gate) flag(keys []flowKey, flag bpf.DataplaneMappingFlags) {
	if err := g.r.d.acknowledge(keys, flag); err != nil {
		g.log.Error("answers will wait that need not", "error", err)
	}
}

// publicKeys are the keys in by_public of pinned flows, as peers are told of them.
func (r *Replica) publicKeys(flows []policy.Flow) []flowKey {
	index := r.index.Load()
	keys := make([]flowKey, 0, len(flows))
	for i := range flows {
		f := &flows[i]
		if pin := index.named[f.Pin]; pin != nil {
			keys = append(keys, newFlowKey(pin.Slot, f.Proto, wireEnd(f.To), wireEnd(f.From)))
		}
	}
	return keys
}

// letGo accepts what flows' answers wait, and counts them. Called with mu.
func (g *Gate) letGo(some []*holding, count *uint64) {
	if len(some) == 0 {
		return
	}
	now := Monotonic()
	var ids []uint32
	for _, w := range some {
		for _, p := range w.packets {
			ids = append(ids, p.id)
			if count == &g.counts.Acked {
				g.counts.Waited += now - p.since
			}
		}
		g.waits.remove(w)
	}
	*count += uint64(len(ids))
	g.accept(ids...)
}

func (g *Gate) accept(ids ...uint32) {
	if err := g.queue.SetVerdicts(nfqueue.Accept, ids...); err != nil {
		g.log.Error("packets may be lost", "packets", len(ids), "error", err)
	}
}

// Counts reads the counters.
func (g *Gate) Counts() (GateCounts, error) {
	marked, err := g.r.d.heldPackets()
	if err != nil {
		return GateCounts{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	counts := g.counts
	counts.Waiting = counts.Held - counts.Acked - counts.TimedOut - counts.Released
	counts.PassedBy = marked - min(marked, g.marked+counts.Held+counts.Passed)
	return counts, nil
}
