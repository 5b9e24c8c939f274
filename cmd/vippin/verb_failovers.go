// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"vippin/policy"
	"vippin/policy/flight"
)

// failoversOptions are the flags of "vippin failovers".
type failoversOptions struct {
	last     int
	group    string
	rehearse bool
}

func (c *cli) failovers() *cobra.Command {
	var opts failoversOptions
	cmd := c.withJSON(&cobra.Command{
		Use: "failovers", Short: "Tell of every failover, or rehearse one", GroupID: "show",
		Long: `Tell what happened each time this router became MASTER of a group, or ceased to
be: why, what was seen and heard in which order, and what became of the
connections. Both routers keep their side. Times are those of the events;
adverts and packets have the kernel's. A record is complete a minute after the
role change, or at the next one; records outlive restarts, the last 200 are
kept.

"spoke again" are connections from before that had packets since; a connection
that has nothing to say is not lost for it. "lost" are those of which the old
MASTER had told and that did not stand ready here.

With --rehearse nothing is switched: the peers' connections are installed in a
network namespace made for it, and what would not fit, or is missing here, is
listed.

It works without a daemon too, but for --rehearse. Exit code 0: done. 1: it
failed, or a failover would break something.`,
		Example: `  vippin failovers -n 1
  vippin failovers --rehearse
  vippin failovers -j | jq -r '.[] | "\(.time) \(.group) \(.role) \(.cause)"'`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if opts.last < 1 {
				return fmt.Errorf("-n %d: at least one", opts.last)
			}
			return nil
		},
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			if opts.rehearse {
				return c.rehearse(ctx)
			}
			return c.tellFailovers(ctx, opts)
		}),
	})
	cmd.Flags().IntVarP(&opts.last, "last", "n", 10, "tell of the last `N`")
	cmd.Flags().StringVar(&opts.group, "group", "", "of this `GROUP` only")
	cmd.Flags().BoolVar(&opts.rehearse, "rehearse", false, "try whether this router could take over now")
	return cmd
}

func (c *cli) tellFailovers(ctx context.Context, opts failoversOptions) error {
	records, err := c.failoverRecords(ctx)
	if err != nil {
		return err
	}
	records = slices.DeleteFunc(records, func(f policy.Failover) bool { return opts.group != "" && f.Group != opts.group })
	records = flight.Bounded(records, opts.last)
	if c.json {
		return printJSON(c.env.stdout, fillFailovers(records))
	}
	return showFailovers(newOutput(c.env), records)
}

// failoverRecords asks the daemon, else its file.
func (c *cli) failoverRecords(ctx context.Context) ([]policy.Failover, error) {
	p, err := c.places()
	if err != nil {
		return nil, err
	}
	records, err := newClient(c.env, p.runDir).Failovers(ctx)
	if !errors.Is(err, errNoDaemon) {
		return records, err
	}
	records, err = failoverStore{dir: p.stateDir}.Load()
	return flight.CutOff(records), err
}

func (c *cli) rehearse(ctx context.Context) error {
	daemon, err := c.daemon()
	if err != nil {
		return err
	}
	rehearsals, err := daemon.Rehearse(ctx)
	if err != nil {
		return err
	}
	if c.json {
		err = printJSON(c.env.stdout, fillRehearsals(rehearsals))
	} else {
		err = showRehearsals(newOutput(c.env), rehearsals)
	}
	if err == nil && slices.ContainsFunc(rehearsals, breaks) {
		return silentExit(exitFailed)
	}
	return err
}

// breaks tells whether a takeover would break something, as far as is known.
func breaks(r policy.Rehearsal) bool {
	return !r.Complete || r.Fit < r.Flows || len(r.Failures) > 0 || len(r.Missing) > 0
}
