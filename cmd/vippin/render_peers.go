// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vippin/policy"
)

// fillPeers replaces nil by empty: scripts expect [] and {}, not null.
func fillPeers(peers []policy.PeerReport) []policy.PeerReport {
	peers = slices.Clone(filled(peers))
	for i := range peers {
		p := &peers[i]
		p.Groups = filled(p.Groups)
		p.Refused, p.RefusedByPeer = filledMap(p.Refused), filledMap(p.RefusedByPeer)
		p.ConnectionsRefused = filledMap(p.ConnectionsRefused)
	}
	return peers
}

// peerState colours a state as a neighbour of it would.
func (o *output) peerState(state string) string {
	switch state {
	case "up":
		return o.painted(green, state)
	case "down":
		return o.painted(red, state)
	}
	return o.painted(yellow, clean(state))
}

// showPeerReports writes a row for each peer, and what there is to say of it
// after the table.
func showPeerReports(o *output, peers []policy.PeerReport, now time.Time) error {
	if len(peers) == 0 {
		return o.printf("no peers (sync.peers names them)\n")
	}
	t := o.table("PEER", "STATE", "FOR", "LAG", "SENT", "SENT/S", "RECEIVED", "RECV/S", "BYTES OUT", "BYTES IN", "ADDRESS", "NODE", "VERSION")
	for _, p := range peers {
		lasted := "-"
		if !p.Since.IsZero() {
			lasted = span(now.Sub(p.Since))
		}
		t.row(p.Name, o.peerState(p.State), lasted, lagOf(p), number(p.FlowsSent), rate(p.FlowsSentRate),
			number(p.FlowsReceived), rate(p.FlowsReceivedRate), octets(p.BytesSent), octets(p.BytesReceived),
			p.Address.String(), orDash(p.Node), versionOf(p))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, p := range peers {
		for _, note := range peerNotes(o, p, now) {
			if err := o.printf("%s: %s\n", clean(p.Name), note); err != nil {
				return err
			}
		}
	}
	return nil
}

func lagOf(p policy.PeerReport) string {
	if p.LagFlows == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", p.LagFlows, span(milliseconds(p.Lag)))
}

func versionOf(p policy.PeerReport) string {
	if p.Protocol == 0 {
		return orDash(p.Version)
	}
	return fmt.Sprintf("%s (protocol %d)", orDash(p.Version), p.Protocol)
}

func rate(perSecond float64) string { return strconv.FormatFloat(perSecond, 'f', 0, 64) }

// octets writes a number of octets with the unit that keeps it short (IEC
// 60027-2).
func octets(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return number(n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1023.95 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// peerNotes are sentences about a peer, without its name.
func peerNotes(o *output, p policy.PeerReport, now time.Time) []string {
	var notes []string
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if len(p.Groups) > 0 {
		var roles []string
		for _, g := range p.Groups {
			roles = append(roles, fmt.Sprintf("%s of %s", o.role(g.Role), clean(g.Name)))
		}
		add("says that it is %s", strings.Join(roles, ", "))
	}
	for _, bulk := range []struct {
		of  *policy.BulkProgress
		way string
	}{{p.BulkOut, "table to it"}, {p.BulkIn, "table from it"}} {
		if bulk.of != nil {
			add("%s: %s", bulk.way, bulkText(o, *bulk.of))
		}
	}
	if p.BulkOut == nil && p.BulkIn == nil && p.LastBulk != nil {
		add("whole table last exchanged %s ago", span(now.Sub(*p.LastBulk)))
	}
	if text := reasons(p.RefusedByPeer); text != "-" {
		add("%s of this router's flows it did not take: %s", o.painted(yellow, number(total(p.RefusedByPeer))), clean(text))
	}
	if text := reasons(p.Refused); text != "-" {
		add("%s of its flows this router did not take: %s", o.painted(yellow, number(total(p.Refused))), clean(text))
	}
	if p.Overruns > 0 {
		add("%d times more flows waited for it than fit, and the whole table was sent", p.Overruns)
	}
	return append(notes, linkNotes(o, p, now)...)
}

// linkNotes say what is wrong with the connection.
func linkNotes(o *output, p policy.PeerReport, now time.Time) (notes []string) {
	if p.Key == "" {
		notes = append(notes, o.painted(red, "its key is not known:")+fmt.Sprintf(
			" run \"vippin keygen\" there and \"vippin trust %s KEY\" here", clean(p.Name)))
	}
	if text := reasons(p.ConnectionsRefused); text != "-" {
		note := "connections from its address that were refused: " + clean(text)
		if p.ShownKey != "" {
			note += ", last with the key " + clean(p.ShownKey)
		}
		notes = append(notes, note)
	}
	if p.LastError != "" {
		head := "last error"
		if p.LastErrorAt != nil {
			head += " " + span(now.Sub(*p.LastErrorAt)) + " ago"
		}
		if p.State != "up" {
			head = o.painted(red, head)
		}
		notes = append(notes, fmt.Sprintf("%s: %s", head, clean(p.LastError)))
	}
	return notes
}

// bulkText is a bar on a terminal, and numbers.
func bulkText(o *output, b policy.BulkProgress) string {
	if b.Total == 0 {
		return fmt.Sprintf("%d flows", b.Done)
	}
	share := min(float64(b.Done)/float64(b.Total), 1)
	text := fmt.Sprintf("%.0f%%, %d of %d flows", 100*share, b.Done, b.Total)
	const rest = 60 // columns for the words beside it
	width := min(o.columns-rest, 40)
	if width < 10 {
		return text
	}
	done := int(share * float64(width))
	return "[" + o.painted(green, strings.Repeat("#", done)) + strings.Repeat("-", width-done) + "] " + text
}

func total(counts map[string]uint64) (sum uint64) {
	for _, count := range counts {
		sum += count
	}
	return sum
}
