// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/policy"
)

// way is what a case's router does with packets.
type way struct {
	redirect bool // XDP, past the kernel's stack
	empty    bool // tcx programs that do nothing
	rules    nat
	pin      pinMode
	leaves   bpf.GeneratorSeen // whose address packets must have outside
}

type nat int

const (
	noRules nat = iota
	trackOnly
	masquerade
	snat
)

type pinMode int

const (
	noPin pinMode = iota
	pinOn
	pinOff
)

var ways = map[policy.BenchCase]way{
	policy.BenchRedirect:   {redirect: true, leaves: bpf.GeneratorSeenSEEN_CLIENT},
	policy.BenchForward:    {leaves: bpf.GeneratorSeenSEEN_CLIENT},
	policy.BenchConntrack:  {rules: trackOnly, leaves: bpf.GeneratorSeenSEEN_CLIENT},
	policy.BenchMasquerade: {rules: masquerade, leaves: bpf.GeneratorSeenSEEN_UNIQUE},
	policy.BenchSNAT:       {rules: snat, leaves: bpf.GeneratorSeenSEEN_VIP},
	policy.BenchEmpty:      {rules: masquerade, empty: true, leaves: bpf.GeneratorSeenSEEN_UNIQUE},
	policy.BenchPinned:     {rules: masquerade, pin: pinOn, leaves: bpf.GeneratorSeenSEEN_VIP},
	policy.BenchOff:        {rules: masquerade, pin: pinOff, leaves: bpf.GeneratorSeenSEEN_UNIQUE},
}

// addRules writes the router's nftables rules.
func (b *bed) addRules() error {
	if b.way.rules == noRules {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	family := nftables.TableFamilyIPv4
	if b.family == ipv6 {
		family = nftables.TableFamilyIPv6
	}
	table := conn.AddTable(&nftables.Table{Name: "bench", Family: family})
	if b.way.rules == trackOnly {
		chain := conn.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: dropInvalid()})
	} else {
		chain := conn.AddChain(&nftables.Chain{
			Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: b.translate()})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write the nftables rules: %w", err)
	}
	// Flows without an answer must outlive a round.
	for _, file := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
		if err := writeSysctl("net/netfilter/"+file, "3600"); err != nil {
			return err
		}
	}
	return nil
}

// dropInvalid is "ct state invalid drop".
func dropInvalid() []expr.Any {
	const invalid = 1 // NF_CT_STATE_INVALID_BIT
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{invalid, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// translate is "oifname wan0 masquerade", or "… snat to VIP".
func (b *bed) translate() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, wanName)
	rule := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
	}
	if b.way.rules == masquerade {
		return append(rule, &expr.Masq{})
	}
	family := uint32(unix.NFPROTO_IPV4)
	if b.family == ipv6 {
		family = unix.NFPROTO_IPV6
	}
	return append(rule,
		&expr.Immediate{Register: 1, Data: b.vip.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: 1})
}
