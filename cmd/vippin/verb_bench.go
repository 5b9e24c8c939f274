// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"vippin/loader/bench"
	"vippin/policy"
)

func (c *cli) bench() *cobra.Command {
	var opts bench.Options
	var cases, families []string
	var seconds float64
	cmd := c.withJSON(&cobra.Command{
		Use: "bench", Short: "Measure what packets cost, with vippin and without", GroupID: "show",
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			for _, name := range cases {
				opts.Cases = append(opts.Cases, policy.BenchCase(name))
			}
			opts.Families, opts.Time = families, time.Duration(seconds*float64(time.Second))
			rows, err := bench.Run(ctx, opts)
			if err != nil {
				return err
			}
			return printJSON(c.env.stdout, rows)
		}),
	})
	flags := cmd.Flags()
	flags.StringSliceVar(&cases, "cases", nil, "`LIST` of cases")
	flags.IntSliceVar(&opts.Flows, "flows", nil, "`LIST` of numbers of flows")
	flags.IntSliceVar(&opts.Sizes, "sizes", nil, "`LIST` of frame sizes in octets")
	flags.StringSliceVar(&families, "families", nil, "`LIST` of ipv4, ipv6")
	flags.IntVar(&opts.Rounds, "rounds", 0, "how often every case is measured")
	flags.Float64Var(&seconds, "seconds", 0, "how long a case is measured in a round")
	return cmd
}
