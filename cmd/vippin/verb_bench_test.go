// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vippin/loader/bench"
	"vippin/policy"
)

func sampleBench() policy.BenchReport {
	var samples []policy.BenchSample
	share := 0.9987
	for round, slow := range []float64{1, 0.9, 1.1} {
		for name, mpps := range map[policy.BenchCase]float64{
			policy.BenchDrop: 10, policy.BenchRedirect: 5, policy.BenchMasquerade: 1.25, policy.BenchFast: 4.5,
		} {
			for _, flows := range []int{1, 10_000} {
				s := policy.BenchSample{
					BenchSetting: policy.BenchSetting{Direction: policy.BenchOut, Flows: flows, Size: 64, Family: "ipv4"},
					Case:         name, Round: round, Mpps: slow * mpps / (1 + float64(flows)/1e5),
					FlowsPerS: slow * 4e5, P50us: 4.2 / slow, P99us: 30 / slow,
				}
				if name == policy.BenchFast {
					s.FastShare, s.FlowBytes = &share, 420
				}
				samples = append(samples, s)
			}
		}
	}
	tagged := policy.BenchSetting{Direction: policy.BenchBack, Flows: 10_000, Size: 1500, Family: "ipv6", VLAN: policy.VLAN{Outer: 100, Inner: 20}}
	samples = append(samples, policy.BenchSample{BenchSetting: tagged, Case: policy.BenchFast, Mpps: 2})
	return policy.BenchReport{
		Rows: policy.BenchRows(samples, 0.5, "6.18.1"), Machine: "Linux 6.18.1, 2 × Processor", Notes: []string{"kernel.bpf_stats_enabled is on"},
	}
}

// benchRig is a rig whose measurement is over at once; got are the options.
func benchRig(t *testing.T) (b *rig, got *bench.Options) {
	b, got = newRig(t), &bench.Options{}
	b.env.bench = func(_ context.Context, opts bench.Options) (policy.BenchReport, error) {
		*got = opts
		opts.Progress(bench.Progress{What: "round 1 of 1: 10000 flows over ipv4"})
		opts.Progress(bench.Progress{What: "round 1 of 1: 10000 flows over ipv4", Done: 0.5, Left: time.Minute})
		return sampleBench(), nil
	}
	b.env.costs = func(_ context.Context, iface string) ([]policy.ProgramCost, error) {
		return []policy.ProgramCost{
			{Interface: iface, Hook: "ingress", Program: "vippin_ingress", ID: 7, Packet: "IPv4, of no flow", Ns: 81.04, Runs: 900000},
			{Interface: iface, Hook: "xdp", Program: "vippin_fastpath (a copy of it)", ID: 8, Packet: "IPv6, forwarded", Ns: 40, Runs: 3000},
		}, nil
	}
	return b, got
}

func TestBenchShows(t *testing.T) {
	for name, args := range map[string][]string{
		"bench": nil, "bench-json": {"-j"}, "bench-interface": {"--interface", "eth0.2"}, "bench-interface-json": {"--interface", "eth0.2", "-j"},
	} {
		b, _ := benchRig(t)
		code, stdout, stderr := b.run(append([]string{"bench"}, args...)...)
		if code != exitDone {
			t.Errorf("%s: exit code %d: %s", name, code, stderr)
		}
		if strings.Contains(stderr, "\r") || strings.Contains(stderr, "\x1b") {
			t.Errorf("%s: control characters where there is no terminal: %q", name, stderr)
		}
		golden(t, name, []byte(stdout+stderr))
	}
}

func TestBenchWrites(t *testing.T) {
	b, _ := benchRig(t)
	at := func(name string) string { return filepath.Join(b.dir, name) }
	for _, plot := range []string{"cost.svg", "cost.png"} {
		code, _, stderr := b.run("bench", "--plot", at(plot), "--markdown", at("cost.md"))
		if code != exitDone {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
	}
	drawn, err := os.ReadFile(at("cost.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "vippin-fast", "masquerade", "10,000 flows, 64 octets, IPv4, out", ">flows<"} {
		if !strings.Contains(string(drawn), want) {
			t.Errorf("the plot has no %q", want)
		}
	}
	pixels, err := os.ReadFile(at("cost.png"))
	if err != nil {
		t.Fatal(err)
	}
	if picture, err := png.Decode(bytes.NewReader(pixels)); err != nil || picture.Bounds().Dx() < 1000 {
		t.Errorf("picture: %v", err)
	}
	text, err := os.ReadFile(at("cost.md"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "bench-markdown", text)
}

// TestBenchOptions: what the flags mean.
func TestBenchOptions(t *testing.T) {
	b, got := benchRig(t)
	code, _, stderr := b.run("bench", "--cases", "redirect,vippin-fast", "--flows", "1,1000", "--sizes", "512", "--families", "ipv6",
		"--vlan", "0,100.20", "--directions", "back", "--rounds", "7", "--seconds", "1.5", "--load", "0.8", "--raise-limits")
	if code != exitDone {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	s := got.Settings
	if len(s) != 4 || s[0] != (policy.BenchSetting{Direction: policy.BenchBack, Flows: 1, Size: 512, Family: "ipv6"}) || s[2].VLAN != (policy.VLAN{Outer: 100, Inner: 20}) {
		t.Errorf("settings %+v", s)
	}
	if fmt.Sprint(got.Cases) != "[redirect vippin-fast]" || got.Rounds != 7 || got.Time != 1500*time.Millisecond || got.Load != 0.8 || !got.RaiseLimits {
		t.Errorf("options %+v", got)
	}
	if code, _, _ := b.run("bench"); code != exitDone || len(got.Settings) != 7 {
		t.Errorf("without flags: exit code %d, settings %+v", code, got.Settings)
	}
}

// TestBenchWrongUse is told before anything is built.
func TestBenchWrongUse(t *testing.T) {
	b, _ := benchRig(t)
	b.env.bench = func(context.Context, bench.Options) (policy.BenchReport, error) {
		t.Error("something was measured")
		return policy.BenchReport{}, nil
	}
	for args, want := range map[string]string{
		"--flows 1,x":      `"1,x"`,
		"--cases fast":     `case "fast"`,
		"--families ipv5":  `family "ipv5"`,
		"--sizes 9000":     "9000 octets",
		"--directions up":  `direction "up"`,
		"--vlan 4095":      "4095",
		"--rounds -1":      "-1 rounds",
		"--plot cost.jpeg": ".svg or .png",
		"masquerade":       "masquerade",
	} {
		if code, _, stderr := b.run(append([]string{"bench"}, strings.Fields(args)...)...); code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %q, want %d and %s", args, code, stderr, exitUsage, want)
		}
	}
	b.env.euid = 1000
	for _, args := range [][]string{{"bench"}, {"bench", "--interface", "eth0"}} {
		if code, _, stderr := b.run(args...); code != exitFailed || !strings.Contains(stderr, "needs root") {
			t.Errorf("without root: exit code %d, %q", code, stderr)
		}
	}
}

func TestBenchEnds(t *testing.T) {
	b, _ := benchRig(t)
	for want, err := range map[int]error{exitInterrupted: fmt.Errorf("stopped: %w", context.Canceled), exitFailed: errors.New("packets got lost")} {
		b.env.bench = func(context.Context, bench.Options) (policy.BenchReport, error) { return policy.BenchReport{}, err }
		if code, stdout, stderr := b.run("bench"); code != want || stdout != "" || stderr == "" {
			t.Errorf("%v: exit code %d, want %d; %q, %q", err, code, want, stdout, stderr)
		}
	}
}

func TestProgressBar(t *testing.T) {
	var text bytes.Buffer
	bar := &progressBar{w: &text, columns: 60}
	bar.show(bench.Progress{What: "round 1 of 3: 100000 flows over ipv4", Done: 0.25, Left: 90*time.Second + 4*time.Millisecond})
	bar.show(bench.Progress{What: "done", Done: 1})
	bar.end()
	lines := strings.Split(text.String(), "\r")
	want := []string{
		"", "[######..................]  25 %, 1m30s left, round 1 of 3…", "[########################] 100 %, done", "", "",
	}
	if len(lines) != len(want) {
		t.Fatalf("bar %q", lines)
	}
	for i, line := range lines {
		if strings.TrimRight(line, " ") != want[i] {
			t.Errorf("%d: %q, want %q", i, line, want[i])
		}
	}
	if strings.Contains(text.String(), "\x1b") {
		t.Errorf("escape codes: %q", text.String())
	}
}
