// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/policy"
)

// captured are adverts of keepalived 2.2.7 as they left it, from the VRRP
// header on; the one without a pseudo-header, which keepalived sends from 2.2.8
// on if told v3_checksum_as_v2, was summed up by hand.
var captured = []struct {
	name     string
	src, dst string
	hex      string
	want     Advert
}{
	{
		"v3 multicast", "198.51.100.11", "224.0.0.18", "310a9602000ad9a9c6336402c6336403",
		Advert{
			Version: 3, VRID: 10, Priority: 150, Interval: 100 * time.Millisecond, Checksum: ChecksumPseudo,
			Family: FamilyIPv4, VIPs: addrs("198.51.100.2", "198.51.100.3"),
		},
	},
	{
		"v3 resigning", "198.51.100.11", "224.0.0.18", "310a0002000a6faac6336402c6336403",
		Advert{
			Version: 3, VRID: 10, Priority: 0, Interval: 100 * time.Millisecond, Checksum: ChecksumPseudo,
			Family: FamilyIPv4, VIPs: addrs("198.51.100.2", "198.51.100.3"),
		},
	},
	{
		"v3 without pseudo-header", "198.51.100.11", "224.0.0.18", "310b9601000a0eb1c6336404",
		Advert{
			Version: 3, VRID: 11, Priority: 150, Interval: 100 * time.Millisecond, Checksum: ChecksumRFC,
			Family: FamilyIPv4, VIPs: addrs("198.51.100.4"),
		},
	},
	{
		"v3 unicast", "198.51.100.11", "198.51.100.12", "310f9601000ab9adc6336408",
		Advert{
			Version: 3, VRID: 15, Priority: 150, Interval: 100 * time.Millisecond, Checksum: ChecksumPseudo,
			Family: FamilyIPv4, VIPs: addrs("198.51.100.8"),
		},
	},
	{
		"v3 unicast with old_unicast_checksum", "198.51.100.11", "198.51.100.12", "31109601000a03d9c6336409",
		Advert{
			Version: 3, VRID: 16, Priority: 150, Interval: 100 * time.Millisecond, Checksum: ChecksumPseudo,
			Family: FamilyIPv4, VIPs: addrs("198.51.100.9"),
		},
	},
	{
		"v2", "198.51.100.11", "224.0.0.18", "210c960100011eb8c63364050000000000000000",
		Advert{
			Version: 2, VRID: 12, Priority: 150, Interval: time.Second, Checksum: ChecksumRFC,
			Family: FamilyIPv4, VIPs: addrs("198.51.100.5"),
		},
	},
	{
		"v2 PASS", "198.51.100.11", "224.0.0.18", "210d96010101cd6dc633640676697070696e0000",
		Advert{
			Version: 2, VRID: 13, Priority: 150, Interval: time.Second, Checksum: ChecksumRFC,
			AuthType: AuthPass, AuthData: [8]byte{'v', 'i', 'p', 'p', 'i', 'n'},
			Family: FamilyIPv4, VIPs: addrs("198.51.100.6"),
		},
	},
	{
		"v2 AH", "198.51.100.11", "224.0.0.18", "210e960102011cb4c63364070000000000000000",
		Advert{
			Version: 2, VRID: 14, Priority: 150, Interval: time.Second, Checksum: ChecksumRFC, AuthType: AuthAH,
			Family: FamilyIPv4, VIPs: addrs("198.51.100.7"),
		},
	},
	{
		"v3 IPv6 multicast", "fe80::e0af:7fff:fed8:a413", "ff02::12",
		"31119602000a0ac3fe80000000000000000000000000001720010db8000200000000000000000002",
		Advert{
			Version: 3, VRID: 17, Priority: 150, Interval: 100 * time.Millisecond, Checksum: ChecksumRFC,
			Family: FamilyIPv6, VIPs: addrs("fe80::17", "2001:db8:2::2"),
		},
	},
	{
		"v3 IPv6 unicast", "2001:db8:2::11", "2001:db8:2::12", "31129601000aaf0220010db8000200000000000000000003",
		Advert{
			Version: 3, VRID: 18, Priority: 150, Interval: 100 * time.Millisecond, Checksum: ChecksumRFC,
			Family: FamilyIPv6, VIPs: addrs("2001:db8:2::3"),
		},
	},
}

func addrs(texts ...string) []netip.Addr {
	list := make([]netip.Addr, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParseAddr(text)
	}
	return list
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseCaptured(t *testing.T) {
	for _, c := range captured {
		t.Run(c.name, func(t *testing.T) {
			src, dst, payload := netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst), unhex(t, c.hex)
			got, reason := Parse(payload, src, dst)
			if reason != policy.AdvertValid || !reflect.DeepEqual(got, c.want) {
				t.Fatalf("Parse = %+v, %s, want %+v", got, reason, c.want)
			}
			mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
			if got, reason := Parse(payload, mapped(src), mapped(dst)); reason != policy.AdvertValid || !reflect.DeepEqual(got, c.want) {
				t.Errorf("from mapped addresses: %+v, %s", got, reason)
			}
			if strings.Contains(c.name, "old_unicast") {
				dst = multicastV4
			}
			again, err := Append([]byte{0xaa}, got, src, dst)
			if err != nil || !slices.Equal(again[1:], payload) {
				t.Errorf("Append = %x, %v, want %x", again[1:], err, payload)
			}
		})
	}
}

func TestParseMutations(t *testing.T) {
	const v3, v3rfc, v2, v6 = 0, 2, 5, 8
	set := func(i int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[i] = v; return b }
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	for _, c := range []struct {
		name   string
		base   int
		mutate func([]byte) []byte
		want   policy.AdvertReason
	}{
		{"empty", v3, func([]byte) []byte { return nil }, policy.AdvertShort},
		{"header cut", v3, func(b []byte) []byte { return b[:7] }, policy.AdvertShort},
		{"address cut", v3, cut(1), policy.AdvertShort},
		{"IPv6 address cut", v6, cut(1), policy.AdvertShort},
		{"version 2 without authentication data", v2, cut(8), policy.AdvertShort},
		{"announces one address more", v3, set(3, 3), policy.AdvertShort},
		{"announces none", v3, set(3, 0), policy.AdvertShort},
		{"VRID 0", v3, set(1, 0), policy.AdvertShort},
		{"version 1", v3, set(0, 0x11), policy.AdvertVersion},
		{"version 4", v3, set(0, 0x41), policy.AdvertVersion},
		{"version 2 over IPv6", v6, set(0, 0x21), policy.AdvertVersion},
		{"type 2", v3, set(0, 0x32), policy.AdvertType},
		{"authentication type 3", v2, set(4, 3), policy.AdvertAuth},
		{"priority changed", v3, set(2, 100), policy.AdvertChecksum},
		{"priority changed, no pseudo-header", v3rfc, set(2, 100), policy.AdvertChecksum},
		{"password changed", v2, set(19, 1), policy.AdvertChecksum},
		{"VIP changed", v6, set(39, 9), policy.AdvertChecksum},
		{"padding", v3, func(b []byte) []byte { return append(b, 1, 2, 3) }, policy.AdvertValid},
		{"padding over IPv6", v6, func(b []byte) []byte { return append(b, 1, 2, 3) }, policy.AdvertValid},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := captured[c.base]
			payload := c.mutate(unhex(t, base.hex))
			got, reason := Parse(payload, netip.MustParseAddr(base.src), netip.MustParseAddr(base.dst))
			if reason != c.want {
				t.Errorf("reason %s, want %s", reason, c.want)
			}
			if reason != policy.AdvertValid && !reflect.DeepEqual(got, Advert{}) {
				t.Errorf("an advert besides the reason: %+v", got)
			}
		})
	}
	// A trailer that the kernel's checksum over IPv6 covers.
	b := append(unhex(t, captured[v6].hex), 0xab, 0xcd)
	src, dst := netip.MustParseAddr(captured[v6].src), netip.MustParseAddr(captured[v6].dst)
	b[6], b[7] = 0, 0
	binary.BigEndian.PutUint16(b[6:], ^fold(sum(b, pseudoSum(src, dst, len(b)))))
	if _, reason := Parse(b, src, dst); reason != policy.AdvertValid {
		t.Errorf("with a trailer: %s", reason)
	}
	b = unhex(t, captured[v3].hex)
	if _, reason := Parse(b, netip.Addr{}, netip.Addr{}); reason != policy.AdvertVersion {
		t.Errorf("without addresses: %s", reason)
	}
	if _, reason := Parse(b, netip.MustParseAddr("198.51.100.99"), multicastV4); reason != policy.AdvertChecksum {
		t.Errorf("with another source in the pseudo-header: %s", reason)
	}
}

func TestAppendRefuses(t *testing.T) {
	src, dst, src6 := netip.MustParseAddr("198.51.100.11"), multicastV4, netip.MustParseAddr("fe80::1")
	good := captured[0].want
	for _, c := range []struct {
		name   string
		mutate func(*Advert)
		src    netip.Addr
		want   string
	}{
		{"families mixed", func(*Advert) {}, src6, "two addresses of one family"},
		{"version 4", func(a *Advert) { a.Version = 4 }, src, "version 4"},
		{"VRID 0", func(a *Advert) { a.VRID = 0 }, src, "VRID 0"},
		{"half a centisecond", func(a *Advert) { a.Interval = 5 * time.Millisecond }, src, "interval 5ms"},
		{"41 s", func(a *Advert) { a.Interval = 41 * time.Second }, src, "interval 41s"},
		{"100 ms in version 2", func(a *Advert) { a.Version, a.Checksum = 2, "" }, src, "interval 100ms"},
		{"authentication in version 3", func(a *Advert) { a.AuthType = 1 }, src, "no authentication"},
		{"authentication type 3", func(a *Advert) { a.Version, a.Interval, a.AuthType, a.Checksum = 2, 0, 3, "" }, src, "type 3"},
		{"pseudo-header in version 2", func(a *Advert) { a.Version, a.Interval = 2, time.Second }, src, "checksum"},
		{"no addresses", func(a *Advert) { a.VIPs = nil }, src, "0 addresses"},
		{"256 addresses", func(a *Advert) { a.VIPs = make([]netip.Addr, 256) }, src, "256 addresses"},
		{"IPv6 address over IPv4", func(a *Advert) { a.VIPs = addrs("2001:db8::1") }, src, "2001:db8::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := good
			c.mutate(&a)
			b, err := Append(nil, a, c.src, dst)
			if err == nil || !strings.Contains(err.Error(), c.want) || len(b) != 0 {
				t.Errorf("Append = %x, %v, want an error with %q", b, err, c.want)
			}
		})
	}
}

// FuzzParse takes arbitrary packets, and the same with a checksum made right.
// What parses is encoded again and must give the same advert and, but for
// reserved bits and the two zeros of a one's complement sum, the same octets.
func FuzzParse(f *testing.F) {
	for _, c := range captured {
		f.Add(unhex(f, c.hex), netip.MustParseAddr(c.src).AsSlice(), netip.MustParseAddr(c.dst).AsSlice())
	}
	f.Fuzz(func(t *testing.T, payload, source, destination []byte) {
		src, _ := netip.AddrFromSlice(source)
		dst, _ := netip.AddrFromSlice(destination)
		roundTrip(t, payload, src, dst)
		if len(payload) < headerLen || !src.IsValid() || !dst.IsValid() {
			return
		}
		src, dst = src.Unmap(), dst.Unmap()
		for _, pseudo := range []uint32{0, pseudoSum(src, dst, len(payload))} {
			mended := slices.Clone(payload)
			mended[6], mended[7] = 0, 0
			binary.BigEndian.PutUint16(mended[6:], ^fold(sum(mended, pseudo)))
			roundTrip(t, mended, src, dst)
		}
	})
}

func roundTrip(t *testing.T, payload []byte, src, dst netip.Addr) {
	a, reason := Parse(payload, src, dst)
	if reason != policy.AdvertValid {
		if !reflect.DeepEqual(a, Advert{}) {
			t.Fatalf("%s, and yet an advert: %+v", reason, a)
		}
		return
	}
	b, err := Append(nil, a, src, dst)
	if err != nil {
		t.Fatalf("encode what was parsed: %v", err)
	}
	again, reason := Parse(b, src, dst)
	if a.Checksum == ChecksumPseudo && again.Checksum == ChecksumRFC &&
		fold(pseudoSum(src.Unmap(), dst.Unmap(), len(b))) == 0xffff {
		again.Checksum = ChecksumPseudo // the pseudo-header adds nothing: both fit
	}
	if reason != policy.AdvertValid || !reflect.DeepEqual(a, again) {
		t.Fatalf("round trip: %+v became %+v (%s)", a, again, reason)
	}
	want := slices.Clone(payload[:len(b)])
	if a.Version == 3 {
		want[4] &= 0x0f
	}
	want[6], want[7], b[6], b[7] = 0, 0, 0, 0
	if !slices.Equal(b, want) {
		t.Fatalf("encoded again %x, was %x", b, want)
	}
}
