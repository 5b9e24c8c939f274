// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// The table of strict mode: between the reassembly of fragments (-400) and
// everything else that looks at a packet from outside. The mark is taken off by a
// chain of its own, since a packet goes on at the next hook function when it has
// its verdict, and when nobody serves the queue.
const (
	holdTable         = "vippin-hold" // of family inet, or of ip and ip6
	holdChain         = "hold"
	holdClear         = "clear"
	holdPriority      = -310
	holdClearPriority = -309
)

// HoldRule says which packets wait, and where.
type HoldRule struct {
	Mark  policy.MarkConfig // that tc ingress gives them
	Queue uint16            // NFQUEUE number
}

// holdWay is one way to have packets queued. Which one a kernel has shows when it
// is tried.
type holdWay struct {
	families []nftables.TableFamily
	queue    func(number uint16) expr.Any
}

// xtBypass is NFQ_FLAG_BYPASS of the NFQUEUE target, <linux/netfilter/xt_NFQUEUE.h>.
const xtBypass = 1

var (
	inetOnly = []nftables.TableFamily{nftables.TableFamilyINet}
	bothOfIP = []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}
	holdWays = []holdWay{{inetOnly, queueExpression}, {inetOnly, queueTarget}, {bothOfIP, queueTarget}}
)

func queueExpression(number uint16) expr.Any {
	return &expr.Queue{Num: number, Flag: expr.QueueFlagBypass}
}

// queueTarget is iptables' NFQUEUE: struct xt_NFQ_info_v3 {u16 first, count, flags}.
func queueTarget(number uint16) expr.Any {
	info := binary.NativeEndian.AppendUint16(nil, number)
	info = binary.NativeEndian.AppendUint16(info, 1)
	unknown := xt.Unknown(binary.NativeEndian.AppendUint16(info, xtBypass))
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &unknown}
}

// InstallHold puts the table inet vippin-hold in force, in the place of one that
// is there: it gives marked packets to the queue, before conntrack sees them, and
// takes the mark off again. While nobody serves the queue they pass. It is of the
// network namespace of the calling thread.
func InstallHold(rule HoldRule) error {
	if rule.Mark.Mask == 0 {
		return fmt.Errorf("make table inet %s: the mark has no bits (sync.strict_mark)", holdTable)
	}
	var errs []error
	for _, way := range holdWays {
		err := rule.install(way)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("make table inet %s: %w", holdTable, err)
		}
		errs = append(errs, err)
	}
	return &UnsupportedError{"a way to queue packets by nf_tables",
		"load the module nft_queue, or xt_NFQUEUE and nft_compat, or set sync.mode to async", errors.Join(errs...)}
}

func (h HoldRule) install(way holdWay) error {
	return editTables(holdTable, func(conn *nftables.Conn, there []*nftables.Table) {
		for _, table := range there {
			conn.DelTable(table)
		}
		for _, family := range way.families {
			table := conn.AddTable(&nftables.Table{Name: holdTable, Family: family})
			for _, chain := range h.chains(way) {
				hooked := conn.AddChain(&nftables.Chain{
					Name: chain.name, Table: table, Type: nftables.ChainTypeFilter,
					Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(chain.priority),
				})
				addRule(conn, hooked, chain.rule)
			}
		}
	})
}

// holdHook is a hooked chain with its only rule.
type holdHook struct {
	name     string
	priority nftables.ChainPriority
	rule     markRule
}

func (h HoldRule) chains(way holdWay) []holdHook {
	marked := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, bitwise32(h.Mark.Mask, 0),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native32(h.Mark.Value)},
	}
	what := fmt.Sprintf("mark %#x/%#x", h.Mark.Value, h.Mark.Mask)
	return []holdHook{
		{holdChain, holdPriority, markRule{
			fmt.Sprintf("%s: an answer waits in queue %d for the peer's word", what, h.Queue),
			append(slices.Clone(marked), way.queue(h.Queue)),
		}},
		{holdClear, holdClearPriority, markRule{what + ": taken off again", append(marked, writeMark(^h.Mark.Mask, 0)...)}},
	}
}

// RemoveHold removes the table. None there is no error.
func RemoveHold() error { return removeTables(holdTable) }

// HoldInstalled tells whether the table is there as InstallHold makes it.
func HoldInstalled(rule HoldRule) (bool, error) {
	conn, err := dialTables()
	if err != nil {
		return false, fmt.Errorf("read table inet %s: %w", holdTable, err)
	}
	defer func() { _ = conn.CloseLasting() }()
	for _, families := range [][]nftables.TableFamily{inetOnly, bothOfIP} {
		whole := true
		for _, family := range families {
			there, err := rule.hooked(conn, family)
			if err != nil {
				return false, fmt.Errorf("read table inet %s: %w", holdTable, err)
			}
			whole = whole && there
		}
		if whole {
			return true, nil
		}
	}
	return false, nil
}

// hooked tells whether both chains are there in a family, and nothing else in
// them.
func (h HoldRule) hooked(conn *nftables.Conn, family nftables.TableFamily) (bool, error) {
	chains, err := conn.ListChainsOfTableFamily(family)
	if err != nil {
		return false, err
	}
	comments := make(map[string][]string)
	err = ruleComments(family, holdTable, func(chain, comment string) { comments[chain] = append(comments[chain], comment) })
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, want := range h.chains(holdWays[0]) { // of a way the comments say nothing
		there := slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
			return c.Table.Name == holdTable && c.Name == want.name && c.Hooknum != nil &&
				*c.Hooknum == *nftables.ChainHookPrerouting && *c.Priority == want.priority
		})
		if !there || !slices.Equal(comments[want.name], []string{want.rule.comment}) {
			return false, nil
		}
	}
	return true, nil
}
