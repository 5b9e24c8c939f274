// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// Reaches says whether a rule can meet packets that leave by an interface, as
// far as its conditions are known.
func (r NATRule) Reaches(link Link) bool {
	return !slices.ContainsFunc(r.Out, func(m OutMatch) bool { return m.Not == m.names(link) })
}

// names tells whether an interface is among those of the condition.
func (m OutMatch) names(link Link) bool {
	return slices.Contains(m.Indexes, link.Index) || slices.ContainsFunc(m.Names, func(name string) bool {
		if begin, wild := strings.CutSuffix(name, "*"); wild {
			return strings.HasPrefix(link.Name, begin)
		}
		return name == link.Name
	})
}

// Covers says whether a fixed translation uses an address.
func (r NATRule) Covers(addr netip.Addr) bool {
	return !r.Masquerade && r.From.IsValid() && r.To.IsValid() && addr.IsValid() &&
		r.From.Unmap().BitLen() == addr.BitLen() && r.From.Unmap().Compare(addr) <= 0 && addr.Compare(r.To.Unmap()) <= 0
}
