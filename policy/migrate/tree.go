// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bytes"
	"strings"
)

// word is one word of a file, without its quotes.
type word struct {
	text string
	line int
}

// node is one statement: the words of a line, and what stands in braces after
// them.
type node struct {
	at       place
	words    []word
	block    bool // braces follow the words
	children []node
}

func (n node) name() string { return n.words[0].text }

// args are the words after the first one.
func (n node) args() []string {
	args := make([]string, 0, len(n.words))
	for _, w := range n.words[1:] {
		args = append(args, w.text)
	}
	return args
}

// text is the statement as it stands in the file, without its block.
func (n node) text() string { return strings.Join(append([]string{n.name()}, n.args()...), " ") }

// syntax is what two languages of braces differ in.
type syntax struct {
	comments string // each of these begins a comment, anywhere in a line
	quotes   bool   // "…" and '…' keep words together
	inWords  bool   // a word may contain { and } in pairs, as ${NAME} does
}

const depthMax = 16 // blocks within blocks

// treeReader reads statements in braces.
type treeReader struct {
	syntax
	notes *notes
	// expand sees each line first, and says whether there is anything left of it.
	expand func(line string, at place) (string, bool)
	// include returns what stands in the files that a statement names, if it
	// names files.
	include func(n node) ([]node, bool)
}

// block is one that has not ended yet.
type block struct {
	head     node
	children []node
}

// read returns the statements of a file; after a fault, those before it.
func (r *treeReader) read(file string, data []byte) []node {
	open := []block{{}}
	at := place{file: file}
	faults := len(r.notes.faults)
	for raw := range bytes.Lines(data) {
		at.line++
		line, ok := string(bytes.TrimRight(raw, "\r\n")), true
		if r.expand != nil {
			line, ok = r.expand(line, at)
		}
		if ok {
			open = r.statements(open, r.split(line, at), at)
		}
		if len(r.notes.faults) > faults {
			return open[0].children
		}
	}
	if last := open[len(open)-1]; len(open) > 1 {
		r.notes.fault(last.head.at, "the block %q has no end: %q is missing somewhere below", last.head.text(), "}")
	}
	return open[0].children
}

// statements takes the tokens of one line.
func (r *treeReader) statements(open []block, tokens []token, at place) []block {
	var words []word
	end := func() {
		if len(words) == 0 {
			return
		}
		n := node{at: at, words: words}
		words = nil
		top := &open[len(open)-1]
		if r.include != nil {
			if included, is := r.include(n); is {
				top.children = append(top.children, included...)
				return
			}
		}
		top.children = append(top.children, n)
	}
	for _, t := range tokens {
		switch t.kind {
		case aWord:
			words = append(words, word{t.text, at.line})
		case opening:
			head, ok := r.headOf(open, words, at)
			if !ok {
				return open
			}
			words = nil
			open = append(open, block{head: head})
		case closing:
			end()
			if len(open) == 1 {
				r.notes.fault(at, "%q without a block that it could end: take it out, or look above for a block that ends too early", "}")
				return open
			}
			done := open[len(open)-1]
			open = open[:len(open)-1]
			done.head.block, done.head.children = true, done.children
			top := &open[len(open)-1]
			top.children = append(top.children, done.head)
		}
	}
	end()
	return open
}

// headOf finds the words that a block belongs to: those before the brace, or
// the line above.
func (r *treeReader) headOf(open []block, words []word, at place) (node, bool) {
	top := &open[len(open)-1]
	last := len(top.children) - 1
	switch {
	case len(open) > depthMax:
		r.notes.fault(at, "more than %d blocks within each other: is a %q missing above?", depthMax, "}")
		return node{}, false
	case len(words) > 0:
		return node{at: at, words: words}, true
	case last >= 0 && !top.children[last].block && top.children[last].at.file == at.file:
		head := top.children[last]
		top.children = top.children[:last]
		return head, true
	}
	r.notes.fault(at, "%q without a word before it: say what block this is", "{")
	return node{}, false
}

type tokenKind int

const (
	aWord tokenKind = iota
	opening
	closing
)

type token struct {
	kind tokenKind
	text string
}

// split takes a line apart.
func (r *treeReader) split(line string, at place) []token {
	var tokens []token
	for {
		line = strings.TrimLeft(line, " \t\v\f\r")
		if line == "" || strings.ContainsRune(r.comments, rune(line[0])) {
			return tokens
		}
		raw, text, quoted, ok := r.word(line)
		if !ok {
			r.notes.fault(at, "a quote begins and does not end on this line: close it")
			return nil
		}
		line = line[len(raw):]
		if quoted || r.inWords && text != "{}" && strings.Count(text, "{") == strings.Count(text, "}") {
			tokens = append(tokens, token{aWord, text})
			continue
		}
		tokens = append(tokens, splitBraces(text)...)
	}
}

// word reads up to the next space or comment: as it stands, and as it is meant.
func (r *treeReader) word(line string) (raw, text string, quoted, ok bool) {
	var b strings.Builder
	quote := byte(0)
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case quote != 0 && c == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			b.WriteByte(c)
		case r.quotes && (c == '"' || c == '\''):
			quote, quoted = c, true
		case strings.IndexByte(" \t\v\f\r", c) >= 0, strings.IndexByte(r.comments, c) >= 0:
			return line[:i], b.String(), quoted, true
		default:
			b.WriteByte(c)
		}
	}
	return line, b.String(), quoted, quote == 0
}

// splitBraces takes braces out of a word that stands close to them.
func splitBraces(text string) (tokens []token) {
	for text != "" {
		i := strings.IndexAny(text, "{}")
		switch {
		case i < 0:
			return append(tokens, token{aWord, text})
		case i > 0:
			tokens = append(tokens, token{aWord, text[:i]})
		}
		kind := opening
		if text[i] == '}' {
			kind = closing
		}
		tokens = append(tokens, token{kind: kind})
		text = text[i+1:]
	}
	return tokens
}
