// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// man writes the man pages of all verbs. Hidden: packages are built with it.
func (c *cli) man() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write man pages into DIR", Hidden: true,
		Args: cobra.ExactArgs(1),
		RunE: c.verb(func(_ context.Context, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("make directory of man pages: %w", err)
			}
			root := (&cli{env: c.env}).root()
			root.DisableAutoGenTag = true
			// The pages carry the date of $SOURCE_DATE_EPOCH, for reproducible packages, else today's.
			header := &doc.GenManHeader{Section: "8", Source: "vippin " + version, Manual: "Redundant routers"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("write man pages: %w", err)
			}
			return nil
		}),
	}
}
