// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// The lines between which the table stands in the document.
const (
	begins = "<!-- make verifier writes from here -->\n"
	ends   = "<!-- to here -->\n"
)

// table has a row for each program of the last kernel, and a column for each
// kernel.
func table(kernels []kernel) string {
	var t strings.Builder
	t.WriteString("| object | program | type |")
	for _, k := range kernels {
		fmt.Fprintf(&t, " %s |", k.Release)
	}
	t.WriteString("\n|---|---|---|" + strings.Repeat("---|", len(kernels)) + "\n")
	for _, p := range kernels[len(kernels)-1].Programs {
		fmt.Fprintf(&t, "| %s | `%s` | %s |", p.Object, p.Name, p.Type)
		for _, k := range kernels {
			fmt.Fprintf(&t, " %s |", k.cell(p.Object, p.Name))
		}
		t.WriteString("\n")
	}
	return t.String()
}

// cell is what a kernel made of one program.
func (k kernel) cell(object, name string) string {
	for _, p := range k.Programs {
		if p.Object == object && p.Name == name {
			return fmt.Sprintf("%s · %s · %s", thousands(p.Verified), thousands(p.Translated), p.Stack)
		}
	}
	return "–"
}

// thousands writes 12345 as 12,345.
func thousands(n int) string {
	digits := strconv.Itoa(n)
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}

// write replaces the table of the document, and nothing else of it.
func write(file, table string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, begun := bytes.Cut(text, []byte(begins))
	_, tail, ended := bytes.Cut(rest, []byte(ends))
	if !begun || !ended {
		return fmt.Errorf("find the table in %s: no lines %q and %q", file, strings.TrimSpace(begins), strings.TrimSpace(ends))
	}
	return os.WriteFile(file, fmt.Appendf(nil, "%s%s\n%s\n%s%s", head, begins, table, ends, tail), 0o644)
}
