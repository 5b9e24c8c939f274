// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func (c *cli) ready() *cobra.Command {
	return &cobra.Command{
		Use: "ready [GROUP]", Short: "Tell whether this router may take over", GroupID: "show",
		Args: cobra.MaximumNArgs(1),
		RunE: c.verb(func(context.Context, []string) error { return errors.New("not known yet") }),
	}
}
