// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"vippin/policy"
)

func fillFastpath(s policy.FastpathState) policy.FastpathState {
	s.Interfaces = slices.Clone(filled(s.Interfaces))
	for i := range s.Interfaces {
		s.Interfaces[i].VLANs = filled(s.Interfaces[i].VLANs)
		s.Interfaces[i].Warnings = filled(s.Interfaces[i].Warnings)
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
		text += fmt.Sprintf(", forwards; %d directions of connections are learnt", s.Flows)
	case s.Enabled:
		text += ", " + o.painted(red, "closed") + ": " + clean(s.Closed)
	}
	return text
}

func showFastpath(o *output, s policy.FastpathState) error {
	for _, text := range s.Warnings {
		if err := o.printf("%s %s\n", o.painted(red, "warning:"), clean(text)); err != nil {
			return err
		}
	}
	return o.printf("%s\n", fastpathInWords(o, s))
}

// showFastpathSwitched says what it is after it was switched.
func showFastpathSwitched(o *output, s policy.FastpathState) error {
	return o.printf("%s\n", fastpathInWords(o, s))
}
