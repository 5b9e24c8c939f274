// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The table of ours. All that nf_tables is asked here is in the network namespace
// of the calling thread.
const (
	marksTable      = "vippin"      // of family inet
	marksChain      = "postrouting" // the hook
	marksConntrack  = "conntrack"   // what conntrack knows, the same for every interface
	marksInterfaces = "interfaces"  // map: outgoing interface to its chain
	marksPriority   = 101           // the first after source NAT (NF_IP_PRI_NAT_SRC)

	marksBuffer = 8 << 20 // of the socket: each rule is answered twice
)

// conntrack's IPS_* status bits, include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	statusExpected  uint32 = 0x1
	statusSeenReply uint32 = 0x2
	statusConfirmed uint32 = 0x8
	statusSrcNAT    uint32 = 0x10
	statusHelper    uint32 = 0x2000
)

// markTable is the whole table as it is to be.
type markTable struct {
	chains     []markChain       // the first one is hooked
	interfaces map[uint32]string // outgoing interface to chain
}

type markChain struct {
	name  string
	rules []markRule
}

// markRule is one rule. Its comment says in nft's listing what it is for, and
// tells when the table is read whether it is the same one.
type markRule struct {
	comment string
	exprs   []expr.Any
}

func interfaceChain(ifindex uint32) string { return fmt.Sprintf("interface-%d", ifindex) }

func newMarkTable(list []markedInterface) markTable {
	table := markTable{interfaces: make(map[uint32]string)}
	table.chains = []markChain{{name: marksChain}, {marksConntrack, conntrackRules()}}
	for _, iface := range list {
		name := interfaceChain(iface.ifindex)
		for _, ifindex := range append([]uint32{iface.ifindex}, iface.uppers...) {
			table.interfaces[ifindex] = name
		}
		table.chains = append(table.chains, markChain{name, iface.rules()})
	}
	lookup := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIF, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: marksInterfaces, IsDestRegSet: true},
	}
	table.chains[0].rules = []markRule{{"vippin " + table.fingerprint(), lookup}}
	return table
}

// conntrackRules tell what conntrack knows of the packet. An upper octet that
// somebody else left there must not be taken for ours.
func conntrackRules() []markRule {
	flag := func(comment string, match []expr.Any, bit uint32) markRule {
		return markRule{comment, append(match, writeMark(^bit, bit)...)}
	}
	return []markRule{
		{"not ours", append(markIs(markValid, expr.CmpOpNeq), writeMark(^markMask, 0)...)},
		{"source NAT, the flow's own direction", slices.Concat(
			[]expr.Any{
				&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}},
			},
			statusIs(statusSrcNAT, expr.CmpOpNeq), writeMark(^markMask, markValid))},
		{"nothing to tell", append(markIs(markValid, expr.CmpOpEq), &expr.Verdict{Kind: expr.VerdictReturn})},
		flag("the flow's first packet", statusIs(statusConfirmed, expr.CmpOpEq), markFresh),
		flag("the flow has been answered", statusIs(statusSeenReply, expr.CmpOpNeq), markReplied),
		flag("the flow has a helper, or is a helper's child", statusIs(statusHelper|statusExpected, expr.CmpOpNeq), markHelper),
	}
}

// rules tell which pin takes the inside host.
func (m *markedInterface) rules() []markRule {
	title := "interface " + m.name
	rules := []markRule{
		{title, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: marksConntrack}}},
		{"nothing to tell", append(markIs(markValid, expr.CmpOpEq), &expr.Verdict{Kind: expr.VerdictReturn})},
	}
	for _, source := range m.sources {
		rules = append(rules, markRule{
			fmt.Sprintf("source %v is number %d", source.prefix, source.number),
			slices.Concat(comesFrom(source.prefix), writeMark(^markSource, source.number<<markSourceShift),
				[]expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}),
		})
	}
	return rules
}

// comesFrom matches flows of inside hosts in a prefix.
func comesFrom(prefix netip.Prefix) []expr.Any {
	family, addr := byte(unix.NFPROTO_IPV6), prefix.Addr().AsSlice()
	if prefix.Addr().Is4() {
		family = unix.NFPROTO_IPV4
	}
	match := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}
	if prefix.Bits() == 0 {
		return match
	}
	match = append(match, &expr.Ct{Key: expr.CtKeySRC, Register: 1}) // direction 0: original
	if prefix.Bits() < 8*len(addr) {
		mask := make([]byte, len(addr))
		for bit := range prefix.Bits() {
			mask[bit/8] |= 0x80 >> (bit % 8)
		}
		match = append(match, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(addr)), Mask: mask, Xor: make([]byte, len(addr))})
	}
	return append(match, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr})
}

// native32 is a number of the host's in a register.
func native32(value uint32) []byte { return binaryutil.NativeEndian.PutUint32(value) }

func bitwise32(mask, xor uint32) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(mask), Xor: native32(xor)}
}

// markIs compares some bits of the mark with zero.
func markIs(bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, bitwise32(bits, 0),
		&expr.Cmp{Op: op, Register: 1, Data: native32(0)},
	}
}

// statusIs compares some bits of the conntrack entry's status with zero. A packet
// without an entry does not match.
func statusIs(bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, bitwise32(bits, 0),
		&expr.Cmp{Op: op, Register: 1, Data: native32(0)},
	}
}

// writeMark is mark = (mark & keep) ^ set.
func writeMark(keep, set uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, bitwise32(keep, set),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

// fingerprint tells one table from another, whatever their comments say. It
// comes before the hooked chain has its rule.
func (t *markTable) fingerprint() string {
	hash := sha256.New()
	for _, chain := range t.chains {
		fmt.Fprintln(hash, "chain", chain.name)
		for _, rule := range chain.rules {
			fmt.Fprintln(hash, "rule", rule.comment)
			for _, e := range rule.exprs {
				octets, err := expr.Marshal(unix.NFPROTO_INET, e)
				fmt.Fprintln(hash, octets, err)
			}
		}
	}
	fmt.Fprintln(hash, "interfaces", t.interfaces) // fmt sorts maps
	return fmt.Sprintf("%x", hash.Sum(nil)[:6])
}

// replace puts the table in the place of the one there, in one step.
func (t *markTable) replace() error {
	conn, err := dialTables()
	if err != nil {
		return fmt.Errorf("make table inet %s: %w", marksTable, err)
	}
	defer func() { _ = conn.CloseLasting() }()
	table := &nftables.Table{Name: marksTable, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // there must be one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	chains := make([]*nftables.Chain, len(t.chains))
	for i, chain := range t.chains {
		chains[i] = &nftables.Chain{Name: chain.name, Table: table}
		if i == 0 {
			accept := nftables.ChainPolicyAccept
			chains[i].Type, chains[i].Policy = nftables.ChainTypeFilter, &accept
			chains[i].Hooknum, chains[i].Priority = nftables.ChainHookPostrouting, nftables.ChainPriorityRef(marksPriority)
		}
		conn.AddChain(chains[i])
	}
	interfaces := &nftables.Set{
		Table: table, Name: marksInterfaces, IsMap: true, KeyType: nftables.TypeIFIndex, DataType: nftables.TypeVerdict,
		KeyByteOrder: binaryutil.NativeEndian,
	}
	var elements []nftables.SetElement
	for _, ifindex := range slices.Sorted(maps.Keys(t.interfaces)) {
		chain := t.interfaces[ifindex]
		elements = append(elements, nftables.SetElement{
			Key: native32(ifindex), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain},
		})
	}
	if err := conn.AddSet(interfaces, elements); err != nil {
		return fmt.Errorf("make table inet %s: %w", marksTable, err)
	}
	for i, chain := range t.chains {
		for _, rule := range chain.rules {
			addRule(conn, chains[i], rule)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make table inet %s (without BTF, vippin needs nf_tables with nft_ct, or what became of connections stays unknown): %w", marksTable, err)
	}
	return nil
}

// removeMarks removes the table. None there is no error.
func removeMarks() error {
	conn, err := dialTables()
	if err != nil {
		return fmt.Errorf("remove table inet %s: %w", marksTable, err)
	}
	defer func() { _ = conn.CloseLasting() }()
	table := &nftables.Table{Name: marksTable, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // there must be one to delete
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove table inet %s: %w", marksTable, err)
	}
	return nil
}

// heldTable is what the kernel has of the table.
type heldTable struct {
	comments   map[string][]string // of the rules, by chain
	interfaces map[uint32]bool
}

// readMarks reads the table in force; one that is not there is empty.
func readMarks() (heldTable, error) {
	held := heldTable{comments: make(map[string][]string), interfaces: make(map[uint32]bool)}
	conn, err := dialTables()
	if err != nil {
		return held, fmt.Errorf("read table inet %s: %w", marksTable, err)
	}
	defer func() { _ = conn.CloseLasting() }()
	err = held.read(conn)
	if errors.Is(err, unix.ENOENT) { // going just now
		return heldTable{}, nil
	}
	if err != nil {
		return held, fmt.Errorf("read table inet %s: %w", marksTable, err)
	}
	return held, nil
}

func (h *heldTable) read(conn *nftables.Conn) error {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: marksTable, Family: nftables.TableFamilyINet}
	for _, chain := range chains {
		if chain.Table.Name != marksTable {
			continue
		}
		hooked := chain.Hooknum != nil && *chain.Hooknum == *nftables.ChainHookPostrouting && *chain.Priority == marksPriority
		if hooked != (chain.Name == marksChain) {
			continue // not the chain we made
		}
		h.comments[chain.Name] = []string{}
	}
	if len(h.comments) == 0 {
		return nil
	}
	if err := h.readRules(); err != nil {
		return err
	}
	elements, err := conn.GetSetElements(&nftables.Set{Table: table, Name: marksInterfaces})
	if err != nil {
		return err
	}
	for _, element := range elements {
		if len(element.Key) == 4 {
			h.interfaces[binary.NativeEndian.Uint32(element.Key)] = true
		}
	}
	return nil
}

// is tells whether the kernel has just this table.
func (h *heldTable) is(t markTable) bool {
	if len(h.comments) != len(t.chains) || len(h.interfaces) != len(t.interfaces) {
		return false
	}
	for _, chain := range t.chains {
		comments, there := h.comments[chain.name]
		if !there || !slices.Equal(comments, commentsOf(chain.rules)) {
			return false
		}
	}
	for ifindex := range t.interfaces {
		if !h.interfaces[ifindex] {
			return false
		}
	}
	return true
}

// marks tells whether the packets of an interface are marked, be it with other
// numbers.
func (h *heldTable) marks(ifindex uint32) bool {
	hooked, own := h.comments[marksChain], h.comments[interfaceChain(ifindex)]
	return len(hooked) == 1 && strings.HasPrefix(hooked[0], "vippin ") && h.interfaces[ifindex] &&
		slices.Equal(h.comments[marksConntrack], commentsOf(conntrackRules())) &&
		len(own) >= 2 && strings.HasPrefix(own[0], "interface ") && own[1] == "nothing to tell"
}

func commentsOf(rules []markRule) []string {
	comments := make([]string, len(rules))
	for i, rule := range rules {
		comments[i] = rule.comment
	}
	return comments
}

// readRules reads the comments of the rules.
func (h *heldTable) readRules() error {
	return ruleComments(nftables.TableFamilyINet, marksTable, func(chain, comment string) {
		if _, there := h.comments[chain]; there {
			h.comments[chain] = append(h.comments[chain], comment)
		}
	})
}

// ruleComments hands on the comment of each rule of a table. It is not done by the
// library, which would decode what the rules say, and cannot decode all of it (a
// ct expression's direction is an octet).
func ruleComments(family nftables.TableFamily, table string, each func(chain, comment string)) error {
	request, err := mdnetlink.MarshalAttributes([]mdnetlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(table), 0)}})
	if err != nil {
		return err
	}
	return askTables(unix.NFT_MSG_GETRULE, mdnetlink.Dump, byte(family), request, func(attributes *mdnetlink.AttributeDecoder) {
		var of, chain, comment string
		for attributes.Next() {
			switch attributes.Type() {
			case unix.NFTA_RULE_TABLE:
				of = attributes.String()
			case unix.NFTA_RULE_CHAIN:
				chain = attributes.String()
			case unix.NFTA_RULE_USERDATA:
				comment, _ = userdata.GetString(attributes.Bytes(), userdata.TypeComment)
			}
		}
		if of == table {
			each(chain, comment)
		}
	})
}

// rulesetGeneration is a number that every change of nf_tables' rules changes.
func rulesetGeneration() (generation uint32, err error) {
	err = askTables(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC, nil, func(attributes *mdnetlink.AttributeDecoder) {
		for attributes.Next() {
			if attributes.Type() == unix.NFTA_GEN_ID {
				generation = attributes.Uint32()
			}
		}
	})
	return generation, err
}

// askTables sends nf_tables a request and hands the attributes of each answer to
// read.
func askTables(request uint16, flags mdnetlink.HeaderFlags, family byte, attributes []byte, read func(*mdnetlink.AttributeDecoder)) error {
	conn, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open nf_tables: %w", err)
	}
	defer func() { _ = conn.Close() }()
	answers, err := conn.Execute(mdnetlink.Message{
		Header: mdnetlink.Header{Type: mdnetlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | int(request)), Flags: mdnetlink.Request | flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attributes...), // struct nfgenmsg
	})
	if err != nil {
		return fmt.Errorf("ask nf_tables: %w", err)
	}
	for _, answer := range answers {
		if len(answer.Data) < 4 {
			continue // an acknowledgement
		}
		decoder, err := mdnetlink.NewAttributeDecoder(answer.Data[4:])
		if err != nil {
			return fmt.Errorf("read nf_tables' answer: %w", err)
		}
		decoder.ByteOrder = binary.BigEndian
		read(decoder)
		if err := decoder.Err(); err != nil {
			return fmt.Errorf("read nf_tables' answer: %w", err)
		}
	}
	return nil
}

// dialTables opens nf_tables.
func dialTables() (*nftables.Conn, error) {
	return nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(conn *mdnetlink.Conn) error {
		return errors.Join(conn.SetReadBuffer(marksBuffer), conn.SetWriteBuffer(marksBuffer))
	}))
}
