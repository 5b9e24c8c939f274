// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"vippin/policy"
)

// readNATChains reads the rules that translate. Expressions that the netlink
// library does not know are not seen.
func readNATChains() ([]policy.NATChain, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	r := &chainReader{
		conn: conn, chains: make(map[chainKey]*nftables.Chain), sets: make(map[setKey][]policy.NATWord),
		found: []policy.NATChain{}, seen: make(map[chainKey]bool),
	}
	var base []*nftables.Chain
	for _, chain := range chains {
		r.chains[chainKeyOf(chain.Table, chain.Name)] = chain
		if chain.Type == nftables.ChainTypeNAT && hookName(chain) != "" && familiesOf(chain.Table.Family) != (families{}) {
			base = append(base, chain)
		}
	}
	slices.SortStableFunc(base, func(a, b *nftables.Chain) int {
		return cmp.Or(cmp.Compare(*a.Hooknum, *b.Hooknum), cmp.Compare(priorityOf(a), priorityOf(b)))
	})
	for _, chain := range base {
		if err := r.read(chain); err != nil {
			return nil, err
		}
	}
	for len(r.next) > 0 {
		chain := r.next[0]
		r.next = r.next[1:]
		if err := r.read(chain); err != nil {
			return nil, err
		}
	}
	return r.found, nil
}

func hookName(chain *nftables.Chain) string {
	if chain.Hooknum == nil {
		return ""
	}
	return map[nftables.ChainHook]string{
		*nftables.ChainHookPrerouting: "prerouting", *nftables.ChainHookInput: "input",
		*nftables.ChainHookOutput: "output", *nftables.ChainHookPostrouting: "postrouting",
	}[*chain.Hooknum]
}

func priorityOf(chain *nftables.Chain) int32 {
	if chain.Priority == nil {
		return 0
	}
	return int32(*chain.Priority)
}

// chainReader reads chains one after the other, each once.
type chainReader struct {
	conn   *nftables.Conn
	chains map[chainKey]*nftables.Chain
	sets   map[setKey][]policy.NATWord
	seen   map[chainKey]bool
	next   []*nftables.Chain // were jumped to
	rules  int
	found  []policy.NATChain
}

func (r *chainReader) read(chain *nftables.Chain) error {
	key := chainKeyOf(chain.Table, chain.Name)
	if r.seen[key] {
		return nil
	}
	r.seen[key] = true
	rules, err := r.conn.GetRules(chain.Table, chain)
	if err != nil {
		return fmt.Errorf("list rules of chain %s in %s: %w", chain.Name, tableName(chain.Table), err)
	}
	family, _, _ := strings.Cut(strings.TrimPrefix(tableName(chain.Table), "table "), " ")
	c := policy.NATChain{
		Family: family, Table: chain.Table.Name, Name: chain.Name, Hook: hookName(chain), Priority: priorityOf(chain),
		Rules: [][]policy.NATWord{},
	}
	for _, rule := range rules {
		if r.rules++; r.rules > rulesMost {
			return fmt.Errorf("read chains: more than %d rules", rulesMost)
		}
		w := newRuleReader(r, chain)
		for _, e := range rule.Exprs {
			if err := w.add(e); err != nil {
				return err
			}
		}
		c.Rules = append(c.Rules, w.words)
	}
	r.found = append(r.found, c)
	return nil
}

// jumps has a chain read that a rule leads to.
func (r *chainReader) jumps(from *nftables.Chain, verdict *expr.Verdict) {
	if chain := r.chains[chainKeyOf(from.Table, verdict.Chain)]; chain != nil {
		r.next = append(r.next, chain)
	}
}

// elementsMost is how many elements of a set are compared.
const elementsMost = 256

// set reads what a set holds. One that packets change has no contents that two
// routers could have alike.
func (r *chainReader) set(chain *nftables.Chain, e *expr.Lookup, key []field) ([]policy.NATWord, error) {
	name := e.SetName
	at := setKey{chainKeyOf(chain.Table, name)}
	if words, known := r.sets[at]; known {
		return words, nil
	}
	set, err := r.conn.GetSetByName(chain.Table, name)
	if err != nil {
		return nil, fmt.Errorf("read set %s in %s: %w", name, tableName(chain.Table), err)
	}
	if set.Dynamic || set.HasTimeout {
		return plain("@" + name), nil
	}
	elements, err := r.conn.GetSetElements(set)
	if err != nil {
		return nil, fmt.Errorf("read elements of set %s in %s: %w", name, tableName(chain.Table), err)
	}
	var list [][]policy.NATWord
	for _, element := range intervals(set, elements) {
		words := keyWords(key, element.key, element.last)
		switch {
		case e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT:
			verdict := verdictOf(element.SetElement)
			words = append(words, policy.NATWord{Text: ": " + verdictText(verdict)})
			r.jumps(chain, verdict)
		case set.IsMap:
			words = append(words, policy.NATWord{Text: ":"}, fieldOf(set.DataType.Name).values(element.Val, element.Val))
		}
		list = append(list, words)
	}
	words := setWords(list)
	r.sets[at] = words
	return words, nil
}

// setWords writes elements in an order of their own.
func setWords(list [][]policy.NATWord) []policy.NATWord {
	slices.SortFunc(list, func(a, b []policy.NATWord) int { return cmp.Compare(sentence(a), sentence(b)) })
	words := plain("{")
	for i, element := range list {
		if i == elementsMost {
			words = append(words, policy.NATWord{Text: fmt.Sprintf("and %d more", len(list)-i)})
			break
		}
		if i > 0 {
			words = append(words, policy.NATWord{Text: ","})
		}
		words = append(words, element...)
	}
	return append(words, policy.NATWord{Text: "}"})
}

func sentence(words []policy.NATWord) string {
	var parts []string
	for _, w := range words {
		parts = append(parts, w.String())
	}
	return strings.Join(parts, " ")
}

func plain(text string) []policy.NATWord { return []policy.NATWord{{Text: text}} }
