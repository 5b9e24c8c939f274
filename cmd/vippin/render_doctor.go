// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"

	"vippin/policy/doctor"
)

// showFindings writes what needs a hand first, the worst on top; what is well
// comes last, a line each.
func showFindings(o *output, findings []doctor.Finding) error {
	count := make(map[doctor.State]int)
	for _, state := range []doctor.State{doctor.Error, doctor.Warning, doctor.OK} {
		for _, f := range findings {
			if f.State != state {
				continue
			}
			count[state]++
			if err := showFinding(o, f); err != nil {
				return err
			}
		}
	}
	if count[doctor.Error]+count[doctor.Warning] == 0 {
		return o.printf("\nnothing found that needs a hand\n")
	}
	return o.printf("\nerrors: %d, warnings: %d\n", count[doctor.Error], count[doctor.Warning])
}

func showFinding(o *output, f doctor.Finding) error {
	colour := map[doctor.State]paint{doctor.Error: red, doctor.Warning: yellow, doctor.OK: green}[f.State]
	if err := o.printf("%s %s: %s\n", o.painted(colour, string(f.State)+":"), f.Check, clean(f.Found)); err != nil {
		return err
	}
	if f.Remedy == "" {
		return nil
	}
	for line := range strings.SplitSeq(f.Remedy, "\n") { // not wrapped: they are to be pasted
		if _, err := fmt.Fprintf(o.w, "    %s\n", clean(line)); err != nil {
			return err
		}
	}
	if f.State != doctor.OK {
		_, err := io.WriteString(o.w, "\n")
		return err
	}
	return nil
}
