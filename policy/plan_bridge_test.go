// SPDX-License-Identifier: Apache-2.0

package policy

import "testing"

// Netfilter sees a pin's answers early on its bridge alone, by family, and behind tags
// if told to.
func TestSeenOnPort(t *testing.T) {
	const text = "pins:\n  - {vlan: 2, vips: [10.10.10.2, \"2001:db8:2::2\"]}\n  - {vlan: 20, vips: [203.0.113.2]}\n"
	bridge := func(index int) Observed {
		seen := trunk()
		for i := range seen.Links {
			if seen.Links[i].Index == index {
				seen.Links[i].Kind = "bridge"
			}
		}
		return seen
	}
	for name, c := range map[string]struct {
		seen       Observed
		calls      OnPort
		v4, v6, at bool // of VLAN 2
		v20        bool // IPv4 of VLAN 20
	}{
		"no bridge":              {seen: trunk(), calls: OnPort{true, true, true}},
		"the pinned one":         {seen: bridge(3), calls: OnPort{IPv4: true, IPv6: true}, at: true, v4: true, v6: true},
		"IPv4":                   {seen: bridge(3), calls: OnPort{IPv4: true}, at: true, v4: true},
		"IPv6":                   {seen: bridge(3), calls: OnPort{IPv6: true}, at: true, v6: true},
		"neither":                {seen: bridge(3), calls: OnPort{Tagged: true}, at: true},
		"another one":            {seen: bridge(7), calls: OnPort{true, true, true}},
		"below VLANs":            {seen: bridge(2), calls: OnPort{true, true, true}, at: true, v4: true, v6: true, v20: true},
		"below VLANs, tags hide": {seen: bridge(2), calls: OnPort{IPv4: true, IPv6: true}, at: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.seen.OnPort = c.calls
			got := plan(t, text, c.seen, Plan{})
			if p := got.Pins[0]; p.OnPort4 != c.v4 || p.OnPort6 != c.v6 {
				t.Errorf("IPv4 %t, IPv6 %t, want %t, %t", p.OnPort4, p.OnPort6, c.v4, c.v6)
			}
			if p := got.Pins[1]; p.OnPort4 != c.v20 || p.OnPort6 {
				t.Errorf("VLAN 20: IPv4 %t, IPv6 %t, want %t, false", p.OnPort4, p.OnPort6, c.v20)
			}
			if got.Interfaces[0].Bridged != c.at {
				t.Errorf("on a bridge: %t, want %t", got.Interfaces[0].Bridged, c.at)
			}
			var want []string
			for _, w := range []struct {
				is   bool
				text string
			}{{c.v4, "pin 2: new IPv4 flows"}, {c.v6, "pin 2: new IPv6 flows"}, {c.v20, "pin 20: new IPv4 flows"}} {
				if w.is {
					want = append(want, w.text)
				}
			}
			wantWarnings(t, got, want...)
		})
	}
}
