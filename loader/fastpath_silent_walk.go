// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// silent names a rule that may treat two packets of an established connection
// differently although no event came between them; "": there is none. Only rules that
// such packets get to, on their way through the router, count.
func (w *firewall) silent() string {
	for _, tracked := range []bool{true, false} {
		walk := firewallWalk{firewall: w, tracked: tracked, ends: make(map[*firewallChain]bool)}
		for _, chain := range w.order {
			if chain.forwards() && chain.tracked() == tracked {
				walk.chain(chain)
			}
		}
		if walk.why != "" {
			return walk.why
		}
	}
	return ""
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
	tracked bool
	ends    map[*firewallChain]bool // by chain that was walked: no such packet returns
	why     string                  // found
}

// NF_DROP and NF_ACCEPT, include/uapi/linux/netfilter.h.
const (
	nfDrop   = 0
	nfAccept = 1
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
		r := firewallRule{firewallWalk: w, at: chain, all: true, known: make(map[uint32][]byte)}
		fate := r.walk(rule)
		if w.why != "" {
			return false
		}
		if fate != goesOn {
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
	all   bool              // every packet gets to this expression
	known map[uint32][]byte // what registers hold, by slot
}

func (r *firewallRule) walk(rule []firewallExpr) ruleFate {
	for i := range rule {
		e := &rule[i]
		fate, matches := r.expr(e)
		if r.why != "" || !matches || fate != goesOn {
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
		return goesOn, true
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
		r.found(exprWords(e))
	}
	r.all = false
	return goesOn, true
}

func (r *firewallRule) found(what string) {
	if r.why == "" {
		r.why = fmt.Sprintf("nft rule with %s in %s %s %s", what, familyWord(r.at.family), r.at.table, r.at.name)
	}
}

// exprWords name an expression that is not stateless, or not known to be.
func exprWords(e *firewallExpr) string {
	const name = 1 // NFTA_MATCH_NAME, NFTA_TARGET_NAME
	switch e.name {
	case "match", "target":
		return fmt.Sprintf("iptables %s %s", e.name, e.text(name))
	case "dynset":
		return "a set that packets fill"
	}
	return e.name
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
			r.known[slot(register)] = native32(established)
			return true
		}
	case unix.NFT_CT_DIRECTION, unix.NFT_CT_STATUS, unix.NFT_CT_HELPER, unix.NFT_CT_L3PROTOCOL, unix.NFT_CT_SRC, unix.NFT_CT_DST,
		unix.NFT_CT_PROTOCOL, unix.NFT_CT_PROTO_SRC, unix.NFT_CT_PROTO_DST, unix.NFT_CT_ZONE, unix.NFT_CT_ID,
		unix.NFT_CT_SRC_IP, unix.NFT_CT_DST_IP, unix.NFT_CT_SRC_IP6, unix.NFT_CT_DST_IP6:
	default:
		r.found(ctWords(what))
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
	case unix.NFT_META_LEN, unix.NFT_META_PROTOCOL, unix.NFT_META_PRIORITY, unix.NFT_META_MARK, unix.NFT_META_IIF, unix.NFT_META_OIF,
		unix.NFT_META_IIFNAME, unix.NFT_META_OIFNAME, unix.NFT_META_IIFTYPE, unix.NFT_META_OIFTYPE, unix.NFT_META_NFTRACE,
		unix.NFT_META_RTCLASSID, unix.NFT_META_NFPROTO, unix.NFT_META_L4PROTO, unix.NFT_META_BRI_IIFNAME, unix.NFT_META_BRI_OIFNAME,
		unix.NFT_META_PKTTYPE, unix.NFT_META_IIFGROUP, unix.NFT_META_OIFGROUP,
		metaSecpath, metaIIFKind, metaOIFKind, metaPVID, metaVProto, metaSDIF, metaSDName:
	case metaTimeNS, metaTimeDay, metaHour:
		r.found("meta time")
	case unix.NFT_META_PRANDOM:
		r.found("meta random")
	case unix.NFT_META_CPU:
		r.found("meta cpu")
	default:
		r.found(fmt.Sprintf("meta key %d", what))
	}
}

// mask works on a register that is known.
func (r *firewallRule) mask(e *firewallExpr) {
	from, _ := e.uint32(unix.NFTA_BITWISE_SREG)
	to, _ := e.uint32(unix.NFTA_BITWISE_DREG)
	mask, hasMask := e.data4(unix.NFTA_BITWISE_MASK)
	xor, hasXor := e.data4(unix.NFTA_BITWISE_XOR)
	value, known := r.known[slot(from)]
	delete(r.known, slot(to))
	if !known || !hasMask || !hasXor {
		r.all = false
		return
	}
	result := make([]byte, 4)
	for i := range result {
		result[i] = value[i]&mask[i] ^ xor[i]
	}
	r.known[slot(to)] = result
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
	data, ok := e.data4(unix.NFTA_CMP_DATA)
	value, known := r.known[slot(register)]
	if known && ok {
		switch op {
		case unix.NFT_CMP_EQ:
			return bytes.Equal(value, data)
		case unix.NFT_CMP_NEQ:
			return !bytes.Equal(value, data)
		}
	}
	r.all = false
	return true
}

// lookup is in a set, or in a map of verdicts or values.
func (r *firewallRule) lookup(e *firewallExpr) (fate ruleFate, matches bool) {
	name := e.text(unix.NFTA_LOOKUP_SET)
	set := r.sets[chainKey{r.at.family, r.at.table, name}]
	switch {
	case set == nil || set.flags&(unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL) != 0:
		r.found("set " + name + ", whose elements come and go,")
		return goesOn, true
	case set.judges:
		r.found("set " + name + ", whose elements have a state,")
		return goesOn, true
	}
	from, _ := e.uint32(unix.NFTA_LOOKUP_SREG)
	flags, _ := e.uint32(unix.NFTA_LOOKUP_FLAGS)
	inverted := flags&1 != 0 // NFT_LOOKUP_F_INV
	value, known := r.known[slot(from)]
	known = known && set.read && set.flags&unix.NFT_SET_INTERVAL == 0
	to, maps := e.uint32(unix.NFTA_LOOKUP_DREG)
	if maps && to != unix.NFT_REG_VERDICT {
		delete(r.known, slot(to))
	}
	if !known {
		r.all = false
		for _, element := range set.elements {
			r.verdict(element.verdict)
		}
		return goesOn, true
	}
	for _, element := range set.elements {
		if bytes.Equal(element.key, value) {
			if maps && to == unix.NFT_REG_VERDICT {
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
		r.found("a map of objects")
	case kind == unix.NFT_OBJECT_COUNTER, kind == unix.NFT_OBJECT_CT_HELPER, kind == unix.NFT_OBJECT_CT_TIMEOUT, kind == unix.NFT_OBJECT_SECMARK:
	case name != "":
		r.found(name + " " + e.text(unix.NFTA_OBJREF_IMM_NAME))
	default:
		r.found(fmt.Sprintf("object of type %d", kind))
	}
	r.all = false
}

// verdict follows a verdict. Packets that do not get to it go on.
func (r *firewallRule) verdict(v firewallVerdict) ruleFate {
	fate := goesOn
	switch v.code {
	case nfAccept, nfDrop:
		fate = isOver
	case unix.NFT_RETURN:
		fate = returns
	case unix.NFT_JUMP, unix.NFT_GOTO:
		chain := r.chains[chainKey{r.at.family, r.at.table, v.chain}]
		if chain == nil {
			r.found("a jump to a chain that is not known")
			return goesOn
		}
		if r.chain(chain) {
			fate = isOver
		} else if v.code == unix.NFT_GOTO {
			fate = returns
		}
	case unix.NFT_CONTINUE, unix.NFT_BREAK:
	default: // to a queue
		r.found("a verdict of somebody else")
	}
	if !r.all {
		return goesOn
	}
	return fate
}
