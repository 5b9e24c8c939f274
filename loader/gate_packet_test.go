// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	answer4    = slices.Concat([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 198, 51, 100, 9, 198, 51, 100, 3})
	answer6    = slices.Concat([]byte{0x60, 0, 0, 0, 0, 0, 6, 64}, addrs("2001:db8::9")[0].AsSlice(), addrs("2001:db8::3")[0].AsSlice())
	portOctets = []byte{0x1e, 0x61, 0x9c, 0x40, 0, 0, 0, 0} // 7777, 40000
	echoOctets = []byte{0, 0, 0, 0, 0x12, 0x34, 0, 1}
)

func TestReadAnswer(t *testing.T) {
	as := func(octets []byte, at int, value byte) []byte {
		octets = slices.Clone(octets)
		octets[at] = value
		return octets
	}
	options := []byte{1, 1, 1, 1}
	for _, c := range []struct {
		name          string
		octets        []byte
		proto         uint8
		remote, local string // "": not read
	}{
		{"udp", slices.Concat(answer4, portOctets), 17, "198.51.100.9:7777", "198.51.100.3:40000"},
		{"tcp", slices.Concat(as(answer4, 9, 6), portOctets), 6, "198.51.100.9:7777", "198.51.100.3:40000"},
		{"sctp", slices.Concat(as(answer4, 9, 132), portOctets), 132, "198.51.100.9:7777", "198.51.100.3:40000"},
		{"echo", slices.Concat(as(answer4, 9, 1), echoOctets), 1, "198.51.100.9:0", "198.51.100.3:4660"},
		{"gre", slices.Concat(as(answer4, 9, 47)), 47, "198.51.100.9:0", "198.51.100.3:0"},
		{"ip options", slices.Concat(as(answer4, 0, 0x46), options, portOctets), 17, "198.51.100.9:7777", "198.51.100.3:40000"},
		{"no room for options", as(answer4, 0, 0x46), 0, "", ""},
		{"a header too short", slices.Concat(as(answer4, 0, 0x44), portOctets), 0, "", ""},
		{"ports cut", slices.Concat(answer4, portOctets[:3]), 0, "", ""},
		{"an identifier cut", slices.Concat(as(answer4, 9, 1), echoOctets[:5]), 0, "", ""},
		{"a header cut", answer4[:19], 0, "", ""},
		{"nothing", nil, 0, "", ""},
		{"another version", as(answer4, 0, 0x55), 0, "", ""},
		{"udp, IPv6", slices.Concat(as(answer6, 6, 17), portOctets), 17, "[2001:db8::9]:7777", "[2001:db8::3]:40000"},
		{"echo, IPv6", slices.Concat(as(answer6, 6, 58), echoOctets), 58, "[2001:db8::9]:0", "[2001:db8::3]:4660"},
		{"a header cut, IPv6", answer6[:39], 0, "", ""},
		{"extension headers", slices.Concat(as(answer6, 6, 0), []byte{60, 0, 0, 0, 0, 0, 0, 0}, []byte{44, 1}, make([]byte, 14),
			[]byte{6, 9, 0, 0, 0, 0, 0, 0}, portOctets), 6, "[2001:db8::9]:7777", "[2001:db8::3]:40000"},
		{"an extension header cut", slices.Concat(as(answer6, 6, 60), []byte{17, 1}, make([]byte, 13)), 0, "", ""},
		{"an extension header that only begins", slices.Concat(as(answer6, 6, 43), []byte{17}), 0, "", ""},
	} {
		a, ok := readAnswer(c.octets)
		if ok != (c.remote != "") {
			t.Errorf("%s: read %v", c.name, ok)
		}
		if ok && (a.proto != c.proto || a.remote != netip.MustParseAddrPort(c.remote) || a.local != netip.MustParseAddrPort(c.local)) {
			t.Errorf("%s: %+v", c.name, a)
		}
	}
}

// An answer is read as conntrack would: its key is that of the entry's reply.
func TestAnswerTuple(t *testing.T) {
	for _, octets := range [][]byte{slices.Concat(answer4, portOctets), slices.Concat(answer4[:9], []byte{unix.IPPROTO_ICMP}, answer4[10:], echoOctets)} {
		a, ok := readAnswer(octets)
		if !ok {
			t.Fatal("not read")
		}
		key, ok := replyKey(3, a.tuple())
		if !ok || key != newFlowKey(3, a.proto, a.local, a.remote) {
			t.Errorf("%+v has the key %+v", a, key)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(slices.Concat(answer4, portOctets))
	f.Add(slices.Concat(answer6, portOctets))
	f.Fuzz(func(t *testing.T, octets []byte) {
		if a, ok := readAnswer(octets); ok && (!a.remote.IsValid() || !a.local.IsValid()) {
			t.Errorf("%x became %+v", octets, a)
		}
	})
}
