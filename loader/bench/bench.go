// SPDX-License-Identifier: Apache-2.0

// Package bench measures how many packets a second this kernel takes through a
// router, with vippin and without. Generator, router and sink are three network
// namespaces without names, on one thread pinned to one core: all of it vanishes
// with the thread that made it. Nothing of the machine's own network is touched.
//
// A rate is packets by the core's time that they took, not by the clock on the
// wall: other programs on the core make it no lower, as far as they leave the
// caches alone.
package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// Options says what is measured: every case in every setting. What is zero takes
// its default.
type Options struct {
	Cases       []policy.BenchCase    // all that the kernel can do
	Settings    []policy.BenchSetting // policy.BenchPlan's
	Rounds      int                   // 5; every case is measured once in each, in another order each time
	Time        time.Duration         // of one measurement: 400 ms of the core's time
	Load        float64               // while latency is measured, as a share of the rate: 0.5
	RaiseLimits bool                  // lift conntrack's limit, the machine's, where flows need it, and set it back
	NoChecksum  bool                  // leave out UDP's over IPv4, so that nobody verifies it
	Progress    func(Progress)        // is told what goes on, may be nil
}

// FlowsMax is how many flows there can be.
const FlowsMax = 4_000_000

// Bounds of an Ethernet frame with a UDP datagram over IPv6 that has a mark.
const (
	sizeMin = 64
	sizeMax = 1514
)

func (o Options) withDefaults() Options {
	if len(o.Cases) == 0 {
		o.Cases = policy.BenchCases()
	}
	if len(o.Settings) == 0 {
		o.Settings = policy.BenchPlan(policy.BenchLists{}, false)
	}
	if o.Rounds == 0 {
		o.Rounds = 5
	}
	if o.Time == 0 {
		o.Time = 400 * time.Millisecond
	}
	if o.Load == 0 {
		o.Load = 0.5
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	return o
}

// Check says what in the options makes no sense.
func (o Options) Check() error {
	o = o.withDefaults()
	for _, c := range o.Cases {
		if _, known := ways[c]; !known {
			return fmt.Errorf("measure case %q: it is not known: choose from %v", c, policy.BenchCases())
		}
	}
	for _, s := range o.Settings {
		if err := checkSetting(s); err != nil {
			return err
		}
	}
	if o.Rounds < 1 || o.Time < time.Millisecond {
		return fmt.Errorf("measure %d rounds of %v each: choose at least one of a millisecond", o.Rounds, o.Time)
	}
	if !(o.Load > 0 && o.Load < 1) {
		return fmt.Errorf("measure latency at %g of the rate: choose something between 0 and 1", o.Load)
	}
	return nil
}

func checkSetting(s policy.BenchSetting) error {
	if s.Direction != policy.BenchOut && s.Direction != policy.BenchBack {
		return fmt.Errorf("measure direction %q: choose %s or %s", s.Direction, policy.BenchOut, policy.BenchBack)
	}
	if s.Flows < 1 || s.Flows > FlowsMax {
		return fmt.Errorf("measure %d flows: choose from 1 to %d", s.Flows, FlowsMax)
	}
	if s.Size < sizeMin || s.Size > sizeMax {
		return fmt.Errorf("measure frames of %d octets: choose from %d to %d", s.Size, sizeMin, sizeMax)
	}
	if s.Family != ipv4 && s.Family != ipv6 {
		return fmt.Errorf("measure family %q: choose %s or %s", s.Family, ipv4, ipv6)
	}
	return nil
}

// Run measures. It needs root. When ctx ends it stops within moments, takes
// everything away, and returns ctx's error. A router that did not do what its
// case says (flows not pinned, packets lost) is an error, not a rate.
func Run(ctx context.Context, opts Options) (policy.BenchReport, error) {
	if err := opts.Check(); err != nil {
		return policy.BenchReport{}, err
	}
	all := len(opts.Cases) == 0
	opts = opts.withDefaults()
	r := run{Options: opts, ctx: ctx, journey: journey{tell: opts.Progress}, all: all, lacking: map[policy.BenchCase]bool{}}
	err := onOwnCore(func(c core) error {
		r.core = c
		return r.measure()
	})
	if ctx.Err() != nil {
		return policy.BenchReport{}, errors.Join(ctx.Err(), err)
	}
	if err != nil {
		return policy.BenchReport{}, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return policy.BenchReport{}, fmt.Errorf("read the kernel's version: %w", err)
	}
	kernel := unix.ByteSliceToString(name.Release[:])
	return policy.BenchReport{
		Rows: policy.BenchRows(r.samples, opts.Load, kernel), Machine: "Linux " + kernel + ", " + processor(), Notes: append(slowingNotes(), r.notes...),
	}, nil
}
