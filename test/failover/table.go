// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// table is lines of cells under a heading.
type table struct {
	title string
	head  []string
	lines [][]string
}

// tables are all that was measured: what survives, and what replication costs.
func tables(results []Result) []table {
	all := rows(results)
	return []table{survivalTable(all), youngTable(all), latencyTable(all), faultsTable(all), costTable(all)}
}

func survivalTable(all []row) table {
	t := table{title: "Failover", head: []string{
		"setting", "flows", "arm", "runs", "TCP %", "UDP %", "ICMP %",
		"outage ms p50/p95", "from MASTER: first answer p50/p95", "all probes p50/p95", "commit ms",
	}}
	for _, r := range all {
		if r.Kind != survive {
			continue
		}
		setting := fmt.Sprintf("%s, %s, %s, %s, %d ms adverts", r.Fault, r.Firewall, r.Family, r.Age, r.Adverts)
		flows := fmt.Sprintf("%d of each", r.Flows)
		if r.Only != "" {
			flows = fmt.Sprintf("%d %s", r.Flows, r.Only)
		}
		t.lines = append(t.lines, []string{
			setting, flows, r.Arm, fmt.Sprint(len(r.runs)), r.percent("tcp"), r.percent("udp"), r.percent("icmp"),
			quantiles(r.values(outageOf), 0), quantiles(r.values(firstOf), 1), quantiles(r.values(allOf), 1),
			number(median(r.values(commitOf)), 1),
		})
	}
	return t
}

// youngTable is about connections that were made within the second before the
// crash.
func youngTable(all []row) table {
	t := table{title: "The youngest connections", head: []string{
		"setting", "connections", "arm", "runs", "made before the crash", "go on", "go on %", "lost in the worst run", "runs without a loss",
	}}
	for _, r := range all {
		if r.Kind != newborn {
			continue
		}
		sum, worst, clean := r.survival("tcp"), 0, 0
		for _, run := range r.runs {
			s := run.Survival["tcp"]
			worst, clean = max(worst, s.Flows-s.Survived), clean+count(s.Flows == s.Survived)
		}
		t.lines = append(t.lines, []string{
			fmt.Sprintf("%s, %s, %s, %d ms adverts", r.Fault, r.Firewall, r.Family, r.Adverts), fmt.Sprintf("%d in 1 s", r.Flows),
			r.Arm, fmt.Sprint(len(r.runs)), fmt.Sprint(sum.Flows), fmt.Sprint(sum.Survived),
			number(share(sum.Survived, sum.Flows), 2), fmt.Sprint(worst), fmt.Sprint(clean),
		})
	}
	return t
}

// latencyTable compares each arm with vippin's async one, block by block.
func latencyTable(all []row) table {
	t := table{title: "How long a connection takes to be made", head: []string{
		"setting", "arm", "runs", "connections", "failed", "ms p50", "p95", "p99", "max",
		"more than vippin, ms p50", "of blocks p5 to p95",
	}}
	for _, r := range all {
		if r.Kind != latency {
			continue
		}
		of := func(figure func(Latency) float64) func(Result) float64 {
			return func(x Result) float64 { return figure(*x.Latency) }
		}
		made, failed := 0, 0
		for _, run := range r.runs {
			made, failed = made+run.Latency.Made, failed+run.Latency.Failed
		}
		more := r.moreThan(armRow(all, r, "vippin"))
		t.lines = append(t.lines, []string{
			fmt.Sprintf("the server %s away, %s", wanDelay, r.Family), r.Arm, fmt.Sprint(len(r.runs)), fmt.Sprint(made), fmt.Sprint(failed),
			number(median(r.values(of(func(l Latency) float64 { return l.P50 }))), 3),
			number(median(r.values(of(func(l Latency) float64 { return l.P95 }))), 3),
			number(median(r.values(of(func(l Latency) float64 { return l.P99 }))), 3),
			number(quantile(r.values(of(func(l Latency) float64 { return l.Max })), 1), 1),
			number(median(more), 3), fmt.Sprintf("%s to %s", number(quantile(more, 0.05), 3), number(quantile(more, 0.95), 3)),
		})
	}
	return t
}

// faultsTable has a line for each thing that went wrong.
func faultsTable(all []row) table {
	t := table{title: "New connections while something is wrong", head: []string{
		"setting", "arm", "runs", "what is wrong", "begun/s", "made/s", "ms p50", "p95", "max", "sent again", "failed",
		"held", "acked", "timed out", "released", "passed by",
	}}
	for _, r := range all {
		if r.Kind != trials {
			continue
		}
		for i := range r.runs[0].Phases {
			t.lines = append(t.lines, r.phaseLine(i))
		}
	}
	return t
}

// phaseLine adds up one phase of every run.
func (r row) phaseLine(i int) []string {
	var sum Phase
	var counted Exceptions
	var p50, p95 []float64
	for _, run := range r.runs {
		p := run.Phases[i]
		sum.Begun, sum.Made, sum.Failed, sum.Late = sum.Begun+p.Begun, sum.Made+p.Made, sum.Failed+p.Failed, sum.Late+p.Late
		sum.Seconds, sum.Max = sum.Seconds+p.Seconds, max(sum.Max, p.Max)
		p50, p95 = append(p50, p.P50), append(p95, p.P95)
		if e := p.Exceptions; e != nil {
			sum.Exceptions = &counted
			counted.Held, counted.Acked, counted.TimedOut = counted.Held+e.Held, counted.Acked+e.Acked, counted.TimedOut+e.TimedOut
			counted.Released, counted.PassedBy = counted.Released+e.Released, counted.PassedBy+e.PassedBy
		}
	}
	exceptions := []string{"", "", "", "", ""}
	if e := sum.Exceptions; e != nil {
		for i, n := range []int64{e.Held, e.Acked, e.TimedOut, e.Released, e.PassedBy} {
			exceptions[i] = fmt.Sprint(n)
		}
	}
	return append([]string{
		fmt.Sprintf("%d new connections/s, %s", r.Flows, r.Family), r.Arm, fmt.Sprint(len(r.runs)), r.runs[0].Phases[i].Name,
		number(float64(sum.Begun)/sum.Seconds, 0), number(float64(sum.Made)/sum.Seconds, 0),
		number(median(p50), 2), number(median(p95), 1), number(sum.Max, 0), fmt.Sprint(sum.Late), fmt.Sprint(sum.Failed),
	}, exceptions...)
}

// percent is what survived of a protocol; of old flows the steady and the
// sparse ones.
func (r row) percent(proto string) string {
	text := func(name string) string {
		sum := r.survival(name)
		return number(share(sum.Survived, sum.Flows), 2)
	}
	if r.Age == old {
		return fmt.Sprintf("%s steady, %s sparse", text(proto+" steady"), text(proto+" sparse"))
	}
	return text(proto)
}

func costTable(all []row) table {
	t := table{title: "Replication", head: []string{
		"measure", "flows", "arm", "runs", "median", "unit", "spread", "of conntrackd", "missing on the peer", "at the router of birth",
	}}
	units := map[kind]string{
		cost: "CPU s / 100,000 flows", rate: "new flows/s", bulk: "ms until the restarted peer has all", memory: "octets of RSS a flow",
	}
	for _, r := range all {
		if units[r.Kind] == "" {
			continue
		}
		values := r.values(figure)
		line := []string{
			fmt.Sprintf("%s %s %s", r.Kind, r.Way, r.Family), fmt.Sprint(r.Flows), r.Arm, fmt.Sprint(len(r.runs)),
			number(median(values), 2), units[r.Kind], percentage(spread(values)), number(r.against(armRow(all, r, "conntrackd")), 2),
			r.missing(), "",
		}
		if r.Kind == memory {
			line[len(line)-1] = number(median(r.values(func(x Result) float64 { return x.OwnBytes })), 0)
		}
		t.lines = append(t.lines, line)
	}
	return t
}

// armRow is another arm's row of the same setting.
func armRow(all []row, r row, arm string) row {
	for _, other := range all {
		if other.setting() == r.setting() && other.Arm == arm {
			return other
		}
	}
	return row{}
}

// missing is the sum over the runs.
func (r row) missing() string {
	missing, made := 0, 0
	for _, run := range r.runs {
		missing, made = missing+run.Missing, made+run.Replicated
	}
	return fmt.Sprintf("%d of %d", missing, made)
}

func quantiles(values []float64, decimals int) string {
	if len(values) == 0 {
		return "-"
	}
	return number(median(values), decimals) + "/" + number(quantile(values, 0.95), decimals)
}

func number(value float64, decimals int) string {
	if math.IsNaN(value) {
		return "-"
	}
	return fmt.Sprintf("%.*f", decimals, value)
}

func percentage(value float64) string {
	if math.IsNaN(value) {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", 100*value)
}

// terminal prints the table in columns.
func (t table) terminal(to io.Writer) error {
	if len(t.lines) == 0 {
		return nil
	}
	fmt.Fprintf(to, "\n%s\n", t.title)
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, line := range append([][]string{t.head}, t.lines...) {
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	return w.Flush()
}

// markdown is the table for a document.
func (t table) markdown() string {
	if len(t.lines) == 0 {
		return ""
	}
	var text strings.Builder
	fmt.Fprintf(&text, "## %s\n\n| %s |\n|%s\n", t.title, strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, line := range t.lines {
		fmt.Fprintf(&text, "| %s |\n", strings.Join(line, " | "))
	}
	text.WriteString("\n")
	return text.String()
}
