// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// longest is what the dataplane answers: the pin of the longest prefix, 0
// without one.
func longest(sources []PlanSource, host netip.Addr) uint32 {
	best, pin := -1, uint32(0)
	for _, source := range sources {
		if source.Prefix.Contains(host) && source.Prefix.Bits() > best {
			best, pin = source.Prefix.Bits(), source.Pin
		}
	}
	return pin
}

// firstMatch is what the configuration promises: the first pin that lists a
// prefix with the host, or that lists none and has a VIP of the family. A pin
// that lists none and has no VIP takes what is left.
func firstMatch(claims []sourceClaim, host netip.Addr) uint32 {
	for _, c := range claims {
		if slices.ContainsFunc(c.prefixes, func(p netip.Prefix) bool { return p.Contains(host) }) {
			return c.pin
		}
		if len(c.prefixes) == 0 && (host.Is4() && c.has4 || host.Is6() && c.has6) {
			return c.pin
		}
	}
	for _, c := range claims {
		if len(c.prefixes) == 0 {
			return c.pin
		}
	}
	return 0
}

func TestResolveSourcesIsFirstMatchWins(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	// Few different bits, so that prefixes nest, repeat and cover each other.
	host := func() netip.Addr {
		if random.IntN(3) == 0 {
			b := netip.MustParseAddr("2001:db8::").As16()
			b[4], b[15] = byte(random.IntN(4))<<6, byte(random.IntN(4))
			return netip.AddrFrom16(b)
		}
		return netip.AddrFrom4([4]byte{10, byte(random.IntN(4)) << 6, 0, byte(random.IntN(4))})
	}
	matched := map[bool]int{}
	for range 3000 {
		var claims []sourceClaim
		for pin := range 1 + random.IntN(5) {
			c := sourceClaim{pin: uint32(pin + 1), has4: random.IntN(3) > 0, has6: random.IntN(3) > 0}
			for range random.IntN(4) {
				addr := host()
				p, err := addr.Prefix([]int{0, 8, 9, 10, addr.BitLen() - 1, addr.BitLen(), 32}[random.IntN(7)])
				if err != nil {
					t.Fatal(err)
				}
				c.prefixes = append(c.prefixes, p)
			}
			claims = append(claims, c)
		}
		sources := resolveSources(claims)
		for range 30 {
			h := host()
			got, want := longest(sources, h), firstMatch(claims, h)
			if got != want {
				t.Fatalf("seed %d: host %s: longest prefix gives pin %d, first match %d\nclaims %+v\nsources %+v", seed, h, got, want, claims, sources)
			}
			matched[want != 0]++
		}
	}
	if matched[true] < 1000 || matched[false] < 1000 {
		t.Errorf("hosts with and without a pin: %v: the test is blind", matched)
	}
}

func TestMakePlanSources(t *testing.T) {
	got := plan(t, `
pins:
  - {vlan: 2, name: all6, vips: ["2001:db8:2::2"]}
  - {vlan: 2, name: lab, vips: [10.10.10.2], sources: [192.168.101.0/24]}
  - {vlan: 2, name: hidden, vips: [10.10.10.8], sources: [192.168.101.128/25]}
  - {vlan: 2, name: all4, vips: [10.10.10.9]}
  - {vlan: 2, name: late, vips: [10.10.10.10]}
`, trunk(), Plan{})
	id := map[string]uint32{}
	for _, pin := range got.Pins {
		id[pin.Name] = pin.ID
	}
	for host, name := range map[string]string{
		"192.168.101.5": "lab", "192.168.101.200": "lab", "192.168.102.1": "all4", "2001:db8:101::1": "all6",
	} {
		if pin := longest(got.Interfaces[0].Sources, netip.MustParseAddr(host)); pin != id[name] {
			t.Errorf("%s belongs to pin %d, want %s (%d)", host, pin, name, id[name])
		}
	}
	wantWarnings(t, got,
		"pin 2/hidden takes no flow: pins before it on eth0.2 take all its inside hosts",
		"pin 2/late takes no flow")
}

func TestMakePlanSharedVIP(t *testing.T) {
	got := plan(t, `
pins:
  - {vlan: 2, name: a, vips: ["fe80::2", "10.10.10.2"], sources: [192.168.1.0/24]}
  - {vlan: 2, name: b, vips: ["fe80::2", "10.10.10.2"]}
`, trunk(), Plan{})
	if want := addrs("fe80::2", "10.10.10.2"); !slices.Equal(got.Interfaces[0].VIPs, want) {
		t.Errorf("VIPs %v, want each once: %v", got.Interfaces[0].VIPs, want)
	}
}
