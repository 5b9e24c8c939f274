// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Bounds of durations.
const (
	leaseMin   = 100 * time.Millisecond // the daemon must be able to renew it several times
	leaseMax   = time.Minute            // longer, and a dead daemon hands out the VIP of another router
	strictMin  = time.Millisecond
	strictMax  = time.Second
	standbyMin = time.Minute
	standbyMax = 30 * 24 * time.Hour
	holdMax    = time.Hour
)

// orNothing lets "" through as the zero value: the field is as if not given.
func orNothing[T any](parse func(scalar) (T, error)) func(scalar) (T, error) {
	return func(s scalar) (T, error) {
		if s.text == "" {
			var zero T
			return zero, nil
		}
		return parse(s)
	}
}

// boolean takes true and false alone.
func boolean(s scalar) (bool, error) {
	switch {
	case s.text == "true" && !s.quoted:
		return true, nil
	case s.text == "false" && !s.quoted:
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false: write one of them, without quotes", s.text)
}

// number takes decimal digits only.
func number[T uint8 | uint16 | uint32](low, high uint64) func(scalar) (T, error) {
	return func(s scalar) (T, error) {
		n, err := parseNumber(s.text, low, high)
		return T(n), err
	}
}

// bits32 takes 32 bits in decimal or, after 0x, in hexadecimal.
func bits32(s scalar) (uint32, error) { return parseBits(s.text) }

func parseBits(text string) (uint32, error) {
	digits, hex := strings.CutPrefix(text, "0x")
	if !hex {
		n, err := parseNumber(text, 0, 1<<32-1)
		return uint32(n), err
	}
	n, err := strconv.ParseUint(digits, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number of 32 bits (0x0 to 0xffffffff)", text)
	}
	return uint32(n), nil
}

// mark takes VALUE/MASK, the value within the mask.
func mark(s scalar) (MarkConfig, error) {
	value, mask, ok := strings.Cut(s.text, "/")
	if !ok {
		return MarkConfig{}, fmt.Errorf("mark %q has no mask: write VALUE/MASK, for example 0x70/0xf0", s.text)
	}
	var m MarkConfig
	var err error
	if m.Value, err = parseBits(value); err != nil {
		return MarkConfig{}, fmt.Errorf("mark %q: %w", s.text, err)
	}
	if m.Mask, err = parseBits(mask); err != nil {
		return MarkConfig{}, fmt.Errorf("mask of %q: %w", s.text, err)
	}
	if outside := m.Value &^ m.Mask; outside != 0 {
		return MarkConfig{}, fmt.Errorf("mark %q has the bits %#x outside its mask: widen the mask or clear them", s.text, outside)
	}
	return m, nil
}

// duration takes what Go's time.ParseDuration takes, within bounds.
func duration(low, high time.Duration) func(scalar) (time.Duration, error) {
	return func(s scalar) (time.Duration, error) {
		d, err := time.ParseDuration(s.text)
		switch {
		case err != nil && s.text != "" && strings.Trim(s.text, "0123456789.") == "":
			return 0, fmt.Errorf("duration %q has no unit: write for example %sms, %ss or %sm", s.text, s.text, s.text, s.text)
		case err != nil:
			return 0, fmt.Errorf("%q is not a duration (write for example 200ms, 2s, 1h)", s.text)
		case d < low || d > high:
			return 0, fmt.Errorf("duration %s is out of range (%s to %s)", s.text, low, high)
		}
		return d, nil
	}
}

// oneOf takes some words only.
func oneOf[T ~string](words ...T) func(scalar) (T, error) {
	return func(s scalar) (T, error) {
		if slices.Contains(words, T(s.text)) {
			return T(s.text), nil
		}
		texts := make([]string, len(words))
		for i, word := range words {
			texts[i] = string(word)
		}
		return "", fmt.Errorf("unknown word %q: write one of %s", s.text, strings.Join(texts, ", "))
	}
}

func logLevel(s scalar) (slog.Level, error) {
	word, err := oneOf("debug", "info", "warn", "error")(s)
	if err != nil {
		return 0, err
	}
	var level slog.Level
	err = level.UnmarshalText([]byte(word))
	return level, err
}

// wordOf takes a name of up to so many octets without spaces.
func wordOf(limit int) func(scalar) (string, error) {
	return func(s scalar) (string, error) {
		switch {
		case s.text == "":
			return "", errors.New("is empty: give it a value or remove the line")
		case len(s.text) > limit:
			return "", fmt.Errorf("%.16q… has %d octets: shorten it to %d", s.text, len(s.text), limit)
		}
		for _, c := range s.text {
			if c == unicode.ReplacementChar || unicode.IsSpace(c) || !unicode.IsPrint(c) {
				return "", fmt.Errorf("%q contains %q: use printable characters without spaces", s.text, c)
			}
		}
		return s.text, nil
	}
}

// groupName takes what fits into the BPF map and into one argument.
func groupName(s scalar) (string, error) { return wordOf(GroupNameMax)(s) }

func pinName(s scalar) (string, error) { return s.text, checkPinName(s.text) }

func interfaceName(s scalar) (string, error) { return s.text, checkInterfaceName(s.text) }

func publicKey(s scalar) (string, error) {
	_, err := ParsePublicKey(s.text)
	return s.text, err
}

func vlanTag(s scalar) (VLAN, error) { return ParseVLAN(s.text) }

func absolutePath(s scalar) (string, error) {
	if !path.IsAbs(s.text) || strings.ContainsRune(s.text, 0) {
		return "", fmt.Errorf("path %q is not absolute: begin it with a slash", s.text)
	}
	return path.Clean(s.text), nil
}

// vip takes a bare unicast address.
func vip(s scalar) (netip.Addr, error) {
	if bare, _, cut := strings.Cut(s.text, "/"); cut {
		return netip.Addr{}, fmt.Errorf("VIP %q has a prefix length: write %s", s.text, bare)
	}
	addr, err := netip.ParseAddr(s.text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("VIP %q is not an IPv4 or IPv6 address", s.text)
	}
	switch {
	case addr.Zone() != "":
		return netip.Addr{}, fmt.Errorf("VIP %q has a zone: write %s, the pin's interface is the zone", s.text, addr.WithZone(""))
	case addr.Is4In6():
		return netip.Addr{}, fmt.Errorf("VIP %q is an IPv4 address in IPv6 form: write %s", s.text, addr.Unmap())
	case addr.IsUnspecified(), addr.IsMulticast(), addr.IsLoopback(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, fmt.Errorf("VIP %s is no unicast address of a network: write the virtual address that VRRP moves", addr)
	}
	return addr, nil
}

// prefix takes a network without host bits.
func prefix(s scalar) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s.text)
	if err != nil {
		if addr, err := netip.ParseAddr(s.text); err == nil && addr.Zone() == "" {
			return netip.Prefix{}, fmt.Errorf("prefix %q has no length: write %s/%d for this one address", s.text, addr, addr.BitLen())
		}
		return netip.Prefix{}, fmt.Errorf("%q is not a prefix (write for example 192.168.101.0/24)", s.text)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("prefix %q is IPv4 in IPv6 form: write the IPv4 prefix", s.text)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("prefix %s has host bits: write %s for the network, or %s/%d for the address", p, p.Masked(), p.Addr(), p.Addr().BitLen())
	}
	return p, nil
}

// addrPort takes an address and a port; names are not resolved.
func addrPort(s scalar) (netip.AddrPort, error) {
	if strings.HasPrefix(s.text, ":") {
		return netip.AddrPort{}, fmt.Errorf("%q has no address: write [::]%s for all addresses", s.text, s.text)
	}
	ap, err := netip.ParseAddrPort(s.text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not ADDRESS:PORT (write for example 198.51.100.1:7443 or [2001:db8::1]:7443)", s.text)
	}
	if ap.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q has port 0: write one from 1 to 65535", s.text)
	}
	return ap, nil
}

// vridAt takes VRID or VRID@INTERFACE.
func vridAt(s scalar) (VRIDConfig, error) {
	id, where, at := strings.Cut(s.text, "@")
	n, err := parseNumber(id, 1, 255)
	if err != nil {
		return VRIDConfig{}, fmt.Errorf("VRID %q: %w", s.text, err)
	}
	if at {
		if err := checkInterfaceName(where); err != nil {
			return VRIDConfig{}, fmt.Errorf("VRID %q: %w", s.text, err)
		}
	}
	return VRIDConfig{VRID: uint8(n), Interface: where}, nil
}
