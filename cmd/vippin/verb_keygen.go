// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"
)

func (c *cli) keygen() *cobra.Command {
	var stateDir string
	cmd := &cobra.Command{
		Use: "keygen", Short: "Make this router's key if there is none, and print its public key", GroupID: "change",
		Long: `Print this router's public key on one line: the other routers know it by that.
There it goes into the configuration, as "key" of this router in sync.peers, or
is given to "vippin trust". When there is no private key yet, one is made in
state_dir/node.key, which root alone may read. An existing key is never changed.

The daemon makes the key itself when there are peers in the configuration.`,
		Example: `  vippin keygen
  ssh router-b vippin trust router-a "$(vippin keygen)"`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(context.Context, []string) error {
			dir, err := c.stateDir(stateDir)
			if err != nil {
				return err
			}
			store := keyStore{dir: dir}
			key, made, err := store.LoadOrMake()
			if err != nil {
				return c.onlyRoot(err)
			}
			if made {
				fmt.Fprintf(c.env.stderr, "vippin: made %s\n", store.path())
			}
			_, err = fmt.Fprintln(c.env.stdout, publicOf(key))
			return err
		}),
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", "", stateDirUsage)
	return cmd
}

const stateDirUsage = "`DIR` of the keys (default: state_dir of the configuration)"

// stateDir is the one that was given, else the configuration's. A key in the
// wrong place would do harm: a configuration with errors does not stand for the
// default.
func (c *cli) stateDir(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	p, err := c.places()
	if err != nil {
		return "", err
	}
	if p.problem != nil && !errors.Is(p.problem, fs.ErrNotExist) {
		return "", fmt.Errorf("which state_dir is it? Give --state-dir, or mend the configuration: %w", p.problem)
	}
	return p.stateDir, nil
}

// onlyRoot explains why a file of state_dir could not be read or written.
func (c *cli) onlyRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) && c.env.euid != 0 {
		return fmt.Errorf("%w: only root may (try sudo)", err)
	}
	return err
}
