// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// ruleReader writes one rule in words. Counters, comments and what is logged make
// no difference to a flow and are left out.
type ruleReader struct {
	*chainReader
	chain  *nftables.Chain
	v6     bool             // the rule is for IPv6
	fields map[uint32]field // by register
	data   map[uint32][]byte
	maps   map[uint32][]policy.NATWord // registers that a map has filled
	words  []policy.NATWord
}

func newRuleReader(r *chainReader, chain *nftables.Chain) *ruleReader {
	return &ruleReader{
		chainReader: r, chain: chain, v6: chain.Table.Family == nftables.TableFamilyIPv6,
		fields: make(map[uint32]field), data: make(map[uint32][]byte), maps: make(map[uint32][]policy.NATWord),
		words: []policy.NATWord{},
	}
}

// slot numbers registers by their 4 octets: 1 to 4 have 16 octets, those from 8 on
// are their quarters.
func slot(register uint32) uint32 {
	if register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4 {
		return (register - unix.NFT_REG_1) * 4
	}
	return register - unix.NFT_REG32_00
}

// say adds words; text after text is one word.
func (r *ruleReader) say(words ...policy.NATWord) {
	for _, w := range words {
		if last := len(r.words) - 1; last >= 0 && w.Interface == "" && !w.From.IsValid() && r.words[last].Text != "" {
			r.words[last].Text += " " + w.Text
			continue
		}
		r.words = append(r.words, w)
	}
}

func (r *ruleReader) sayf(format string, args ...any) {
	r.say(policy.NATWord{Text: fmt.Sprintf(format, args...)})
}

func (r *ruleReader) load(register uint32, f field) {
	r.fields[slot(register)] = f
	delete(r.data, slot(register))
	delete(r.maps, slot(register))
}

func (r *ruleReader) add(e expr.Any) error {
	switch e := e.(type) {
	case *expr.Counter, *expr.Log:
	case *expr.Meta:
		r.meta(e)
	case *expr.Payload:
		r.payload(e)
	case *expr.Ct:
		r.load(e.Register, field{text: ctText(e), kind: hostField})
	case *expr.Fib:
		shown := *e
		shown.Register = 0
		r.load(e.Register, field{text: fmt.Sprintf("fib %+v", shown), kind: hostField})
	case *expr.Bitwise:
		r.mask(e)
	case *expr.Cmp:
		r.compare(e)
	case *expr.Range:
		f := r.fields[slot(e.Register)]
		r.sayf("%s%s", f.text, not(e.Op == expr.CmpOpNeq))
		r.say(f.values(e.FromData, e.ToData))
	case *expr.Lookup:
		return r.lookup(e)
	case *expr.Immediate:
		r.load(e.Register, field{})
		r.data[slot(e.Register)] = e.Data
	default:
		r.ends(e)
	}
	return nil
}

// ends writes what a rule does.
func (r *ruleReader) ends(e expr.Any) {
	switch e := e.(type) {
	case *expr.Verdict:
		r.sayf("%s", verdictText(e))
		r.jumps(r.chain, e)
	case *expr.Masq:
		r.sayf("masquerade")
		r.ports(e.RegProtoMin, e.RegProtoMax)
		r.flags(e.Random, e.FullyRandom, e.Persistent)
	case *expr.NAT:
		r.sayf("%s", map[expr.NATType]string{expr.NATTypeSourceNAT: "snat to", expr.NATTypeDestNAT: "dnat to"}[e.Type])
		r.operand(field{kind: addressField}, e.RegAddrMin, e.RegAddrMax)
		r.ports(e.RegProtoMin, e.RegProtoMax)
		r.flags(e.Random, e.FullyRandom, e.Persistent)
	case *expr.Redir:
		r.sayf("redirect")
		r.ports(e.RegisterProtoMin, e.RegisterProtoMax)
		r.flags(e.Flags&unix.NF_NAT_RANGE_PROTO_RANDOM != 0, e.Flags&unix.NF_NAT_RANGE_PROTO_RANDOM_FULLY != 0, e.Flags&unix.NF_NAT_RANGE_PERSISTENT != 0)
	case *expr.Match:
		if e.Name != "comment" {
			r.sayf("%s", extension(e.Name, e.Rev, e.Info))
		}
	case *expr.Target:
		r.target(e)
	default:
		r.sayf("%s", strings.TrimPrefix(fmt.Sprintf("%T%+v", e, e), "*expr."))
	}
}

func not(negated bool) string {
	if negated {
		return " !="
	}
	return ""
}

func (r *ruleReader) meta(e *expr.Meta) {
	f := field{text: fmt.Sprintf("meta %d", e.Key), kind: hostField}
	switch e.Key {
	case expr.MetaKeyOIFNAME:
		f = field{text: "oifname", kind: nameField, size: unix.IFNAMSIZ}
	case expr.MetaKeyIIFNAME:
		f = field{text: "iifname", kind: nameField, size: unix.IFNAMSIZ}
	case expr.MetaKeyOIF: // by index means the same as by name
		f = field{text: "oifname", kind: indexField, size: 4}
	case expr.MetaKeyIIF:
		f = field{text: "iifname", kind: indexField, size: 4}
	case expr.MetaKeyNFPROTO:
		f = field{text: "nfproto", kind: familyField, size: 1}
	case expr.MetaKeyL4PROTO:
		f = field{text: "l4proto", kind: protoField, size: 1}
	case expr.MetaKeyMARK:
		f = field{text: "mark", kind: hostField, size: 4}
	}
	if !e.SourceRegister {
		r.load(e.Register, f)
		return
	}
	r.sayf("%s set", f.text)
	r.operand(f, e.Register, 0)
}

// payload names what rules look at most; offsets are those of RFC 791 section 3.1,
// RFC 8200 section 3 and of ports.
func (r *ruleReader) payload(e *expr.Payload) {
	if e.OperationType == expr.PayloadWrite {
		r.sayf("write %d octets at %d of header %d", e.Len, e.Offset, e.Base)
		return
	}
	f := field{text: fmt.Sprintf("@%d,%d,%d", e.Base, e.Offset, e.Len), size: int(e.Len)}
	network := e.Base == expr.PayloadBaseNetworkHeader
	switch {
	case network && !r.v6 && e.Offset == 9 && e.Len == 1, network && r.v6 && e.Offset == 6 && e.Len == 1:
		f.text, f.kind = "l4proto", protoField
	case network && !r.v6 && e.Offset == 12 && e.Len <= 4:
		f.text, f.kind = "ip saddr", addressField
	case network && !r.v6 && e.Offset == 16 && e.Len <= 4:
		f.text, f.kind = "ip daddr", addressField
	case network && r.v6 && e.Offset == 8 && e.Len <= 16:
		f.text, f.kind, f.size = "ip6 saddr", addressField, 16
	case network && r.v6 && e.Offset == 24 && e.Len <= 16:
		f.text, f.kind, f.size = "ip6 daddr", addressField, 16
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 0 && e.Len == 2:
		f.text, f.kind = "sport", numberField
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2:
		f.text, f.kind = "dport", numberField
	}
	r.load(e.DestRegister, f)
}

func ctText(e *expr.Ct) string {
	name := map[expr.CtKey]string{
		expr.CtKeySTATE: "state", expr.CtKeySTATUS: "status", expr.CtKeyMARK: "mark", expr.CtKeyDIRECTION: "direction",
	}[e.Key]
	if name == "" {
		name = fmt.Sprint(e.Key)
	}
	if e.SourceRegister {
		return "ct " + name + " set"
	}
	return "ct " + name
}

// mask notes a mask for the comparison that follows.
func (r *ruleReader) mask(e *expr.Bitwise) {
	f := r.fields[slot(e.SourceRegister)]
	for _, b := range e.Xor {
		if b != 0 {
			f.text += " ^ 0x" + hex.EncodeToString(e.Xor)
			break
		}
	}
	f.mask = e.Mask
	r.load(e.DestRegister, f)
}

var operators = map[expr.CmpOp]string{
	expr.CmpOpEq: "", expr.CmpOpNeq: " !=", expr.CmpOpLt: " <", expr.CmpOpLte: " <=", expr.CmpOpGt: " >", expr.CmpOpGte: " >=",
}

func (r *ruleReader) compare(e *expr.Cmp) {
	f := r.fields[slot(e.Register)]
	if f.kind == familyField && e.Op == expr.CmpOpEq && len(e.Data) == 1 {
		r.v6 = e.Data[0] == unix.NFPROTO_IPV6
	}
	text := f.text
	if f.mask != nil && f.kind != addressField {
		text += " & 0x" + hex.EncodeToString(f.mask)
	}
	r.sayf("%s%s", text, operators[e.Op])
	r.say(f.values(e.Data, e.Data))
}

// key is the fields that a look-up is for, from one register on.
func (r *ruleReader) key(register uint32) (fields []field) {
	for at := slot(register); ; {
		f, loaded := r.fields[at]
		if !loaded {
			return fields
		}
		fields = append(fields, f)
		at += uint32(max(f.width(), 4)) / 4
	}
}

func (r *ruleReader) lookup(e *expr.Lookup) error {
	key := r.key(e.SourceRegister)
	if len(key) == 0 {
		key = []field{{}}
	}
	set, err := r.set(r.chain, e, key)
	if err != nil {
		return err
	}
	var names []string
	for _, f := range key {
		names = append(names, f.text)
	}
	words := append(plain(strings.Join(names, " . ")+not(e.Invert)), set...)
	if !e.IsDestRegSet || e.DestRegister == unix.NFT_REG_VERDICT {
		r.say(words...)
	} else {
		r.load(e.DestRegister, field{})
		r.maps[slot(e.DestRegister)] = words
	}
	clear(r.fields) // what follows begins anew
	return nil
}

// operand writes what one or two registers hold.
func (r *ruleReader) operand(f field, first, last uint32) {
	if first == 0 {
		return
	}
	if words := r.maps[slot(first)]; words != nil {
		r.say(words...)
		return
	}
	from, known := r.data[slot(first)]
	if !known {
		r.sayf("%s", r.fields[slot(first)].text)
		return
	}
	to := from
	if last != 0 && r.data[slot(last)] != nil {
		to = r.data[slot(last)]
	}
	r.say(f.values(from, to))
}

func (r *ruleReader) ports(first, last uint32) {
	if first != 0 {
		r.sayf("port")
		r.operand(field{kind: numberField}, first, last)
	}
}

func (r *ruleReader) flags(random, fully, persistent bool) {
	if random {
		r.sayf("random")
	}
	if fully {
		r.sayf("fully-random")
	}
	if persistent {
		r.sayf("persistent")
	}
}

// target is an extension of iptables-nft.
func (r *ruleReader) target(e *expr.Target) {
	switch e.Name {
	case "SNAT", "DNAT":
		r.sayf("%s to", strings.ToLower(e.Name))
		r.xtRange(e)
	case "MASQUERADE":
		r.sayf("masquerade")
		r.xtRange(e)
	default:
		r.sayf("%s", extension(e.Name, e.Rev, e.Info))
	}
}

// xtRange writes a range of addresses and ports: struct nf_nat_range, or of revision
// 0 struct nf_nat_ipv4_multi_range_compat.
func (r *ruleReader) xtRange(e *expr.Target) {
	fixed := xtFixed(e)
	var flags uint
	var ports [2]uint16
	switch info := e.Info.(type) {
	case *xt.NatIPv4MultiRangeCompat:
		for _, one := range *info {
			flags, ports = one.Flags, [2]uint16{one.MinPort, one.MaxPort}
		}
	case *xt.NatRange:
		fixed, flags, ports = rangeOf(info), info.Flags, [2]uint16{info.MinPort, info.MaxPort}
	case *xt.NatRange2:
		fixed, flags, ports = rangeOf(&info.NatRange), info.Flags, [2]uint16{info.MinPort, info.MaxPort}
	case *xt.Unknown:
		if raw := []byte(*info); len(raw) >= 40 {
			flags = uint(binary.NativeEndian.Uint32(raw))
			ports = [2]uint16{binary.BigEndian.Uint16(raw[36:]), binary.BigEndian.Uint16(raw[38:])}
		}
	}
	if fixed.From.IsValid() && !fixed.From.IsUnspecified() {
		r.say(policy.NATWord{From: fixed.From, To: fixed.To})
	}
	switch {
	case flags&unix.NF_NAT_RANGE_PROTO_SPECIFIED == 0:
	case ports[0] == ports[1]:
		r.sayf("port %d", ports[0])
	default:
		r.sayf("port %d-%d", ports[0], ports[1])
	}
	r.flags(flags&unix.NF_NAT_RANGE_PROTO_RANDOM != 0, flags&unix.NF_NAT_RANGE_PROTO_RANDOM_FULLY != 0, flags&unix.NF_NAT_RANGE_PERSISTENT != 0)
}

func rangeOf(info *xt.NatRange) (rule policy.NATRule) {
	from, _ := netip.AddrFromSlice(info.MinIP)
	to, _ := netip.AddrFromSlice(info.MaxIP)
	rule.From, rule.To = from.Unmap(), to.Unmap()
	return rule
}

// extension writes what is not understood so that it can be compared.
func extension(name string, revision uint32, info xt.InfoAny) string {
	if raw, opaque := info.(*xt.Unknown); opaque {
		return fmt.Sprintf("%s.%d 0x%s", name, revision, hex.EncodeToString(*raw))
	}
	return fmt.Sprintf("%s.%d %+v", name, revision, info)
}

func verdictText(v *expr.Verdict) string {
	switch v.Kind {
	case expr.VerdictJump:
		return "jump " + v.Chain
	case expr.VerdictGoto:
		return "goto " + v.Chain
	case expr.VerdictReturn:
		return "return"
	case expr.VerdictDrop:
		return "drop"
	case expr.VerdictAccept:
		return "accept"
	}
	return fmt.Sprintf("verdict %d", v.Kind)
}
