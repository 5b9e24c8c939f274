// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

const (
	stormPorts    = 8 // of the server: an answered port on the VIP is not free at once
	stormPatience = 10 * time.Second
	phaseTime     = 3 * time.Second
	calmTime      = 2 * time.Second  // after every fault, beside what the peer takes to be up again
	againPatience = 20 * time.Second // for that
	longLine      = 10 * time.Millisecond
	retransmitted = 900 * time.Millisecond // TCP sends a SYN again after a second
)

// Phase is the connections that were begun while something was wrong.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Begun   int     `json:"begun"`
	Latency         // of these; failed: not made within ten seconds
	Late    int     `json:"late"` // made, but a SYN or its answer had to be sent again

	Exceptions *Exceptions `json:"exceptions,omitempty"` // vippin's own counters, since the phase before; of "after it": with the trouble's

	from, to time.Time
}

// Exceptions are counters of "vippin status -j", replication.strict.
type Exceptions struct {
	Held     int64   `json:"held"`
	Acked    int64   `json:"acked"`
	TimedOut int64   `json:"timed_out"`
	Released int64   `json:"released"`
	PassedBy int64   `json:"passed_by"`
	Waited   float64 `json:"waited_ms"`
}

// since leaves out what had been counted before, unless it was by another process.
func (e Exceptions) since(before Exceptions) Exceptions {
	if e.Held < before.Held {
		return e
	}
	e.Held -= before.Held
	e.Acked -= before.Acked
	e.TimedOut -= before.TimedOut
	e.Released -= before.Released
	e.PassedBy -= before.PassedBy
	return e
}

func (e *Exceptions) String() string {
	if e == nil {
		return ""
	}
	return fmt.Sprintf("held %d: acked %d, timed out %d, released %d; passed by %d", e.Held, e.Acked, e.TimedOut, e.Released, e.PassedBy)
}

// trouble is something that goes wrong for a while.
type trouble struct {
	name       string
	begin, end func() error
}

// measureFaults has connections made at an even pace while one thing after the
// other goes wrong between the routers, and with the daemons.
func (b *bed) measureFaults(ctx context.Context, result *Result) (err error) {
	line, err := b.RB.Delay(ctx, lab.SyncLink, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, line.End()) }()
	workers, err := b.startStorm(ctx)
	if err != nil {
		return err
	}
	counted := b.exceptions()
	for _, t := range b.troubles(line) {
		if counted, err = b.suffer(ctx, t, counted, result); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	attempts, err := endStorm(ctx, workers)
	if err != nil {
		return err
	}
	for i := range result.Phases {
		result.Phases[i].judge(attempts)
	}
	return nil
}

func (b *bed) troubles(line *lab.Delay) []trouble {
	own, peer := b.daemons[b.RA.Name], b.daemons[b.RB.Name]
	signal := func(p *lab.Proc, s syscall.Signal) func() error { return func() error { return p.Signal(s) } }
	nothing := func() error { return nil }
	return []trouble{
		{"nothing", nothing, nothing},
		{"sync link cut", func() error { return b.CutSync(b.RB) }, func() error { return b.PlugSync(b.RB) }},
		{"peer stopped", signal(peer, syscall.SIGSTOP), signal(peer, syscall.SIGCONT)},
		{"peer killed", peer.Kill9, peer.Restart},
		{fmt.Sprintf("sync link %s long", longLine), func() error { line.Set(longLine); return nil }, func() error { line.Set(0); return nil }},
		{"own daemon stopped: queue full", signal(own, syscall.SIGSTOP), signal(own, syscall.SIGCONT)},
		{"own daemon killed", own.Kill9, own.Restart},
	}
}

// startStorm starts the server and the clients, and lets the routers forget what
// has ended soon.
func (b *bed) startStorm(ctx context.Context) (workers []*worker, err error) {
	for _, r := range b.Routers() {
		if err := r.Sysctl("net/netfilter/nf_conntrack_tcp_timeout_close", "1"); err != nil {
			return nil, err
		}
	}
	if b.server, err = b.startWorker(b.Server, "server"); err != nil {
		return nil, err
	}
	if err := b.server.Tell("Serve", swarm.ServerPlan{Local: b.of(lab.ServerWAN), TCP: true, Ports: stormPorts}); err != nil {
		return nil, err
	}
	for i := range crowdHosts {
		w, err := b.startWorker(b.Hosts[firstCrowd+i], fmt.Sprintf("storm%d", i))
		if err != nil {
			return nil, err
		}
		workers = append(workers, w)
	}
	if err := b.awaitReplicated(ctx, 0); err != nil {
		return nil, err
	}
	for i, w := range workers {
		if err := w.Tell("Storm", swarm.StormPlan{
			Local: b.of(lab.HostEnds(firstCrowd + i)), Server: b.of(lab.ServerWAN),
			Ports: stormPorts, Rate: b.c.Flows / crowdHosts, Patience: stormPatience,
		}); err != nil {
			return nil, err
		}
	}
	return workers, pause(ctx, calmTime) // neighbours, caches
}

// suffer lets a trouble last for its time, and waits until all is well again.
func (b *bed) suffer(ctx context.Context, t trouble, before *Exceptions, result *Result) (counted *Exceptions, err error) {
	phase := Phase{Name: t.name, from: time.Now()}
	if err := errors.Join(t.begin(), pause(ctx, phaseTime)); err != nil {
		return nil, err
	}
	phase.to = time.Now()
	if err := t.end(); err != nil {
		return nil, err
	}
	after := Phase{Name: "after it", from: time.Now()}
	if err := errors.Join(b.awaitPeer(ctx), pause(ctx, calmTime)); err != nil {
		return nil, err
	}
	after.to = time.Now()
	if counted = b.exceptions(); counted != nil && before != nil {
		since := counted.since(*before)
		after.Exceptions = &since
	}
	result.Phases = append(result.Phases, phase, after)
	return counted, nil
}

// awaitPeer waits until ra's daemon answers, and has its peer.
func (b *bed) awaitPeer(ctx context.Context) error {
	for start := time.Now(); ; {
		peer, err := b.vippinPeer(b.RA)
		if err == nil && peer.State == "up" {
			return nil
		}
		if time.Since(start) > againPatience {
			b.notes = append(b.notes, fmt.Sprintf("the peer is not up %s after it could be: %+v %v", againPatience, peer, err))
			return nil // a fact, not a fault of the harness
		}
		if err := pause(ctx, askAgain); err != nil {
			return err
		}
	}
}

// exceptions is what ra's daemon has counted; nil when it is not strict.
func (b *bed) exceptions() *Exceptions {
	out, _, _ := b.Vippin(b.RA, "status", "-j")
	var status struct {
		Replication struct {
			Strict *Exceptions `json:"strict"`
		} `json:"replication"`
	}
	if json.Unmarshal([]byte(out), &status) != nil {
		return nil
	}
	return status.Replication.Strict
}

// endStorm waits for the end of every connection.
func endStorm(ctx context.Context, workers []*worker) (attempts []swarm.Attempt, err error) {
	for _, w := range workers {
		if err := w.Tell("EndStorm", swarm.None{}); err != nil {
			return nil, err
		}
	}
	for _, w := range workers {
		for {
			var storm swarm.Storm
			if err := w.Ask("Stormed", &storm); err != nil {
				return nil, err
			}
			if storm.Waiting == 0 {
				attempts = append(attempts, storm.Attempts...)
				break
			}
			if err := pause(ctx, askAgain); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(attempts, func(a, b swarm.Attempt) int { return a.Begun.Compare(b.Begun) })
	return attempts, nil
}

// judge counts what was begun in the phase.
func (p *Phase) judge(attempts []swarm.Attempt) {
	var took []time.Duration
	for _, a := range attempts {
		if a.Begun.Before(p.from) || !a.Begun.Before(p.to) {
			continue
		}
		p.Begun++
		p.Late += count(a.Took > retransmitted)
		took = append(took, a.Took)
	}
	p.Latency, p.Seconds = latencyOf(took), p.to.Sub(p.from).Seconds()
}
