// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"vippin/loader/bench"
)

// progressBar tells on stderr how far a long measurement is: a bar on a terminal,
// else a line whenever something else begins.
type progressBar struct {
	w       io.Writer
	columns int // 0 = no terminal
	what    string
	drawn   int // characters that are to be wiped
}

func newProgressBar(e *env) *progressBar {
	bar := &progressBar{w: e.stderr}
	if file, ok := e.stderr.(*os.File); ok {
		bar.columns = terminalColumns(int(file.Fd()))
	}
	return bar
}

const barWidth = 24

func (b *progressBar) show(p bench.Progress) {
	if b.columns == 0 {
		if p.What != b.what {
			fmt.Fprintf(b.w, "%s (%.0f %% done)\n", p.What, 100*p.Done)
		}
		b.what = p.What
		return
	}
	full := int(p.Done * barWidth)
	line := fmt.Sprintf("[%s%s] %3.0f %%", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*p.Done)
	if p.Left > 0 {
		line += fmt.Sprintf(", %s left", span(p.Left.Round(time.Second)))
	}
	line = cut(line+", "+p.What, b.columns-1)
	width := visible(line)
	fmt.Fprintf(b.w, "\r%s%s", line, strings.Repeat(" ", max(b.drawn-width, 0)))
	b.drawn = width
}

// end wipes the bar.
func (b *progressBar) end() {
	if b.drawn > 0 {
		fmt.Fprintf(b.w, "\r%s\r", strings.Repeat(" ", b.drawn))
	}
}
