// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"vippin/policy/parity"
)

func (c *cli) parity() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "parity", Short: "Show what this router and its peers should have alike and have not", GroupID: "show",
		Long: `Compare this router with every peer that is connected, and list what they
should have alike and have not, the worst first, with what it would break at a
failover:

    error      connections break
    warning    some may break, or what happens is hidden
    note       none break: it may be meant so (the fast path is on or off)

Compared are VLANs, VIPs (the first one of a family is what connections leave
with), VRIDs and what is advertised, groups, pins, rules of nf_tables that
translate (iptables-nft's, too), forwarding and conntrack settings, networks and
MTUs, what is replicated, kernel tier, version and clock.

What may differ is not listed: the names of interfaces, own addresses, MACs,
priorities, a trunk here and a NIC for each VLAN there. In rules, an interface
is called by its VLAN or network, and an own address "own address on" that.

This router is looked at now, a peer told what it has when it last changed:
settings and rules may take it half a minute.

Exit code 0: nothing differs, or there are only notes. 1: something does, or no
peer can be compared with ("vippin peers" says why).`,
		Example: `  vippin parity
  vippin parity -j | jq -r '.[] | select(.state == "error") | "\(.check) \(.about): \(.here) / \(.there)"'`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			daemon, err := c.daemon()
			if err != nil {
				return err
			}
			found, err := daemon.Parity(ctx)
			if err != nil {
				return err
			}
			if c.json {
				err = printJSON(c.env.stdout, filled(found))
			} else {
				err = showDifferences(newOutput(c.env), found)
			}
			if err == nil && len(found) > parity.Count(found, parity.Note) {
				return silentExit(exitFailed)
			}
			return err
		}),
	})
}
