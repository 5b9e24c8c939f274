// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"slices"
)

// BenchCase is a way through the router whose rate is measured.
type BenchCase string

// The cases. Each is its own router with nothing else on it.
const (
	BenchDrop       BenchCase = "drop"        // dropped at the router's door: the share of generator and sink
	BenchRedirect   BenchCase = "redirect"    // bare XDP redirect, the packet as it is
	BenchFib        BenchCase = "xdp-fib"     // XDP: bpf_fib_lookup, TTL, MACs, redirect
	BenchForward    BenchCase = "forward"     // the kernel's forwarding, without conntrack
	BenchConntrack  BenchCase = "conntrack"   // forwarding with conntrack
	BenchMasquerade BenchCase = "masquerade"  // nft masquerade, nothing of vippin
	BenchSNAT       BenchCase = "snat"        // nft snat to the VIP
	BenchEmpty      BenchCase = "tcx-empty"   // masquerade, conntrack events, and at each hook a tcx program that does nothing: the floor
	BenchPinned     BenchCase = "vippin-tc"   // masquerade, and every flow pinned
	BenchOff        BenchCase = "vippin-off"  // masquerade, vippin loaded, the pin switched off
	BenchFast       BenchCase = "vippin-fast" // masquerade, every flow pinned, and on the fast path
)

// BenchCases are all of them, in the order in which they are shown.
func BenchCases() []BenchCase {
	return []BenchCase{
		BenchDrop, BenchRedirect, BenchFib, BenchForward, BenchConntrack, BenchMasquerade, BenchSNAT, BenchEmpty,
		BenchPinned, BenchOff, BenchFast,
	}
}

// BenchDirection is which way packets go through the router.
type BenchDirection string

// Of a flow that an inside host began.
const (
	BenchOut  BenchDirection = "out"  // from the inside host to its server
	BenchBack BenchDirection = "back" // the server's answers
)

// BenchSetting is what a rate depends on besides the case.
type BenchSetting struct {
	Direction BenchDirection `json:"direction"`
	Flows     int            `json:"flows"`
	Size      int            `json:"size"`   // octets of an Ethernet frame, without tags and check sequence
	Family    string         `json:"family"` // ipv4, ipv6
	VLAN      VLAN           `json:"vlan"`   // tags on the outside interface
}

// BenchSample is one measurement.
type BenchSample struct {
	BenchSetting
	Case      BenchCase
	Round     int     // samples of one round were taken within seconds or minutes of each other
	Mpps      float64 // million packets that arrived, by a second of one core's time
	FlowsPerS float64 // new flows by a second of one core's time; 0: not measured
	P50us     float64 // under way, from when the packet came; 0: not measured
	P99us     float64
	FastShare *float64 // of the packets took the fast path; nil: there is none
	FlowBytes float64  // of the fast path's tables for each flow; 0: there is none
}

// BenchRow is what all rounds of a case in a setting say, one row of
// "vippin bench". Null is what was not measured.
type BenchRow struct {
	Case BenchCase `json:"case"`
	BenchSetting
	Mpps           float64  `json:"mpps"`          // million packets by a second of one core's time, generator and sink included: median over the rounds
	FlowsPerS      *float64 `json:"flows_per_s"`   // new flows by a second of one core's time, likewise
	NsPerPacket    float64  `json:"ns_per_packet"` // 1000 / mpps
	OwnNs          *float64 `json:"own_ns"`        // generator's and sink's share of that, as the case "drop" shows
	P50us          *float64 `json:"p50_us"`        // of the time under way, packets coming at random at load * mpps
	P99us          *float64 `json:"p99_us"`
	Load           float64  `json:"load"`
	VsMasquerade   *float64 `json:"vs_masquerade"` // median of the rates' ratios within each round
	VsRedirect     *float64 `json:"vs_redirect"`   // likewise
	Rounds         int      `json:"rounds"`        // measurements
	Spread         float64  `json:"spread"`        // of the rate: quartile distance / median
	SpreadVsMasque *float64 `json:"spread_vs_masquerade"`
	FastShare      *float64 `json:"fast_share"`     // of the packets took the fast path
	FlowBytes      *float64 `json:"bytes_per_flow"` // of the fast path's tables
	Kernel         string   `json:"kernel"`         // as uname -r says
}

// BenchReport is what was measured, where, and what to know about it.
type BenchReport struct {
	Rows    []BenchRow
	Machine string   // kernel and processor
	Notes   []string // what the reader of the rows must know
}

// BenchRows sums samples up: sorted by family, VLAN, size, direction, flows and
// then case, as BenchCases has them.
func BenchRows(samples []BenchSample, load float64, kernel string) []BenchRow {
	groups := map[benchKey]map[int]BenchSample{}
	for _, s := range samples {
		key := benchKey{s.Case, s.BenchSetting}
		if groups[key] == nil {
			groups[key] = map[int]BenchSample{}
		}
		groups[key][s.Round] = s
	}
	rows := make([]BenchRow, 0, len(groups))
	for key, rounds := range groups {
		rates := valuesOf(rounds, rateOf)
		row := BenchRow{
			Case: key.name, BenchSetting: key.BenchSetting, Rounds: len(rates), Kernel: kernel, Load: load, Mpps: quantile(rates, 0.5),
			FlowsPerS: medianOf(rounds, func(s BenchSample) float64 { return s.FlowsPerS }),
			P50us:     medianOf(rounds, func(s BenchSample) float64 { return s.P50us }),
			P99us:     medianOf(rounds, func(s BenchSample) float64 { return s.P99us }),
			FlowBytes: medianOf(rounds, func(s BenchSample) float64 { return s.FlowBytes }),
			FastShare: medianShare(rounds),
		}
		if row.Mpps > 0 {
			row.NsPerPacket = 1000 / row.Mpps
			row.Spread = quartileDistance(rates) / row.Mpps
		}
		row.VsMasquerade, row.SpreadVsMasque = paired(rounds, groups[benchKey{BenchMasquerade, key.BenchSetting}])
		row.VsRedirect, _ = paired(rounds, groups[benchKey{BenchRedirect, key.BenchSetting}])
		row.OwnNs = medianOf(groups[benchKey{BenchDrop, key.BenchSetting}], func(s BenchSample) float64 { return 1000 / s.Mpps })
		rows = append(rows, row)
	}
	slices.SortFunc(rows, compareBenchRows)
	return rows
}

type benchKey struct {
	name BenchCase
	BenchSetting
}

func compareBenchRows(a, b BenchRow) int {
	return cmp.Or(
		cmp.Compare(a.Family, b.Family), cmp.Compare(a.VLAN.Outer, b.VLAN.Outer), cmp.Compare(a.VLAN.Inner, b.VLAN.Inner),
		cmp.Compare(a.Size, b.Size), -cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Flows, b.Flows),
		cmp.Compare(slices.Index(BenchCases(), a.Case), slices.Index(BenchCases(), b.Case)))
}

func rateOf(s BenchSample) float64 { return s.Mpps }

func valuesOf(rounds map[int]BenchSample, of func(BenchSample) float64) (values []float64) {
	for _, s := range rounds {
		values = append(values, of(s))
	}
	return values
}

// medianOf leaves out rounds in which it was not measured; nil: that is all.
func medianOf(rounds map[int]BenchSample, of func(BenchSample) float64) *float64 {
	values := slices.DeleteFunc(valuesOf(rounds, of), func(v float64) bool { return v == 0 })
	if len(values) == 0 {
		return nil
	}
	m := quantile(values, 0.5)
	return &m
}

func medianShare(rounds map[int]BenchSample) *float64 {
	var shares []float64
	for _, s := range rounds {
		if s.FastShare != nil {
			shares = append(shares, *s.FastShare)
		}
	}
	if len(shares) == 0 {
		return nil
	}
	m := quantile(shares, 0.5)
	return &m
}

// paired compares the rounds that both have: what disturbed the machine in one
// of them disturbed both.
func paired(rounds, base map[int]BenchSample) (median, spread *float64) {
	var ratios []float64
	for round, sample := range rounds {
		if other := base[round].Mpps; other > 0 {
			ratios = append(ratios, sample.Mpps/other)
		}
	}
	if len(ratios) == 0 {
		return nil, nil
	}
	m, s := quantile(ratios, 0.5), quartileDistance(ratios)
	return &m, &s
}

func quartileDistance(values []float64) float64 {
	return quantile(values, 0.75) - quantile(values, 0.25)
}

// quantile interpolates between the neighbours; values may be in any order,
// but there must be one.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	if low+1 >= len(sorted) {
		return sorted[low]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}
