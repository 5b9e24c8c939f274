// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vippin/policy"
)

// readyWithin is how long the daemon may take to answer: keepalived asks every few
// seconds, and counts what takes too long as a failure.
const readyWithin = 2 * time.Second

func (c *cli) ready() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "ready [GROUP]", Short: "Tell whether this router may take over by its own choice", GroupID: "show",
		Long: `Tell of every group, or of one, whether this router may take it over by its own
choice. It may not while a MASTER elsewhere has connections that are not all
here yet, as after a reboot. Never for longer than sync.ready_timeout.

Exit code 1: not ready, and only then. 0: ready, or nothing is known (no daemon
runs, or it does not answer: said on stderr), so that a dead daemon keeps no
router down. 2: there is no such group; keepalived's track_script takes every
code but 0 for a failure, so try the command by hand first.

keepalived follows sync.ready_file without asking: 1 while all groups are
ready, else 0; FILE.GROUP the same for each (other characters than letters,
digits, "-" and "." are "_" there). docs/keepalived.md has the snippets.`,
		Example: `  vippin ready
  vippin ready RouterCore && echo "it may preempt"
  vippin ready -j | jq -r '.[] | select(.ready | not) | .why'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeGroups,
		RunE: c.verb(func(ctx context.Context, args []string) error {
			groups, err := c.askReady(ctx)
			if err != nil {
				fmt.Fprintf(c.env.stderr, "vippin: not known, which counts as ready: %v\n", err)
			} else if groups, err = chosenGroups(groups, args); err != nil {
				return err
			}
			if c.json {
				err = printJSON(c.env.stdout, filled(groups))
			} else {
				err = showReady(newOutput(c.env), groups)
			}
			if err == nil && slices.ContainsFunc(groups, func(s policy.ReadyStatus) bool { return !s.Ready }) {
				return silentExit(exitFailed)
			}
			return err
		}),
	})
}

func (c *cli) askReady(ctx context.Context) ([]policy.ReadyStatus, error) {
	daemon, err := c.daemon()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	return daemon.Ready(ctx)
}

// chosenGroups picks the group that was named, if one was.
func chosenGroups(groups []policy.ReadyStatus, args []string) ([]policy.ReadyStatus, error) {
	if len(args) == 0 {
		return groups, nil
	}
	var known []string
	for _, s := range groups {
		if s.Group == args[0] {
			return []policy.ReadyStatus{s}, nil
		}
		known = append(known, s.Group)
	}
	return nil, usageError{&unknownGroupError{Group: args[0], Known: known}}
}

func showReady(o *output, groups []policy.ReadyStatus) error {
	for _, s := range groups {
		word := o.painted(green, "ready")
		if !s.Ready {
			word = o.painted(yellow, "not ready") + " for " + span(seconds(s.Waiting))
		}
		if err := o.printf("%s: %s: %s\n", clean(s.Group), word, clean(s.Why)); err != nil {
			return err
		}
	}
	return nil
}

// completeGroups offers the groups that there are.
func (c *cli) completeGroups(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	groups, err := c.askReady(cmd.Context())
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var words []string
	for _, s := range groups {
		if strings.HasPrefix(s.Group, typed) {
			words = append(words, s.Group)
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}
