// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func (c *cli) parity() *cobra.Command {
	return &cobra.Command{
		Use: "parity", Short: "Compare this router with its peers", GroupID: "show",
		Args: cobra.NoArgs,
		RunE: c.verb(func(context.Context, []string) error { return errors.New("not known yet") }),
	}
}
