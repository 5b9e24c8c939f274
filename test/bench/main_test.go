// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"strings"
	"testing"

	"vippin/policy"
)

func TestTable(t *testing.T) {
	setting := policy.BenchSetting{Direction: policy.BenchOut, Flows: 10_000, Size: 64, Family: "ipv4"}
	rows := policy.BenchRows([]policy.BenchSample{
		{BenchSetting: setting, Case: policy.BenchMasquerade, Mpps: 1.25}, {BenchSetting: setting, Case: policy.BenchPinned, Mpps: 1.125},
	}, "6.18")
	var text strings.Builder
	if err := printTable(&text, rows); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	want := []string{
		"family size direction flows case Mpps spread ns/packet vs masquerade spread vs redirect rounds",
		"ipv4 64 out 10000 masquerade 1.250 0.0% 800 1.000 0.000 - 1",
		"ipv4 64 out 10000 vippin-tc 1.125 0.0% 889 0.900 0.000 - 1",
	}
	if len(lines) != len(want) {
		t.Fatalf("table\n%s", text.String())
	}
	for i, line := range lines {
		if got := strings.Join(strings.Fields(line), " "); got != want[i] {
			t.Errorf("line %d: %q, want %q", i, got, want[i])
		}
	}
}

// TestWrongUse is told before anything is built, with or without root.
func TestWrongUse(t *testing.T) {
	for args, want := range map[string]string{
		"--flows 1,x":          `"x" is no value`,
		"--cases fast":         `case "fast"`,
		"--families ipv5 -j":   `family "ipv5"`,
		"--sizes 9000":         "9000 octets",
		"--directions out,up":  `direction "up"`,
		"--rounds -1":          "-1 rounds",
		"masquerade vippin-tc": "flags only",
	} {
		err := run(context.Background(), strings.Fields(args), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %s", args, err, want)
		}
	}
}
