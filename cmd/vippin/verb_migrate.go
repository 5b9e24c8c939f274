// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vippin/policy/migrate"
)

const migrateStdin = "-"

// migrateDefaults is where Debian has them.
var migrateDefaults = []string{"/etc/conntrackd/conntrackd.conf", "/etc/keepalived/keepalived.conf"}

// migrateFlags is what the command line says besides files.
type migrateFlags struct {
	output   string
	force    bool
	peers    []string
	listen   string
	outside  []string
	configID string
}

func (c *cli) migrate() *cobra.Command {
	var f migrateFlags
	cmd := &cobra.Command{
		Use: "migrate [FILE...]", Short: "Write a configuration from conntrackd's and keepalived's, or VyOS's", GroupID: "change",
		Long: `Read conntrackd.conf and keepalived.conf, or the commands that VyOS prints
("show configuration commands"), and write a configuration of vippin: groups and
pins of the VRRP instances, and the sync section. What a FILE is shows in its
lines; "-" is standard input. Without FILE: /etc/conntrackd/conntrackd.conf and
/etc/keepalived/keepalived.conf. Files that keepalived.conf includes are read.

Every setting without an equivalent is named in a comment, with its line and
what vippin does instead. What is left to fill in says TODO. What was not
understood is told on stderr, and stands at the end of the file. The result
passes "vippin check". docs/migrate.md has a table of all settings.

vippin replaces conntrackd, not keepalived: nothing on this router is changed,
and rules of source NAT are kept.

Exit code 0: written, also with something left to fill in. 1: a file cannot be
read as what it is; file and line are told.`,
		Example: `  vippin migrate -o /etc/vippin/vippin.yaml && vippin check
  vippin migrate --outside eth0.2,eth0.20 --peer router-b=198.51.100.130
  show configuration commands | vippin migrate - > vippin.yaml          (VyOS)`,
		RunE: c.verb(func(_ context.Context, args []string) error { return c.runMigrate(args, f) }),
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.output, "output", "o", "", "write to `FILE` instead of stdout")
	flags.BoolVar(&f.force, "force", false, "replace the file of -o if it is there")
	flags.StringArrayVar(&f.peers, "peer", nil, "the other router: `NAME=ADDRESS[:PORT]`; may be repeated")
	flags.StringVar(&f.listen, "listen", "", "this router's own `ADDRESS[:PORT]` for the other one")
	flags.StringSliceVar(&f.outside, "outside", nil, "`INTERFACES` that source NAT leaves by, where no file says so")
	flags.StringVar(&f.configID, "config-id", "", "keepalived's `ID` of this router (default: the host name)")
	return cmd
}

func (c *cli) runMigrate(args []string, f migrateFlags) error {
	node, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("ask for the host name: %w", err)
	}
	options, err := f.options(node)
	if err != nil {
		return usageError{err}
	}
	files, err := migrateFiles(args, exists)
	if err != nil {
		return err
	}
	if f.output != "" && slices.ContainsFunc(files, func(file string) bool { return sameFile(file, f.output) }) {
		return usageError{fmt.Errorf("%s is one of the files that are read: write to another one", f.output)}
	}
	var sources []migrate.Source
	for _, file := range files {
		src, err := c.readSource(file)
		if err != nil {
			return err
		}
		sources = append(sources, src)
	}
	result, err := migrate.Run(sources, options)
	if err != nil {
		return err
	}
	return c.writeMigrated(result, f)
}

// options reads the flags.
func (f migrateFlags) options(node string) (migrate.Options, error) {
	o := migrate.Options{Node: node, ConfigID: f.configID, Outside: f.outside, Include: includedFiles}
	if f.listen != "" {
		var err error
		if o.Listen, err = addressOrPort(f.listen); err != nil {
			return o, fmt.Errorf("--listen %w", err)
		}
	}
	for _, text := range f.peers {
		name, address, ok := strings.Cut(text, "=")
		if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' }) {
			return o, fmt.Errorf("--peer %q is not NAME=ADDRESS", text)
		}
		if name == node || slices.ContainsFunc(o.Peers, func(p migrate.Peer) bool { return p.Name == name }) {
			return o, fmt.Errorf("--peer %q: a router is called so already", name)
		}
		at, err := addressOrPort(address)
		if err != nil {
			return o, fmt.Errorf("--peer %s: %w", name, err)
		}
		o.Peers = append(o.Peers, migrate.Peer{Name: name, Address: at})
	}
	return o, nil
}

// addressOrPort reads ADDRESS or ADDRESS:PORT.
func addressOrPort(text string) (netip.AddrPort, error) {
	if at, err := netip.ParseAddrPort(text); err == nil && at.Port() != 0 {
		return at, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is neither an address nor ADDRESS:PORT", text)
	}
	return netip.AddrPortFrom(addr, migrate.Port), nil
}

// migrateFiles are those that were named, or those that are where Debian has them.
func migrateFiles(args []string, exists func(string) bool) ([]string, error) {
	if len(args) > 0 {
		return args, nil
	}
	var found []string
	for _, file := range migrateDefaults {
		if exists(file) {
			found = append(found, file)
		}
	}
	if len(found) == 0 {
		return nil, usageError{fmt.Errorf("no FILE is named, and there is neither %s: name one, or on VyOS: show configuration commands | vippin migrate -",
			strings.Join(migrateDefaults, " nor "))}
	}
	return found, nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

func (c *cli) readSource(file string) (migrate.Source, error) {
	if file == migrateStdin {
		data, err := io.ReadAll(io.LimitReader(c.env.stdin, migrate.SizeMax+1))
		if err != nil {
			return migrate.Source{}, fmt.Errorf("read standard input: %w", err)
		}
		return migrate.Source{Name: "stdin", Data: data}, nil
	}
	return sourceOf(file)
}

// sourceOf reads no more of a file than is looked at.
func sourceOf(file string) (migrate.Source, error) {
	f, err := os.Open(file)
	if err != nil {
		return migrate.Source{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, migrate.SizeMax+1))
	if err != nil {
		return migrate.Source{}, err
	}
	return migrate.Source{Name: file, Data: data}, nil
}

// includedFiles reads what keepalived would: relative to the file that includes.
func includedFiles(pattern, from string) ([]migrate.Source, error) {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(filepath.Dir(from), pattern)
	}
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	var sources []migrate.Source
	for _, file := range files {
		src, err := sourceOf(file)
		if err != nil {
			return nil, err
		}
		sources = append(sources, src)
	}
	return sources, nil
}

// writeMigrated writes the configuration, and tells what needs a look.
func (c *cli) writeMigrated(result *migrate.Result, f migrateFlags) error {
	where := "on stdout"
	if f.output == "" {
		if _, err := c.env.stdout.Write(result.YAML); err != nil {
			return err
		}
	} else {
		if err := writeNew(f.output, result.YAML, f.force); err != nil {
			return err
		}
		where = "in " + f.output
	}
	for _, warning := range result.Warnings {
		fmt.Fprintf(c.env.stderr, "not understood: %s\n", warning)
	}
	for _, todo := range result.Todos {
		fmt.Fprintf(c.env.stderr, "TODO: %s\n", todo)
	}
	fmt.Fprintf(c.env.stderr, "vippin: a configuration is %s: groups %d, pins %d, left to fill in %d, not understood %d\n",
		where, result.Groups, result.Pins, len(result.Todos), len(result.Warnings))
	return nil
}

// writeNew makes a file whole or not at all, and replaces one by force alone.
func writeNew(file string, data []byte, force bool) error {
	aside, err := os.CreateTemp(filepath.Dir(file), ".vippin-migrate.*")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer os.Remove(aside.Name())
	_, err = aside.Write(data)
	if err = errors.Join(err, aside.Chmod(0o644), aside.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if force {
		err = os.Rename(aside.Name(), file)
	} else {
		err = os.Link(aside.Name(), file)
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: choose another name, or replace it with --force", file)
	}
	return err
}
