// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// runOptions is what "vippin run" was told on its command line.
type runOptions struct {
	ConfigFile string
	RunDir     string // "" = run_dir of the configuration
}

func (c *cli) run() *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "Run the daemon", GroupID: "service",
		Long: `Load the dataplane, follow VRRP, the interfaces and the connection table, and
answer the other verbs, until SIGTERM or SIGINT. SIGHUP reloads, like "vippin
reload". It stays in the foreground and logs to stderr; systemd is told when it
is ready.

When the daemon ends, however it ends, living connections stay pinned and a new
daemon takes them over. To take vippin off the router, use "vippin unload".`,
		Example: `  vippin run
  vippin run -c ./vippin.yaml --run-dir /tmp/vippin`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			if err := c.needsRoot("run the daemon"); err != nil {
				return err
			}
			runDir := c.runDir
			if runDir == "" {
				runDir = c.env.getenv("VIPPIN_RUN_DIR")
			}
			return runDaemon(ctx, c.env, runOptions{ConfigFile: c.configFile, RunDir: runDir})
		}),
	}
}

func (c *cli) reload() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "reload", Short: "Let the daemon apply the changed configuration", GroupID: "change",
		Long: `Let the daemon read its configuration again and apply it, whole or not at all:
with an error in it everything stays as it is, and all errors are listed. Pins
are added, changed and removed without touching living connections.

The daemon reads the file it was started with; -c only helps to find its socket.`,
		Example: `  vippin check && vippin reload`,
		Args:    cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			daemon, err := c.daemon()
			if err != nil {
				return err
			}
			report, err := daemon.Reload(ctx)
			if err != nil {
				return err
			}
			return c.showReport(report, "reloaded; in force is:")
		}),
	})
}

func (c *cli) load() *cobra.Command {
	var master bool
	cmd := c.withJSON(&cobra.Command{
		Use: "load", Short: "Attach the dataplane without a daemon", GroupID: "service",
		Long: `Load the dataplane into the kernel by the configuration, and leave it there. Run
again, it applies what has changed and removes mappings whose connections have
ended: without a daemon nobody else does.

Without a daemon this router counts as MASTER for a group while its own adverts
leave: those of the configured vrid, or that announce a VIP of the group. VIPs
that no VRRP moves need --master.`,
		Example: `  vippin load
  vippin load --master -c ./vippin.yaml
  * * * * * root vippin load           (in /etc/cron.d: keep it tidy)`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			if err := c.needsRoot("load the dataplane"); err != nil {
				return err
			}
			report, tier, err := c.loadPinned(ctx, master)
			if err != nil {
				return err
			}
			return c.showReport(report, fmt.Sprintf("loaded (%s); in force is:", tier))
		}),
	})
	cmd.Flags().BoolVar(&master, "master", false, "this router is MASTER for VIPs without VRRP, from now on")
	return cmd
}

func (c *cli) unload() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "unload", Short: "Detach the dataplane, without breaking connections", GroupID: "service",
		Long: `Hand the living pinned connections over to the kernel's conntrack, then detach
and remove everything of vippin from the kernel. The connections keep the VIP as
their source.

When some cannot be handed over, nothing is done and their number is told;
--force breaks them. The daemon must have been stopped.`,
		Example: `  systemctl stop vippin && vippin unload`,
		Args:    cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			if err := c.needsRoot("unload the dataplane"); err != nil {
				return err
			}
			return c.unloadPinned(ctx, force)
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "break the connections that cannot be handed over")
	return cmd
}

func (c *cli) needsRoot(what string) error {
	if c.env.euid != 0 {
		return fmt.Errorf("%s: only root may (try sudo)", what)
	}
	return nil
}

// whileRunning says how to do something while a daemon runs.
func whileRunning(err error, way string) error {
	var running *runningError
	if errors.As(err, &running) {
		return fmt.Errorf("%w: %s", err, way)
	}
	return err
}
