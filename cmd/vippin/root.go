// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// Set by the linker (-X main.version=…).
var version = "dev"

func init() { cobra.EnablePrefixMatching = true } // as ip(8) has it

// cli is one command line being executed.
type cli struct {
	env        *env
	configFile string
	runDir     string // --run-dir
	json       bool
	ran        bool // parsing is over, a verb has begun
}

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, e *env, args []string) int {
	c := &cli{env: e}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	code := exitCode(err, c.ran)
	var silent silentExit
	switch {
	case err == nil, errors.As(err, &silent):
	case code == exitUsage:
		fmt.Fprintf(e.stderr, "vippin: %v (see \"%s --help\")\n", err, cmd.CommandPath())
	default:
		fmt.Fprintf(e.stderr, "vippin: %v\n", err)
	}
	return code
}

const rootLong = `vippin makes redundant Linux routers fail over without breaking connections: on
each VLAN that is switched on, masqueraded connections leave with the virtual
IP (VIP) that VRRP moves between the routers, instead of the address that only
this router has.

A switch decides about new connections only. Nothing that vippin is told to do
changes the source address of a living connection or drops a packet.

Verbs may be shortened as long as they stay unique: "vippin pi l" lists pins.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 ("status" only)
something needs a look.`

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vippin",
		Short: "Pin masqueraded connections to the virtual IPs of redundant routers",
		Long:  rootLong,
		Example: `  vippin check                  is the configuration right, and what would it do?
  vippin pin on 2,20,239-240    pin new connections on these VLANs
  vippin status                 who is MASTER, and is everything well?`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noVerb,
		RunE:          needsVerb,
	}
	root.PersistentFlags().StringVarP(&c.configFile, "config", "c", defaultConfigFile, "configuration `FILE`")
	root.PersistentFlags().StringVar(&c.runDir, "run-dir", "",
		"`DIR` of the control socket (default: $VIPPIN_RUN_DIR, else run_dir of the configuration)")
	root.AddGroup(&cobra.Group{ID: "show", Title: "Look:"}, &cobra.Group{ID: "change", Title: "Change:"},
		&cobra.Group{ID: "service", Title: "Run:"})
	root.SetHelpCommandGroupID("service")
	root.SetCompletionCommandGroupID("service")
	root.AddCommand(
		c.status(), c.flows(), c.vrrp(), c.peers(), c.failovers(), c.parity(), c.monitor(), c.check(), c.doctor(), c.ready(), c.bench(),
		c.pin(), c.fastpath(), c.reload(), c.keygen(), c.trust(), c.vrrpNotify(), c.migrate(),
		c.run(), c.load(), c.unload(),
		c.version(), c.man(),
	)
	return root
}

// noVerb refuses what stands in the place of a verb.
func noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown verb %q for %q", args[0], cmd.CommandPath())
	for i, suggestion := range cmd.SuggestionsFor(args[0]) {
		if i == 0 {
			text += ", did you mean"
		}
		text += fmt.Sprintf(" %q", suggestion)
	}
	return errors.New(text)
}

// needsVerb is a noun without a verb: its help, as an error.
func needsVerb(cmd *cobra.Command, _ []string) error {
	cmd.SetOut(cmd.ErrOrStderr())
	if err := cmd.Help(); err != nil {
		return err
	}
	return silentExit(exitUsage)
}

// verb is the RunE of a command: from here on an error is a failure, not a
// wrong command line.
func (c *cli) verb(run func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c.ran = true
		return run(cmd.Context(), args)
	}
}

// withJSON gives a showing command its -j.
func (c *cli) withJSON(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVarP(&c.json, "json", "j", false, "print JSON, for scripts")
	return cmd
}

func (c *cli) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", GroupID: "show", Args: cobra.NoArgs,
		RunE: c.verb(func(context.Context, []string) error {
			_, err := fmt.Fprintf(c.env.stdout, "vippin %s\n", version)
			return err
		}),
	}
}
