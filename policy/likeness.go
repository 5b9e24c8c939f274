// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Likeness is what this router says of itself, besides links and addresses
// (Observed), that its peers should have alike. What could not be read is missing
// and named in Unread.
type Likeness struct {
	Kernel  string            // release
	Sysctls map[string]string // by their path below /proc/sys; what this kernel does not have is not there
	MTU     map[int]int       // octets, by ifindex
	Clock   Clock
	NAT     NATChains
	Unread  []string // a sentence each
}

// Clock is a router's time of day and where it comes from.
type Clock struct {
	Time    time.Time `json:"time"`
	Sources []string  `json:"sources"` // programs that set it: "chronyd"
	Synced  bool      `json:"synced"`  // the kernel believes that it is
}

// NATChains are the rules of nf_tables that translate, which iptables-nft writes
// too.
type NATChains struct {
	Known  bool       `json:"known"`
	Chains []NATChain `json:"chains"` // base chains by hook and priority, then those they lead to
	Legacy []string   `json:"legacy"` // as in NAT
}

// NATChain is a chain of type nat, or one that such a chain jumps to.
type NATChain struct {
	Family   string      `json:"family"` // ip, ip6, inet
	Table    string      `json:"table"`
	Name     string      `json:"name"`
	Hook     string      `json:"hook,omitempty"` // prerouting, input, output, postrouting; "" = jumped to
	Priority int32       `json:"priority,omitempty"`
	Rules    [][]NATWord `json:"rules"`
}

// NATWord is a part of a rule, as nft(8) would write it: words that mean the same
// on every router, an interface, or an address. One of the fields is set.
type NATWord struct {
	Text      string
	Interface string     // "wan0", "wan*"
	From, To  netip.Addr // inclusive; equal for one address
}

// Signs that begin the words that are not plain.
const (
	interfaceSign = "@"
	addressSign   = "#"
)

func (w NATWord) String() string {
	switch {
	case w.Interface != "":
		return w.Interface
	case !w.From.IsValid():
		return w.Text
	case w.From == w.To:
		return w.From.String()
	}
	if prefix, ok := prefixOf(w.From, w.To); ok {
		return prefix.String()
	}
	return w.From.String() + "-" + w.To.String()
}

// prefixOf writes a range of addresses as a prefix, if it is one.
func prefixOf(from, to netip.Addr) (netip.Prefix, bool) {
	for bits := range from.BitLen() {
		if prefix, err := from.Prefix(bits); err == nil && prefix.Addr() == from && LastOf(prefix) == to {
			return prefix, true
		}
	}
	return netip.Prefix{}, false
}

// LastOf is the highest address of a prefix.
func LastOf(prefix netip.Prefix) netip.Addr {
	octets := prefix.Masked().Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(octets)*8; bit++ {
		octets[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(octets)
	return last
}

// MarshalText writes one string that UnmarshalText reads.
func (w NATWord) MarshalText() ([]byte, error) {
	switch {
	case w.Interface != "":
		return []byte(interfaceSign + w.Interface), nil
	case w.From.IsValid():
		return []byte(addressSign + w.From.String() + "-" + w.To.String()), nil
	}
	return []byte(" " + w.Text), nil
}

// UnmarshalText reads what MarshalText writes.
func (w *NATWord) UnmarshalText(text []byte) error {
	*w = NATWord{}
	rest, isInterface := strings.CutPrefix(string(text), interfaceSign)
	if isInterface {
		w.Interface = rest
		return nil
	}
	rest, isAddress := strings.CutPrefix(string(text), addressSign)
	if !isAddress {
		w.Text = strings.TrimPrefix(string(text), " ")
		return nil
	}
	from, to, _ := strings.Cut(rest, "-")
	var err error
	if w.From, err = netip.ParseAddr(from); err == nil {
		w.To, err = netip.ParseAddr(to)
	}
	if err != nil {
		return fmt.Errorf("read addresses of a rule: %w", err)
	}
	return nil
}
