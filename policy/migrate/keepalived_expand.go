// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"regexp"
	"strings"
)

// keepalived's preprocessor: parameters, lines for some routers only, included
// files (keepalived.conf(5), "ADVANCED CONFIGURATION").

const (
	includesMax  = 200     // files
	includedMax  = SizeMax // octets of all of them
	expandedMax  = 1 << 12 // octets of a line with its parameters
	expansionMax = 16      // parameters within parameters
)

var (
	definition = regexp.MustCompile(`^\s*\$([A-Za-z_][A-Za-z0-9_]*)=(.*)$`)
	parameter  = regexp.MustCompile(`\$([A-Za-z_][A-Za-z0-9_]*)(\s|$)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)
)

// expander is the preprocessor at work.
type expander struct {
	*setup
	parameters map[string]string
	included   int      // files
	octets     int      // of these
	stack      []string // files that are being read
}

func (s *setup) expandKeepalived(src Source) []node {
	e := &expander{setup: s, parameters: map[string]string{}}
	return e.file(src)
}

func (e *expander) file(src Source) []node {
	e.stack = append(e.stack, src.Name)
	defer func() { e.stack = e.stack[:len(e.stack)-1] }()
	if !e.isText(src) {
		return nil
	}
	r := &treeReader{
		syntax: syntax{comments: "#!", quotes: true, inWords: true}, notes: e.notes,
		expand: e.line, include: e.include,
	}
	return r.read(src.Name, src.Data)
}

// line says what becomes of a line before it is taken apart.
func (e *expander) line(line string, at place) (string, bool) {
	line, ok := e.forThisRouter(line, at)
	if !ok {
		return "", false
	}
	if found := definition.FindStringSubmatch(line); found != nil {
		value := strings.TrimSpace(found[2])
		if strings.HasSuffix(value, `\`) {
			e.fault(at, "$%s is defined over several lines, which is not read: write out what it stands for, in a copy of the file, and migrate that", found[1])
		}
		e.parameters[found[1]] = value
		return "", false
	}
	if strings.HasPrefix(strings.TrimSpace(line), "~") {
		e.fault(at, "sequences (~SEQ, ~LST) are not read: write out what they stand for, in a copy of the file, and migrate that")
		return "", false
	}
	for range expansionMax {
		if !strings.Contains(line, "$") {
			return line, true
		}
		expanded := parameter.ReplaceAllStringFunc(line, e.value)
		if expanded == line {
			return line, true
		}
		if len(expanded) > expandedMax {
			e.fault(at, "the line has more than %d octets with its parameters: write it out", expandedMax)
			return "", false
		}
		line = expanded
	}
	return e.forThisRouter(line, at)
}

// value is what a parameter stands for; one that is not defined stays.
func (e *expander) value(text string) string {
	found := parameter.FindStringSubmatch(text)
	value, known := e.parameters[found[1]+found[3]]
	if !known {
		return text
	}
	return value + found[2]
}

// forThisRouter leaves out lines for routers with another config-id.
func (e *expander) forThisRouter(line string, at place) (string, bool) {
	trimmed := strings.TrimSpace(line)
	id, is := strings.CutPrefix(trimmed, "@")
	if !is {
		return line, true
	}
	id, rest, _ := strings.Cut(id, " ")
	if i := strings.IndexByte(id, '\t'); i >= 0 {
		id, rest = id[:i], id[i:]+" "+rest
	}
	name, not := strings.CutPrefix(id, "^")
	if (name == e.options.ConfigID) != not {
		return rest, true
	}
	e.explain(inGroups, at, "@"+id, "for other routers: the config-id of this one is "+e.options.ConfigID)
	return "", false
}

// include reads the files that a statement names.
func (e *expander) include(n node) ([]node, bool) {
	switch n.name() {
	case "include", "includer", "includem", "includew", "includeb", "includea":
	default:
		return nil, false
	}
	if len(n.words) != 2 {
		e.warn(n.at, "%s needs one file name", n.text())
		return nil, true
	}
	pattern := n.words[1].text
	if e.options.Include == nil || strings.ContainsAny(pattern, "{}") {
		e.warn(n.at, "include %s is not followed: name these files on the command line, too", pattern)
		return nil, true
	}
	if len(e.stack) > depthMax {
		e.fault(n.at, "include %s: more than %d files include each other", pattern, depthMax)
		return nil, true
	}
	sources, err := e.options.Include(pattern, n.at.file)
	if err != nil {
		e.fault(n.at, "include %s: %v: correct the name, or take the line out of a copy of the file and migrate that", pattern, err)
		return nil, true
	}
	if len(sources) == 0 {
		e.warn(n.at, "include %s: there is no such file", pattern)
	}
	var nodes []node
	for _, src := range sources {
		e.included++
		e.octets += len(src.Data)
		if e.included > includesMax || e.octets > includedMax {
			e.fault(n.at, "include %s: more than %d files, or %d octets, are included: migrate a part of them", pattern, includesMax, includedMax)
			break
		}
		nodes = append(nodes, e.file(src)...)
	}
	return nodes, true
}
