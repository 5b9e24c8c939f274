// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"vippin/policy"
)

func (c *cli) vrrpNotify() *cobra.Command {
	return &cobra.Command{
		Use: "vrrp-notify GROUP STATE", Short: "Take what a transition script tells of VRRP", GroupID: "change",
		Long: `Tell the daemon what keepalived says of a group: MASTER, BACKUP, FAULT or STOP.
It is a witness beside addresses and adverts, as keepalived's FIFO is: "vippin
status" shows it, and it is a conflict when they disagree for longer than a
second. So tell of every transition, or of none.

It takes the arguments of keepalived's own notify scripts too:
GROUP|INSTANCE NAME STATE [PRIORITY]. An INSTANCE counts for the group of the
same name; of others it may be told, and nothing comes of it.`,
		Example: `  vippin vrrp-notify RouterCore MASTER
  vippin vrrp-notify INSTANCE VI_2 BACKUP 100`,
		Args: cobra.RangeArgs(2, 4),
		RunE: c.verb(func(ctx context.Context, args []string) error {
			n, err := readNotification(args)
			if err != nil {
				return err
			}
			daemon, err := c.daemon()
			if err != nil {
				return err
			}
			return daemon.Notify(ctx, n)
		}),
	}
}

// readNotification reads GROUP STATE, or keepalived's KIND NAME STATE [PRIORITY].
func readNotification(args []string) (policy.Notification, error) {
	n := policy.Notification{Kind: "GROUP", Name: args[0], State: args[1]}
	if len(args) > 2 {
		n = policy.Notification{Kind: args[0], Name: args[1], State: args[2]}
	}
	if len(args) > 3 {
		priority, err := strconv.ParseUint(args[3], 10, 8)
		if err != nil {
			return n, usageError{fmt.Errorf("priority %q is not 0 to 255", args[3])}
		}
		n.Priority = uint8(priority)
	}
	return n, checkNotification(n)
}
