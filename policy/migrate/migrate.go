// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"vippin/policy"
)

// SizeMax is more than any honest file has, in octets.
const SizeMax = 4 << 20

// Source is one file of the input.
type Source struct {
	Name string // for messages, and where its includes are relative to
	Data []byte
}

// Options is what no file tells.
type Options struct {
	Node     string         // this router's name
	ConfigID string         // keepalived's; "" = the first part of Node
	Listen   netip.AddrPort // the zero AddrPort = as the files say
	Peers    []Peer         // none = as the files say
	Outside  []string       // interfaces that source NAT leaves by; none = as the files say
	// Include reads the files that a pattern names in a file. nil: includes are
	// named in a warning.
	Include func(pattern, from string) ([]Source, error)
}

// Peer is the other router.
type Peer struct {
	Name    string
	Address netip.AddrPort
}

// Result is a configuration that policy.ParseConfig takes.
type Result struct {
	YAML     []byte
	Pins     int
	Groups   int
	Todos    []string // what is left to fill in
	Warnings []string // what was not understood, with file and line
}

// Run writes the configuration of vippin that the sources amount to. Sources
// that cannot be read are policy.ConfigErrors, each with its way out.
func Run(sources []Source, o Options) (*Result, error) {
	if o.ConfigID == "" {
		o.ConfigID, _, _ = strings.Cut(o.Node, ".")
	}
	s := &setup{notes: &notes{}, options: o, addresses: map[string][]netip.Prefix{}}
	for _, src := range sources {
		s.read(src)
	}
	s.checkSize()
	if len(s.faults) > 0 {
		return nil, s.faults
	}
	p := s.makePlan()
	r := &Result{YAML: p.render(sources), Pins: len(p.pins), Groups: len(p.groups)}
	for _, todos := range s.todos {
		for _, todo := range todos {
			r.Todos = append(r.Todos, located(todo))
		}
	}
	for _, warning := range s.warnings {
		r.Warnings = append(r.Warnings, located(warning))
	}
	if err := check(r.YAML, o.Node); err != nil {
		return nil, err
	}
	return r, nil
}

// checkSize bounds what is compared with each other.
func (s *setup) checkSize() {
	if len(s.instances) > policy.GroupsMax {
		s.fault(s.instances[policy.GroupsMax].at, "more than %d VRRP instances: migrate a part of them", policy.GroupsMax)
	}
	if len(s.nat) > rulesMax {
		s.fault(s.nat[rulesMax].at, "more than %d rules of source NAT: migrate a part of them", rulesMax)
	}
}

// check holds what was written against the parser that will read it.
func check(yaml []byte, node string) error {
	_, err := policy.ParseConfig(yaml, "vippin.yaml", node)
	var faults policy.ConfigErrors
	if errors.As(err, &faults) && len(faults) > 0 {
		return fmt.Errorf("what the files say makes no configuration (%d faults, the first: %s): migrate a smaller part of them, and add the rest by hand",
			len(faults), faults[0].Text)
	}
	return err
}

// read finds out what a source is, and reads it.
func (s *setup) read(src Source) {
	src.Data = bytes.TrimPrefix(src.Data, []byte("\ufeff"))
	if !s.isText(src) {
		return
	}
	switch kind, at := kindOf(src); kind {
	case kindVyOS:
		s.readVyOS(src)
	case kindConntrackd:
		s.readConntrackd(src)
	case kindKeepalived:
		s.readKeepalived(src)
	case kindBoot:
		s.fault(at, "this is VyOS's config.boot: give the output of \"show configuration commands\" instead")
	case kindEmpty:
		s.fault(at, "there is nothing in the file")
	default:
		s.fault(at, "this is neither a conntrackd.conf nor a keepalived.conf, nor VyOS's \"set\" commands: no line begins as theirs do")
	}
}

// isText keeps out what nobody wrote.
func (s *setup) isText(src Source) bool {
	at := place{src.Name, 1}
	if len(src.Data) > SizeMax {
		s.fault(at, "the file has more than %d octets: give the configuration file itself", SizeMax)
		return false
	}
	for raw := range bytes.Lines(src.Data) {
		if bytes.IndexByte(raw, 0) >= 0 || !utf8.Valid(raw) {
			s.fault(at, "this is no text (UTF-8): give the configuration file itself")
			return false
		}
		at.line++
	}
	return true
}

type kind int

const (
	kindUnknown kind = iota
	kindEmpty
	kindVyOS
	kindBoot
	kindConntrackd
	kindKeepalived
)

// firstWords tell by what a line begins with what kind of file it is in.
var firstWords = map[string]kind{
	"set": kindVyOS, "delete": kindVyOS, "edit": kindVyOS, "configure": kindVyOS,
	"sync": kindConntrackd, "general": kindConntrackd, "stats": kindConntrackd, "helper": kindConntrackd,
	"interfaces": kindBoot, "service": kindBoot, "high-availability": kindBoot, "nat": kindBoot, "system": kindBoot,
	"firewall": kindBoot, "protocols": kindBoot,
}

// kindOf takes the first line that tells. The place is that line, or the first
// one that says anything.
func kindOf(src Source) (kind, place) {
	at, first := place{src.Name, 0}, place{src.Name, 1}
	empty := true
	for raw := range bytes.Lines(src.Data) {
		at.line++
		word, _, _ := strings.Cut(strings.TrimSpace(string(raw)), " ")
		word = strings.TrimRight(strings.ReplaceAll(word, "\t", "{"), "{}")
		if i := strings.IndexByte(word, '{'); i >= 0 {
			word = word[:i]
		}
		if word == "" || strings.ContainsAny(word[:1], "#!/*") {
			continue
		}
		if empty {
			empty, first = false, at
		}
		if _, is := kaTop[word]; is || strings.HasPrefix(word, "include") || word[0] == '$' || word[0] == '@' {
			return kindKeepalived, at
		}
		if kind, is := firstWords[strings.ToLower(word)]; is {
			return kind, at
		}
	}
	if empty {
		return kindEmpty, first
	}
	return kindUnknown, first
}
