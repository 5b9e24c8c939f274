// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"vippin/policy"
)

// output is where a showing command writes for people, and what its reader's
// terminal can do.
type output struct {
	w       io.Writer
	columns int // 0 = no terminal: nothing is cut or wrapped
	colour  bool
}

func newOutput(e *env) *output {
	return &output{w: e.stdout, columns: e.columns(), colour: e.colour()}
}

// paint is an ANSI colour number (ECMA-48 SGR 30 to 39). All are written with
// the same number of bytes, so that painted columns stay aligned.
type paint int

const (
	red     paint = 31
	green   paint = 32
	yellow  paint = 33
	noPaint paint = 39
)

const (
	paintStart = "\x1b["
	paintEnd   = "\x1b[0m"
)

func (o *output) painted(p paint, text string) string {
	if !o.colour {
		return text
	}
	return fmt.Sprintf("%s%dm%s%s", paintStart, p, text, paintEnd)
}

func (o *output) role(r policy.Role) string {
	switch r {
	case policy.RoleMaster:
		return o.painted(green, r.String())
	case policy.RoleBackup:
		return o.painted(yellow, r.String())
	}
	return o.painted(red, r.String())
}

// printf writes one or more whole lines, wrapped at the terminal's width; what
// is wrapped continues below the first word.
func (o *output) printf(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if o.columns > 0 {
		var wrapped strings.Builder
		for line := range strings.Lines(text) {
			wrapped.WriteString(wrap(strings.TrimSuffix(line, "\n"), o.columns))
			wrapped.WriteByte('\n')
		}
		text = wrapped.String()
	}
	_, err := io.WriteString(o.w, text)
	return err
}

// wrap breaks a line at spaces so that no part has more than columns visible
// characters, as long as its words allow.
func wrap(line string, columns int) string {
	indent := len(line) - len(strings.TrimLeft(line, " "))
	next := "\n" + strings.Repeat(" ", min(indent+2, columns/2))
	var b strings.Builder
	b.WriteString(line[:indent])
	used := indent
	for i, word := range strings.Fields(line) {
		width := visible(word)
		switch {
		case i == 0:
		case used+1+width > columns:
			b.WriteString(next)
			used = len(next) - 1
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used += width
	}
	return b.String()
}

// visible counts the characters of text that take a place.
func visible(text string) int {
	count := 0
	for len(text) > 0 {
		rest, isPaint := cutPaint(text)
		if isPaint {
			text = rest
			continue
		}
		_, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		count++
	}
	return count
}

// cutPaint removes one colour sequence from the front of text.
func cutPaint(text string) (rest string, found bool) {
	if !strings.HasPrefix(text, paintStart) {
		return text, false
	}
	end := strings.IndexByte(text, 'm')
	if end < 0 {
		return text, false
	}
	return text[end+1:], true
}

// cut shortens a line to the terminal's width; an ellipsis says so.
func cut(line string, columns int) string {
	if columns == 0 || visible(line) <= columns {
		return line
	}
	var b strings.Builder
	painted := false
	for used := 0; used < columns-1; {
		if rest, isPaint := cutPaint(line); isPaint {
			b.WriteString(line[:len(line)-len(rest)])
			line, painted = rest, true
			continue
		}
		_, size := utf8.DecodeRuneInString(line)
		b.WriteString(line[:size])
		line = line[size:]
		used++
	}
	if painted {
		b.WriteString(paintEnd)
	}
	return b.String() + "…"
}

// table is aligned columns below a header.
type table struct {
	out  *output
	rows [][]string
}

func (o *output) table(header ...string) *table {
	return &table{out: o, rows: [][]string{header}}
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// flush writes the rows and forgets all but the header, which is not written
// twice.
func (t *table) flush() error {
	var aligned bytes.Buffer
	writer := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
	paintedColumn := t.paintedColumns()
	for _, row := range t.rows {
		for i, cell := range row {
			if paintedColumn[i] && !strings.HasPrefix(cell, paintStart) {
				cell = t.out.painted(noPaint, clean(cell))
			} else if !paintedColumn[i] {
				cell = clean(cell)
			}
			if i > 0 {
				fmt.Fprint(writer, "\t")
			}
			fmt.Fprint(writer, cell)
		}
		fmt.Fprintln(writer)
	}
	if err := writer.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(aligned.String()) {
		line = strings.TrimRight(line, " \n")
		if _, err := io.WriteString(t.out.w, cut(line, t.out.columns)+"\n"); err != nil {
			return err
		}
	}
	t.rows = t.rows[:0]
	return nil
}

func (t *table) paintedColumns() map[int]bool {
	found := make(map[int]bool)
	for _, row := range t.rows {
		for i, cell := range row {
			if strings.HasPrefix(cell, paintStart) {
				found[i] = true
			}
		}
	}
	return found
}

// clean keeps control characters out of the terminal: some words come from
// configuration files and from keepalived.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, text)
}

// printJSON writes one indented value.
func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// lineJSON returns a writer of one value a line.
func lineJSON(w io.Writer) *json.Encoder {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder
}

// span writes a duration with the two units that matter.
func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

func seconds(s float64) time.Duration      { return time.Duration(s * float64(time.Second)) }
func milliseconds(s float64) time.Duration { return time.Duration(s * float64(time.Millisecond)) }
