// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strconv"
	"time"

	"vippin/policy"
)

// flowBatch is how many flows are aligned with each other: a table of all
// would have to be held in memory, and nothing be seen before the end.
const flowBatch = 500

// flowPrinter writes flows as they come.
type flowPrinter struct {
	table *table
	shown int
}

func newFlowPrinter(o *output) *flowPrinter {
	return &flowPrinter{table: o.table("VLAN", "PROTO", "CLIENT", "PUBLIC", "REMOTE", "LOCAL", "ORIGIN", "PACKETS", "BYTES", "AGE", "IDLE", "FAST")}
}

func (p *flowPrinter) show(f policy.FlowStatus) error {
	p.shown++
	origin := f.Origin
	if f.Acked {
		origin += "+acked"
	}
	p.table.row(f.VLAN.String(), f.Proto, orDash(f.Client), f.Public, f.Remote, f.Local, origin,
		counted(f.Packets), counted(f.Bytes), span(seconds(f.Age)), span(seconds(f.Idle)), yesOrDash(f.Fastpath))
	if p.shown%flowBatch == 0 {
		return p.table.flush()
	}
	return nil
}

// finish writes the rest; err says why there is no more.
func (p *flowPrinter) finish(o *output, err error) error {
	switch {
	case p.shown > 0:
		return errors.Join(p.table.flush(), err)
	case err != nil:
		return err
	}
	return o.printf("no pinned flows\n")
}

func yesOrDash(yes bool) string {
	if yes {
		return "yes"
	}
	return "-"
}

func counted(n *uint64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatUint(*n, 10)
}

// showEvent writes one line of "monitor".
func showEvent(o *output, e policy.Event) error {
	kind, colour := e.Kind, noPaint
	switch e.Kind {
	case "conflict", "warning", eventLost:
		colour = red
	}
	subject := ""
	if e.Group != "" {
		subject += " group " + clean(e.Group)
	}
	switch {
	case e.Pin != "" && e.Kind == "pin":
		subject += " " + clean(e.Pin)
	case e.Pin != "":
		subject += " pin " + clean(e.Pin)
	}
	if e.Role != nil {
		subject += " " + o.role(*e.Role)
	}
	if e.Detail != "" && subject != "" {
		subject += ":"
	}
	if e.Detail != "" {
		subject += " " + clean(e.Detail)
	}
	return o.printf("%s %s%s\n", e.Time.Format(time.StampMilli), o.painted(colour, kind), subject)
}

func fillDryRun(d policy.DryRun) policy.DryRun {
	d.Errors, d.Warnings, d.Pins = filled(d.Errors), filled(d.Warnings), fillStates(d.Pins)
	return d
}

// showDryRun writes the plan in words, or everything that is wrong. verdict
// is the first line when all is well.
func showDryRun(o *output, d policy.DryRun, verdict string) error {
	for _, text := range d.Errors {
		if err := o.printf("%s %s\n", o.painted(red, "error:"), clean(text)); err != nil {
			return err
		}
	}
	for _, text := range d.Warnings {
		if err := o.printf("%s %s\n", o.painted(yellow, "warning:"), clean(text)); err != nil {
			return err
		}
	}
	if !d.OK {
		return nil
	}
	if err := o.printf("%s\n", verdict); err != nil {
		return err
	}
	if len(d.Pins) == 0 {
		return o.printf("no pins: nothing would be attached but what watches VRRP\n")
	}
	for _, p := range d.Pins {
		if err := o.printf("%s\n", pinInWords(p)); err != nil {
			return err
		}
	}
	return nil
}

func pinInWords(p policy.PinState) string {
	text := "VLAN " + p.VLAN.String()
	if p.VLAN == (policy.VLAN{}) {
		text = "untagged"
	}
	if p.Name != "" {
		text += " (" + clean(p.Name) + ")"
	}
	text += " on " + orDash(p.Interface) + ": "
	if p.Enabled {
		text += "while MASTER, new masqueraded flows leave with " + sourcesOf(p.VIPs)
	} else {
		text += "off, would leave with " + sourcesOf(p.VIPs)
	}
	if p.EnabledBy == policy.EnabledByToggle {
		text += " (by toggle)"
	}
	if p.Group != "" {
		text += "; group " + clean(p.Group)
	}
	return text
}
