// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runner measures cases one after the other.
type runner struct {
	journal  *journal
	machine  string
	progress io.Writer
	budget   time.Duration
}

// measure fails only when nothing more can be measured; a case that fails is
// told, and is to be tried again.
func (r runner) measure(ctx context.Context, cases []Case) error {
	start, left := time.Now(), r.journal.remaining(cases)
	if done := len(cases) - len(left); done > 0 {
		fmt.Fprintf(r.progress, "%d of %d cases are done already\n", done, len(cases))
	}
	failures, total := 0, len(left)
	for len(left) > 0 {
		if r.budget > 0 && time.Since(start) > r.budget {
			fmt.Fprintf(r.progress, "%s are over: %d cases are left out (BENCHFLAGS=-resume goes on)\n", r.budget, len(left))
			break
		}
		group := companions(left)
		left = left[len(group):]
		fmt.Fprintf(r.progress, "[%s] %d of %d: %s%s\n", time.Since(start).Round(time.Second), total-len(left), total,
			group[0].Key(), andMore(len(group)-1))
		for _, result := range r.withRetry(ctx, group) {
			if ctx.Err() != nil && result.Error != "" {
				continue // it failed because of the interruption
			}
			failures += count(result.Error != "")
			r.tell(result)
			if err := r.journal.add(result); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Canceled
		}
	}
	if failures > 0 {
		return fmt.Errorf("measure: %d of %d cases failed: see above", failures, total)
	}
	return nil
}

// withRetry measures once more what could not be measured.
func (r runner) withRetry(ctx context.Context, group []Case) []Result {
	results := r.together(ctx, group)
	failed := slices.ContainsFunc(results, func(x Result) bool { return x.Error != "" })
	if !failed || ctx.Err() != nil {
		return results
	}
	var again []Case
	for _, x := range results {
		if x.Error != "" {
			r.tell(x)
			again = append(again, x.Case)
		}
	}
	results = slices.DeleteFunc(results, func(x Result) bool { return x.Error != "" })
	return append(results, r.together(ctx, again)...)
}

// companions are the first case and those after it that are measured with it:
// old flows of all arms age at the same time, and latency is compared in turns.
func companions(cases []Case) []Case {
	n := 1
	beside := cases[0].Age == old || cases[0].Kind == latency
	for n < len(cases) && beside && cases[n].setting() == cases[0].setting() && cases[n].Round == cases[0].Round {
		n++
	}
	return cases[:n]
}

func andMore(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more arms", n)
}

// together measures cases whose labs stand at the same time.
func (r runner) together(ctx context.Context, group []Case) []Result {
	load := loadAverage()
	results := r.measureAll(ctx, group)
	for i := range results {
		results[i].Machine, results[i].Load = r.machine, load
	}
	return results
}

func (r runner) measureAll(ctx context.Context, group []Case) []Result {
	if group[0].Kind == latency {
		return measureLatency(ctx, group)
	}
	results := make([]Result, len(group))
	ready := make([]prepared, len(group))
	for i, c := range group {
		var err error
		results[i].Case = c
		switch c.Kind {
		case survive:
			ready[i], err = openSurvival(ctx, fmt.Sprintf("bench%d", i), c)
		case newborn:
			results[i], err = measure(ctx, "bench", c, (*bed).measureYoung)
		case trials:
			results[i], err = measure(ctx, "bench", c, (*bed).measureFaults)
		default:
			results[i], err = measure(ctx, "bench", c, (*bed).measureChurn)
		}
		results[i].fail(err)
	}
	for i, p := range ready {
		if p.bed == nil {
			continue
		}
		result, err := p.fail(ctx)
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, p.Describe())
		}
		result.fail(errors.Join(err, p.close()))
		results[i] = result
	}
	return results
}

// loadAverage is of the last minute: a hint that others have been at work.
func loadAverage() float64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return float64(info.Loads[0]) / (1 << 16)
}

func (r *Result) fail(err error) {
	if err != nil {
		r.Error = err.Error()
	}
}

// tell prints what a case gave in a line.
func (r runner) tell(result Result) {
	switch {
	case result.Error != "":
		fmt.Fprintf(r.progress, "    %s FAILED: %s\n", result.Arm, result.Error)
	case result.Kind == newborn:
		s := result.Survival["tcp"]
		fmt.Fprintf(r.progress, "    %-12s %d of %d connections go on (%d broken, %d silent, %d moved), %d were not made yet\n",
			result.Arm, s.Survived, s.Flows, s.Broken, s.Silent, s.Moved, result.Unmade)
	case result.Kind == latency:
		l := result.Latency
		fmt.Fprintf(r.progress, "    %-12s %d connections in %.3f ms (median), %.3f ms (p95), %d failed\n",
			result.Arm, l.Made, l.P50, l.P95, l.Failed)
	case result.Kind == trials:
		for _, p := range result.Phases {
			fmt.Fprintf(r.progress, "    %-12s %-32s %.0f/s made, %.2f ms (median), %.1f ms (p95), %d late, %d failed %s\n",
				result.Arm, p.Name, float64(p.Made)/p.Seconds, p.P50, p.P95, p.Late, p.Failed, p.Exceptions)
		}
	case result.Kind == survive:
		fmt.Fprintf(r.progress, "    %-12s", result.Arm)
		for _, proto := range []string{"tcp", "udp", "icmp"} {
			if s, ok := result.Survival[proto]; ok {
				fmt.Fprintf(r.progress, " %s %d/%d", proto, s.Survived, s.Flows)
			}
		}
		fmt.Fprintf(r.progress, ", outage %.0f ms, first answer %.1f ms after MASTER, %d of %d probes\n",
			result.OutageMs, result.FirstMs, result.ProbesAlive, result.Probes)
	default:
		fmt.Fprintf(r.progress, "    %-12s %.2f, %d of %d missing\n", result.Arm, figure(result), result.Missing, result.Replicated)
	}
	for _, note := range result.Notes {
		fmt.Fprintf(r.progress, "    note: %s\n", note)
	}
}

// machine says what was measured on: kernel, processor, versions.
func machine(ctx context.Context) string {
	var name unix.Utsname
	parts := []string{runtime.GOOS}
	if unix.Uname(&name) == nil {
		parts = []string{"Linux " + unix.ByteSliceToString(name.Release[:])}
	}
	parts = append(parts, fmt.Sprintf("%d × %s", runtime.NumCPU(), processor()))
	for _, argv := range [][]string{{vippinProgram(), "version"}, {"keepalived", "--version"}, {"conntrackd", "-v"}} {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n"); err == nil {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

func vippinProgram() string {
	if bin := os.Getenv("VIPPIN_BIN"); bin != "" {
		return bin
	}
	return "vippin"
}

func processor() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if key, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}
