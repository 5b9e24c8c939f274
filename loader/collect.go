// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// The rhythm of removal.
const (
	dyingGrace    = 2 * time.Second // a late destroy event must not hit a flow that took up the tuple
	cutOffStay    = 5 * time.Minute // of flows whose interface or address went; TCP gets through 2.5 min of silence (RFC 6298, 5.5)
	sweepEvery    = 2 * time.Second // how often ripe ones are looked for: each time every flow loses its shortcut
	sweepMost     = 32768           // of them in one go
	verifyBatch   = 128             // conntrack look-ups in one exchange
	reconcileRest = time.Second     // between two dumps, however many events are lost
	reconcileIdle = 5 * time.Minute // between two dumps when nothing is
)

// doomed names an entry that may be about to go.
type doomed struct {
	key   flowKey
	alone bool // in unpinned, else in by_local
}

// death is what is known of its end.
type death struct {
	at    time.Duration // CLOCK_MONOTONIC; a packet out after that revives it
	stay  time.Duration // longer than the grace time
	zone  uint16        // of the conntrack entry that went
	entry uint64        // unpinned: the value's conntrack; another one is another flow
}

// collector removes mappings, and notes of unpinned flows, whose conntrack entry
// is gone. It does so in two phases: an event or a dump marks them dying, and
// when they were silent for the grace time and conntrack confirms that it does
// not know the flow, they go.
//
// Mappings of flows that lost their ground have not ended: the kernel forgot them
// when an interface or an address went. They stay for longer, so that those which
// go on when it is back find their public end.
//
// Of a mapping the local end goes first. The public end is the reservation: were
// it to go first, another flow could take it while the first one still used it.
type collector struct {
	d    *Dataplane
	log  *slog.Logger
	conn *conntrack.Conn
	land *ground

	mu     sync.Mutex
	dying  map[doomed]death
	selves map[netip.Addr][]uint32 // local ends' addresses and the slots they are used in
}

func newCollector(d *Dataplane, log *slog.Logger) (*collector, error) {
	conn, err := conntrack.Dial()
	if err != nil {
		return nil, err
	}
	land, err := newGround(d, log)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &collector{d: d, log: log, conn: conn, land: land, dying: make(map[doomed]death)}, nil
}

func (c *collector) close() {
	_ = c.conn.Close()
	c.land.close()
}

// Ends is who hears of the ends of flows. The functions must not wait: the kernel
// loses events that nobody takes.
type Ends struct {
	// Ended is told the original tuple, without its zone, of every TCP and UDP flow
	// that conntrack has forgotten.
	Ended func(policy.FlowKey)
	Lost  func() // there may have been others
}

// TellEnds says who hears of the ends of flows from Collect, which must not run
// yet.
func (d *Dataplane) TellEnds(to Ends) { d.ends = to }

func (e *Ends) tell(flow *conntrack.Flow) {
	switch flow.Orig.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		if e.Ended != nil {
			e.Ended(policy.FlowKey{
				Src: policy.MakeEnd(flow.Orig.Source()), Dst: policy.MakeEnd(flow.Orig.Destination()), Proto: flow.Orig.Proto,
			})
		}
	}
}

// Collect removes mappings after their flows, until ctx ends; then it returns
// nil. It follows conntrack's destroy events and compares with the whole table
// at the start, when events were lost, and every few minutes. It sees to it that
// the kernel makes these events (sysctl net.netfilter.nf_conntrack_events) in
// the network namespace of the calling thread.
func (d *Dataplane) Collect(ctx context.Context, log *slog.Logger) error {
	// New flows need no events: before anything is removed, the table is asked.
	listener, err := conntrack.Listen(conntrack.Destroys)
	if err != nil {
		return fmt.Errorf("collect dead mappings: %w", err)
	}
	defer func() { _ = listener.Close() }()
	c, err := newCollector(d, log)
	if err != nil {
		return fmt.Errorf("collect dead mappings: %w", err)
	}
	defer c.close()
	enableEvents(log)

	overrun := make(chan struct{}, 1)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error {
		return listener.Receive(ctx, func(event conntrack.Event) error {
			switch event.Type {
			case conntrack.Destroy:
				d.ends.tell(event.Flow)
				return c.destroyed(event.Flow)
			case conntrack.Overrun:
				if d.ends.Lost != nil {
					d.ends.Lost()
				}
				select {
				case overrun <- struct{}{}:
				default: // a dump is due already
				}
			}
			return nil
		})
	})
	tasks.Go(func() error { return c.run(ctx, overrun) })
	if err := tasks.Wait(); err != nil && ctx.Err() == nil || err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("collect dead mappings: %w", err)
	}
	return nil
}

// run sweeps, and reconciles when it is due.
func (c *collector) run(ctx context.Context, overrun <-chan struct{}) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	rest := rester{d: c.d}
	due := true // at the start
	idle := dyingGrace + sweepEvery
	var last time.Time
	for {
		if due && time.Since(last) >= reconcileRest || time.Since(last) >= idle {
			// The first comparison trusts flows that were busy just before, though
			// nobody may have listened when they ended: another one follows soon.
			if !last.IsZero() {
				idle = reconcileIdle
			}
			due, last = false, time.Now()
			if err := c.reconcile(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-overrun:
			c.log.Warn("conntrack events were lost, comparing with its table")
			due = true
		case <-tick.C:
			if _, err := c.sweep(ctx, monotonic()-dyingGrace); err != nil {
				return err
			}
			if err := rest.look(); err != nil {
				return err
			}
		}
	}
}

// eventsPath is of the network namespace of whoever opens it.
const eventsPath = "/proc/sys/net/netfilter/nf_conntrack_events"

// enableEvents makes the kernel report the end of entries that were born while
// nobody listened. Without it only the comparisons notice those.
func enableEvents(log *slog.Logger) {
	text, err := os.ReadFile(eventsPath)
	if errors.Is(err, fs.ErrNotExist) {
		return // the kernel has no such switch
	}
	value := strings.TrimSpace(string(text))
	if err == nil && value == "1" {
		return
	}
	if err == nil {
		err = os.WriteFile(eventsPath, []byte("1\n"), 0o644)
	}
	if err != nil {
		log.Warn("cannot switch conntrack events on: mappings of older flows live on for some minutes after them",
			"error", err, "remedy", "sysctl net.netfilter.nf_conntrack_events=1")
		return
	}
	log.Info("switched conntrack events on", "sysctl", "net.netfilter.nf_conntrack_events", "was", value)
}

// destroyed marks what belongs to a conntrack entry that is gone.
func (c *collector) destroyed(flow *conntrack.Flow) error {
	c.mu.Lock()
	slots := c.selves[flow.Reply.Dst]
	c.mu.Unlock()
	for _, slot := range slots {
		key, ok := replyKey(slot, flow.Reply)
		if !ok {
			continue
		}
		if err := c.mark(key, flow); err != nil {
			return err
		}
	}
	return nil
}

// mark notes that the flow behind key seems to have ended now.
func (c *collector) mark(key flowKey, flow *conntrack.Flow) error {
	var end publicEnd
	var note leftAlone
	mapped, err := found(c.d.maps.ByLocal.Lookup(key, &end))
	if err != nil {
		return fmt.Errorf("read map by_local: %w", err)
	}
	noted, err := found(c.d.maps.Unpinned.Lookup(key, &note))
	if err != nil {
		return fmt.Errorf("read map unpinned: %w", err)
	}
	var stay time.Duration
	if mapped && wasCutOff(flow) {
		stay = c.stays(&key, &end)
	}
	now := monotonic()
	c.mu.Lock()
	defer c.mu.Unlock()
	if mapped {
		c.dying[doomed{key, false}] = death{at: now, stay: stay, zone: flow.Reply.Zone}
	}
	if noted {
		c.dying[doomed{key, true}] = death{at: now, zone: flow.Reply.Zone, entry: note.Conntrack}
	}
	return nil
}

// stays tells for how much longer a mapping stays whose flow conntrack has
// forgotten. A native one is of no use then: only conntrack translates.
func (c *collector) stays(key *flowKey, end *publicEnd) time.Duration {
	if end.Flags&mappingNative == 0 && c.land.lost(key) {
		return cutOffStay
	}
	return 0
}

// refresh learns which addresses are local ends. An address that came since the
// last time is learnt the next time; until then its flows' ends are noticed by
// the comparisons only.
func (c *collector) refresh() error {
	uniques, err := readMap[slotAddr, uniqueState](c.d.maps.Uniques)
	if err != nil {
		return err
	}
	vips, err := readMap[slotAddr, vipValue](c.d.maps.Vips)
	if err != nil {
		return err
	}
	selves := selfSlots(maps.Keys(uniques))
	for addr, slots := range selfSlots(maps.Keys(vips)) { // flows that masquerade itself gave the VIP
		selves[addr] = append(selves[addr], slots...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.selves = selves
	return nil
}

// sweep removes those that have been dying since ripe or longer and stay dead
// when looked at. It returns how many went.
func (c *collector) sweep(ctx context.Context, ripe time.Duration) (removed int, err error) {
	if err := c.refresh(); err != nil {
		return 0, err
	}
	list := slices.Collect(maps.Keys(c.ripe(ripe)))
	if len(list) == 0 {
		return 0, nil
	}
	// From here on a packet leaves its time in the mapping, though its flow has
	// a shortcut; and no shortcut outlives its mapping.
	if err := c.d.newEpoch(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.d.newEpoch()) }()
	for batch := range slices.Chunk(list, verifyBatch) {
		if ctx.Err() != nil {
			return removed, nil
		}
		n, err := c.removeDead(batch)
		removed += n
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

func (c *collector) ripe(before time.Duration) map[doomed]death {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make(map[doomed]death)
	for what, end := range c.dying {
		if end.at+end.stay <= before {
			list[what] = end
			if len(list) == sweepMost {
				break
			}
		}
	}
	return list
}

// Sweep compares with conntrack's table once and removes what is dead. It
// returns how many mappings and notes of unpinned flows went.
func (d *Dataplane) Sweep() (removed int, err error) {
	c, err := newCollector(d, d.log)
	if err != nil {
		return 0, fmt.Errorf("sweep dead mappings: %w", err)
	}
	defer c.close()
	ctx := context.Background()
	if err := c.reconcile(ctx); err != nil {
		return 0, fmt.Errorf("sweep dead mappings: %w", err)
	}
	for { // a sweep is bounded
		n, err := c.sweep(ctx, monotonic())
		removed += n
		if err != nil || n == 0 {
			if err != nil {
				err = fmt.Errorf("sweep dead mappings: %w", err)
			}
			return removed, err
		}
	}
}
