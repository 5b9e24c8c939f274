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
	}, "6.18")
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
	}, "")
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

// TestBenchRowJSON: the names that scripts rely on, and null for what was not
// measured.
func TestBenchRowJSON(t *testing.T) {
	rows := BenchRows([]BenchSample{sample(BenchPinned, BenchBack, 1, 0, 0.5)}, "6.18")
	text, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"case":"vippin-tc","direction":"back","flows":1,"size":64,"family":"ipv4","vlan":0,"mpps":0.5,` +
		`"flows_per_s":null,"ns_per_packet":2000,"p50_us":null,"p99_us":null,"vs_masquerade":null,"vs_redirect":null,` +
		`"rounds":1,"spread":0,"spread_vs_masquerade":null,"kernel":"6.18"}]`
	if string(text) != want {
		t.Errorf("JSON\n%s\nwant\n%s", text, want)
	}
	if text, _ := json.Marshal(BenchRows(nil, "")); string(text) != "[]" {
		t.Errorf("no samples: %s, want []", text)
	}
}
