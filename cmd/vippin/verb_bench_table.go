// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vippin/policy"
)

// benchHead are the columns of a setting's table.
var benchHead = []string{
	"case", "Mpps", "spread", "ns/packet", "× masquerade", "× redirect", "new flows/s", "µs p50", "p99", "on the fast path",
}

func benchCells(r policy.BenchRow) []string {
	return []string{
		string(r.Case), fmt.Sprintf("%.3f", r.Mpps), fmt.Sprintf("%.0f %%", 100*r.Spread), fmt.Sprintf("%.0f", r.NsPerPacket),
		maybe(r.VsMasquerade, "%.2f"), maybe(r.VsRedirect, "%.2f"), thousands(r.FlowsPerS), maybe(r.P50us, "%.1f"), maybe(r.P99us, "%.1f"),
		percentOf(r.FastShare),
	}
}

func maybe(value *float64, format string) string {
	if value == nil {
		return "-"
	}
	return fmt.Sprintf(format, *value)
}

func percentOf(share *float64) string {
	if share == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100**share)
}

func thousands(value *float64) string {
	if value == nil {
		return "-"
	}
	return grouped(int(*value/1000+0.5) * 1000)
}

// grouped writes a number with commas.
func grouped(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// benchBlocks are rows of one setting each, in the order of the rows.
func benchBlocks(rows []policy.BenchRow) (blocks [][]policy.BenchRow) {
	for _, r := range rows {
		if n := len(blocks); n > 0 && blocks[n-1][0].BenchSetting == r.BenchSetting {
			blocks[n-1] = append(blocks[n-1], r)
		} else {
			blocks = append(blocks, []policy.BenchRow{r})
		}
	}
	return blocks
}

// benchTitle names a setting, and what generator and sink take of each packet.
func benchTitle(r policy.BenchRow) string {
	plural := "s"
	if r.Flows == 1 {
		plural = ""
	}
	text := fmt.Sprintf("%s flow%s, %d octets, %s, %s", grouped(r.Flows), plural, r.Size, map[string]string{"ipv4": "IPv4", "ipv6": "IPv6"}[r.Family], r.Direction)
	if r.VLAN != (policy.VLAN{}) {
		text += fmt.Sprintf(", VLAN %s", r.VLAN)
	}
	text += fmt.Sprintf("; %d round%s", r.Rounds, map[bool]string{true: "", false: "s"}[r.Rounds == 1])
	if r.OwnNs != nil {
		text += fmt.Sprintf("; generator and sink alone %.0f ns", *r.OwnNs)
	}
	return text
}

func showBench(o *output, report policy.BenchReport) error {
	if err := o.printf("%s; rates by one core's time, generator and sink included\n", report.Machine); err != nil {
		return err
	}
	for _, block := range benchBlocks(report.Rows) {
		if err := o.printf("\n%s\n", benchTitle(block[0])); err != nil {
			return err
		}
		t := o.table(benchHead...)
		for _, r := range block {
			t.row(benchCells(r)...)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, note := range benchNotes(report) {
		if err := o.printf("\n%s\n", note); err != nil {
			return err
		}
	}
	return nil
}

// benchNotes are what the reader must know besides the figures.
func benchNotes(report policy.BenchReport) []string {
	notes := slices.Clone(report.Notes)
	for _, r := range report.Rows {
		if r.FlowBytes != nil {
			return append(notes, fmt.Sprintf("The fast path's tables take %.0f octets for each flow that they have room for, besides conntrack's entry and the mapping.", *r.FlowBytes))
		}
	}
	return notes
}

const benchExplanation = `Mpps and new flows are by a second of one core's time, generator and sink included; the generator's and the sink's own
share is said above each table (the case *drop*). Cases take turns within each round: medians over the rounds, spread as the distance of the
quartiles, ratios as the median of those within each round. UDP, no tags unless said. *redirect* is a bare XDP redirect, *xdp-fib* XDP with bpf_fib_lookup, TTL and MACs;
*forward*, *conntrack*, *masquerade* and *snat* are the plain kernel, set up for speed: GRO on, one rule, no conntrack where none is needed, no events, no
accounting, no source check, no early demultiplexing, no verifying of checksums, conntrack's table with a bucket for either direction of every flow. µs: from when a packet comes, at
random, until the sink has it, at half the rate that the case takes. ` + "`vippin bench --help`" + ` says more.
`

// benchMarkdown is the document: tables, and the plot if there is one.
func benchMarkdown(report policy.BenchReport, file, plot string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "# What a packet costs\n\nMade by `vippin bench` (flags: Makefile) on: %s.\n\n%s\n", report.Machine, benchExplanation)
	for _, note := range benchNotes(report) {
		fmt.Fprintf(&text, "%s\n\n", note)
	}
	if plot != "" {
		path, err := filepath.Rel(filepath.Dir(file), plot)
		if err != nil {
			path = plot
		}
		fmt.Fprintf(&text, "![rates of the cases, and cost with flows](%s)\n\n", path)
	}
	for _, block := range benchBlocks(report.Rows) {
		fmt.Fprintf(&text, "## %s\n\n| %s |\n|---|%s\n", benchTitle(block[0]), strings.Join(benchHead, " | "), strings.Repeat("--:|", len(benchHead)-1))
		for _, r := range block {
			fmt.Fprintf(&text, "| %s |\n", strings.Join(benchCells(r), " | "))
		}
		text.WriteString("\n")
	}
	return text.String()
}

// showCosts shows what loaded programs take.
func showCosts(o *output, costs []policy.ProgramCost) error {
	t := o.table("interface", "hook", "program", "packet", "ns")
	for _, c := range costs {
		t.row(c.Interface, c.Hook, c.Program, c.Packet, fmt.Sprintf("%.1f", c.Ns))
	}
	if err := t.flush(); err != nil {
		return err
	}
	return nil
}
