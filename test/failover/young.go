// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

// measureYoung has connections made for one second, and the master crash at its
// end: which of those that the client had by then are answered afterwards?
func (b *bed) measureYoung(ctx context.Context, result *Result) error {
	crashed, err := b.crashYoung(ctx, result)
	if err != nil {
		return err
	}
	return b.judgeYoung(result, crashed)
}

// crashYoung returns a time when ra was dead already, and rb not MASTER yet. The
// breaker makes it one moment: while cables are pulled one after the other, a peer
// is told for milliseconds of connections that the clients have got already.
func (b *bed) crashYoung(ctx context.Context, result *Result) (crashed time.Time, err error) {
	p := prepared{bed: b}
	crowd := b.plan(b.c.Flows)
	if _, err := b.openDecoys(ctx, crowd); err != nil {
		return crashed, err
	}
	if err := errors.Join(b.startCrowd(crowd), b.awaitReplicated(ctx, crowd.Layout.Decoys().Flows[swarm.TCP])); err != nil {
		return crashed, err
	}
	breaker, err := b.AddBreaker(b.RA)
	if err != nil {
		return crashed, err
	}
	defer func() { err = errors.Join(err, breaker.Close()) }()
	begin := time.Now()
	if err := b.openFlows(crowd); err != nil {
		return crashed, err
	}
	if err := pause(ctx, time.Until(begin.Add(time.Second))); err != nil {
		return crashed, err
	}
	watch, err := watchVIPs(b.RB, p.vip(lab.WAN), p.vip(lab.LAN))
	if err != nil {
		return crashed, err
	}
	failed := errors.Join(breaker.Trip(), b.Crash(b.RA))
	crashed = time.Now()
	master, err := watch.await()
	if err := errors.Join(err, failed); err != nil {
		return crashed, err
	}
	if master.Before(crashed) {
		return crashed, errFalseFailover
	}
	result.DetectMs = ms(master.Sub(crashed))
	if err := errors.Join(pause(ctx, 50*time.Millisecond), b.settle(swarm.After)); err != nil {
		return crashed, err
	}
	return crashed, p.awaitAnswers(ctx)
}

func (b *bed) judgeYoung(result *Result, crashed time.Time) error {
	states, seen, err := b.states()
	if err != nil {
		return err
	}
	had := func(f swarm.FlowState) bool { return !f.Made.IsZero() && f.Made.Before(crashed) }
	for _, f := range states {
		result.Unmade += count(!had(f))
	}
	s := swarm.Judge(states, seen, had)[swarm.TCP]
	result.Survival = map[string]swarm.Survival{"tcp": s}
	if s.Lucky*100 > s.Flows {
		return fmt.Errorf("judge %s: NAT kept the port of %d flows: the decoys did not work", b.c.Key(), s.Lucky)
	}
	return nil
}
