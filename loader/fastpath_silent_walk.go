// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// firewallFindings name rules that packets of established connections get to, on their
// way through the router; "": there is none.
type firewallFindings struct {
	silent string // may treat two of them differently although no event came between them
	meters string // does so, since it goes by how many packets it sees
	queues string // hands them to a program
}

// look finds what packets meet that come in and leave by these interfaces.
func (w *firewall) look(devices *firewallDevices) (found firewallFindings) {
	for _, tracked := range []bool{true, false} {
		walk := firewallWalk{firewall: w, devices: devices, tracked: tracked, ends: make(map[*firewallChain]bool), found: &found}
		for _, chain := range w.order {
			if chain.forwards() && chain.tracked() == tracked {
				walk.chain(chain)
			}
		}
	}
	return found
}

// forwards tells whether forwarded packets of established connections meet a base
// chain. Those of type nat see the first packet alone. Tables of our own do not
// change what becomes of connections that may be learnt.
func (c *firewallChain) forwards() bool {
	switch c.table {
	case marksTable, holdTable, quietTable:
		return false
	}
	if c.hook < 0 || c.kind == string(nftables.ChainTypeNAT) {
		return false
	}
	return c.family == nftables.TableFamilyNetdev ||
		uint32(c.hook) != uint32(*nftables.ChainHookInput) && uint32(c.hook) != uint32(*nftables.ChainHookOutput)
}

// Of include/uapi/linux/netfilter_ipv4.h and netfilter.h.
const (
	priorityConntrack = -200
	inetIngress       = 5
)

// tracked tells whether conntrack has seen a packet that comes to a base chain: before
// that, its ct state is none.
func (c *firewallChain) tracked() bool {
	switch c.family {
	case nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6:
		return c.hook != inetIngress && (uint32(c.hook) != uint32(*nftables.ChainHookPrerouting) || c.priority > priorityConntrack)
	}
	return false
}

// firewallWalk follows a packet whose ct state is established.
type firewallWalk struct {
	*firewall
	devices *firewallDevices // that it comes in and leaves by; nil: any
	tracked bool
	ends    map[*firewallChain]bool // by chain that was walked: no such packet returns
	found   *firewallFindings
}

// NF_DROP, NF_ACCEPT, NF_QUEUE and NF_VERDICT_MASK, include/uapi/linux/netfilter.h.
const (
	nfDrop    = 0
	nfAccept  = 1
	nfQueue   = 3
	nfVerdict = 0xff
)

// established is that state in a register, NF_CT_STATE_BIT(IP_CT_ESTABLISHED).
const established uint32 = 1 << 1

// chain tells whether all such packets end in a chain.
func (w *firewallWalk) chain(chain *firewallChain) (ends bool) {
	if ends, walked := w.ends[chain]; walked {
		return ends
	}
	w.ends[chain] = false
	for _, rule := range chain.rules {
		r := firewallRule{firewallWalk: w, at: chain, all: true, known: make(map[uint32]firewallRegister)}
		if fate := r.walk(rule); fate != goesOn {
			w.ends[chain] = fate == isOver
			break
		}
	}
	return w.ends[chain]
}

// ruleFate is where packets are after a rule, those that match it or not.
type ruleFate uint8

const (
	goesOn  ruleFate = iota // some at the next rule
	returns                 // all have left the chain
	isOver                  // all have their verdict
)

// firewallRule is a rule on the walk.
type firewallRule struct {
	*firewallWalk
	at    *firewallChain
	all   bool                        // every packet gets to this expression
	known map[uint32]firewallRegister // by slot
}

// firewallRegister is what is known of what a register holds: its value, or that it is
// one of these, which are of interfaces.
type firewallRegister struct {
	value []byte
	among []string
}

// areKeys tells whether a register holds all of a set's key, and it is of an interface.
func (h firewallRegister) areKeys(set *firewallSet) bool {
	return len(h.among) > 0 && len(h.among[0]) == int(set.keyLen)
}

func (r *firewallRule) walk(rule []firewallExpr) ruleFate {
	for i := range rule {
		e := &rule[i]
		fate, matches := r.expr(e)
		if !matches || fate != goesOn {
			return fate
		}
	}
	return goesOn
}

// stateless are expressions whose outcome is that of the packet, of what conntrack
// has of it, and of what changes with an event.
var stateless = map[string]bool{
	"bitwise": true, "byteorder": true, "cmp": true, "exthdr": true, "fib": true, "flow_offload": true, "hash": true, "masq": true,
	"nat": true, "payload": true, "range": true, "redir": true, "rt": true, "xfrm": true,
}

// expr goes through one expression. matches is false when no packet gets further in
// this rule.
func (r *firewallRule) expr(e *firewallExpr) (fate ruleFate, matches bool) {
	switch e.name {
	case "counter", "log", "notrack":
		return goesOn, true
	case "reject":
		return r.verdict(firewallVerdict{code: nfDrop}), true
	case "immediate":
		if register, _ := e.uint32(unix.NFTA_IMMEDIATE_DREG); register == unix.NFT_REG_VERDICT {
			data, _ := e.bytes(unix.NFTA_IMMEDIATE_DATA)
			_, verdict := readData(data)
			return r.verdict(verdict), true
		}
		clear(r.known)
		return goesOn, true
	case "queue":
		return r.queue("queue"), true
	case "match":
		return goesOn, r.match(e)
	case "target":
		return r.target(e), true
	case "ct":
		return goesOn, r.ct(e)
	case "meta":
		r.meta(e)
		return goesOn, true
	case "cmp":
		return goesOn, r.compare(e)
	case "bitwise":
		r.mask(e)
		return goesOn, true
	case "lookup":
		return r.lookup(e)
	case "objref":
		r.object(e)
		return goesOn, true
	}
	if !stateless[e.name] {
		r.suspect(e)
	}
	r.all = false
	clear(r.known)
	return goesOn, true
}

// suspect notes an expression that is not stateless, or not known to be.
func (r *firewallRule) suspect(e *firewallExpr) {
	const dynsetExpr, dynsetExpressions = 7, 10 // NFTA_DYNSET_*
	switch e.name {
	case "limit", "quota":
		r.meter(e.name)
	case "dynset":
		const what = "a set that packets fill"
		_, one := e.bytes(dynsetExpr)
		_, several := e.bytes(dynsetExpressions)
		if one || several {
			r.meter(what)
			return
		}
		r.silent(what)
	default:
		r.silent(e.name)
	}
}

func (r *firewallRule) silent(what string) { r.note(&r.found.silent, what) }

func (r *firewallRule) meter(what string) {
	r.silent(what)
	r.note(&r.found.meters, what)
}

// queue is a verdict: packets go on at the next chain when the program lets them.
// Those of bridges do not take the fast path.
func (r *firewallRule) queue(what string) ruleFate {
	r.silent(what)
	if r.at.family != nftables.TableFamilyBridge {
		r.note(&r.found.queues, what)
	}
	return r.leaves(isOver)
}

// leaves is where packets are that get to this expression, and those that do not.
func (r *firewallRule) leaves(fate ruleFate) ruleFate {
	if r.all {
		return fate
	}
	return goesOn
}

func (r *firewallRule) note(finding *string, what string) {
	if *finding == "" {
		*finding = fmt.Sprintf("nft rule with %s in %s %s %s", what, familyWord(r.at.family), r.at.table, r.at.name)
	}
}

func familyWord(family nftables.TableFamily) string {
	return map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge",
	}[family]
}

// ct loads what conntrack has, or changes it. What others change there, or packets
// do, comes without an event.
func (r *firewallRule) ct(e *firewallExpr) (matches bool) {
	const dreg, key, sreg = 1, 2, 4 // NFTA_CT_*
	if _, sets := e.bytes(sreg); sets {
		return true
	}
	register, _ := e.uint32(dreg)
	what, _ := e.uint32(key)
	delete(r.known, slot(register))
	switch what {
	case unix.NFT_CT_STATE:
		if r.tracked {
			r.known[slot(register)] = firewallRegister{value: native32(established)}
			return true
		}
	case unix.NFT_CT_DIRECTION, unix.NFT_CT_STATUS, unix.NFT_CT_HELPER, unix.NFT_CT_L3PROTOCOL, unix.NFT_CT_SRC, unix.NFT_CT_DST,
		unix.NFT_CT_PROTOCOL, unix.NFT_CT_PROTO_SRC, unix.NFT_CT_PROTO_DST, unix.NFT_CT_ZONE, unix.NFT_CT_ID,
		unix.NFT_CT_SRC_IP, unix.NFT_CT_DST_IP, unix.NFT_CT_SRC_IP6, unix.NFT_CT_DST_IP6:
	default:
		r.silent(ctWords(what))
	}
	r.all = false
	return true
}

func ctWords(key uint32) string {
	name := map[uint32]string{
		unix.NFT_CT_MARK: "mark", unix.NFT_CT_LABELS: "label", unix.NFT_CT_BYTES: "bytes", unix.NFT_CT_PKTS: "packets",
		unix.NFT_CT_AVGPKT: "avgpkt", unix.NFT_CT_EXPIRATION: "expiration",
	}[key]
	if name == "" {
		name = fmt.Sprintf("key %d", key)
	}
	return "ct " + name
}

// Of enum nft_meta_keys, where package unix does not have them.
const (
	metaSecpath = 25
	metaPVID    = 28
	metaVProto  = 29
	metaTimeNS  = 30
	metaTimeDay = 31
	metaHour    = 32
	metaSDIF    = 33
	metaSDName  = 34
	metaIIFKind = 26
	metaOIFKind = 27
)

// meta loads what is known of the packet without looking into it, or changes it.
func (r *firewallRule) meta(e *firewallExpr) {
	const dreg, key, sreg = 1, 2, 3 // NFTA_META_*
	if _, sets := e.bytes(sreg); sets {
		return
	}
	register, _ := e.uint32(dreg)
	what, _ := e.uint32(key)
	delete(r.known, slot(register))
	r.all = false
	switch what {
	case unix.NFT_META_IIF, unix.NFT_META_OIF:
		if r.devices != nil {
			r.known[slot(register)] = firewallRegister{among: r.devices.numbers}
		}
	case unix.NFT_META_IIFNAME, unix.NFT_META_OIFNAME:
		if r.devices != nil {
			r.known[slot(register)] = firewallRegister{among: r.devices.names}
		}
	case unix.NFT_META_LEN, unix.NFT_META_PROTOCOL, unix.NFT_META_PRIORITY, unix.NFT_META_MARK, unix.NFT_META_IIFTYPE, unix.NFT_META_OIFTYPE, unix.NFT_META_NFTRACE,
		unix.NFT_META_RTCLASSID, unix.NFT_META_NFPROTO, unix.NFT_META_L4PROTO, unix.NFT_META_BRI_IIFNAME, unix.NFT_META_BRI_OIFNAME,
		unix.NFT_META_PKTTYPE, unix.NFT_META_IIFGROUP, unix.NFT_META_OIFGROUP,
		metaSecpath, metaIIFKind, metaOIFKind, metaPVID, metaVProto, metaSDIF, metaSDName:
	case metaTimeNS, metaTimeDay, metaHour:
		r.silent("meta time")
	case unix.NFT_META_PRANDOM:
		r.silent("meta random")
	case unix.NFT_META_CPU:
		r.silent("meta cpu")
	default:
		r.silent(fmt.Sprintf("meta key %d", what))
	}
}

// mask works on a register that is known.
func (r *firewallRule) mask(e *firewallExpr) {
	from, _ := e.uint32(unix.NFTA_BITWISE_SREG)
	to, _ := e.uint32(unix.NFTA_BITWISE_DREG)
	mask, hasMask := e.data4(unix.NFTA_BITWISE_MASK)
	xor, hasXor := e.data4(unix.NFTA_BITWISE_XOR)
	value := r.known[slot(from)].value
	delete(r.known, slot(to))
	if len(value) != 4 || !hasMask || !hasXor {
		r.all = false
		return
	}
	result := make([]byte, 4)
	for i := range result {
		result[i] = value[i]&mask[i] ^ xor[i]
	}
	r.known[slot(to)] = firewallRegister{value: result}
}

// data4 is a value of 4 octets among the attributes.
func (e *firewallExpr) data4(kind uint16) ([]byte, bool) {
	data, _ := e.bytes(kind)
	value, _ := readData(data)
	return value, len(value) == 4
}

// compare tells whether any packet goes on.
func (r *firewallRule) compare(e *firewallExpr) (matches bool) {
	register, _ := e.uint32(unix.NFTA_CMP_SREG)
	op, _ := e.uint32(unix.NFTA_CMP_OP)
	data, _ := e.bytes(unix.NFTA_CMP_DATA)
	with, _ := readData(data)
	holds := r.known[slot(register)]
	if len(holds.value) > 0 && len(holds.value) == len(with) {
		switch op {
		case unix.NFT_CMP_EQ:
			return bytes.Equal(holds.value, with)
		case unix.NFT_CMP_NEQ:
			return !bytes.Equal(holds.value, with)
		}
	}
	r.all = false
	return holds.among == nil || op != unix.NFT_CMP_EQ || isAmong(with, holds.among)
}

// lookup is in a set, or in a map of verdicts or values.
func (r *firewallRule) lookup(e *firewallExpr) (fate ruleFate, matches bool) {
	name := e.text(unix.NFTA_LOOKUP_SET)
	set := r.sets[chainKey{r.at.family, r.at.table, name}]
	from, _ := e.uint32(unix.NFTA_LOOKUP_SREG)
	to, maps := e.uint32(unix.NFTA_LOOKUP_DREG)
	flags, _ := e.uint32(unix.NFTA_LOOKUP_FLAGS)
	inverted := flags&1 != 0 // NFT_LOOKUP_F_INV
	holds := r.known[slot(from)]
	if maps && to != unix.NFT_REG_VERDICT {
		delete(r.known, slot(to))
	}
	if set == nil || set.changes() {
		r.silent("set " + name + ", whose elements come and go,")
	} else if set.judges {
		r.meter("set " + name + ", whose elements have a state,")
	}
	switch {
	case set == nil:
		r.all = false
		return goesOn, true
	case len(holds.value) > 0 && len(holds.value) == int(set.keyLen) && set.exact():
		return r.find(set, holds.value, maps && to == unix.NFT_REG_VERDICT, inverted)
	}
	r.all = false
	every := inverted || !set.exact() || !holds.areKeys(set)
	for _, element := range set.elements {
		if every || isAmong(element.key, holds.among) {
			matches = true
			r.verdict(element.verdict)
		}
	}
	return goesOn, every || matches
}

// find looks a value up that every packet has.
func (r *firewallRule) find(set *firewallSet, value []byte, verdicts, inverted bool) (fate ruleFate, matches bool) {
	for _, element := range set.elements {
		if bytes.Equal(element.key, value) {
			if verdicts {
				return r.verdict(element.verdict), true
			}
			return goesOn, !inverted
		}
	}
	return goesOn, inverted
}

// object is a reference to a named object. Those that a counter, or a helper for the
// connections that begin, are named by change nothing.
func (r *firewallRule) object(e *firewallExpr) {
	kind, fixed := e.uint32(unix.NFTA_OBJREF_IMM_TYPE)
	name := map[uint32]string{
		unix.NFT_OBJECT_QUOTA: "quota", unix.NFT_OBJECT_LIMIT: "limit", unix.NFT_OBJECT_CONNLIMIT: "connlimit",
		unix.NFT_OBJECT_SYNPROXY: "synproxy",
	}[kind]
	switch {
	case !fixed:
		clear(r.known)
		r.silent("a map of objects")
	case kind == unix.NFT_OBJECT_COUNTER, kind == unix.NFT_OBJECT_CT_HELPER, kind == unix.NFT_OBJECT_CT_TIMEOUT, kind == unix.NFT_OBJECT_SECMARK:
	case kind == unix.NFT_OBJECT_QUOTA, kind == unix.NFT_OBJECT_LIMIT:
		r.meter(name + " " + e.text(unix.NFTA_OBJREF_IMM_NAME))
	case name != "":
		r.silent(name + " " + e.text(unix.NFTA_OBJREF_IMM_NAME))
	default:
		r.silent(fmt.Sprintf("object of type %d", kind))
	}
	r.all = false
}

// verdict follows a verdict. Packets that do not get to it go on.
func (r *firewallRule) verdict(v firewallVerdict) ruleFate {
	switch v.code {
	case unix.NFT_CONTINUE, unix.NFT_BREAK:
		return goesOn
	case unix.NFT_RETURN:
		return r.leaves(returns)
	case unix.NFT_JUMP, unix.NFT_GOTO:
		chain := r.chains[chainKey{r.at.family, r.at.table, v.chain}]
		switch {
		case chain == nil:
			r.silent("a jump to a chain that is not known")
			return goesOn
		case r.chain(chain):
			return r.leaves(isOver)
		case v.code == unix.NFT_GOTO:
			return r.leaves(returns)
		}
		return goesOn
	}
	switch v.code & nfVerdict {
	case nfAccept, nfDrop:
		return r.leaves(isOver)
	case nfQueue:
		return r.queue("a queue as its verdict")
	}
	r.silent("a verdict of somebody else")
	return goesOn
}
