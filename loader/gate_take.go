// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"time"

	"vippin/loader/conntrack"
	"vippin/loader/nfqueue"
)

// take lets a packet of the queue wait, or go on.
func (g *Gate) take(p *nfqueue.Packet) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key, waits := g.mustWait(p)
	if !waits {
		g.counts.Passed++
		g.accept(p.ID)
		return
	}
	if len(g.waits.order) == 0 {
		select {
		case g.first <- struct{}{}:
		default:
		}
	}
	g.waits.add(key, p.ID, Monotonic(), g.options.Timeout)
	g.counts.Held++
}

// mustWait tells whether the peers have yet to take the flow of a packet, and
// which one it is. A flow that no peer is told of does not wait a second time.
func (g *Gate) mustWait(p *nfqueue.Packet) (key flowKey, waits bool) {
	a, ok := readAnswer(p.Payload)
	if !ok || !g.holding {
		return key, false
	}
	g.reader.renew(g.r)
	key, mapped, err := g.find(a)
	if err != nil {
		g.log.Error("an answer goes on", "error", err)
	}
	if err != nil || !mapped {
		return key, false
	}
	if g.waits.of(key) != nil {
		return key, true
	}
	if g.public.Flags&(mappingAcked|mappingReleased) != 0 {
		return key, false
	}
	if g.isLeftOut(a) {
		g.flag([]flowKey{key}, mappingReleased)
		return key, false
	}
	return key, true
}

// find looks for the mapping of an answer: its key in by_public, and in g.public
// what that says.
func (g *Gate) find(a answer) (key flowKey, mapped bool, err error) {
	maps := &g.r.d.maps
	for _, end := range g.reader.index.ends[a.local.Addr()] {
		key = newFlowKey(end.slot, a.proto, a.local, a.remote)
		var local publicEnd
		there, err := found(maps.ByLocal.Lookup(raw(&key), raw(&local)))
		if err != nil {
			return key, false, wrapMap("read map by_local", err)
		}
		if there {
			key = publicKey(key, &local)
			mapped, err = found(maps.ByPublic.Lookup(raw(&key), raw(&g.public)))
			return key, mapped, wrapMap("read map by_public", err)
		}
	}
	return key, false, nil
}

// isLeftOut tells whether peers are not told of the flow of an answer, by its
// protocol or its ends. Only conntrack knows the inside host.
func (g *Gate) isLeftOut(a answer) bool {
	options := g.reader.options
	if !options.protocols[a.proto] {
		return true
	}
	if len(options.ignore) == 0 {
		return false
	}
	if options.ignores(a.remote.Addr()) {
		return true
	}
	entry, err := g.conn.Get(a.tuple())
	if err != nil {
		if !errors.Is(err, conntrack.ErrNotExist) {
			g.log.Error("look up the flow of an answer", "error", err)
		}
		return false
	}
	return g.reader.leavesOut(entry) != 0
}

// tuple is conntrack's of an answer.
func (a answer) tuple() conntrack.Tuple {
	t := conntrack.Tuple{Src: a.remote.Addr(), Dst: a.local.Addr(), Proto: a.proto}
	if t.IsICMP() {
		t.ICMPType, t.ICMPID = echoReply(a.proto), a.local.Port()
	} else {
		t.SrcPort, t.DstPort = a.remote.Port(), a.local.Port()
	}
	return t
}

// expire lets those go on whose time is over.
func (g *Gate) expire(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.first:
		case <-timer.C:
		}
		if next := g.expireDue(Monotonic()); next != 0 {
			timer.Reset(next - Monotonic())
		}
	}
}

// expireDue returns when to look again, 0 = when the first one waits.
func (g *Gate) expireDue(now time.Duration) (next time.Duration) {
	g.mu.Lock()
	due, next := g.waits.due(now)
	g.mu.Unlock()
	if len(due) == 0 {
		return next
	}
	keys := make([]flowKey, len(due))
	for i, w := range due {
		keys[i] = w.key
	}
	g.flag(keys, mappingReleased)
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, w := range due {
		if g.waits.of(w.key) == w { // not acknowledged meanwhile
			due[n] = w
			n++
		}
	}
	g.letGo(due[:n], &g.counts.TimedOut)
	return next
}

const (
	watchEvery = 500 * time.Millisecond
	drainStep  = 10 * time.Millisecond
	drainSteps = 100 // at most
)

// watch puts the table back where somebody has removed it, until one of the
// contexts ends.
func (g *Gate) watch(ctx, failed context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	seen := uint32(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-failed.Done():
			return
		case <-ticker.C:
		}
		now, err := rulesetGeneration()
		if err == nil && now == seen {
			continue
		}
		if err := g.repair(); err != nil {
			g.log.Error("answers do not wait", "table", "inet vippin-hold", "error", err)
			continue
		}
		seen = now
	}
}

func (g *Gate) repair() error {
	whole, err := HoldInstalled(g.rule())
	if err != nil || whole {
		return err
	}
	g.log.Warn("somebody has removed or changed a table: it is put back", "table", "inet vippin-hold")
	return InstallHold(g.rule())
}

// drain takes what was marked before the programs ceased to: it goes on at once.
func (g *Gate) drain(failed context.Context) {
	taken := func() uint64 {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.counts.Passed
	}
	ticker := time.NewTicker(drainStep)
	defer ticker.Stop()
	for before, steps := taken(), 0; steps < drainSteps; steps++ {
		select {
		case <-failed.Done():
			return
		case <-ticker.C:
		}
		now := taken()
		if now == before && steps > 0 {
			return
		}
		before = now
	}
}
