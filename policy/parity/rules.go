// SPDX-License-Identifier: Apache-2.0

package parity

import (
	"cmp"
	"slices"
	"strings"

	"vippin/policy"
)

// token is a word of a rule that two routers can be compared by.
type token struct {
	text    string
	perhaps string // "own address on VLAN 2", if it may be one
}

func (a token) same(b token) bool {
	return a.text == b.text || a.perhaps != "" && (a.perhaps == b.perhaps || a.perhaps == b.text) || b.perhaps != "" && b.perhaps == a.text
}

// rule is one rule in tokens.
type rule []token

func (a rule) same(b rule) bool { return slices.EqualFunc(a, b, token.same) }

func (a rule) String() string {
	words := make([]string, len(a))
	for i, t := range a {
		words[i] = t.text
	}
	return strings.Join(words, " ")
}

// dialect is how one router's rules are read: interfaces become what they are
// called on both, own addresses whose they are.
type dialect struct {
	labels       map[string]string // of interfaces
	own, perhaps map[string]string // what an address is called
}

func dialectOf(f *Facts, labels map[string]string) dialect {
	d := dialect{labels: labels, own: make(map[string]string), perhaps: make(map[string]string)}
	for _, face := range f.Interfaces {
		name := "own address on " + labels[face.Name]
		for _, addr := range face.Own {
			d.own[addr.String()] = name
		}
		for _, addr := range face.Perhaps {
			d.perhaps[addr.String()] = name
		}
	}
	return d
}

// read reads one rule. Interfaces in a set, and those that a wildcard stands for,
// are one word: another order or spelling means the same.
func (d dialect) read(words []policy.NATWord) (r rule) {
	for i := 0; i < len(words); i++ {
		word := words[i]
		if word.Interface == "" {
			r = append(r, d.token(word))
			continue
		}
		names := d.interfaces(word.Interface)
		for ; i+2 < len(words) && words[i+1].Text == "," && words[i+2].Interface != ""; i += 2 {
			names = append(names, d.interfaces(words[i+2].Interface)...)
		}
		slices.Sort(names)
		listed := strings.Join(slices.Compact(names), ", ")
		if last := len(r) - 1; last >= 0 && i+1 < len(words) && strings.HasSuffix(r[last].text, " {") && strings.HasPrefix(words[i+1].Text, "}") {
			r[last].text = strings.TrimSuffix(r[last].text, " {")
			words = slices.Clone(words)
			words[i+1].Text = strings.TrimSpace(strings.TrimPrefix(words[i+1].Text, "}"))
		}
		r = append(r, token{text: listed})
	}
	return slices.DeleteFunc(r, func(t token) bool { return t.text == "" })
}

func (d dialect) token(word policy.NATWord) token {
	text := word.String()
	if name, own := d.own[text]; own {
		return token{text: name}
	}
	return token{text: text, perhaps: d.perhaps[text]}
}

// interfaces are those of a name, or of a wildcard; unknown ones stay what they
// are.
func (d dialect) interfaces(name string) []string {
	if label, known := d.labels[name]; known {
		return []string{label}
	}
	beginning, wild := strings.CutSuffix(name, "*")
	var found []string
	for known, label := range d.labels {
		if wild && strings.HasPrefix(known, beginning) {
			found = append(found, label)
		}
	}
	if len(found) == 0 {
		return []string{name}
	}
	return found
}

// chains puts the rules of all chains in lists by where packets meet them. How base
// chains and their tables are called says nothing.
func (d dialect) chains(list []policy.NATChain) map[string][]rule {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b policy.NATChain) int { return cmp.Compare(a.Priority, b.Priority) })
	rules := make(map[string][]rule)
	for _, chain := range list {
		where := chain.Hook + " (" + chain.Family + ")"
		if chain.Hook == "" {
			where = "chain " + chain.Name + " (" + chain.Family + " " + chain.Table + ")"
		}
		for _, words := range chain.Rules {
			rules[where] = append(rules[where], d.read(words))
		}
	}
	return rules
}

// gap is a place where two lists of rules differ: what is there on each side.
type gap struct{ here, there []int } // places in the lists

// cellsMost bounds the work of comparing two lists, and its memory in octets.
const cellsMost = 1 << 20

// gaps aligns two lists by their longest common subsequence. Lists that are too
// long are compared place by place, between what they begin and end with alike.
func gaps(a, b []rule) (list []gap) {
	from := 0
	for from < len(a) && from < len(b) && a[from].same(b[from]) {
		from++
	}
	endA, endB := len(a), len(b)
	for endA > from && endB > from && a[endA-1].same(b[endB-1]) {
		endA, endB = endA-1, endB-1
	}
	rows, columns := endA-from, endB-from
	if rows == 0 && columns == 0 {
		return nil
	}
	if (rows+1)*(columns+1) > cellsMost/2 {
		return byPlace(a, b, from, endA, endB)
	}
	lengths := lengthsOf(a[from:endA], b[from:endB])
	at := func(i, j int) uint16 { return lengths[i*(columns+1)+j] }
	open := gap{}
	closeGap := func() {
		if len(open.here)+len(open.there) > 0 {
			list, open = append(list, open), gap{}
		}
	}
	i, j := 0, 0
	for i < rows || j < columns {
		switch {
		case i < rows && j < columns && a[from+i].same(b[from+j]):
			closeGap()
			i, j = i+1, j+1
		case j == columns || i < rows && at(i+1, j) >= at(i, j+1):
			open.here = append(open.here, from+i)
			i++
		default:
			open.there = append(open.there, from+j)
			j++
		}
	}
	closeGap()
	return list
}

// lengthsOf is how long the common subsequences of all ends of two lists are, by
// rows of len(b)+1.
func lengthsOf(a, b []rule) []uint16 {
	wide := len(b) + 1
	lengths := make([]uint16, (len(a)+1)*wide)
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i].same(b[j]) {
				lengths[i*wide+j] = lengths[(i+1)*wide+j+1] + 1
			} else {
				lengths[i*wide+j] = max(lengths[(i+1)*wide+j], lengths[i*wide+j+1])
			}
		}
	}
	return lengths
}

func byPlace(a, b []rule, from, endA, endB int) (list []gap) {
	for i := from; i < max(endA, endB); i++ {
		g := gap{}
		if i < endA {
			g.here = []int{i}
		}
		if i < endB {
			g.there = []int{i}
		}
		if len(g.here) == 0 || len(g.there) == 0 || !a[i].same(b[i]) {
			list = append(list, g)
		}
	}
	return list
}
