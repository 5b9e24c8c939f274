// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
)

// rows of the tables, in the order of a router's life.
var rows = []struct{ key, text string }{
	{stepProcess, "`vippin version`: what a command takes that does nothing"},
	{stepStart, "`vippin run` until it is ready, for the first time"},
	{stepRestart, "`vippin run` until it is ready, again (an upgrade)"},
	{stepStatus, "`vippin status`"},
	{stepList, "`vippin pin ls`"},
	{stepOneOff, "`vippin pin off` one"},
	{stepOneOn, "`vippin pin on` one"},
	{stepAllOff, "`vippin pin off` all"},
	{stepAllOn, "`vippin pin on` all"},
	{stepUnload, "`vippin unload`"},
	{stepLoad, "`vippin load`, for the first time"},
	{stepLoadAgain, "`vippin load`, again"},
	{sizeIdle, "the daemon at rest, ms of a processor a second"},
	{sizeResident, "the daemon's memory, MiB resident"},
	{sizeOwn, "of this its own, without the program's file"},
	{sizeBPF, "BPF maps and programs, MiB"},
}

func (r report) write(w io.Writer, o *options) {
	fmt.Fprintf(w, `# What a trunk of many VLANs takes

Made by `+"`make bench-vlans`"+` on: Linux %s, %d × %s. One pin on each VLAN, no traffic,
maps of the default size. Times are in ms, of whole commands, as a shell would see them: medians of %d (of quick ones of %d).

Each VLAN is a veth here, not a sub-interface: not every kernel has 802.1Q, and programs go on either in the same way. With tcx the kernel waits
for a grace period of RCU whenever a program is put on or taken off, two for each VLAN, one after the other: that is nearly all of
the first start, and of unload. The daemon follows roles meanwhile, and VLANs are pinned on as soon as their programs are there.

`, r.Kernel, runtime.NumCPU(), processor(), o.rounds, o.rounds*quick)
	r.table(w)
}

func (r report) writeEmulated(w io.Writer) {
	fmt.Fprintf(w, `
## Real VLANs, emulated processor, Linux %s

802.1Q sub-interfaces of one trunk, in a machine whose one processor is emulated: times are some ten times as long as on a real one, and say only how they grow.

`, r.Kernel)
	r.table(w)
}

// table has a column for each number of VLANs.
func (r report) table(w io.Writer) {
	head, rule := "| VLANs |", "|---|"
	for _, result := range r.Results {
		head += fmt.Sprintf(" %d |", result.VLANs)
		rule += "--:|"
	}
	fmt.Fprintf(w, "%s\n%s\n", head, rule)
	for _, row := range rows {
		line := "| " + row.text + " |"
		for _, result := range r.Results {
			line += " " + figure(result.Figures[row.key]) + " |"
		}
		fmt.Fprintln(w, line)
	}
}

// figure is the median, with two or three places that count.
func figure(all []float64) string {
	if len(all) == 0 {
		return "-"
	}
	sorted := slices.Sorted(slices.Values(all))
	median := sorted[len(sorted)/2]
	if median < 100 {
		return fmt.Sprintf("%.1f", median)
	}
	text := fmt.Sprintf("%.0f", median)
	if len(text) > 3 {
		text = text[:len(text)-3] + "," + text[len(text)-3:]
	}
	return text
}

// processor names it, as the kernel does.
func processor() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
