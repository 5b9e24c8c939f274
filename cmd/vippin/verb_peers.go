// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"
)

func (c *cli) peers() *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "peers", Short: "Show the peers and how far replication to them is", GroupID: "show",
		Long: `Show every peer of sync.peers:

    down         there is no connection; below the table it is said why
    connecting   it is being made
    bulk         connected; the table of one side is on its way to the other
    up           connected; what one has the other has, but for the lag

LAG is how many flows the peer has not acknowledged yet, and how long the
oldest of them has waited. SENT/S and RECV/S are flows in a second, over the
last seconds. Flows that one side did not take are counted by reason:

    clash        the public end or the addresses are another flow's there
    full         the mapping table or conntrack's is nearly full there
    no_pin       no pin there has that VLAN and VIP
    unwanted     the configuration there does not want it (sync.ignore …)
    failed       the kernel there did not take it`,
		Example: `  vippin peers
  watch -n1 vippin peers
  vippin peers -j | jq -r '.[] | "\(.name) \(.state) \(.lag_ms)"'`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(ctx context.Context, _ []string) error {
			daemon, err := c.daemon()
			if err != nil {
				return err
			}
			peers, err := daemon.Peers(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(c.env.stdout, fillPeers(peers))
			}
			return showPeerReports(newOutput(c.env), peers, c.env.now())
		}),
	})
}
