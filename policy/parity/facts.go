// SPDX-License-Identifier: Apache-2.0

// Package parity compares what two routers that take each other's flows over
// should have alike: facts of both in, differences out, the worst first, each with
// what it would break. It does no I/O. What may differ (the names of interfaces,
// the routers' own addresses, MACs, priorities, a trunk here and a NIC for each
// VLAN there) is no difference.
package parity

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"vippin/policy"
)

// Format is the version of Facts. A newer one may have more fields: those are
// passed over.
const Format = 1

// Limits of what a peer may say.
const (
	MaxOctets = 1 << 18 // of the JSON
	maxRules  = 8192
	maxWords  = 4096 // of a rule
)

// Facts is what one router says of itself.
type Facts struct {
	Format     int               `json:"format"`
	Node       string            `json:"node"`
	Version    string            `json:"version"`  // of vippin
	Protocol   [2]uint32         `json:"protocol"` // of natsync: lowest and highest
	Tier       string            `json:"tier"`
	Kernel     string            `json:"kernel"`
	Clock      policy.Clock      `json:"clock"`
	Groups     []string          `json:"groups"`
	Pins       []Pin             `json:"pins"`
	VRIDs      []VRID            `json:"vrids"`
	Interfaces []Interface       `json:"interfaces"`
	Options    map[string]string `json:"options"` // of the configuration: "sync.scope"
	Sysctls    map[string]string `json:"sysctls"` // by path below /proc/sys, those of no interface
	NAT        policy.NATChains  `json:"nat"`
	Unread     []string          `json:"unread"`
	LeftOut    LeftOut           `json:"left_out"`
}

// Pin is one pin in force.
type Pin struct {
	VLAN      policy.VLAN      `json:"vlan"`
	Name      string           `json:"name"`
	Interface string           `json:"interface"`
	Present   bool             `json:"present"` // the interface is there
	VIPs      []netip.Addr     `json:"vips"`    // in the order of the configuration
	Group     string           `json:"group"`
	Enabled   bool             `json:"enabled"`
	EnabledBy policy.EnabledBy `json:"enabled_by"`
	Sources   []netip.Prefix   `json:"sources"`
}

func (p Pin) key() policy.PinKey { return policy.PinKey{VLAN: p.VLAN, Name: p.Name} }

// source is the VIP that flows of a family leave with (see policy.PinConfig).
func (p Pin) source(v6 bool) netip.Addr {
	pin := policy.PinConfig{VIPs: p.VIPs}
	if v6 {
		return pin.VIP6()
	}
	return pin.VIP4()
}

// VRID is a virtual router that speaks for a group. What an advert says is known
// if this router has sent one of late.
type VRID struct {
	Interface string  `json:"interface"`
	VRID      uint8   `json:"vrid"`
	Group     string  `json:"group"`
	Family    string  `json:"family"` // ipv4, ipv6; "" = no advert has left
	Version   uint8   `json:"version"`
	Interval  float64 `json:"interval_ms"`
}

// Interface is one that something goes by.
type Interface struct {
	Name     string            `json:"name"`
	Tag      policy.VLAN       `json:"tag"`
	Networks []netip.Prefix    `json:"networks"` // connected
	Own      []netip.Addr      `json:"own"`      // this router's alone
	Perhaps  []netip.Addr      `json:"perhaps"`  // its own, or virtual without a pin
	MTU      int               `json:"mtu"`
	Settings map[string]string `json:"settings"` // forwarding, rp_filter, disable_ipv6
}

// LeftOut counts what there was no room for.
type LeftOut struct {
	Rules      int `json:"rules"`
	Pins       int `json:"pins"`
	Interfaces int `json:"interfaces"`
}

// Encode writes facts in at most MaxOctets. What there is no room for it leaves out
// of the facts, the rules first.
func (f *Facts) Encode() ([]byte, error) {
	for {
		text, err := json.Marshal(f)
		if err != nil {
			return nil, fmt.Errorf("write facts: %w", err)
		}
		if len(text) <= MaxOctets {
			return text, nil
		}
		if !f.shorten() {
			return nil, fmt.Errorf("write facts: %d octets, over %d", len(text), MaxOctets)
		}
	}
}

// shorten leaves half of something out, and tells whether there was anything.
func (f *Facts) shorten() bool {
	if last := len(f.NAT.Chains) - 1; last >= 0 {
		chains := append([]policy.NATChain{}, f.NAT.Chains...)
		keep := len(chains[last].Rules) / 2
		f.LeftOut.Rules += len(chains[last].Rules) - keep
		chains[last].Rules = chains[last].Rules[:keep]
		if keep == 0 {
			chains = chains[:last]
		}
		f.NAT.Chains = chains
		return true
	}
	switch {
	case len(f.Interfaces) > len(f.Pins):
		keep := len(f.Interfaces) / 2
		f.LeftOut.Interfaces += len(f.Interfaces) - keep
		f.Interfaces = f.Interfaces[:keep]
	case len(f.Pins) > 0:
		keep := len(f.Pins) / 2
		f.LeftOut.Pins += len(f.Pins) - keep
		f.Pins, f.VRIDs, f.Groups = f.Pins[:keep], nil, nil
	default:
		return false
	}
	return true
}

// Decode reads what a peer has encoded. Fields that this version does not know
// are passed over.
func Decode(text []byte) (Facts, error) {
	var f Facts
	if len(text) > MaxOctets {
		return f, fmt.Errorf("read facts of a peer: %d octets, over %d", len(text), MaxOctets)
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return Facts{}, fmt.Errorf("read facts of a peer: %w", err)
	}
	if f.Format < 1 {
		return Facts{}, fmt.Errorf("read facts of a peer: format %d", f.Format)
	}
	rules := 0
	for _, chain := range f.NAT.Chains {
		rules += len(chain.Rules)
		for _, words := range chain.Rules {
			if len(words) > maxWords {
				return Facts{}, fmt.Errorf("read facts of a peer: a rule of %d words, over %d", len(words), maxWords)
			}
		}
	}
	if rules > maxRules || len(f.Pins) > policy.PinsMax {
		return Facts{}, fmt.Errorf("read facts of a peer: %d rules and %d pins, over %d and %d", rules, len(f.Pins), maxRules, policy.PinsMax)
	}
	return f, nil
}
