// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"vippin/policy"
	"vippin/policy/flight"
)

// fillFailovers replaces nil by empty: scripts expect [], not null.
func fillFailovers(records []policy.Failover) []policy.Failover {
	records = slices.Clone(filled(records))
	for i := range records {
		records[i].Steps = filled(records[i].Steps)
	}
	return records
}

// stepWords is what the steps are called for people.
var stepWords = map[string]string{
	flight.LastAdvert: "last advert of the old MASTER", flight.FirstAdvert: "first advert of the new MASTER",
	flight.FirstOwnAdvert: "first advert of this router", flight.LastOwnAdvert: "last advert of this router",
	flight.LinkDown: "interface down", flight.LinkUp: "interface up", flight.VIPAdded: "VIP added", flight.VIPRemoved: "VIP removed",
	flight.RoleDecided: "role", flight.RoleInForce: "role in force for new connections",
	flight.FirstPinned: "first packet with the VIP left", flight.FirstReply: "first answer came",
	flight.TakenOver: "connections taken over", flight.Normalised: "timeouts made ordinary",
	flight.ConflictSeen: "conflict", flight.ConflictOver: "conflict over",
	flight.PeerUp: "peer connected", flight.PeerLost: "peer lost",
}

// showFailovers tells each record as a story, the latest last.
func showFailovers(o *output, records []policy.Failover) error {
	if len(records) == 0 {
		return o.printf("no failover since records are kept\n")
	}
	for i, f := range records {
		if i > 0 {
			if err := o.printf("\n"); err != nil {
				return err
			}
		}
		if err := showFailover(o, f); err != nil {
			return err
		}
	}
	return nil
}

func showFailover(o *output, f policy.Failover) error {
	text := fmt.Sprintf("%s %s: %s, was %s", f.Time.Format("2006-01-02 15:04:05.000"), clean(f.Group), o.role(f.Role), f.Was)
	switch {
	case f.Other == "":
	case f.Role == policy.RoleMaster:
		text += ", took over from " + clean(f.Other)
	default:
		text += ", " + clean(f.Other) + " took over"
	}
	lines := []string{text, "  why: " + clean(f.Cause)}
	for _, s := range f.Steps {
		lines = append(lines, "  "+stepLine(s))
	}
	if f.Role == policy.RoleMaster {
		lines = append(lines, "  connections: "+flowsInWords(f.Flows))
	}
	if !f.Complete && f.Note == "" {
		f.Note = "it is still being written"
	}
	if f.Note != "" {
		lines = append(lines, "  "+o.painted(yellow, "note:")+" "+clean(f.Note))
	}
	return o.printf("%s\n", strings.Join(lines, "\n"))
}

func stepLine(s policy.FailoverStep) string {
	words, known := stepWords[s.What]
	if !known {
		words = clean(s.What)
	}
	if s.Detail != "" {
		words += ": " + clean(s.Detail)
	}
	return fmt.Sprintf("%11s ms  %s", fmt.Sprintf("%.1f", s.Offset), words)
}

func flowsInWords(f policy.FailoverFlows) string {
	words := []string{
		fmt.Sprintf("%d taken over", f.TakenOver), fmt.Sprintf("%d spoke again", f.SpokeAgain), fmt.Sprintf("%d lost", f.Lost),
		fmt.Sprintf("%d timeouts made ordinary", f.Normalised), fmt.Sprintf("%d RSTs sent", f.Resets),
	}
	if f.ResetsHeld > 0 {
		words = append(words, fmt.Sprintf("%d RSTs kept back", f.ResetsHeld))
	}
	return strings.Join(words, ", ")
}

// fillRehearsals replaces nil by empty.
func fillRehearsals(rehearsals []policy.Rehearsal) []policy.Rehearsal {
	rehearsals = slices.Clone(filled(rehearsals))
	for i := range rehearsals {
		r := &rehearsals[i]
		r.Failures, r.Missing = fillFaults(r.Failures), fillFaults(r.Missing)
	}
	return rehearsals
}

func fillFaults(faults []policy.RehearsalFault) []policy.RehearsalFault {
	faults = slices.Clone(filled(faults))
	for i := range faults {
		faults[i].Example = filled(faults[i].Example)
	}
	return faults
}

// showRehearsals writes a verdict for each peer, and what leads to it.
func showRehearsals(o *output, rehearsals []policy.Rehearsal) error {
	if len(rehearsals) == 0 {
		return o.printf("no peers: nothing to rehearse (sync.peers names them)\n")
	}
	for _, r := range rehearsals {
		verdict := o.painted(green, "nothing would break")
		if breaks(r) {
			verdict = o.painted(red, "a failover would break something")
		}
		lines := []string{fmt.Sprintf("%s: %s; %d of its %d connections fit, tried in %s",
			clean(r.Peer), verdict, r.Fit, r.Flows, milliseconds(r.Took).Round(time.Millisecond))}
		if !r.Complete {
			lines = append(lines, "  its table did not come whole: there may be more")
		}
		if r.Note != "" {
			lines = append(lines, "  "+o.painted(yellow, "note:")+" "+clean(r.Note))
		}
		for _, fault := range r.Missing {
			lines = append(lines, faultLine("missing "+fault.What, fault))
		}
		for _, fault := range r.Failures {
			lines = append(lines, faultLine(fault.What, fault))
		}
		if err := o.printf("%s\n", strings.Join(lines, "\n")); err != nil {
			return err
		}
	}
	return nil
}

func faultLine(what string, fault policy.RehearsalFault) string {
	line := "  " + clean(what) + ": " + clean(fault.Why)
	if fault.Flows > 0 {
		line += fmt.Sprintf(" (%d connections)", fault.Flows)
	}
	if len(fault.Example) > 0 {
		line += ", such as " + clean(strings.Join(fault.Example, ", "))
	}
	return line
}
