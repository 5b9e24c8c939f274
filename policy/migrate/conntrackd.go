// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"net/netip"
	"strconv"
	"strings"
)

// conntrackd.conf (conntrackd.conf(5)): its grammar knows no line ends, only how
// many words come after each keyword.

// ctTerm is one keyword of conntrackd's.
type ctTerm struct {
	values int  // words that come after it
	block  bool // braces come after it, with any words before them
	either bool // one word or braces
	text   string
	read   func(c *conntrackd, st ctStatement)
	in     map[string]ctTerm // of the block; nil: words, or what nobody needs to know
}

// ctStatement is a keyword with what belongs to it.
type ctStatement struct {
	at     place
	name   string
	values []string
	items  []ctItem // of the block
}

// ctItem is a word, or the block after some.
type ctItem struct {
	word
	block []ctItem
	is    bool // it is a block
}

type conntrackd struct {
	*setup
	file string
	link *syncLink // whose block is being read
}

// readConntrackd reads a conntrackd.conf.
func (s *setup) readConntrackd(src Source) {
	r := &treeReader{syntax: syntax{comments: "#"}, notes: s.notes}
	before := len(s.faults)
	nodes := r.read(src.Name, src.Data)
	if len(s.faults) > before {
		return
	}
	c := &conntrackd{setup: s, file: src.Name}
	c.block(itemsOf(nodes), ctTop, inSync)
}

// itemsOf forgets where lines ended.
func itemsOf(nodes []node) (items []ctItem) {
	for _, n := range nodes {
		for _, w := range n.words {
			items = append(items, ctItem{word: w})
		}
		if n.block {
			items = append(items, ctItem{block: itemsOf(n.children), is: true})
		}
	}
	return items
}

// block reads the statements of a block.
func (c *conntrackd) block(items []ctItem, terms map[string]ctTerm, in section) {
	for len(items) > 0 {
		if items[0].is { // after a keyword that takes none, which has been told
			items = items[1:]
			continue
		}
		st := ctStatement{at: place{c.file, items[0].line}, name: items[0].text}
		term, known := terms[strings.ToLower(st.name)]
		if !known {
			items = c.unknown(st, items[1:])
			continue
		}
		var ok bool
		items, ok = c.take(&st, term, items[1:])
		if !ok {
			continue
		}
		if term.text != "" {
			c.explain(in, st.at, strings.Join(append([]string{st.name}, st.values...), " "), term.text)
		}
		if term.read != nil {
			term.read(c, st)
		}
		if term.in != nil {
			c.block(st.items, term.in, in)
		}
	}
}

// take gives a keyword its words and its block, and returns what is left.
func (c *conntrackd) take(st *ctStatement, term ctTerm, items []ctItem) ([]ctItem, bool) {
	values := term.values
	if term.either && len(items) > 0 && !items[0].is {
		values = 1
	}
	block := term.block || term.either && values == 0
	for len(items) > 0 && !items[0].is && (block || len(st.values) < values) {
		if block && items[0].line != st.at.line {
			break
		}
		st.values = append(st.values, items[0].text)
		items = items[1:]
	}
	switch {
	case block && (len(items) == 0 || !items[0].is):
		c.fault(st.at, "%s has no block: %q must follow it", st.name, "{ … }")
		return items, false
	case block:
		st.items = items[0].block
		return items[1:], true
	case len(st.values) < values:
		c.fault(st.at, "%s has no value: give it one, or take it out", st.name)
		return items, false
	case len(items) > 0 && items[0].is:
		c.fault(st.at, "%s takes no block: take the braces out", st.name)
		return items[1:], false
	}
	return items, true
}

// unknown passes over what is not in conntrackd.conf(5) up to the end of its
// line. What it would enclose cannot be guessed.
func (c *conntrackd) unknown(st ctStatement, items []ctItem) []ctItem {
	for len(items) > 0 && !items[0].is && items[0].line == st.at.line {
		st.values = append(st.values, items[0].text)
		items = items[1:]
	}
	text := strings.Join(append([]string{st.name}, st.values...), " ")
	if len(items) > 0 && items[0].is {
		c.fault(st.at, "unknown block %q: it is none of conntrackd 1.4's; correct it, or take it out of a copy of the file and migrate that", text)
		return items[1:]
	}
	c.warn(st.at, "unknown setting %q: nothing was made of it", text)
	return items
}

// words are those of a block that is a list.
func (st ctStatement) words() (words []word) {
	for _, item := range st.items {
		if !item.is {
			words = append(words, item.word)
		}
	}
	return words
}

// ctSwitch reads on, off, yes and no.
func (c *conntrackd) ctSwitch(st ctStatement, value string) (on, ok bool) {
	switch strings.ToLower(value) {
	case "on", "yes":
		return true, true
	case "off", "no":
		return false, true
	}
	c.warn(st.at, "%s %q is neither on nor off: nothing was made of it", st.name, value)
	return false, false
}

func mode(c *conntrackd, st ctStatement) {
	c.replicates = true
	switch name := strings.ToUpper(strings.Join(st.values, " ")); name {
	case "FTFW", "ALARM", "NOTRACK":
	default:
		c.warn(st.at, "%s %q is neither FTFW, ALARM nor NOTRACK", st.name, strings.Join(st.values, " "))
	}
}

// channel begins a Multicast, UDP or TCP block.
func channel(c *conntrackd, st ctStatement) {
	c.replicates = true
	c.link = &syncLink{at: st.at, kind: st.name, preferred: len(st.values) > 0 && strings.EqualFold(st.values[0], "Default")}
	c.links = append(c.links, c.link)
	if len(st.values) > 1 || len(st.values) == 1 && !c.link.preferred {
		c.warn(st.at, "%s %s: only Default may stand there", st.name, strings.Join(st.values, " "))
	}
}

// linkAddress reads an address of a link.
func linkAddress(field func(*syncLink) *netip.Addr) func(*conntrackd, ctStatement) {
	return func(c *conntrackd, st ctStatement) {
		addr, err := netip.ParseAddr(st.values[0])
		if err != nil || addr.IsMulticast() || addr.IsUnspecified() {
			c.warn(st.at, "%s %q is no address of a router: nothing was made of it", st.name, st.values[0])
			return
		}
		*field(c.link) = addr
	}
}

func linkInterface(c *conntrackd, st ctStatement) {
	if !isInterface(st.values[0]) {
		c.warn(st.at, "%s %q is no name of an interface", st.name, st.values[0])
		return
	}
	c.link.iface = st.values[0]
}

// filterProtocols reads Protocol Accept|Ignore { … }.
func filterProtocols(c *conntrackd, st ctStatement) {
	accept, ok := c.policy(st)
	if !ok {
		return
	}
	if c.protocols.given {
		c.warn(st.at, "a second %s list: the first one, on line %d, counts", st.name, c.protocols.at.line)
		return
	}
	c.protocols = protocols{at: st.at, given: true, accept: accept}
	for _, w := range st.words() {
		c.addProtocol(place{c.file, w.line}, w.text)
	}
}

// addProtocol notes one of the filter. vippin names four protocols and calls all
// others "other".
func (s *setup) addProtocol(at place, name string) {
	known := syncProtocol(name)
	if known == "other" {
		text := `vippin tells tcp, udp, icmp and icmpv6 apart: "other" stands for every other protocol, GRE and ESP too`
		if !s.protocols.accept {
			text = `vippin cannot leave out one of the protocols that it calls "other", so it is replicated`
		}
		s.explain(inSync, at, name, text)
	}
	s.protocols.names = append(s.protocols.names, known)
}

// policy reads the word before a list of the filter.
func (c *conntrackd) policy(st ctStatement) (accept, ok bool) {
	if len(st.values) == 1 {
		switch strings.ToLower(st.values[0]) {
		case "accept":
			return true, true
		case "ignore":
			return false, true
		}
	}
	c.fault(st.at, "%s %q: write Accept or Ignore before the list", st.name, strings.Join(st.values, " "))
	return false, false
}

// filterAddresses reads Address Accept|Ignore { IPv4_address … }.
func filterAddresses(c *conntrackd, st ctStatement) {
	accept, ok := c.policy(st)
	if !ok {
		return
	}
	words := st.words()
	for len(words) > 0 {
		at, key := place{c.file, words[0].line}, strings.ToLower(words[0].text)
		if key != "ipv4_address" && key != "ipv6_address" || len(words) == 1 {
			c.warn(at, "%q in a list of addresses: IPv4_address or IPv6_address and an address are expected", words[0].text)
			words = words[1:]
			continue
		}
		c.filterAddress(at, words[0].text, words[1].text, accept)
		words = words[2:]
	}
}

func (c *conntrackd) filterAddress(at place, key, value string, accept bool) {
	if accept {
		c.explain(inSync, at, "Address Accept: "+key+" "+value,
			"vippin has no list of addresses that alone are replicated: name the others in sync.ignore, or let it replicate them")
		return
	}
	c.ignoreAddress(at, key+" "+value, value)
}

// ignoreAddress notes what is never replicated. What the router itself sends and
// gets never is, so its addresses need no entry.
func (s *setup) ignoreAddress(at place, setting, value string) {
	prefix, ok := parseNetwork(value)
	switch {
	case !ok:
		s.warn(at, "%s: that is neither an address nor a prefix: add what is meant to sync.ignore", setting)
	case prefix.Addr().IsLoopback():
		s.explain(inSync, at, setting, "loopback: connections of the router itself are never replicated")
	default:
		s.ignore = append(s.ignore, ignored{at, setting, prefix})
	}
}

// filterStates names what the filter let through.
func filterStates(c *conntrackd, st ctStatement) {
	c.explain(inSync, st.at, st.listed(), textStates)
}

// listed is a statement with the words of its block.
func (st ctStatement) listed() string {
	parts := append([]string{st.name}, st.values...)
	parts = append(parts, "{")
	for _, w := range st.words() {
		parts = append(parts, w.text)
	}
	return strings.Join(append(parts, "}"), " ")
}

// hashLimit is twice what the kernel's table holds.
func hashLimit(c *conntrackd, st ctStatement) {
	n, err := strconv.Atoi(st.values[0])
	if err != nil || n < 0 {
		c.warn(st.at, "%s %q is no number", st.name, st.values[0])
		return
	}
	c.tableSize = n / 2
}

// expectationSync reads On, Off or a list of helpers.
func expectationSync(c *conntrackd, st ctStatement) {
	if len(st.values) == 0 {
		c.expect = expectations{given: true, on: true}
		c.explain(inSync, st.at, st.listed(), everyHelper)
		return
	}
	if on, ok := c.ctSwitch(st, st.values[0]); ok {
		c.expect = expectations{given: true, on: on}
	}
}

const everyHelper = "sync.expect is for the expectations of every helper, not of some"
