// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

const (
	oldAge   = 155 * time.Second
	youngAge = 3 * time.Second // UDP's entry becomes a stream after 2 s
)

// prepared is a bed whose crowd lives.
type prepared struct {
	*bed
	opened time.Time
}

func openSurvival(ctx context.Context, name string, c Case) (prepared, error) {
	b, err := newBed(ctx, name, c)
	if err != nil {
		return prepared{}, err
	}
	if err := b.openCrowd(ctx); err != nil {
		return prepared{}, errors.Join(fmt.Errorf("open the flows of %s: %w\n%s", c.Key(), err, b.Describe()), b.close())
	}
	return prepared{b, time.Now()}, nil
}

// fail waits until the crowd is of age, lets ra fail and counts.
func (p prepared) fail(ctx context.Context) (result Result, err error) {
	result.Case = p.c
	age := youngAge
	if p.c.Age == old {
		age = oldAge
	} else if err := p.awaitReplicated(ctx, p.c.total()); err != nil {
		return result, err
	}
	if err := pause(ctx, time.Until(p.opened.Add(age))); err != nil {
		return result, err
	}
	if result.Held, err = p.held(ctx); err != nil {
		return result, err
	}
	if strings.Contains(p.RB.Keepalived().Log(), "Entering MASTER STATE") {
		return result, errFalseFailover
	}
	fault := time.Now()
	master, err := p.failOver(ctx)
	if err != nil {
		return result, err
	}
	if err := pause(ctx, 50*time.Millisecond); err != nil { // the dead router answers nothing any more
		return result, err
	}
	if err := p.settle(swarm.After); err != nil {
		return result, err
	}
	if err := p.awaitAnswers(ctx); err != nil {
		return result, err
	}
	if err := p.judge(&result); err != nil {
		return result, err
	}
	if err := p.outage(&result, fault, master); err != nil {
		return result, err
	}
	if p.arm.conntrackd != nil {
		log, err := p.RB.ConntrackdLog()
		if err != nil {
			return result, err
		}
		result.CommitMs = ms(commitTime(log))
	}
	result.Notes = p.notes
	return result, nil
}

// errFalseFailover says that what would be measured is not what was meant.
var errFalseFailover = errors.New("rb was MASTER before the fault: is this machine busy with something else?")

func (p prepared) held(ctx context.Context) (int, error) {
	if !p.arm.replicates() {
		return 0, nil
	}
	return p.holds(ctx, p.RB)
}

// failOver makes ra fail and returns when rb had its last VIP of the family.
func (p prepared) failOver(ctx context.Context) (master time.Time, err error) {
	if p.c.Fault == none {
		return time.Now(), nil
	}
	watch, err := watchVIPs(p.RB, p.vip(lab.WAN), p.vip(lab.LAN))
	if err != nil {
		return master, err
	}
	failed := p.fault()
	master, err = watch.await()
	return master, errors.Join(err, failed)
}

func (p prepared) vip(s lab.Segment) netip.Addr { return p.of(lab.Ends{V4: s.VIP4, V6: s.VIP6}) }

func (p prepared) fault() error {
	switch p.c.Fault {
	case hard:
		return p.LinksDown(p.RA)
	case crash:
		return p.Crash(p.RA)
	}
	return p.RA.Keepalived().Stop()
}

// awaitAnswers waits until the fate of every flow is known: answered or broken,
// or silent for three requests and TCP's first retransmissions.
func (p prepared) awaitAnswers(ctx context.Context) error {
	patience := max(6*time.Second, 3*p.c.interval())
	for start := time.Now(); time.Since(start) < patience; {
		done, err := progress(p.crowd)
		if err != nil {
			return err
		}
		if done.Answered+done.Broken >= done.Flows {
			break
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return pause(ctx, 600*time.Millisecond) // the server reads, the probes go on
}

// states are what the clients and the server know of the flows.
func (b *bed) states() (states []swarm.FlowState, seen [swarm.Protos][]swarm.Seen, err error) {
	for _, w := range b.crowd {
		var part []swarm.FlowState
		if err := w.Ask("States", &part); err != nil {
			return nil, seen, err
		}
		states = append(states, part...)
	}
	return states, seen, b.server.Ask("Seen", &seen)
}

func (p prepared) judge(result *Result) error {
	states, seen, err := p.states()
	if err != nil {
		return err
	}
	result.Survival = make(map[string]swarm.Survival)
	add := func(suffix string, keep func(swarm.FlowState) bool) {
		for proto, count := range swarm.Judge(states, seen, keep) {
			if count.Flows > 0 || count.Lucky > 0 {
				result.Survival[swarm.Proto(proto).String()+suffix] = count
			}
		}
	}
	add("", func(swarm.FlowState) bool { return true })
	if p.c.Age == old {
		add(" steady", func(f swarm.FlowState) bool { return !f.Sparse })
		add(" sparse", func(f swarm.FlowState) bool { return f.Sparse })
	}
	for name, count := range result.Survival {
		if count.Lucky*100 > count.Flows {
			return fmt.Errorf("judge %s: NAT kept the port of %d flows of %s: the decoys did not work", p.c.Key(), count.Lucky, name)
		}
	}
	return nil
}

func (p prepared) outage(result *Result, fault, master time.Time) error {
	end := time.Now()
	log, err := p.probes.Replies(fault.Add(-time.Second))
	if err != nil {
		return err
	}
	alive := log.Outages(fault, master, end)
	result.Probes, result.ProbesAlive = len(log), len(alive)
	if len(alive) == 0 {
		return nil
	}
	var longest time.Duration
	var back []time.Time
	for _, o := range alive {
		longest = max(longest, o.Gap)
		if !o.Back.IsZero() {
			back = append(back, o.Back)
		}
	}
	result.OutageMs = ms(longest)
	result.DetectMs = ms(master.Sub(fault))
	if len(back) > 0 {
		result.FirstMs = ms(slices.MinFunc(back, time.Time.Compare).Sub(master))
		result.AllMs = ms(slices.MaxFunc(back, time.Time.Compare).Sub(master))
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
