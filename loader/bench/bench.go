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
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// Options says what is measured: everything with everything. What is zero
// takes its default.
type Options struct {
	Cases      []policy.BenchCase      // redirect, masquerade, vippin-tc, vippin-off
	Directions []policy.BenchDirection // out, back
	Flows      []int                   // 1, 10000; at most FlowsMax
	Sizes      []int                   // octets of an Ethernet frame without its check sequence: 64
	Families   []string                // ipv4, ipv6: ipv4
	Rounds     int                     // 9; every case is measured once in each, in another order each time
	Time       time.Duration           // of one measurement: 600 ms of the core's time
	NoChecksum bool                    // leave out UDP's over IPv4, so that nobody verifies it
	Progress   func(text string)       // is told what goes on, may be nil
}

// FlowsMax is how many flows there can be: conntrack's table must hold them.
const FlowsMax = 200_000

// Bounds of an Ethernet frame with a UDP datagram over IPv6.
const (
	sizeMin = 62
	sizeMax = 1514
)

func (o Options) withDefaults() Options {
	if len(o.Cases) == 0 {
		o.Cases = []policy.BenchCase{policy.BenchRedirect, policy.BenchMasquerade, policy.BenchEmpty, policy.BenchPinned, policy.BenchOff}
	}
	if len(o.Directions) == 0 {
		o.Directions = []policy.BenchDirection{policy.BenchOut, policy.BenchBack}
	}
	if len(o.Flows) == 0 {
		o.Flows = []int{1, 10_000}
	}
	if len(o.Sizes) == 0 {
		o.Sizes = []int{64}
	}
	if len(o.Families) == 0 {
		o.Families = []string{ipv4}
	}
	if o.Rounds == 0 {
		o.Rounds = 9
	}
	if o.Time == 0 {
		o.Time = 600 * time.Millisecond
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

func (o Options) check() error {
	for _, c := range o.Cases {
		if _, known := ways[c]; !known {
			return fmt.Errorf("measure case %q: it is not known: choose from %v", c, policy.BenchCases())
		}
	}
	for _, d := range o.Directions {
		if d != policy.BenchOut && d != policy.BenchBack {
			return fmt.Errorf("measure direction %q: choose %s or %s", d, policy.BenchOut, policy.BenchBack)
		}
	}
	for _, n := range o.Flows {
		if n < 1 || n > FlowsMax {
			return fmt.Errorf("measure %d flows: choose from 1 to %d", n, FlowsMax)
		}
	}
	for _, n := range o.Sizes {
		if n < sizeMin || n > sizeMax {
			return fmt.Errorf("measure frames of %d octets: choose from %d to %d", n, sizeMin, sizeMax)
		}
	}
	for _, f := range o.Families {
		if f != ipv4 && f != ipv6 {
			return fmt.Errorf("measure family %q: choose %s or %s", f, ipv4, ipv6)
		}
	}
	if o.Rounds < 1 || o.Time < time.Millisecond {
		return fmt.Errorf("measure %d rounds of %v each: choose at least one of a millisecond", o.Rounds, o.Time)
	}
	return nil
}

// Run measures. It needs root. When ctx ends it stops within moments and
// returns ctx's error. A router that did not do what its case says (flows
// not pinned, packets lost) is an error, not a rate.
func Run(ctx context.Context, opts Options) ([]policy.BenchRow, error) {
	opts = opts.withDefaults()
	if err := opts.check(); err != nil {
		return nil, err
	}
	var samples []policy.BenchSample
	err := onOwnCore(func(c core) (err error) {
		samples, err = measureRounds(ctx, opts, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("read the kernel's version: %w", err)
	}
	return policy.BenchRows(samples, unix.ByteSliceToString(name.Release[:])), nil
}

// slice is how long a case is measured before it is another one's turn: what
// disturbs the machine for longer disturbs all of them.
const slice = 100 * time.Millisecond

// measureRounds builds the routers anew in every round: where the kernel
// happens to put their memory is chance, and differs from round to round like
// everything else that is chance.
func measureRounds(ctx context.Context, opts Options, c core) (samples []policy.BenchSample, err error) {
	begun := time.Now()
	for round := range opts.Rounds {
		for _, family := range opts.Families {
			got, err := measureRound(ctx, opts, c, round, family)
			if err != nil {
				return nil, err
			}
			samples = append(samples, got...)
		}
		opts.Progress(fmt.Sprintf("round %d of %d, %d s", round+1, opts.Rounds, int(time.Since(begun).Seconds())))
	}
	return samples, nil
}

// measureRound measures everything once, on routers that exist side by side.
func measureRound(ctx context.Context, opts Options, c core, round int, family string) (samples []policy.BenchSample, err error) {
	beds := make([]*bed, 0, len(opts.Cases))
	defer func() {
		for _, b := range slices.Backward(beds) {
			err = errors.Join(err, b.close())
		}
	}()
	for i := range opts.Cases {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name := opts.Cases[(i+round)%len(opts.Cases)]
		b, err := newBed(c, name, family, opts.NoChecksum)
		if err != nil {
			return nil, fmt.Errorf("build a router for %s over %s: %w", name, family, err)
		}
		beds = append(beds, b)
		if err := b.establish(slices.Max(opts.Flows)); err != nil {
			return nil, fmt.Errorf("prepare %s over %s: %w", name, family, err)
		}
	}
	for _, size := range opts.Sizes {
		for _, flows := range opts.Flows {
			for _, direction := range opts.Directions {
				setting := policy.BenchSetting{Direction: direction, Flows: flows, Size: size, Family: family}
				got, err := measureSetting(ctx, beds, setting, opts.Time)
				if err != nil {
					return nil, fmt.Errorf("measure %w", err)
				}
				for _, sample := range got {
					sample.Round = round
					samples = append(samples, sample)
				}
			}
		}
	}
	return samples, nil
}

// measureSetting lets the routers take turns, each for about so long in all.
func measureSetting(ctx context.Context, beds []*bed, setting policy.BenchSetting, about time.Duration) ([]policy.BenchSample, error) {
	runs := make([]*measurement, len(beds))
	for i, b := range beds {
		var err error
		if runs[i], err = b.begin(setting); err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
	}
	turns := max(int(about/slice), 1)
	for turn := range turns {
		for i := range runs {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			m := runs[(i+turn)%len(runs)]
			if err := m.goOn(about / time.Duration(turns)); err != nil {
				return nil, fmt.Errorf("%s, %s, %d flows %s: %w", m.bed.name, setting.Family, setting.Flows, setting.Direction, err)
			}
		}
	}
	samples := make([]policy.BenchSample, len(runs))
	for i, m := range runs {
		if err := m.prove(); err != nil {
			return nil, fmt.Errorf("%s, %s, %d flows %s: %w", m.bed.name, setting.Family, setting.Flows, setting.Direction, err)
		}
		samples[i] = policy.BenchSample{BenchSetting: setting, Case: m.bed.name, Mpps: m.result.rate() / 1e6}
	}
	return samples, nil
}
