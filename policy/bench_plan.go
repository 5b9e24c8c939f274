// SPDX-License-Identifier: Apache-2.0

package policy

// BenchLists are the values that settings are made of; what is empty has its
// default, of which the first is the plainest.
type BenchLists struct {
	Directions []BenchDirection
	Flows      []int
	Sizes      []int
	Families   []string
	VLANs      []VLAN
}

var benchDefaults = BenchLists{
	Directions: []BenchDirection{BenchOut, BenchBack},
	Flows:      []int{10_000, 1, 100_000},
	Sizes:      []int{64, 512, 1500},
	Families:   []string{"ipv4", "ipv6"},
	VLANs:      []VLAN{{}},
}

// empty says that nothing was asked for.
func (l BenchLists) empty() bool {
	return len(l.Directions)+len(l.Flows)+len(l.Sizes)+len(l.Families)+len(l.VLANs) == 0
}

// BenchPlan makes settings of lists: everything with everything, a list that is
// empty standing for its first default. With vary one list at a time is gone
// through, the others at their first values; so it is, through all defaults, if
// there are no lists at all.
func BenchPlan(lists BenchLists, vary bool) []BenchSetting {
	some := 1
	if vary = vary || lists.empty(); vary {
		some = 1 << 16
	}
	l := BenchLists{
		Directions: orDefault(lists.Directions, benchDefaults.Directions, some), Flows: orDefault(lists.Flows, benchDefaults.Flows, some),
		Sizes: orDefault(lists.Sizes, benchDefaults.Sizes, some), Families: orDefault(lists.Families, benchDefaults.Families, some),
		VLANs: orDefault(lists.VLANs, benchDefaults.VLANs, some),
	}
	var settings []BenchSetting
	seen := map[BenchSetting]bool{}
	for fi, family := range l.Families {
		for vi, vlan := range l.VLANs {
			for ni, flows := range l.Flows {
				for si, size := range l.Sizes {
					for di, direction := range l.Directions {
						s := BenchSetting{Direction: direction, Flows: flows, Size: size, Family: family, VLAN: vlan}
						if (vary && varied(fi, vi, ni, si, di) > 1) || seen[s] {
							continue
						}
						seen[s] = true
						settings = append(settings, s)
					}
				}
			}
		}
	}
	return settings
}

// varied counts what is not at its first value.
func varied(places ...int) (n int) {
	for _, place := range places {
		if place > 0 {
			n++
		}
	}
	return n
}

func orDefault[T any](list, byDefault []T, some int) []T {
	if len(list) > 0 {
		return list
	}
	return byDefault[:min(some, len(byDefault))]
}
