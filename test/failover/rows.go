// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"math"
	"slices"

	"vippin/test/traffic/swarm"
)

// row is all runs of one setting and arm.
type row struct {
	Case // its round is 0
	runs []Result
}

// rows sorts the results into rows: settings in the order of the plan, within
// them the arms in theirs.
func rows(results []Result) []row {
	var all []row
	at := make(map[string]int)
	for _, r := range results {
		key := r.row().Key()
		i, known := at[key]
		if !known {
			i = len(all)
			at[key] = i
			all = append(all, row{Case: r.row()})
		}
		all[i].runs = append(all[i].runs, r)
	}
	slices.SortStableFunc(all, func(a, b row) int {
		return cmp.Or(
			slices.Index(kinds, a.Kind)-slices.Index(kinds, b.Kind),
			cmp.Compare(a.Adverts, b.Adverts)*-1,
			cmp.Compare(a.Age, b.Age)*-1,
			cmp.Compare(a.Family, b.Family),
			slices.Index(faults, a.Fault)-slices.Index(faults, b.Fault),
			cmp.Compare(a.Firewall, b.Firewall)*-1,
			cmp.Compare(a.Only, b.Only),
			cmp.Compare(a.Way, b.Way),
			cmp.Compare(a.Flows, b.Flows),
			slices.Index(armNames(), a.Arm)-slices.Index(armNames(), b.Arm),
		)
	})
	return all
}

// values are one figure of every run, without those that have none.
func (r row) values(of func(Result) float64) (values []float64) {
	for _, run := range r.runs {
		if v := of(run); !math.IsNaN(v) {
			values = append(values, v)
		}
	}
	return values
}

// survival adds up the runs for "tcp", "udp sparse" and so on.
func (r row) survival(name string) (sum swarm.Survival) {
	for _, run := range r.runs {
		sum.Flows += run.Survival[name].Flows
		sum.Survived += run.Survival[name].Survived
	}
	return sum
}

// timed is a figure of the probes; NaN where too few of them lived on for it to
// mean anything.
func timed(of func(Result) float64) func(Result) float64 {
	return func(r Result) float64 {
		if r.ProbesAlive == 0 {
			return math.NaN()
		}
		return of(r)
	}
}

// The figures that rows are made of.
var (
	outageOf = timed(func(r Result) float64 { return r.OutageMs })
	firstOf  = timed(sudden(func(r Result) float64 { return r.FirstMs }))
	allOf    = timed(sudden(func(r Result) float64 { return r.AllMs }))
)

// sudden is a figure of faults without a word of farewell: after others the old
// master goes on answering until the new one is heard of.
func sudden(of func(Result) float64) func(Result) float64 {
	return func(r Result) float64 {
		if r.Fault == graceful || r.Fault == none {
			return math.NaN()
		}
		return of(r)
	}
}

func commitOf(r Result) float64 {
	if r.CommitMs == 0 {
		return math.NaN()
	}
	return r.CommitMs
}

// figure is what a case of a kind other than survive is about.
func figure(r Result) float64 {
	switch r.Kind {
	case cost:
		return r.CPUSeconds
	case rate:
		return r.Rate
	case bulk:
		return r.TookMs
	case memory:
		return r.FlowBytes
	}
	return math.NaN()
}

// against is the median, over the rounds that both have, of this row's figure
// divided by another arm's in the same round.
func (r row) against(other row) float64 {
	var ratios []float64
	for _, a := range r.runs {
		for _, b := range other.runs {
			if a.Round == b.Round && figure(b) != 0 {
				ratios = append(ratios, figure(a)/figure(b))
			}
		}
	}
	return median(ratios)
}

// moreThan are the differences between blocks of this row and of another arm's
// that were measured beside them.
func (r row) moreThan(other row) (differences []float64) {
	if other.Arm == r.Arm {
		return nil
	}
	for _, a := range r.runs {
		for _, b := range other.runs {
			if a.Round != b.Round {
				continue
			}
			for i := range min(len(a.Latency.Blocks), len(b.Latency.Blocks)) {
				differences = append(differences, a.Latency.Blocks[i]-b.Latency.Blocks[i])
			}
		}
	}
	return differences
}
