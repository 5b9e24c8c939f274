// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vippin/loader/bench"
	"vippin/policy"
)

const exitInterrupted = 130 // as a shell has it: 128 + SIGINT

const benchLong = `Measure what a packet costs on this machine: through the plain kernel, with
vippin, and past the kernel's stack. Generator, router and sink are network
namespaces of its own on one processor; nothing of this machine's network is
touched, nothing is sent. It needs root. Without flags it takes some minutes.

Cases:
  drop         dropped at the router's door: the share of generator and sink
  redirect     bare XDP redirect, the packet as it is: no router can beat it
  xdp-fib      XDP with bpf_fib_lookup: routing, TTL and MACs, no conntrack
  forward      the kernel's forwarding without conntrack
  conntrack    the same with conntrack
  masquerade   nft masquerade
  snat         nft snat to the VIP
  tcx-empty    masquerade and tc programs that do nothing
  vippin-tc    masquerade, every flow pinned
  vippin-off   masquerade, vippin loaded, the pin off
  vippin-fast  masquerade, every flow pinned and on the fast path

Mpps and new flows are by a second of one core's time, generator and sink
included. Every case is measured once in each round, in turns; shown are the
medians, the quartile distance (spread), and the median of the ratios within
each round. The plain ones are set up for speed: drivers' receive offload (GRO)
on, a single rule, no events, no accounting, no source check, no early
demultiplexing, no verifying of checksums, redirects by an array of devices.

Latency is that of packets that come at random at --load times the rate that a
case takes, from the moment they come until the sink has them, the wait for
others included. 99th percentiles want a machine that does nothing else.

With very many flows conntrack's limit, which is one for the whole machine, may
have to be lifted: --raise-limits does so while it measures. The fast path asks
the kernel for each flow again every 30 s, so that with 250,000 flows and more
it is measured for at least as long.`

// benchFlags is the command line.
type benchFlags struct {
	cases, families, directions, vlans []string
	lists                              policy.BenchLists
	vary                               bool
	seconds                            float64
	plot, markdown, iface              string
	opts                               bench.Options
}

func (c *cli) bench() *cobra.Command {
	var f benchFlags
	cmd := c.withJSON(&cobra.Command{
		Use: "bench", Short: "Measure what packets cost, with vippin and without", GroupID: "show", Long: benchLong,
		Example: `  vippin bench
  vippin bench --cases masquerade,vippin-tc,vippin-fast --flows 1,10000,100000 --families ipv4,ipv6
  vippin bench -j --plot bench.svg > bench.json
  vippin bench --interface eth0.2   what the programs that are loaded here cost a packet; changes and sends nothing`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			if f.iface != "" {
				return c.benchInterface(ctx, f.iface)
			}
			return c.benchCases(ctx, f)
		}),
	})
	flags := cmd.Flags()
	flags.StringSliceVar(&f.cases, "cases", nil, "`LIST` of cases (default all)")
	flags.IntSliceVar(&f.lists.Flows, "flows", nil, "`LIST` of numbers of flows, up to 4000000")
	flags.IntSliceVar(&f.lists.Sizes, "sizes", nil, "`LIST` of frame sizes in octets, 64 to 1514")
	flags.StringSliceVar(&f.families, "families", nil, "`LIST` of ipv4, ipv6")
	flags.StringSliceVar(&f.directions, "directions", nil, "`LIST` of out, back: an inside host's packets, answers to them")
	flags.StringSliceVar(&f.vlans, "vlan", nil, "`LIST` of tags outside, as 0 (none), 100 or 100.20; needs a kernel with 802.1Q")
	flags.BoolVar(&f.vary, "vary", false, "go through one list at a time, the others at their first values, instead of everything with everything")
	flags.IntVar(&f.opts.Rounds, "rounds", 5, "how often every case is measured")
	flags.Float64Var(&f.seconds, "seconds", 0.4, "how long a case is measured in a round")
	flags.Float64Var(&f.opts.Load, "load", 0.5, "share of a case's rate at which latency is measured")
	flags.BoolVar(&f.opts.RaiseLimits, "raise-limits", false, "lift nf_conntrack_max and nf_conntrack_buckets of this machine where flows need it, and set them back")
	flags.BoolVar(&f.opts.NoChecksum, "no-checksum", false, "leave out UDP's checksum over IPv4")
	flags.StringVar(&f.plot, "plot", "", "draw `FILE`.svg or .png: bars of the cases, and cost with flows")
	flags.StringVar(&f.markdown, "markdown", "", "write the tables to `FILE`, too")
	flags.StringVar(&f.iface, "interface", "", "measure the programs loaded on interface `NAME` instead")
	return cmd
}

// options makes words into what they mean.
func (f benchFlags) options() (bench.Options, error) {
	for _, name := range f.cases {
		f.opts.Cases = append(f.opts.Cases, policy.BenchCase(name))
	}
	for _, name := range f.directions {
		f.lists.Directions = append(f.lists.Directions, policy.BenchDirection(name))
	}
	f.lists.Families = f.families
	for _, text := range f.vlans {
		var vlan policy.VLAN
		if text != "0" {
			var err error
			if vlan, err = policy.ParseVLAN(text); err != nil {
				return f.opts, err
			}
		}
		f.lists.VLANs = append(f.lists.VLANs, vlan)
	}
	f.opts.Settings, f.opts.Time = policy.BenchPlan(f.lists, f.vary), time.Duration(f.seconds*float64(time.Second))
	return f.opts, f.opts.Check()
}

func (c *cli) benchCases(ctx context.Context, f benchFlags) error {
	opts, err := f.options()
	if err == nil && f.plot != "" {
		err = plottable(f.plot)
	}
	if err != nil {
		return usageError{err}
	}
	if c.env.euid != 0 {
		return errors.New("making network namespaces and loading BPF programs needs root: run it with sudo")
	}
	bar := newProgressBar(c.env)
	opts.Progress = bar.show
	report, err := c.env.bench(ctx, opts)
	bar.end()
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(c.env.stderr, "vippin: interrupted: everything has been taken away again")
		return silentExit(exitInterrupted)
	}
	if err != nil {
		return err
	}
	return c.benchReport(report, f)
}

// benchReport draws, writes and shows what was measured.
func (c *cli) benchReport(report policy.BenchReport, f benchFlags) error {
	if f.plot != "" {
		if err := plotBench(report, f.plot); err != nil {
			return fmt.Errorf("draw %s: %w", f.plot, err)
		}
	}
	if f.markdown != "" {
		if err := os.WriteFile(f.markdown, []byte(benchMarkdown(report, f.markdown, f.plot)), 0o644); err != nil {
			return fmt.Errorf("write the tables: %w", err)
		}
	}
	if c.json {
		if report.Rows == nil {
			report.Rows = []policy.BenchRow{}
		}
		return printJSON(c.env.stdout, report.Rows)
	}
	return showBench(newOutput(c.env), report)
}

func (c *cli) benchInterface(ctx context.Context, name string) error {
	if c.env.euid != 0 {
		return errors.New("running BPF programs needs root: run it with sudo")
	}
	costs, err := c.env.costs(ctx, name)
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(c.env.stdout, costs)
	}
	return showCosts(newOutput(c.env), costs)
}
