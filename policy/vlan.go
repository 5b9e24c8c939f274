// SPDX-License-Identifier: Apache-2.0

package policy

import "fmt"

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
	return fmt.Sprint(v.Outer)
}

// MarshalJSON writes a number, or for QinQ a string such as "100.20".
func (v VLAN) MarshalJSON() ([]byte, error) {
	if v.Inner != 0 {
		return []byte(`"` + v.String() + `"`), nil
	}
	return []byte(v.String()), nil
}
