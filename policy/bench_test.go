// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
)

func sample(name BenchCase, direction BenchDirection, flows, round int, mpps float64) BenchSample {
	return BenchSample{
		BenchSetting: BenchSetting{Direction: direction, Flows: flows, Size: 64, Family: "ipv4"},
		Case:         name, Round: round, Mpps: mpps,
	}
}

// TestBenchRowsPair: in the second round the machine was half as fast. The
// ratios within rounds do not care, that of the medians would.
func TestBenchRowsPair(t *testing.T) {
	rows := BenchRows([]BenchSample{
		sample(BenchMasquerade, BenchOut, 1, 0, 1.0), sample(BenchPinned, BenchOut, 1, 0, 0.9),
		sample(BenchMasquerade, BenchOut, 1, 1, 0.5), sample(BenchPinned, BenchOut, 1, 1, 0.4),
		sample(BenchMasquerade, BenchOut, 1, 2, 2.0), sample(BenchPinned, BenchOut, 1, 2, 1.9),
		sample(BenchPinned, BenchOut, 1, 3, 7), // a round without masquerade
	}, 0.5, "6.18")
	if len(rows) != 2 || rows[0].Case != BenchMasquerade || rows[1].Case != BenchPinned {
		t.Fatalf("rows %+v", rows)
	}
	near := func(what string, got *float64, want float64) {
		t.Helper()
		if got == nil || math.Abs(*got-want) > 1e-9 {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	masquerade, pinned := rows[0], rows[1]
	near("masquerade against itself", masquerade.VsMasquerade, 1)
	near("masquerade's rate", &masquerade.Mpps, 1)
	near("masquerade's time", &masquerade.NsPerPacket, 1000)
	near("masquerade's spread", &masquerade.Spread, 0.75) // quartiles 0.75 and 1.5
	near("pinned against masquerade", pinned.VsMasquerade, 0.9)
	near("its spread", pinned.SpreadVsMasque, 0.075) // of 0.8, 0.9, 0.95
	near("pinned's rate", &pinned.Mpps, 1.4)         // between 0.9 and 1.9
	if pinned.Rounds != 4 || masquerade.Rounds != 3 || pinned.Kernel != "6.18" {
		t.Errorf("rounds %d and %d, kernel %q", pinned.Rounds, masquerade.Rounds, pinned.Kernel)
	}
	if pinned.VsRedirect != nil {
		t.Errorf("against redirect, which was not measured: %v", *pinned.VsRedirect)
	}
}

func TestBenchRowsOrder(t *testing.T) {
	rows := BenchRows([]BenchSample{
		sample(BenchOff, BenchBack, 1, 0, 1), sample(BenchOff, BenchOut, 10000, 0, 1), sample(BenchRedirect, BenchOut, 10000, 0, 1),
		sample(BenchPinned, BenchOut, 10000, 0, 1), sample(BenchOff, BenchOut, 1, 0, 1),
	}, 0.5, "")
	type key struct {
		name      BenchCase
		direction BenchDirection
		flows     int
	}
	var got []key
	for _, r := range rows {
		got = append(got, key{r.Case, r.Direction, r.Flows})
	}
	want := []key{
		{BenchOff, BenchOut, 1}, {BenchRedirect, BenchOut, 10000}, {BenchPinned, BenchOut, 10000}, {BenchOff, BenchOut, 10000},
		{BenchOff, BenchBack, 1},
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows in the order %v, want %v", got, want)
	}
}

// TestBenchRowsMedians: what was not measured in a round does not count there,
// and what generator and sink take is that of the same setting.
func TestBenchRowsMedians(t *testing.T) {
	third, most := 1.0/3, 0.75
	with := func(name BenchCase, round int, mpps, fresh, p50, p99 float64, share *float64) BenchSample {
		s := sample(name, BenchOut, 10, round, mpps)
		s.FlowsPerS, s.P50us, s.P99us, s.FastShare = fresh, p50, p99, share
		return s
	}
	rows := BenchRows([]BenchSample{
		with(BenchFast, 0, 5, 2e5, 2, 9, &third), with(BenchFast, 1, 5, 0, 4, 0, &most), with(BenchFast, 2, 5, 4e5, 3, 7, &most),
		sample(BenchDrop, BenchOut, 10, 0, 10), sample(BenchDrop, BenchOut, 10, 1, 8), sample(BenchDrop, BenchOut, 10, 2, 12.5),
		sample(BenchDrop, BenchOut, 1, 0, 1000),
	}, 0.9, "6.18")
	fast := rows[2]
	if fast.Case != BenchFast || fast.OwnNs == nil || *fast.OwnNs != 100 || *rows[0].OwnNs != 1 {
		t.Fatalf("rows %+v", rows)
	}
	if *fast.FlowsPerS != 3e5 || *fast.P50us != 3 || *fast.P99us != 8 || *fast.FastShare != most || fast.Load != 0.9 {
		t.Errorf("medians %v %v %v %v at %v", *fast.FlowsPerS, *fast.P50us, *fast.P99us, *fast.FastShare, fast.Load)
	}
	if rows[0].FlowsPerS != nil || rows[0].FastShare != nil || rows[0].VsRedirect != nil {
		t.Errorf("not measured, and yet %+v", rows[0])
	}
}

// TestBenchRowJSON: the names that scripts rely on, and null for what was not
// measured.
func TestBenchRowJSON(t *testing.T) {
	rows := BenchRows([]BenchSample{sample(BenchPinned, BenchBack, 1, 0, 0.5)}, 0.5, "6.18")
	text, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"case":"vippin-tc","direction":"back","flows":1,"size":64,"family":"ipv4","vlan":0,"mpps":0.5,` +
		`"flows_per_s":null,"ns_per_packet":2000,"own_ns":null,"p50_us":null,"p99_us":null,"load":0.5,"vs_masquerade":null,"vs_redirect":null,` +
		`"rounds":1,"spread":0,"spread_vs_masquerade":null,"fast_share":null,"bytes_per_flow":null,"kernel":"6.18"}]`
	if string(text) != want {
		t.Errorf("JSON\n%s\nwant\n%s", text, want)
	}
	if text, _ := json.Marshal(BenchRows(nil, 0.5, "")); string(text) != "[]" {
		t.Errorf("no samples: %s, want []", text)
	}
}

func TestBenchPlan(t *testing.T) {
	plain := BenchSetting{Direction: BenchOut, Flows: 10_000, Size: 64, Family: "ipv4"}
	with := func(change func(*BenchSetting)) BenchSetting {
		s := plain
		change(&s)
		return s
	}
	all := BenchPlan(BenchLists{}, false)
	want := []BenchSetting{
		plain,
		with(func(s *BenchSetting) { s.Direction = BenchBack }),
		with(func(s *BenchSetting) { s.Size = 512 }), with(func(s *BenchSetting) { s.Size = 1500 }),
		with(func(s *BenchSetting) { s.Flows = 1 }), with(func(s *BenchSetting) { s.Flows = 100_000 }),
		with(func(s *BenchSetting) { s.Family = "ipv6" }),
	}
	if !slices.Equal(all, want) {
		t.Errorf("nothing asked for: %+v\nwant %+v", all, want)
	}
	lists := BenchLists{Flows: []int{1, 2, 2}, Families: []string{"ipv6", "ipv4"}, VLANs: []VLAN{{}, {Outer: 2}}}
	if got := BenchPlan(lists, false); len(got) != 2*2*2 || got[0].Family != "ipv6" || got[0].Direction != BenchOut || got[0].Size != 64 {
		t.Errorf("everything with everything: %+v", got)
	}
	varied := BenchPlan(lists, true)
	for _, s := range varied {
		if s.Family != "ipv6" && (s.Flows != 1 || s.VLAN.Outer != 0) {
			t.Errorf("two lists at once: %+v", s)
		}
	}
	if want := 1 + 1 + 1 + 1 + 2 + 1; len(varied) != want { // the plainest; flows, family, VLAN, sizes, direction
		t.Errorf("%d settings, want %d: %+v", len(varied), want, varied)
	}
}
