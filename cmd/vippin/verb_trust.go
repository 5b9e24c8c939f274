// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"vippin/policy"
)

// trustedKey is one row of "vippin trust ls": whose word says that the peer has
// this key.
type trustedKey struct {
	Name string `json:"name"`
	Key  string `json:"key"`
	By   string `json:"by"` // config, trust
}

func (c *cli) trust() *cobra.Command {
	var stateDir string
	trust := &cobra.Command{
		Use: "trust NAME KEY", Short: "Trust a peer by its public key", GroupID: "change",
		Long: `Note the public key of the peer called NAME in sync.peers: the line that "vippin
keygen" prints there. Nobody else can pretend to be that peer. A key that was
noted before is replaced; "key" in the configuration comes before both.

A running daemon does not need to be told: it looks at the keys whenever it
connects, and hangs up on a peer that has lost its trust.`,
		Example: `  vippin trust router-b Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0=
  vippin trust ls
  vippin trust rm router-b`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("trust takes the NAME of a peer and its public KEY")
			}
			return nil
		},
		RunE: c.verb(func(_ context.Context, args []string) error {
			dir, err := c.stateDir(stateDir)
			if err != nil {
				return err
			}
			return c.onlyRoot(c.trustPeer(dir, args[0], args[1]))
		}),
	}
	trust.PersistentFlags().StringVar(&stateDir, "state-dir", "", stateDirUsage)
	trust.AddCommand(c.trustList(&stateDir), c.trustRemove(&stateDir))
	return trust
}

func (c *cli) trustPeer(dir, name, text string) error {
	if err := checkPeerName(name); err != nil {
		return usageError{err}
	}
	key, err := policy.ParsePublicKey(text)
	if err != nil {
		return usageError{err}
	}
	if own, err := (keyStore{dir: dir}).Load(); err == nil && publicOf(own) == key {
		return fmt.Errorf("trust %s: that is this router's own key: take the one that \"vippin keygen\" prints on the other router", name)
	}
	err = trustStore{dir: dir}.Change(func(keys map[string]policy.PublicKey) error {
		for other, taken := range keys {
			if taken == key && other != name {
				return fmt.Errorf("trust %s: %s has that key: \"vippin trust rm %s\" first, if it is the same router", name, other, other)
			}
		}
		keys[name] = key
		return nil
	})
	if err != nil {
		return err
	}
	for _, peer := range c.configuredPeers() {
		if peer.Name == name && peer.Key != "" && peer.Key != text {
			fmt.Fprintf(c.env.stderr, "vippin: the configuration has another key for %s, and that one counts\n", name)
		}
	}
	return nil
}

// checkPeerName takes what sync.peers takes.
func checkPeerName(name string) error {
	const limit = 64 // octets
	bad := func(r rune) bool { return r == unicode.ReplacementChar || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	if name == "" || len(name) > limit || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%.70q is no name of a peer: those have 1 to %d octets, printable and without spaces", name, limit)
	}
	return nil
}

// configuredPeers are those of the configuration, if it can be read.
func (c *cli) configuredPeers() []policy.PeerConfig {
	if p, err := c.places(); err == nil && p.config != nil {
		return p.config.Sync.Peers
	}
	return nil
}

func (c *cli) trustList(stateDir *string) *cobra.Command {
	return c.withJSON(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the keys by which peers are known",
		Long: `List the peers whose public key is known, and who says so: the configuration, or
"vippin trust". Where both do, the configuration counts.`,
		Example: `  vippin trust ls
  vippin trust ls -j | jq -r '.[] | "\(.name) \(.key)"'`,
		Args: cobra.NoArgs,
		RunE: c.verb(func(context.Context, []string) error {
			dir, err := c.stateDir(*stateDir)
			if err != nil {
				return err
			}
			rows, err := c.trusted(dir)
			if err != nil {
				return c.onlyRoot(err)
			}
			if c.json {
				return printJSON(c.env.stdout, rows)
			}
			return showTrusted(newOutput(c.env), rows)
		}),
	})
}

// trusted lists the keys in force by name.
func (c *cli) trusted(dir string) ([]trustedKey, error) {
	keys, err := trustStore{dir: dir}.Load()
	if err != nil {
		return nil, err
	}
	byName := make(map[string]trustedKey, len(keys))
	for name, key := range keys {
		byName[name] = trustedKey{Name: name, Key: key.String(), By: "trust"}
	}
	for _, peer := range c.configuredPeers() {
		if peer.Key != "" {
			byName[peer.Name] = trustedKey{Name: peer.Name, Key: peer.Key, By: "config"}
		}
	}
	rows := make([]trustedKey, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		rows = append(rows, byName[name])
	}
	return rows, nil
}

func showTrusted(o *output, rows []trustedKey) error {
	if len(rows) == 0 {
		return o.printf("nobody is trusted\n")
	}
	t := o.table("NAME", "KEY", "BY")
	for _, row := range rows {
		t.row(row.Name, row.Key, row.By)
	}
	return t.flush()
}

func (c *cli) trustRemove(stateDir *string) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Forget a peer's key",
		Long: `Forget the key that was noted for NAME. Without another one in the configuration
the daemon hangs up on that peer at once.`,
		Example: `  vippin trust rm router-b`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("rm takes the NAME of a peer")
			}
			return nil
		},
		RunE: c.verb(func(_ context.Context, args []string) error {
			dir, err := c.stateDir(*stateDir)
			if err != nil {
				return err
			}
			return c.onlyRoot(c.distrust(dir, args[0]))
		}),
	}
}

func (c *cli) distrust(dir, name string) error {
	err := trustStore{dir: dir}.Change(func(keys map[string]policy.PublicKey) error {
		if _, known := keys[name]; !known {
			return fmt.Errorf("no key is noted for %q (\"vippin trust ls\" lists them)", name)
		}
		delete(keys, name)
		return nil
	})
	if err != nil {
		return err
	}
	for _, peer := range c.configuredPeers() {
		if peer.Name == name && peer.Key != "" {
			fmt.Fprintf(c.env.stderr, "vippin: the configuration has a key for %s, too, and that one counts\n", name)
		}
	}
	return nil
}
