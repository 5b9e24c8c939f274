// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// VLANMax is the highest VLAN identifier: IEEE 802.1Q reserves 4095.
const VLANMax = 4094

// VLAN is the tags between an interface and the wire, outermost first. The
// zero value is untagged.
type VLAN struct {
	Outer, Inner uint16 // 802.1Q/802.1ad VLAN identifiers, 0 = no such tag
}

// String writes 2, 100.20 (QinQ), or 0 for untagged.
func (v VLAN) String() string {
	if v.Inner != 0 {
		return fmt.Sprintf("%d.%d", v.Outer, v.Inner)
	}
	return strconv.Itoa(int(v.Outer))
}

// ParseVLAN reads what String writes: a VLAN identifier from 1 to 4094, two of
// them with a dot between, the outer one first, or 0 for untagged. The text is
// taken as it stands: 100.2 and 100.20 are two VLANs, 020 is none.
func ParseVLAN(text string) (VLAN, error) {
	if text == "0" {
		return VLAN{}, nil
	}
	outer, inner, stacked := strings.Cut(text, ".")
	v := VLAN{}
	var err error
	if v.Outer, err = parseTag(outer); err != nil {
		return VLAN{}, fmt.Errorf("read VLAN %q: %w", text, err)
	}
	if !stacked {
		return v, nil
	}
	if v.Inner, err = parseTag(inner); err != nil {
		return VLAN{}, fmt.Errorf("read inner tag of VLAN %q: %w", text, err)
	}
	return v, nil
}

// parseTag reads one VLAN identifier from 1 to 4094.
func parseTag(text string) (uint16, error) {
	n, err := parseNumber(text, 1, VLANMax)
	return uint16(n), err
}

// parseNumber reads a whole decimal number as people mean it. Forms that YAML,
// C or Go would read as another number are refused.
func parseNumber(text string, low, high uint64) (uint64, error) {
	digits := text != ""
	for _, c := range []byte(text) {
		digits = digits && c >= '0' && c <= '9'
	}
	if !digits {
		return 0, fmt.Errorf("%q is not a whole number (write one from %d to %d in decimal digits)", text, low, high)
	}
	if len(text) > 1 && text[0] == '0' {
		return 0, fmt.Errorf("%q begins with a zero, which some programs read as octal: leave the zero out", text)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%s is out of range (%d to %d)", text, low, high)
	}
	return n, nil
}

// MarshalText writes what String writes.
func (v VLAN) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (v *VLAN) UnmarshalText(text []byte) error {
	parsed, err := ParseVLAN(string(text))
	if err != nil {
		return err
	}
	*v = parsed
	return nil
}

// MarshalJSON writes a number, or for QinQ a string such as "100.20".
func (v VLAN) MarshalJSON() ([]byte, error) {
	if v.Inner != 0 {
		return []byte(`"` + v.String() + `"`), nil
	}
	return []byte(v.String()), nil
}

// UnmarshalJSON reads what MarshalJSON writes, and a plain VLAN in quotes too.
// A JSON number with a fraction is refused: 100.20 would be 100.2 to most
// programs that handle JSON.
func (v *VLAN) UnmarshalJSON(data []byte) error {
	text := string(data)
	if strings.HasPrefix(text, `"`) {
		if err := json.Unmarshal(data, &text); err != nil {
			return fmt.Errorf("read VLAN: %w", err)
		}
	} else if strings.Contains(text, ".") {
		return fmt.Errorf("read VLAN %s: put stacked tags in quotes", text)
	}
	return v.UnmarshalText([]byte(text))
}
