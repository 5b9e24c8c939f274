// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vippin/policy"
)

// fillPins replaces nil by empty: scripts expect [] and {}, not null.
func fillPins(pins []policy.PinStatus) []policy.PinStatus {
	if pins == nil {
		return []policy.PinStatus{}
	}
	pins = slices.Clone(pins)
	for i := range pins {
		pins[i].VIPs = filled(pins[i].VIPs)
		if pins[i].UnpinnedBy == nil {
			pins[i].UnpinnedBy = map[string]uint64{}
		}
	}
	return pins
}

// fillStates does the same for what a toggle answers.
func fillStates(pins []policy.PinState) []policy.PinState {
	pins = slices.Clone(filled(pins))
	for i := range pins {
		pins[i].VIPs = filled(pins[i].VIPs)
	}
	return pins
}

func filled[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func filledMap(counts map[string]uint64) map[string]uint64 {
	if counts == nil {
		return map[string]uint64{}
	}
	return counts
}

// showPins writes the table of "pin ls", and below it what needs a look.
func showPins(o *output, pins []policy.PinStatus) error {
	if len(pins) == 0 {
		return o.printf("no pins\n")
	}
	// What matters most comes first: a narrow terminal cuts the rest.
	t := o.table("VLAN", "NAME", "INTERFACE", "PIN", "ROLE", "FLOWS", "VIPS", "GROUP", "PINNED", "UNPINNED", "BECAUSE")
	for _, p := range pins {
		t.row(p.VLAN.String(), orDash(p.Name), orDash(p.Interface), switchWord(o, p), o.role(p.Role), number(p.Flows),
			joined(p.VIPs), orDash(p.Group), number(p.PacketsPinned), number(p.PacketsUnpinned), reasons(p.UnpinnedBy))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, p := range pins {
		for _, note := range []struct {
			count uint64
			text  string
		}{
			{p.PacketsVIPWhileBackup, "packets of living flows left with the VIP while this router was not MASTER"},
			{p.PacketsForeign, "packets of others left from the VIP and port of a living flow"},
			{p.PortClashes, "flows got another port: theirs was taken on the VIP"},
		} {
			if note.count == 0 {
				continue
			}
			if err := o.printf("pin %s: %d %s\n", p.Key(), note.count, note.text); err != nil {
				return err
			}
		}
	}
	return nil
}

// switchWord is on or off, and who says so if it is not the configuration.
func switchWord(o *output, p policy.PinStatus) string {
	word, colour := "off", yellow
	if p.Enabled {
		word, colour = "on", green
	}
	if p.EnabledBy == policy.EnabledByToggle {
		word += " (toggle)"
	}
	return o.painted(colour, word)
}

// showToggled says in a line each what the toggled pins are now.
func showToggled(o *output, pins []policy.PinState) error {
	for _, p := range pins {
		state := "off: new flows keep the router's own address"
		if p.Enabled {
			state = fmt.Sprintf("on: new flows leave with %s", sourcesOf(p.VIPs))
			if p.Role != policy.RoleMaster {
				state = fmt.Sprintf("on: new flows will leave with %s when this router is MASTER (it is %s)", sourcesOf(p.VIPs), p.Role)
			}
		}
		if err := o.printf("pin %s (%s) %s; decided by %s\n", p.Key(), orDash(p.Interface), state, p.EnabledBy); err != nil {
			return err
		}
	}
	return nil
}

// sourcesOf names the VIPs that become sources: the first of each family that
// is not link-local.
func sourcesOf(vips []netip.Addr) string {
	var chosen []string
	for _, is4 := range []bool{true, false} {
		for _, vip := range vips {
			if vip.Is4() == is4 && !vip.IsLinkLocalUnicast() {
				chosen = append(chosen, vip.String())
				break
			}
		}
	}
	if len(chosen) == 0 {
		return "no VIP (only link-local ones are configured)"
	}
	return strings.Join(chosen, " and ")
}

func orDash(text string) string { return cmp.Or(text, "-") }

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func joined[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, item := range list {
		words[i] = item.String()
	}
	return orDash(strings.Join(words, ","))
}

// reasons writes counted reasons, the most frequent first.
func reasons(counts map[string]uint64) string {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	var words []string
	for _, name := range names {
		if counts[name] > 0 {
			words = append(words, fmt.Sprintf("%s %d", name, counts[name]))
		}
	}
	return orDash(strings.Join(words, ", "))
}
