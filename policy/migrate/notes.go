// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"vippin/policy"
)

// place is where in the input something stands.
type place struct {
	file string
	line int // from 1
}

// section is the part of vippin.yaml above which a note stands.
type section int

// In the order in which they are written.
const (
	inGeneral section = iota
	inGroups
	inPins
	inSync
	sections
)

// note is one setting and what is to be said of it.
type note struct {
	at      place
	setting string // name and value, as they stand in the input
	text    string // what vippin does instead
}

// notes gathers what is said beside the configuration.
type notes struct {
	explained [sections][]note
	todos     [sections][]policy.ConfigError // what is left for the reader to fill in
	warnings  []policy.ConfigError           // what was not understood
	faults    policy.ConfigErrors            // what makes the input unreadable
}

// explain says why a setting has no equivalent, or what it became.
func (n *notes) explain(in section, at place, setting, text string) {
	n.explained[in] = append(n.explained[in], note{at: at, setting: shorten(clean(setting)), text: text})
}

// todo names what the input does not tell. The place may be empty.
func (n *notes) todo(in section, at place, format string, args ...any) {
	n.todos[in] = append(n.todos[in], configError(at, format, args))
}

// warn names what is left out because it was not understood.
func (n *notes) warn(at place, format string, args ...any) {
	n.warnings = append(n.warnings, configError(at, format, args))
}

// faultsMax keeps binary input from filling the screen.
const faultsMax = 20

// fault names what must be mended first.
func (n *notes) fault(at place, format string, args ...any) {
	if len(n.faults) < faultsMax {
		fault := configError(at, format, args)
		n.faults = append(n.faults, &fault)
	}
}

func configError(at place, format string, args []any) policy.ConfigError {
	return policy.ConfigError{File: at.file, Line: at.line, Text: clean(fmt.Sprintf(format, args...))}
}

// clean keeps what others wrote within the line of a comment: YAML knows more
// line ends than one, and a terminal more than text.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// shorten keeps what is quoted within a line or two.
func shorten(text string) string {
	if runes := []rune(text); len(runes) > 80 {
		return string(runes[:79]) + "…"
	}
	return text
}

// located is a message with the place where there is one.
func located(e policy.ConfigError) string {
	if e.File == "" {
		return e.Text
	}
	return e.Error()
}

// paragraph is what one text is said of.
type paragraph struct {
	text     string
	settings []string         // in the order of the input
	lines    map[string][]int // of each setting
}

// paragraphs gathers the notes of one file that say the same.
func paragraphs(list []note) []*paragraph {
	var all []*paragraph
	byText := map[string]*paragraph{}
	for _, n := range list {
		p := byText[n.text]
		if p == nil {
			p = &paragraph{text: n.text, lines: map[string][]int{}}
			byText[n.text] = p
			all = append(all, p)
		}
		if _, there := p.lines[n.setting]; !there {
			p.settings = append(p.settings, n.setting)
		}
		p.lines[n.setting] = append(p.lines[n.setting], n.at.line)
	}
	return all
}

// subjects names the settings with their lines: "state (4, 20), priority (5)".
func (p *paragraph) subjects() string {
	parts := make([]string, len(p.settings))
	for i, setting := range p.settings {
		lines := p.lines[setting]
		slices.Sort(lines)
		numbers := make([]string, len(lines))
		for j, line := range lines {
			numbers[j] = fmt.Sprint(line)
		}
		parts[i] = fmt.Sprintf("%s (%s)", setting, strings.Join(numbers, ", "))
	}
	return strings.Join(parts, ", ")
}

// filesOf lists the files that notes are about, in their order.
func filesOf(list []note) []string {
	var files []string
	for _, n := range list {
		if !slices.Contains(files, n.at.file) {
			files = append(files, n.at.file)
		}
	}
	return files
}
