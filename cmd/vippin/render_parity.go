// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"vippin/policy"
	"vippin/policy/parity"
)

// sideBySide is the width of a terminal from which on both sides fit in a line.
const sideBySide = 90

// showDifferences writes the differences with one peer after the other.
func showDifferences(o *output, found []policy.Difference) error {
	if len(found) == 0 {
		return o.printf("nothing differs that should be alike\n")
	}
	var peers []string
	for _, d := range found {
		if !slices.Contains(peers, d.Peer) {
			peers = append(peers, d.Peer)
		}
	}
	for i, peer := range peers {
		if i > 0 {
			if err := o.printf("\n"); err != nil {
				return err
			}
		}
		with := slices.DeleteFunc(slices.Clone(found), func(d policy.Difference) bool { return d.Peer != peer })
		show := showAside
		if o.columns > 0 && o.columns < sideBySide {
			show = showBelow
		}
		if err := show(o, peer, with); err != nil {
			return err
		}
	}
	summary := fmt.Sprintf("\nerrors: %d, warnings: %d", parity.Errors(found), parity.Count(found, parity.Warning))
	if notes := parity.Count(found, parity.Note); notes > 0 {
		summary += fmt.Sprintf(", notes: %d", notes)
	}
	return o.printf("%s\n", summary)
}

func (o *output) severity(state string) string {
	switch state {
	case parity.Error:
		return o.painted(red, state)
	case parity.Warning:
		return o.painted(yellow, state)
	}
	return o.painted(noPaint, state)
}

// showAside writes both sides beside each other.
func showAside(o *output, peer string, found []policy.Difference) error {
	head := []string{"STATE", "WHAT", "HERE", clean(peer)}
	rows := [][]string{head}
	for _, d := range found {
		rows = append(rows, []string{d.State, clean(d.Check + ": " + d.About), clean(d.Here), clean(d.There)})
	}
	widths := o.widths(rows)
	if err := o.aside(head, widths, ""); err != nil {
		return err
	}
	for i, d := range found {
		if err := o.aside(rows[i+1], widths, o.severity(d.State)); err != nil {
			return err
		}
		if err := o.printf("         breaks: %s\n", clean(d.Breaks)); err != nil {
			return err
		}
	}
	return nil
}

const columnGap = 2

// widths are those of the columns, on a terminal so that all fit.
func (o *output) widths(rows [][]string) (widths [4]int) {
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], visible(cell))
		}
	}
	if o.columns == 0 {
		return widths
	}
	widths[1] = min(widths[1], o.columns/4)
	rest := o.columns - widths[0] - widths[1] - 3*columnGap
	if widths[2]+widths[3] > rest {
		half := rest / 2
		widths[2] = min(widths[2], max(half, rest-widths[3]))
		widths[3] = rest - widths[2]
	}
	return widths
}

// aside writes a row, whose cells may take several lines. The first one may be
// painted.
func (o *output) aside(cells []string, widths [4]int, painted string) error {
	var columns [4][]string
	lines := 1
	for i, cell := range cells {
		columns[i] = folded(cell, widths[i])
		lines = max(lines, len(columns[i]))
	}
	for n := range lines {
		var b strings.Builder
		for i, column := range columns {
			text := ""
			if n < len(column) {
				text = column[n]
			}
			pad := widths[i] - visible(text) + columnGap
			if i == 0 && n == 0 && painted != "" {
				text = painted
			}
			b.WriteString(text + strings.Repeat(" ", max(pad, 1)))
		}
		if err := o.line(strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// line writes one line as it is.
func (o *output) line(text string) error {
	_, err := o.w.Write([]byte(cut(text, o.columns) + "\n"))
	return err
}

// folded breaks a cell into lines of a width; words that are longer are broken,
// too.
func folded(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		for {
			room := width - visible(line) - 1
			if line == "" {
				room = width
			}
			if visible(word) <= room {
				line = strings.TrimPrefix(line+" "+word, " ")
				break
			}
			if line != "" {
				lines, line = append(lines, line), ""
				continue
			}
			letters := []rune(word)
			lines, word = append(lines, string(letters[:width])), string(letters[width:])
		}
	}
	return append(lines, line)
}

// showBelow writes one side below the other.
func showBelow(o *output, peer string, found []policy.Difference) error {
	name := clean(peer)
	width := max(len("breaks"), visible(name))
	for _, d := range found {
		if err := o.printf("%s %s: %s\n", o.severity(d.State), clean(d.Check), clean(d.About)); err != nil {
			return err
		}
		for _, side := range [][2]string{{"here", d.Here}, {name, d.There}, {"breaks", d.Breaks}} {
			indent := "  " + side[0] + strings.Repeat(" ", width-visible(side[0])+columnGap)
			for i, text := range folded(clean(side[1]), max(o.columns-visible(indent), 20)) {
				if i > 0 {
					indent = strings.Repeat(" ", visible(indent))
				}
				if err := o.line(indent + text); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
