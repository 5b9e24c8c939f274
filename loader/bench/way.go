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
	xdp    xdpWay // past the kernel's stack
	empty  bool   // tcx programs that do nothing
	rules  nat
	pin    pinMode
	fast   bool
	leaves bpf.GeneratorSeen // whose address packets must have outside
}

// tags are what the case's frames carry outside: what never comes to the stack
// knows of no VLAN.
func (w way) tags(v policy.VLAN) tags {
	if w.xdp == xdpDrop || w.xdp == xdpRedirect {
		return tags{}
	}
	return tagsOf(v)
}

type xdpWay int

const (
	noXDP xdpWay = iota
	xdpDrop
	xdpRedirect
	xdpFib
)

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
	policy.BenchDrop:       {xdp: xdpDrop, leaves: bpf.GeneratorSeenSEEN_CLIENT},
	policy.BenchRedirect:   {xdp: xdpRedirect, leaves: bpf.GeneratorSeenSEEN_CLIENT},
	policy.BenchFib:        {xdp: xdpFib, leaves: bpf.GeneratorSeenSEEN_CLIENT},
	policy.BenchForward:    {leaves: bpf.GeneratorSeenSEEN_CLIENT},
	policy.BenchConntrack:  {rules: trackOnly, leaves: bpf.GeneratorSeenSEEN_CLIENT},
	policy.BenchMasquerade: {rules: masquerade, leaves: bpf.GeneratorSeenSEEN_UNIQUE},
	policy.BenchSNAT:       {rules: snat, leaves: bpf.GeneratorSeenSEEN_VIP},
	policy.BenchEmpty:      {rules: masquerade, empty: true, leaves: bpf.GeneratorSeenSEEN_UNIQUE},
	policy.BenchPinned:     {rules: masquerade, pin: pinOn, leaves: bpf.GeneratorSeenSEEN_VIP},
	policy.BenchOff:        {rules: masquerade, pin: pinOff, leaves: bpf.GeneratorSeenSEEN_UNIQUE},
	policy.BenchFast:       {rules: masquerade, pin: pinOn, fast: true, leaves: bpf.GeneratorSeenSEEN_VIP},
}

// The settings of a router that is to be fast and does nothing else: no socket is
// looked for, no source address is checked; nobody listens to conntrack, and it
// verifies no checksums, which a NIC has done.
var (
	leanForwarding = map[string]string{
		"ip_early_demux": "0", "conf/all/rp_filter": "0", "conf/" + lanName + "/rp_filter": "0", "conf/" + wanName + "/rp_filter": "0",
	}
	leanTracking = map[string]string{
		"events": "0", "acct": "0", "timestamp": "0", "checksum": "0",
		// Flows without an answer must outlive a round.
		"udp_timeout": "3600", "udp_timeout_stream": "3600",
	}
)

// flushFrom is how many flows make a router's end take long.
const flushFrom = 50_000

// addRules writes the router's settings and its nftables rules.
func (b *bed) addRules() error {
	for file, value := range leanForwarding {
		if err := writeSysctl("net/ipv4/"+file, value); err != nil {
			return err
		}
	}
	if b.way.rules == noRules {
		return nil
	}
	if b.flows > flushFrom {
		b.undo = append(b.undo, b.flush)
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
	for file, value := range leanTracking {
		if err := writeSysctl("net/netfilter/nf_conntrack_"+file, value); err != nil {
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

// translate is "oifname wan0 masquerade", or "… snat to VIP". Only the first
// packet of a flow comes here.
func (b *bed) translate() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, b.sides[outsideSide].name)
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
