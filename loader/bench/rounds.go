// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"vippin/loader"
	"vippin/policy"
)

// slice is how long a case is measured before it is another one's turn: what
// disturbs the machine for longer disturbs all of them.
const slice = 100 * time.Millisecond

// group is the settings that one router serves.
type group struct {
	family   string
	vlan     policy.VLAN
	flows    int
	part     int // of the layout
	fresh    int // new flows that are made at a time
	settings []policy.BenchSetting
}

// perRouter is how many flows a router of the group has in the end, with one
// attempt to make new ones that is repeated.
func (g group) perRouter() int { return g.flows + g.times()*g.fresh }

// within is the group with as many new flows as conntrack has room for.
func (g group) within(limit int) group {
	if g.flows <= limit { // more are learnt a part at a time, and forgotten
		limit -= g.flows
	}
	g.fresh = min(g.fresh, limit/g.times())
	return g
}

// times is how often new flows are made on a router.
func (g group) times() int { return len(g.settings) + 1 }

func groups(settings []policy.BenchSetting) (list []group) {
	for _, s := range settings {
		i := slices.IndexFunc(list, func(g group) bool { return g.family == s.Family && g.vlan == s.VLAN && g.flows == s.Flows })
		if i < 0 {
			i = len(list)
			list = append(list, group{family: s.Family, vlan: s.VLAN, flows: s.Flows, fresh: freshFlows})
		}
		list[i].settings = append(list[i].settings, s)
	}
	return list
}

// run is all that is measured, on one core.
type run struct {
	Options
	core
	ctx     context.Context
	samples []policy.BenchSample
	notes   []string
	all     bool // cases that the kernel cannot do are left out
	lacking map[policy.BenchCase]bool
	journey journey
}

// measure builds the routers anew in every round: where the kernel happens to
// put their memory is chance, and differs from round to round like everything
// else that is chance.
func (r *run) measure() error {
	all := groups(r.Settings)
	for range r.Rounds {
		for _, g := range all {
			r.journey.plan(r.weight(g))
		}
	}
	for round := range r.Rounds {
		for _, g := range all {
			r.journey.at(fmt.Sprintf("round %d of %d: %d flows over %s", round+1, r.Rounds, g.flows, g.family))
			if err := r.measureGroup(round, g); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) note(text string) {
	if !slices.Contains(r.notes, text) {
		r.notes = append(r.notes, text)
	}
}

// weight guesses how many seconds a group takes in a round.
func (r *run) weight(g group) float64 {
	each := 0.3 + 6e-6*float64(g.flows)
	for range g.settings {
		each += 1.5*r.Time.Seconds() + 1.5e-6*float64(g.flows) + 0.1
	}
	return each * float64(len(r.Cases))
}

// measureGroup measures everything once. The routers stand side by side and take
// turns, unless the conntrack table, which they share, would be more crowded than
// that of a router alone: then one is built after another.
func (r *run) measureGroup(round int, g group) (err error) {
	room, err := makeRoom(g.perRouter(), r.RaiseLimits)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, room.restore()) }()
	g = g.within(room.limit)
	if !room.fits(g.flows) {
		return r.measureInParts(round, g, room)
	}
	if room.crowded(g.flows) {
		r.note(fmt.Sprintf("Conntrack's table has %d buckets, too few for %d flows both ways: the kernel takes longer for each packet than it need. --raise-limits makes them fit.", room.buckets, g.flows))
	}
	cases := slices.Concat(r.Cases[round%len(r.Cases):], r.Cases[:round%len(r.Cases)])
	together := [][]policy.BenchCase{cases}
	if room.crowded(tracked(cases) * g.flows) {
		together = slices.Collect(slices.Chunk(cases, 1))
	}
	for _, some := range together {
		if err := r.measureTwice(round, g, some); err != nil {
			return err
		}
		r.journey.done(r.weight(g) * float64(len(some)) / float64(len(cases)))
	}
	return nil
}

// measureInParts measures more flows than conntrack has room for: the cases without
// conntrack, and the fast path, whose flows are learnt a part at a time. Conntrack
// forgets each part before the next one: what is measured is XDP alone, and no packet
// that takes the stack again.
func (r *run) measureInParts(round int, g group, room *room) error {
	for _, name := range r.Cases {
		way := ways[name]
		switch {
		case way.fast:
			r.note(fmt.Sprintf("%s with %d flows: without the packets that take the stack again, every 30 s one of each flow; "+
				"conntrack has room for %d flows (--raise-limits lifts that).", name, g.flows, room.limit))
		case way.rules != noRules && !r.all:
			return fmt.Errorf("measure %s, or leave it out", room.tooMany(name, g.flows))
		case way.rules != noRules:
			r.note(fmt.Sprintf("Left out: %s.", room.tooMany(name, g.flows)))
			r.journey.done(r.weight(g) / float64(len(r.Cases)))
			continue
		}
		g.part = 0
		if way.fast {
			g.part = partFlows
		}
		if err := r.measureTwice(round, g, []policy.BenchCase{name}); err != nil {
			return err
		}
		r.journey.done(r.weight(g) / float64(len(r.Cases)))
	}
	return nil
}

// measureTwice tries again what failed: on a busy machine a packet too many may get
// lost, and a long run should not end with it.
func (r *run) measureTwice(round int, g group, cases []policy.BenchCase) error {
	err := r.measureCases(round, g, cases)
	if err == nil || r.ctx.Err() != nil {
		return err
	}
	if again := r.measureCases(round, g, cases); again != nil {
		return again
	}
	r.note(fmt.Sprintf("Measured again, since the first attempt failed: %v.", err))
	return nil
}

// measureCases measures cases on routers that exist side by side.
func (r *run) measureCases(round int, g group, cases []policy.BenchCase) (err error) {
	beds := make([]*bed, 0, len(cases))
	defer func() {
		for _, b := range slices.Backward(beds) {
			err = errors.Join(err, b.close())
		}
	}()
	for _, name := range cases {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if r.lacking[name] {
			continue
		}
		b, err := newBed(r.ctx, r.core, name, layout{family: g.family, vlan: g.vlan, flows: g.perRouter(), part: g.part, fresh: g.fresh, noChecksum: r.NoChecksum})
		if r.all && unsupported(err) {
			r.lacking[name] = true
			r.note(fmt.Sprintf("Left out: %s, which this kernel cannot do: %v.", name, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("build a router for %s over %s: %w", name, g.family, err)
		}
		beds = append(beds, b)
		if err := b.establish(g.flows); err != nil {
			return fmt.Errorf("prepare %s over %s: %w", name, g.family, err)
		}
	}
	var all []*measurement
	for _, setting := range g.settings {
		runs, err := r.measureSetting(round, beds, setting)
		if err != nil {
			return fmt.Errorf("measure %w", err)
		}
		all = append(all, runs...)
	}
	return r.finish(round, all)
}

func unsupported(err error) bool {
	return errors.Is(err, ebpf.ErrNotSupported) || errors.As(err, new(*loader.UnsupportedError))
}

// measureSetting lets the routers take turns, each for about so long in all.
func (r *run) measureSetting(round int, beds []*bed, setting policy.BenchSetting) ([]*measurement, error) {
	runs := make([]*measurement, len(beds))
	for i, b := range beds {
		var err error
		if runs[i], err = b.begin(setting); err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
	}
	turns := max(int(r.Time/slice), 1)
	if len(beds) == 1 {
		turns = 1
	}
	for turn := range turns {
		for i := range runs {
			m := runs[(i+turn)%len(runs)]
			least, err := m.steady()
			if err == nil {
				err = m.goOn(max(r.Time, least) / time.Duration(turns))
			}
			if err != nil {
				return nil, m.failed(err)
			}
		}
	}
	for _, m := range runs {
		if err := m.prove(); err != nil {
			return nil, m.failed(err)
		}
	}
	return runs, nil
}

func (m *measurement) failed(err error) error {
	s := m.setting
	return fmt.Errorf("%s, %s, %d flows %s: %w", m.bed.name, s.Family, s.Flows, s.Direction, err)
}

// finish measures what leaves flows behind or takes the clock on the wall, and
// makes samples.
func (r *run) finish(round int, all []*measurement) error {
	for _, m := range all {
		sample := policy.BenchSample{
			BenchSetting: m.setting, Case: m.bed.name, Round: round, Mpps: m.result.rate() / 1e6, FastShare: m.share,
		}
		var err error
		if sample.P50us, sample.P99us, err = m.latency(r.Load, r.Time/4); err != nil {
			return fmt.Errorf("measure the latency of %w", m.failed(err))
		}
		if m.bed.fast != nil {
			if sample.FlowBytes, err = m.bed.fast.flowBytes(); err != nil {
				return err
			}
		}
		r.samples = append(r.samples, sample)
	}
	for i, m := range all {
		rate, err := m.fresh()
		if err != nil {
			return fmt.Errorf("measure %w", m.failed(err))
		}
		r.samples[len(r.samples)-len(all)+i].FlowsPerS = rate
	}
	return nil
}
