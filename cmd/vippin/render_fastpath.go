// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"vippin/policy"
)

func fillFastpath(s policy.FastpathState) policy.FastpathState {
	s.Interfaces = slices.Clone(filled(s.Interfaces))
	for i := range s.Interfaces {
		s.Interfaces[i].VLANs = filled(s.Interfaces[i].VLANs)
		s.Interfaces[i].Warnings = filled(s.Interfaces[i].Warnings)
		s.Interfaces[i].Virtual = filled(s.Interfaces[i].Virtual)
	}
	s.Packets, s.Unlearnt = filledMap(s.Packets), filledMap(s.Unlearnt)
	s.Warnings = filled(s.Warnings)
	return s
}

// fastpathInWords is its state in one line.
func fastpathInWords(o *output, s policy.FastpathState) string {
	word := o.painted(yellow, "off")
	if s.Enabled {
		word = o.painted(green, "on")
	}
	text := fmt.Sprintf("fast path: %s (%s)", word, s.EnabledBy)
	switch {
	case s.Open:
		var names []string
		for _, device := range s.Interfaces {
			if device.Mode != "" {
				names = append(names, clean(device.Interface))
			}
		}
		text += fmt.Sprintf(", forwards on %s; directions of connections that are learnt: %d", orDash(strings.Join(names, ", ")), s.Flows)
	case s.Enabled:
		text += ", " + o.painted(red, "closed") + ": " + clean(s.Closed)
	}
	return text
}

// showFastpath writes all of "fastpath ls", what needs a look first.
func showFastpath(o *output, s policy.FastpathState) error {
	if err := showFastpathWarnings(o, s); err != nil {
		return err
	}
	if err := o.printf("%s\n", fastpathInWords(o, s)); err != nil {
		return err
	}
	if err := showFastpathDevices(o, s.Interfaces); err != nil {
		return err
	}
	for _, line := range fastpathNotes(s) {
		if err := o.printf("%s\n", line); err != nil {
			return err
		}
	}
	return nil
}

func showFastpathWarnings(o *output, s policy.FastpathState) error {
	for _, text := range fastWarnings(s) {
		if err := o.printf("%s %s\n", o.painted(red, "warning:"), clean(text)); err != nil {
			return err
		}
	}
	for _, text := range fastAdvice(s) {
		if err := o.printf("%s %s\n", o.painted(yellow, "warning:"), clean(text)); err != nil {
			return err
		}
	}
	return nil
}

func showFastpathDevices(o *output, devices []policy.FastpathDevice) error {
	if len(devices) == 0 {
		return nil
	}
	if err := o.printf("\n"); err != nil {
		return err
	}
	t := o.table("INTERFACE", "XDP", "VLANS", "VIRTUAL MACS")
	for _, device := range devices {
		mode := device.Mode
		switch {
		case mode == "native":
			mode = o.painted(green, mode)
		case mode != "":
			mode = o.painted(yellow, mode)
		case device.Ifindex == 0:
			mode = o.painted(red, "absent")
		default:
			mode = o.painted(red, "refused")
		}
		t.row(device.Interface, mode, joined(device.VLANs), orDash(strings.Join(device.Virtual, ",")))
	}
	if err := t.flush(); err != nil {
		return err
	}
	return o.printf("\n")
}

// fastpathNotes are what its programs have counted, and what it goes by.
func fastpathNotes(s policy.FastpathState) (notes []string) {
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	stack := maps.Clone(s.Packets)
	for _, other := range policy.FastpathNotStack {
		delete(stack, other)
	}
	forwarded := s.Packets[policy.FastpathForwarded]
	if sum := forwarded + total(stack); sum > 0 {
		note("packets: %d, of them forwarded %d (%.1f %%)", sum, forwarded, 100*float64(forwarded)/float64(sum))
	}
	if total(stack) > 0 {
		note("took the stack: %s", reasons(stack))
	}
	if total(s.Unlearnt) > 0 {
		note("taught nothing: %s", reasons(s.Unlearnt))
	}
	if s.Loosened > 0 {
		note("TCP connections whose windows conntrack no longer watches: %d", s.Loosened)
	}
	if s.Capacity > 0 {
		note("room for %d directions of connections of each family, in %s", s.Capacity, octets(s.MemoryBytes))
	}
	if s.Open {
		note("generation %d; every connection takes the stack once in %s", s.Generation, span(seconds(s.PaceS)))
	}
	if s.Open && s.PaceWhy != "" {
		note("so often because the firewall may change without a word: %s", clean(s.PaceWhy))
	}
	return notes
}

// showFastpathSwitched says what it is after it was switched.
func showFastpathSwitched(o *output, s policy.FastpathState) error {
	if err := showFastpathWarnings(o, s); err != nil {
		return err
	}
	text := "established connections take it where they can"
	switch {
	case !s.Enabled:
		text = "every packet takes the stack"
	case !s.Open:
		text = "it is closed, and every packet takes the stack"
	}
	return o.printf("fast path %s (decided by %s): %s\n", onOff(s.Enabled), s.EnabledBy, text)
}
