// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"
)

// FlowReport is what became of one flow.
type FlowReport struct {
	ID       string           `json:"id"`
	Proto    string           `json:"proto"` // tcp, udp, icmp
	Local    netip.AddrPort   `json:"local"` // the client's own end; ICMP: the identifier as port
	Remote   netip.AddrPort   `json:"remote"`
	Sent     uint64           `json:"sent"`
	Answered uint64           `json:"answered"`
	Sources  []netip.AddrPort `json:"sources"` // that the server saw, in order of first appearance
	Errors   []string         `json:"errors"`  // the first few
	Gaps     []Gap            `json:"gaps"`    // waits for an answer longer than three intervals (at least 100 ms)
}

// Gap is a time without an answer.
type Gap struct {
	Start  time.Time     `json:"start"`
	Length time.Duration `json:"length_ns"`
}

// Broken says that the flow saw an error: for TCP the connection is gone.
func (f FlowReport) Broken() bool { return len(f.Errors) > 0 }

// Moved says that the server saw the flow come from more than one source.
func (f FlowReport) Moved() bool { return len(f.Sources) > 1 }

// Report is what became of several flows.
type Report struct {
	Flows []FlowReport `json:"flows"`
}

// Broken lists the flows that saw an error.
func (r Report) Broken() []FlowReport { return r.filter(FlowReport.Broken) }

// Moved lists the flows whose source changed.
func (r Report) Moved() []FlowReport { return r.filter(FlowReport.Moved) }

// Silent lists the flows that never got an answer.
func (r Report) Silent() []FlowReport {
	return r.filter(func(f FlowReport) bool { return f.Answered == 0 })
}

func (r Report) filter(keep func(FlowReport) bool) []FlowReport {
	var kept []FlowReport
	for _, f := range r.Flows {
		if keep(f) {
			kept = append(kept, f)
		}
	}
	return kept
}

// Addresses counts the flows seen from each source address.
func (r Report) Addresses() map[netip.Addr]int {
	counts := make(map[netip.Addr]int)
	for _, f := range r.Flows {
		seen := make(map[netip.Addr]bool)
		for _, s := range f.Sources {
			if !seen[s.Addr()] {
				seen[s.Addr()] = true
				counts[s.Addr()]++
			}
		}
	}
	return counts
}

// LongestGap is the longest time any flow waited for an answer.
func (r Report) LongestGap() time.Duration {
	var longest time.Duration
	for _, f := range r.Flows {
		for _, g := range f.Gaps {
			longest = max(longest, g.Length)
		}
	}
	return longest
}

// String sums the report up in one line, with the first broken or moved flow.
func (r Report) String() string {
	var sent, answered uint64
	for _, f := range r.Flows {
		sent += f.Sent
		answered += f.Answered
	}
	var sources []string
	for addr, n := range r.Addresses() {
		sources = append(sources, fmt.Sprintf("%s (%d)", addr, n))
	}
	sort.Strings(sources)
	broken, moved := r.Broken(), r.Moved()
	line := fmt.Sprintf("%d flows from %s: %d requests, %d answers, %d broken, %d moved, longest gap %s",
		len(r.Flows), strings.Join(sources, ", "), sent, answered, len(broken), len(moved), r.LongestGap().Round(time.Millisecond))
	if len(broken) > 0 {
		line += fmt.Sprintf("; first broken: %s: %s", broken[0].ID, broken[0].Errors[0])
	}
	if len(moved) > 0 {
		line += fmt.Sprintf("; first moved: %s: %v", moved[0].ID, moved[0].Sources)
	}
	return line
}

// addSource remembers a source at its first appearance.
func addSource(sources []netip.AddrPort, source netip.AddrPort) []netip.AddrPort {
	source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	if slices.Contains(sources, source) {
		return sources
	}
	return append(sources, source)
}
