// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// A ruleset that leads to more than this is not followed to its end.
const (
	chainsDeep = 16   // jumps, as the kernel itself allows
	rulesMost  = 8192 // rules on all ways together
)

// readRuleset reads the source NAT rules and the flow tables of nf_tables.
func readRuleset() ([]policy.NATRule, []policy.Flowtable, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, nil, fmt.Errorf("open nf_tables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	chains, err := conn.ListChains()
	if err != nil {
		return nil, nil, fmt.Errorf("list chains: %w", err)
	}
	w := &natWalk{conn: conn, chains: make(map[chainKey]*nftables.Chain), sets: make(map[setKey]*ifaceSet)}
	for _, chain := range chains {
		w.chains[chainKeyOf(chain.Table, chain.Name)] = chain
	}
	for _, chain := range chains {
		if chain.Type != nftables.ChainTypeNAT || chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookPostrouting {
			continue
		}
		if err := w.chain(chain, way{families: familiesOf(chain.Table.Family)}); err != nil {
			return nil, nil, err
		}
	}
	tables, err := readFlowtables(conn)
	return w.found, tables, err
}

func readFlowtables(conn *nftables.Conn) ([]policy.Flowtable, error) {
	tables, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var found []policy.Flowtable
	for _, table := range tables {
		if familiesOf(table.Family) == (families{}) {
			continue
		}
		list, err := conn.ListFlowtables(table)
		if err != nil {
			return nil, fmt.Errorf("list flow tables of %s: %w", table.Name, err)
		}
		for _, flowtable := range list {
			found = append(found, policy.Flowtable{
				Table: tableName(table), Name: flowtable.Name, Devices: flowtable.Devices,
				Hardware: flowtable.Flags&nftables.FlowtableFlagsHWOffload != 0,
			})
		}
	}
	return found, nil
}

// families are those of packets that a rule sees.
type families struct{ v4, v6 bool }

func familiesOf(table nftables.TableFamily) families {
	switch table {
	case nftables.TableFamilyINet:
		return families{true, true}
	case nftables.TableFamilyIPv4:
		return families{v4: true}
	case nftables.TableFamilyIPv6:
		return families{v6: true}
	}
	return families{}
}

func tableName(table *nftables.Table) string {
	family := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
	}[table.Family]
	return fmt.Sprintf("table %s %s", family, table.Name)
}

type chainKey struct {
	family      nftables.TableFamily
	table, name string
}

func chainKeyOf(table *nftables.Table, name string) chainKey {
	return chainKey{table.Family, table.Name, name}
}

type setKey struct {
	chainKey // with the set's name
}

// ifaceSet is a set or map, as far as it is understood.
type ifaceSet struct {
	elements []nftables.SetElement
	plain    bool // no intervals
}

// way is what holds on the way to a rule.
type way struct {
	families
	out  []policy.OutMatch
	deep int
}

// natWalk follows the chains from the hook to the rules that translate.
type natWalk struct {
	conn   *nftables.Conn
	chains map[chainKey]*nftables.Chain
	sets   map[setKey]*ifaceSet
	walked int
	found  []policy.NATRule
}

func (w *natWalk) chain(chain *nftables.Chain, at way) error {
	if at.deep++; at.deep > chainsDeep {
		return nil
	}
	rules, err := w.conn.GetRules(chain.Table, chain)
	if err != nil {
		return fmt.Errorf("list rules of chain %s in %s: %w", chain.Name, tableName(chain.Table), err)
	}
	for _, rule := range rules {
		if w.walked++; w.walked > rulesMost {
			return fmt.Errorf("follow the chains: more than %d rules on the ways through them", rulesMost)
		}
		r := ruleWalk{natWalk: w, chain: chain, rule: rule, way: at, registers: make(map[uint32]register)}
		r.out = slices.Clone(at.out)
		if err := r.walk(); err != nil {
			return err
		}
	}
	return nil
}

// register is what an nf_tables register holds, as far as it matters here.
type register struct {
	what metaKind
	data []byte // of an immediate
}

type metaKind uint8

const (
	somethingElse metaKind = iota
	outName
	outIndex
	family
	immediate
)

// ruleWalk goes through one rule.
type ruleWalk struct {
	*natWalk
	way
	chain     *nftables.Chain
	rule      *nftables.Rule
	registers map[uint32]register
}

func (r *ruleWalk) walk() error {
	for _, e := range r.rule.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			if !e.SourceRegister {
				r.registers[e.Register] = register{what: metaKindOf(e.Key)}
			}
		case *expr.Immediate:
			r.registers[e.Register] = register{what: immediate, data: e.Data}
		case *expr.Payload:
			delete(r.registers, e.DestRegister)
		case *expr.Bitwise:
			delete(r.registers, e.DestRegister)
		case *expr.Ct:
			delete(r.registers, e.Register)
		case *expr.Cmp:
			r.compare(e)
		case *expr.Lookup:
			if err := r.lookup(e); err != nil {
				return err
			}
		case *expr.Verdict:
			if err := r.jump(e, r.way); err != nil {
				return err
			}
		case *expr.Masq:
			r.translates(policy.NATRule{Masquerade: true})
		case *expr.NAT:
			if e.Type == expr.NATTypeSourceNAT {
				r.translates(r.fixed(e))
			}
		case *expr.Target:
			r.target(e)
		}
	}
	return nil
}

func metaKindOf(key expr.MetaKey) metaKind {
	switch key {
	case expr.MetaKeyOIFNAME:
		return outName
	case expr.MetaKeyOIF:
		return outIndex
	case expr.MetaKeyNFPROTO:
		return family
	}
	return somethingElse
}

// compare notes a condition that is understood.
func (r *ruleWalk) compare(e *expr.Cmp) {
	if e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq {
		return
	}
	not := e.Op == expr.CmpOpNeq
	switch r.registers[e.Register].what {
	case outName:
		r.out = append(r.out, policy.OutMatch{Names: []string{nameOf(e.Data)}, Not: not})
	case outIndex:
		if index, ok := indexOf(e.Data); ok {
			r.out = append(r.out, policy.OutMatch{Indexes: []int{index}, Not: not})
		}
	case family:
		if len(e.Data) == 1 {
			is4, is6 := e.Data[0] == unix.NFPROTO_IPV4, e.Data[0] == unix.NFPROTO_IPV6
			r.v4, r.v6 = r.v4 && is4 != not, r.v6 && is6 != not
		}
	}
}

// nameOf reads what an interface's name is compared with. It is ended by a
// zero, or is only the beginning of a name.
func nameOf(data []byte) string {
	data = data[:min(len(data), unix.IFNAMSIZ)]
	name, _, whole := bytes.Cut(data, []byte{0})
	if whole || len(data) >= unix.IFNAMSIZ {
		return string(name)
	}
	return string(name) + "*"
}

// indexOf reads an index; of a concatenation it is the first part, as the name
// is: a look-up's register is where the key begins.
func indexOf(data []byte) (int, bool) {
	if len(data) < 4 {
		return 0, false
	}
	return int(binary.NativeEndian.Uint32(data)), true
}

// lookup is a set, or a map of verdicts.
func (r *ruleWalk) lookup(e *expr.Lookup) error {
	set, err := r.set(e.SetName)
	if err != nil {
		return err
	}
	what := r.registers[e.SourceRegister].what
	known := set.plain && (what == outName || what == outIndex)
	if !e.IsDestRegSet {
		if known {
			var match policy.OutMatch
			for _, element := range set.elements {
				addKey(&match, what, element.Key)
			}
			match.Not = e.Invert
			r.out = append(r.out, match)
		}
		return nil
	}
	delete(r.registers, e.DestRegister)
	if e.DestRegister != unix.NFT_REG_VERDICT {
		return nil
	}
	for _, element := range set.elements {
		at := r.way
		if known {
			var match policy.OutMatch
			addKey(&match, what, element.Key)
			at.out = append(slices.Clone(at.out), match)
		}
		if err := r.jump(verdictOf(element), at); err != nil {
			return err
		}
	}
	return nil
}

// verdictOf reads the verdict that a map holds: the library leaves it as the
// attributes that the kernel sent.
func verdictOf(element nftables.SetElement) *expr.Verdict {
	verdict := &expr.Verdict{Kind: expr.VerdictContinue}
	attributes, err := mdnetlink.NewAttributeDecoder(element.Val)
	if err != nil {
		return verdict
	}
	attributes.ByteOrder = binary.BigEndian
	for attributes.Next() {
		switch attributes.Type() {
		case unix.NFTA_VERDICT_CODE:
			verdict.Kind = expr.VerdictKind(int32(attributes.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			verdict.Chain = attributes.String()
		}
	}
	return verdict
}

func addKey(match *policy.OutMatch, what metaKind, key []byte) {
	if what == outName {
		match.Names = append(match.Names, nameOf(key))
	} else if index, ok := indexOf(key); ok {
		match.Indexes = append(match.Indexes, index)
	}
}

func (w *natWalk) readSet(table *nftables.Table, name string) (*ifaceSet, error) {
	set, err := w.conn.GetSetByName(table, name)
	if err != nil {
		return nil, fmt.Errorf("read set %s in %s: %w", name, tableName(table), err)
	}
	elements, err := w.conn.GetSetElements(set)
	if err != nil {
		return nil, fmt.Errorf("read elements of set %s in %s: %w", name, tableName(table), err)
	}
	return &ifaceSet{elements: elements, plain: !set.Interval}, nil
}

func (r *ruleWalk) set(name string) (*ifaceSet, error) {
	key := setKey{chainKeyOf(r.chain.Table, name)}
	if set := r.sets[key]; set != nil {
		return set, nil
	}
	set, err := r.readSet(r.chain.Table, name)
	if err == nil {
		r.sets[key] = set
	}
	return set, err
}

func (r *ruleWalk) jump(verdict *expr.Verdict, at way) error {
	if verdict.Kind != expr.VerdictJump && verdict.Kind != expr.VerdictGoto {
		return nil
	}
	chain := r.chains[chainKeyOf(r.chain.Table, verdict.Chain)]
	if chain == nil {
		return nil // made after the list of chains
	}
	return r.natWalk.chain(chain, at)
}

// fixed finds the addresses that a snat statement was given.
func (r *ruleWalk) fixed(e *expr.NAT) (rule policy.NATRule) {
	from, to := r.registers[e.RegAddrMin], r.registers[e.RegAddrMax]
	if e.RegAddrMin == 0 || from.what != immediate {
		return rule
	}
	rule.From, _ = netip.AddrFromSlice(from.data)
	rule.To = rule.From
	if e.RegAddrMax != 0 && to.what == immediate {
		rule.To, _ = netip.AddrFromSlice(to.data)
	}
	return rule
}

// target is an extension of iptables-nft.
func (r *ruleWalk) target(e *expr.Target) {
	switch e.Name {
	case "MASQUERADE":
		r.translates(policy.NATRule{Masquerade: true})
	case "SNAT":
		r.translates(xtFixed(e))
	}
}

// xtFixed reads struct nf_nat_ipv4_multi_range_compat of revision 0, and of the
// later ones struct nf_nat_range: flags, then both addresses in 16 octets each.
func xtFixed(e *expr.Target) (rule policy.NATRule) {
	switch info := e.Info.(type) {
	case *xt.NatIPv4MultiRangeCompat:
		if e.Rev == 0 && len(*info) == 1 {
			rule.From, _ = netip.AddrFromSlice((*info)[0].MinIP.To4())
			rule.To, _ = netip.AddrFromSlice((*info)[0].MaxIP.To4())
		}
	case *xt.Unknown:
		if raw := []byte(*info); e.Rev >= 1 && len(raw) >= 36 {
			rule.From, _ = netip.AddrFromSlice(raw[4:20])
			rule.To, _ = netip.AddrFromSlice(raw[20:36])
		}
	}
	return rule
}

func (r *ruleWalk) translates(rule policy.NATRule) {
	rule.Where = fmt.Sprintf("%s, chain %s, handle %d", tableName(r.chain.Table), r.chain.Name, r.rule.Handle)
	rule.IPv4, rule.IPv6, rule.Out = r.v4, r.v6, r.out
	r.found = append(r.found, rule)
}
