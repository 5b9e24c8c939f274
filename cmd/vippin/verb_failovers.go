// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func (c *cli) failovers() *cobra.Command {
	return &cobra.Command{
		Use: "failovers", Short: "Tell of every failover", GroupID: "show",
		Args: cobra.NoArgs,
		RunE: c.verb(func(context.Context, []string) error { return errors.New("not known yet") }),
	}
}
