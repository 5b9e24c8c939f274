// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// PinKey is what a pin is known by over reloads and restarts: its VLAN and, if
// several pins share the VLAN, its name.
type PinKey struct {
	VLAN VLAN
	Name string // "" for the pin without a name
}

// String writes the key as the toggling commands take it: 2, 100.20, 2/voip.
func (k PinKey) String() string {
	if k.Name == "" {
		return k.VLAN.String()
	}
	return k.VLAN.String() + "/" + k.Name
}

// ParsePinKey reads what String writes.
func ParsePinKey(text string) (PinKey, error) {
	tag, name, named := strings.Cut(text, "/")
	vlan, err := ParseVLAN(tag)
	if err != nil {
		return PinKey{}, err
	}
	if named {
		if err := checkPinName(name); err != nil {
			return PinKey{}, fmt.Errorf("read pin %q: %w", text, err)
		}
	}
	return PinKey{VLAN: vlan, Name: name}, nil
}

// MarshalText writes what String writes.
func (k PinKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (k *PinKey) UnmarshalText(text []byte) error {
	parsed, err := ParsePinKey(string(text))
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}

// checkPinName accepts a name that can stand in a VLAN list and in a BPF map:
// 1 to 31 octets of letters, digits, dots, underscores and hyphens.
func checkPinName(name string) error {
	if name == "" {
		return fmt.Errorf("the name after the slash is empty: write the VLAN alone, or VLAN/NAME")
	}
	if len(name) > PinNameMax {
		return fmt.Errorf("name %q has %d octets: shorten it to %d", name, len(name), PinNameMax)
	}
	for _, c := range name {
		if c == unicode.ReplacementChar || !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("._-", c) {
			return fmt.Errorf("name %q contains %q: use letters, digits, dot, underscore and hyphen", name, c)
		}
	}
	return nil
}

// Selector is one entry of a VLAN list: a VLAN, a range of plain VLANs, a
// named pin or an interface.
type Selector struct {
	Text      string // as it was written
	VLAN      VLAN   // the first VLAN of a range
	Last      uint16 // the last VLAN of a range, else 0
	Name      string // of 2/voip, else ""
	Interface string // an interface name, else ""
}

// ParseSelectors reads VLANs as network people write them, for example
// 2,20,101,239-240,250: entries are separated by commas, spaces, or by being
// arguments of their own. An entry is a VLAN (2, 100.20, 0 for untagged), a
// range (239-240), a named pin (2/voip) or an interface name. The error names
// the entry that cannot be read.
func ParseSelectors(args ...string) ([]Selector, error) {
	list := strings.Join(args, " ")
	if strings.TrimSpace(list) == "" {
		return nil, fmt.Errorf("read VLAN list: it is empty (write for example 2,20,239-240)")
	}
	var selectors []Selector
	for part := range strings.SplitSeq(list, ",") {
		entries := strings.Fields(part)
		if len(entries) == 0 {
			return nil, fmt.Errorf("read VLAN list %q: nothing stands between two commas or at an end: remove the comma or add the VLAN", list)
		}
		for _, entry := range entries {
			s, err := parseSelector(entry)
			if err != nil {
				return nil, fmt.Errorf("read VLAN list: entry %q: %w", entry, err)
			}
			selectors = append(selectors, s)
		}
	}
	return selectors, nil
}

func parseSelector(entry string) (Selector, error) {
	s := Selector{Text: entry}
	if strings.Contains(entry, "/") {
		key, err := ParsePinKey(entry)
		s.VLAN, s.Name = key.VLAN, key.Name
		return s, err
	}
	if strings.Trim(entry, "0123456789.-") != "" { // no VLAN has other characters
		s.Interface = entry
		return s, checkInterfaceName(entry)
	}
	first, last, isRange := strings.Cut(entry, "-")
	if !isRange {
		vlan, err := ParseVLAN(entry)
		s.VLAN = vlan
		return s, err
	}
	low, err := parseTag(first)
	if err != nil {
		return s, fmt.Errorf("the range begins wrongly: %w", err)
	}
	high, err := parseTag(last)
	if err != nil {
		return s, fmt.Errorf("the range ends wrongly: %w", err)
	}
	if high < low {
		return s, fmt.Errorf("the range runs backwards: write %d-%d", high, low)
	}
	s.VLAN.Outer, s.Last = low, high
	return s, nil
}

// checkInterfaceName accepts what the kernel's dev_valid_name accepts.
func checkInterfaceName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the interface name is empty: give one, for example eth0.2")
	case len(name) > InterfaceNameMax:
		return fmt.Errorf("interface name %q has %d octets: Linux allows %d", name, len(name), InterfaceNameMax)
	case name == "." || name == "..":
		return fmt.Errorf("%q is no interface name", name)
	}
	for _, c := range name {
		if c == '/' || c == ':' || c == unicode.ReplacementChar || unicode.IsSpace(c) || unicode.IsControl(c) {
			return fmt.Errorf("interface name %q contains %q, which Linux does not allow", name, c)
		}
	}
	return nil
}

// Selectable is a pin that Select can choose by VLAN, name or interface.
type Selectable interface {
	PlanPin | PinState
	// Key is what the pin is known by.
	Key() PinKey
	// On is the name of its interface, "" while that is unknown.
	On() string
	shown() bool
}

// Key is what the pin is known by.
func (p PlanPin) Key() PinKey { return PinKey{p.VLAN, p.Name} }

// On is the name of the pin's interface.
func (p PlanPin) On() string { return p.Interface }

func (p PlanPin) shown() bool { return !p.Retired }

// Key is what the pin is known by.
func (p PinState) Key() PinKey { return PinKey{p.VLAN, p.Name} }

// On is the name of the pin's interface.
func (p PinState) On() string { return p.Interface }

func (p PinState) shown() bool { return true }

// Select returns the pins that a VLAN list names, in the order of pins and
// each once, and the entries that no pin answers to. A VLAN selects every pin
// on it. Of a range each VLAN without a pin is unknown; three and more in a
// row are written as a range again. Retired pins are not there.
func Select[P Selectable](selectors []Selector, pins []P) (matched []P, unknown []string) {
	byVLAN := map[VLAN][]int{}
	for i, pin := range pins {
		if pin.shown() {
			byVLAN[pin.Key().VLAN] = append(byVLAN[pin.Key().VLAN], i)
		}
	}
	chosen := make([]bool, len(pins))
	choose := func(indexes []int) {
		for _, i := range indexes {
			chosen[i] = true
		}
	}
	for _, s := range selectors {
		if s.Last != 0 {
			unknown = append(unknown, selectRange(s, byVLAN, choose)...)
			continue
		}
		indexes := selectOne(s, pins, byVLAN)
		choose(indexes)
		if len(indexes) == 0 {
			unknown = append(unknown, s.Text)
		}
	}
	for i, yes := range chosen {
		if yes {
			matched = append(matched, pins[i])
		}
	}
	return matched, unique(unknown)
}

func selectOne[P Selectable](s Selector, pins []P, byVLAN map[VLAN][]int) []int {
	if s.Interface == "" && s.Name == "" {
		return byVLAN[s.VLAN]
	}
	var indexes []int
	for i, pin := range pins {
		if s.Interface != "" && pin.On() == s.Interface ||
			s.Interface == "" && pin.Key() == (PinKey{s.VLAN, s.Name}) {
			if pin.shown() {
				indexes = append(indexes, i)
			}
		}
	}
	return indexes
}

// selectRange chooses the pins of a range and returns its VLANs without one.
func selectRange(s Selector, byVLAN map[VLAN][]int, choose func([]int)) []string {
	var unknown []string
	missing := 0 // VLANs without a pin just before id
	flush := func(id int) {
		if missing >= 3 {
			unknown = append(unknown, fmt.Sprintf("%d-%d", id-missing, id-1))
		} else {
			for ; missing > 0; missing-- {
				unknown = append(unknown, strconv.Itoa(id-missing))
			}
		}
		missing = 0
	}
	for id := int(s.VLAN.Outer); id <= int(s.Last); id++ {
		indexes := byVLAN[VLAN{Outer: uint16(id)}]
		if len(indexes) == 0 {
			missing++
			continue
		}
		flush(id)
		choose(indexes)
	}
	flush(int(s.Last) + 1)
	return unknown
}

// unique drops repeated entries and keeps the order.
func unique(texts []string) []string {
	seen := map[string]bool{}
	var kept []string
	for _, text := range texts {
		if !seen[text] {
			seen[text] = true
			kept = append(kept, text)
		}
	}
	return kept
}
