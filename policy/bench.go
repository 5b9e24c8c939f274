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
	BenchRedirect   BenchCase = "redirect"   // bare XDP redirect: the share of generator and sink
	BenchForward    BenchCase = "forward"    // the kernel's forwarding, without conntrack
	BenchConntrack  BenchCase = "conntrack"  // forwarding with conntrack
	BenchMasquerade BenchCase = "masquerade" // nft masquerade, nothing of vippin
	BenchSNAT       BenchCase = "snat"       // nft snat to the VIP
	BenchEmpty      BenchCase = "tcx-empty"  // masquerade, conntrack events, and at each hook a tcx program that does nothing: the floor
	BenchPinned     BenchCase = "vippin-tc"  // masquerade, and every flow pinned
	BenchOff        BenchCase = "vippin-off" // masquerade, vippin loaded, the pin switched off
)

// BenchCases are all of them, the cheapest first.
func BenchCases() []BenchCase {
	return []BenchCase{BenchRedirect, BenchForward, BenchConntrack, BenchMasquerade, BenchSNAT, BenchEmpty, BenchPinned, BenchOff}
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
	Size      int            `json:"size"`   // octets of an Ethernet frame, without its check sequence
	Family    string         `json:"family"` // ipv4, ipv6
	VLAN      VLAN           `json:"vlan"`   // tags on the outside interface
}

// BenchSample is one measurement.
type BenchSample struct {
	BenchSetting
	Case  BenchCase
	Round int     // samples of one round were taken within seconds of each other
	Mpps  float64 // million packets that arrived, by a second of one core's time
}

// BenchRow is what all rounds of a case in a setting say, one row of
// "vippin bench". Null is what was not measured.
type BenchRow struct {
	Case BenchCase `json:"case"`
	BenchSetting
	Mpps           float64  `json:"mpps"`          // million packets by a second of one core's time, generator and sink included: median over the rounds
	FlowsPerS      *float64 `json:"flows_per_s"`   // new flows
	NsPerPacket    float64  `json:"ns_per_packet"` // 1000 / mpps
	P50us          *float64 `json:"p50_us"`
	P99us          *float64 `json:"p99_us"`
	VsMasquerade   *float64 `json:"vs_masquerade"`        // median of the rates' ratios within each round
	VsRedirect     *float64 `json:"vs_redirect"`          // likewise
	Rounds         int      `json:"rounds"`               // measurements
	Spread         float64  `json:"spread"`               // of the rate: quartile distance / median
	SpreadVsMasque *float64 `json:"spread_vs_masquerade"` // of that ratio: quartile distance
	Kernel         string   `json:"kernel"`               // as uname -r says
}

// BenchRows sums samples up: sorted by family, size, direction, flows and then
// case, as BenchCases has them.
func BenchRows(samples []BenchSample, kernel string) []BenchRow {
	groups := map[benchKey]map[int]float64{}
	for _, s := range samples {
		key := benchKey{s.Case, s.BenchSetting}
		if groups[key] == nil {
			groups[key] = map[int]float64{}
		}
		groups[key][s.Round] = s.Mpps
	}
	rows := make([]BenchRow, 0, len(groups))
	for key, rates := range groups {
		var all []float64
		for _, rate := range rates {
			all = append(all, rate)
		}
		row := BenchRow{Case: key.name, BenchSetting: key.BenchSetting, Rounds: len(all), Kernel: kernel, Mpps: quantile(all, 0.5)}
		if row.Mpps > 0 {
			row.NsPerPacket = 1000 / row.Mpps
			row.Spread = quartileDistance(all) / row.Mpps
		}
		row.VsMasquerade, row.SpreadVsMasque = paired(rates, groups[benchKey{BenchMasquerade, key.BenchSetting}])
		row.VsRedirect, _ = paired(rates, groups[benchKey{BenchRedirect, key.BenchSetting}])
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b BenchRow) int {
		return cmp.Or(
			cmp.Compare(a.Family, b.Family), cmp.Compare(a.Size, b.Size), -cmp.Compare(a.Direction, b.Direction),
			cmp.Compare(a.Flows, b.Flows), cmp.Compare(slices.Index(BenchCases(), a.Case), slices.Index(BenchCases(), b.Case)))
	})
	return rows
}

type benchKey struct {
	name BenchCase
	BenchSetting
}

// paired compares the rounds that both have: what disturbed the machine in one
// of them disturbed both.
func paired(rates, base map[int]float64) (median, spread *float64) {
	var ratios []float64
	for round, rate := range rates {
		if other := base[round]; other > 0 {
			ratios = append(ratios, rate/other)
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
