// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// ipFamilies are where a table of ours may be.
var ipFamilies = []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}

// editTables changes tables of ours in one step. there are those of this name now.
func editTables(name string, edit func(conn *nftables.Conn, there []*nftables.Table)) error {
	conn, err := dialTables()
	if err != nil {
		return fmt.Errorf("open nf_tables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	there, err := tablesNamed(conn, name)
	if err != nil {
		return err
	}
	edit(conn, there)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("change table %s: %w", name, err)
	}
	return nil
}

// tablesNamed are the tables of this name there are.
func tablesNamed(conn *nftables.Conn, name string) (there []*nftables.Table, err error) {
	for _, family := range ipFamilies {
		tables, err := conn.ListTablesOfFamily(family)
		if err != nil {
			return nil, fmt.Errorf("list tables: %w", err)
		}
		for _, table := range tables {
			if table.Name == name {
				there = append(there, table)
			}
		}
	}
	return there, nil
}

// removeTables removes every table of this name. None there is no error, nor one
// that goes just now.
func removeTables(name string) error {
	err := editTables(name, func(conn *nftables.Conn, there []*nftables.Table) {
		for _, table := range there {
			conn.DelTable(table)
		}
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// addRule adds a rule with its comment.
func addRule(conn *nftables.Conn, chain *nftables.Chain, rule markRule) {
	conn.AddRule(&nftables.Rule{
		Table: chain.Table, Chain: chain, Exprs: rule.exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, rule.comment),
	})
}
