// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vippin/policy"
)

func (c *cli) status() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "status", Short: "Show roles, their evidence, pins, peers and warnings", GroupID: "show",
		Long: `Show what this router is for every group of VIPs, which witnesses say so, and
what needs a look: warnings and conflicts come first.

Exit code 0: all is well. 3: there is a warning or a conflict, a group is in
FAULT, or a peer is not up. 1: the daemon cannot be asked.`,
		Example: `  vippin status
  vippin status -j | jq -r '.groups[] | "\(.name) \(.role)"'`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			daemon, err := c.daemon()
			if err != nil {
				return err
			}
			status, err := daemon.Status(ctx)
			if err != nil {
				return err
			}
			if c.json {
				err = printJSON(c.env.stdout, fillStatus(status))
			} else {
				err = showStatus(newOutput(c.env), status, c.env.now())
			}
			if err == nil && degraded(status) {
				return silentExit(exitDegraded)
			}
			return err
		}),
	})
}

func (c *cli) vrrp() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "vrrp", Short: "Show the VRRP routers heard on every interface", GroupID: "show",
		Long: `Show every virtual router whose adverts are seen, who sends them, and which
adverts are not believed and why (RFC 9568 section 7.1). Nothing is ever
dropped: what is ignored here still reaches keepalived.`,
		Example: `  vippin vrrp
  vippin vrrp -j | jq '.[] | select(.conflict != "")'`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			daemon, err := c.daemon()
			if err != nil {
				return err
			}
			routers, err := daemon.VRRP(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(c.env.stdout, fillVRRP(routers))
			}
			return showVRRP(newOutput(c.env), routers)
		}),
	})
}

func (c *cli) flows() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "flows", Short: "List the pinned connections", GroupID: "show",
		Long: `List every connection that has a mapping: the inside host (client), the address
the world sees (public), the other end (remote) and the address by which this
router's conntrack knows it (local). Packets and bytes come from conntrack and
need net.netfilter.nf_conntrack_acct=1; those of the fast path are added. FAST
says whether the fast path knows the connection. For ping the port is the query
id.

It works without a daemon too. With -j one JSON object a line.`,
		Example: `  vippin flows
  vippin flows -j | jq -r 'select(.vlan == 2) | .public' | sort | uniq -c`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			list, err := c.flowSource(ctx)
			if err != nil {
				return err
			}
			if c.json {
				encoder := lineJSON(c.env.stdout)
				return list(func(flow policy.FlowStatus) error { return encoder.Encode(flow) })
			}
			out := newOutput(c.env)
			printer := newFlowPrinter(out)
			return printer.finish(out, list(printer.show))
		}),
	})
}

func (c *cli) monitor() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "monitor", Short: "Follow role changes, conflicts, toggles and reloads as they happen", GroupID: "show",
		Long: `Print one line for everything that happens, until Ctrl-C. A reader that is too
slow loses events and is told how many; the daemon never waits.`,
		Example: `  vippin monitor
  vippin monitor -j | jq -c 'select(.kind == "role")'`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			daemon, err := c.daemon()
			if err != nil {
				return err
			}
			out := newOutput(c.env)
			encoder := lineJSON(c.env.stdout)
			return daemon.Events(ctx, func(event policy.Event) error {
				if c.json {
					return encoder.Encode(event)
				}
				return showEvent(out, event)
			})
		}),
	})
}

func (c *cli) daemon() (*client, error) {
	p, err := c.places()
	if err != nil {
		return nil, err
	}
	return newClient(c.env, p.runDir), nil
}

func (c *cli) check() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "check", Short: "Check the configuration and say what it would do", GroupID: "show",
		Long: `Read the configuration, look at this router's interfaces, and print either what
would be done or everything that is wrong, with line numbers. Nothing is
changed, and no daemon is needed.

Exit code 0: it can be loaded. 1: it has errors.`,
		Example: `  vippin check -c /tmp/new.yaml && mv /tmp/new.yaml /etc/vippin/vippin.yaml && vippin reload`,
		Args:    cobra.NoArgs,
		RunE: c.verb(func(context.Context, []string) error {
			report, err := c.dryRun()
			if err != nil {
				return err
			}
			return c.showReport(report, fmt.Sprintf("%s is in order; vippin would do this:", c.configFile))
		}),
	})
}

// showReport prints what check or reload found; errors in it are exit 1.
func (c *cli) showReport(report policy.DryRun, verdict string) error {
	var err error
	if c.json {
		err = printJSON(c.env.stdout, fillDryRun(report))
	} else {
		err = showDryRun(newOutput(c.env), report, verdict)
	}
	if err == nil && !report.OK {
		return silentExit(exitFailed)
	}
	return err
}
