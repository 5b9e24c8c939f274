// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ConfigError is one fault of a configuration file.
type ConfigError struct {
	File string
	Line int    // from 1
	Text string // names the thing and the way out
}

func (e *ConfigError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text) }

// ConfigErrors is every fault of a configuration file, by line. It is never
// empty.
type ConfigErrors []*ConfigError

// Error writes one fault a line.
func (e ConfigErrors) Error() string {
	lines := make([]string, len(e))
	for i, fault := range e {
		lines[i] = fault.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the faults one by one.
func (e ConfigErrors) Unwrap() []error {
	faults := make([]error, len(e))
	for i, fault := range e {
		faults[i] = fault
	}
	return faults
}

// configReader walks the nodes of a file and gathers its faults. Places in the
// file have names such as pins[1].vips[0].
type configReader struct {
	file   string
	faults ConfigErrors
	lines  map[string]int  // of each place that is in the file
	bad    map[string]bool // places with a fault in or below them, found while reading
}

// fault notes a fault at a line.
func (r *configReader) fault(line int, format string, args ...any) {
	r.faults = append(r.faults, &ConfigError{File: r.file, Line: max(line, 1), Text: fmt.Sprintf(format, args...)})
}

// wrong notes a fault of a node while reading it.
func (r *configReader) wrong(n *yaml.Node, place, format string, args ...any) {
	r.fault(n.Line, "%s: %s", words(place), fmt.Sprintf(format, args...))
	for at := place; at != ""; at = around(at) {
		r.bad[at] = true
	}
}

// faultyIn says whether reading a place went wrong somewhere: then what was
// read of it is not all that the file says.
func (r *configReader) faultyIn(place string) bool { return r.bad[place] }

// around is the place around a place, "" for the top level.
func around(place string) string { return place[:max(strings.LastIndexAny(place, ".["), 0)] }

// faultAt notes a fault at the line of a place, or of the nearest place around
// it that is in the file.
func (r *configReader) faultAt(place, format string, args ...any) {
	for at := place; at != ""; at = around(at) {
		if line, ok := r.lines[at]; ok {
			r.fault(line, format, args...)
			return
		}
	}
	r.fault(1, format, args...)
}

// has says whether a place is in the file.
func (r *configReader) has(place string) bool {
	_, ok := r.lines[place]
	return ok
}

// err is every fault in the order of the lines, or nil.
func (r *configReader) err() error {
	if len(r.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(r.faults, func(a, b *ConfigError) int { return a.Line - b.Line })
	return r.faults
}

// document reads the one YAML document of a file, nil after a fault.
func (r *configReader) document(data []byte) *yaml.Node {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		r.fault(1, "the file is empty: it needs at least one pin, for example \"pins: [{vlan: 2, vips: [192.0.2.2]}]\"")
		return nil
	case err != nil:
		r.syntax(data, err)
		return nil
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		r.fault(second.Line, "a second document begins here: keep one, without a line of three hyphens after it")
	case !errors.Is(err, io.EOF):
		r.syntax(data, err)
	}
	root := document.Content[0]
	if isNull(root) {
		r.fault(1, "the file is empty: it needs at least one pin, for example \"pins: [{vlan: 2, vips: [192.0.2.2]}]\"")
		return nil
	}
	return root
}

var (
	yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	bareIPv6 = regexp.MustCompile(`[\[,]\s*[0-9a-fA-F:]*::?\s*[\],]|[\[,]\s*::`)
)

// syntax notes what the YAML parser said. The parser stops at the first fault,
// is sometimes a line off, and leaves line 1 out.
func (r *configReader) syntax(data []byte, err error) {
	line, text := 1, err.Error()
	if found := yamlLine.FindStringSubmatch(text); found != nil {
		text = text[len(found[0]):]
		if n, err := strconv.Atoi(found[1]); err == nil {
			line = n
		}
	}
	number := 0
	for source := range bytes.Lines(data) {
		number++
		if bareIPv6.Match(source) {
			r.fault(number, "not YAML: put quotes around IPv6 addresses in [lists] (%s)", text)
			return
		}
	}
	r.fault(line, "not YAML near this line: %s", text)
}

// isNull says whether a key or list entry has nothing after it.
func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// plain refuses what would make a file mean more than it shows.
func (r *configReader) plain(n *yaml.Node, place string) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		r.wrong(n, place, "anchors and aliases (& and *) are not taken: write the value out")
	case n.Style&yaml.TaggedStyle != 0:
		r.wrong(n, place, "tags (%q) are not taken: remove it", n.Tag)
	default:
		return true
	}
	return false
}

// misnamed marks a mapping with an unknown key: what seems to be missing there
// may be what was meant.
const misnamed = ".?"

// missing says whether a key that a mapping needs is not there.
func (r *configReader) missing(place, key string) bool {
	return !r.has(place+"."+key) && !r.bad[place+misnamed]
}

// fields says how each key of a mapping is read.
type fields map[string]func(n *yaml.Node, place string)

// mapping reads a mapping and says whether it was one. A key without a value
// leaves the defaults.
func (r *configReader) mapping(n *yaml.Node, place string, known fields) bool {
	if !r.plain(n, place) {
		return false
	}
	if isNull(n) {
		return true
	}
	if n.Kind != yaml.MappingNode {
		r.wrong(n, place, "expected keys and values, found %s (known keys: %s)", kindOf(n), strings.Join(sorted(known), ", "))
		return false
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || !r.plain(key, place) {
			r.wrong(key, place, "%s stands where a key is expected (known keys: %s)", kindOf(key), strings.Join(sorted(known), ", "))
			continue
		}
		if line, twice := first[key.Value]; twice {
			r.wrong(key, place, "key %q is given twice, first on line %d: remove one", key.Value, line)
			continue
		}
		first[key.Value] = key.Line
		read, ok := known[key.Value]
		if !ok {
			r.bad[place+misnamed] = true
			r.wrong(key, place, "unknown key %q: did you mean %q? (known keys: %s)", key.Value, nearest(key.Value, sorted(known)), strings.Join(sorted(known), ", "))
			continue
		}
		at := key.Value
		if place != "" {
			at = place + "." + key.Value
		}
		r.lines[at] = key.Line
		read(value, at)
	}
	return true
}

// list reads a list with one function for its entries. A key without a value
// is an empty list.
func (r *configReader) list(n *yaml.Node, place string, entry func(n *yaml.Node, place string)) {
	if !r.plain(n, place) || isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		r.wrong(n, place, "expected a list, found %s: put it in [ ]", kindOf(n))
		return
	}
	for i, child := range n.Content {
		at := fmt.Sprintf("%s[%d]", place, i)
		r.lines[at] = child.Line
		entry(child, at)
	}
}

// scalar is the text of a value as it stands in the file: YAML's own reading
// (020 = 16, yes = true, 100.20 = 100.2) is not asked for.
type scalar struct {
	text   string
	quoted bool
}

// one reads a scalar into a field.
func one[T any](r *configReader, field *T, parse func(scalar) (T, error)) func(*yaml.Node, string) {
	return func(n *yaml.Node, place string) {
		if !r.plain(n, place) {
			return
		}
		switch {
		case isNull(n):
			r.wrong(n, place, "has no value: give it one or remove the line")
			return
		case n.Kind != yaml.ScalarNode:
			hint := ""
			if n.Kind == yaml.MappingNode {
				hint = " (values with a colon, such as IPv6 addresses, need quotes)"
			}
			r.wrong(n, place, "expected one value, found %s%s", kindOf(n), hint)
			return
		}
		const quotes = yaml.DoubleQuotedStyle | yaml.SingleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
		value, err := parse(scalar{text: n.Value, quoted: n.Style&quotes != 0})
		if err != nil {
			r.wrong(n, place, "%v", err)
			return
		}
		*field = value
	}
}

// many reads a list of scalars into a field. Entries with a fault are left out.
func many[T any](r *configReader, field *[]T, parse func(scalar) (T, error)) func(*yaml.Node, string) {
	return func(n *yaml.Node, place string) {
		*field = nil
		r.list(n, place, func(n *yaml.Node, place string) {
			var value T
			before := len(r.faults)
			one(r, &value, parse)(n, place)
			if len(r.faults) == before {
				*field = append(*field, value)
			}
		})
	}
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	if isNull(n) {
		return "nothing"
	}
	return strconv.Quote(n.Value)
}

var placeIndex = regexp.MustCompile(`\[\d+\]`)

// words is a place as it is written in messages: the line number says which
// entry of a list it is.
func words(place string) string {
	if place == "" {
		return "top level"
	}
	return placeIndex.ReplaceAllString(place, "")
}

func sorted(known fields) []string { return slices.Sorted(maps.Keys(known)) }

// nearest is the known word that takes the fewest edits.
func nearest(word string, known []string) string {
	best, least := "", -1
	for _, candidate := range known {
		if d := distance(word, candidate); least < 0 || d < least {
			best, least = candidate, d
		}
	}
	return best
}

// distance is the Levenshtein distance in octets, of words up to 64.
func distance(a, b string) int {
	a = a[:min(len(a), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
