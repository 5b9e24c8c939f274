// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func (c *cli) vrrpNotify() *cobra.Command {
	return &cobra.Command{
		Use: "vrrp-notify GROUP STATE", Short: "Take a role change from a transition script", GroupID: "change",
		Args: cobra.RangeArgs(2, 4),
		RunE: c.verb(func(context.Context, []string) error { return errors.New("not known yet") }),
	}
}
