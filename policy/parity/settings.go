// SPDX-License-Identifier: Apache-2.0

package parity

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// consequence is what a setting that differs breaks.
type consequence struct{ state, breaks string }

// ofSysctl are those of which more is known than that connections fare otherwise.
var ofSysctl = map[string]consequence{
	"net/ipv4/ip_forward":                 {Error, "the router where it is 0 forwards no IPv4: every connection stops at a failover to it"},
	"net/ipv6/conf/all/forwarding":        {Error, "the router where it is 0 forwards no IPv6: every connection stops at a failover to it"},
	"nf_conntrack_max":                    {Warning, "the router where it is less may not hold all connections of the other: new ones are dropped when its table is full"},
	"nf_conntrack_tcp_loose":              {Warning, "connections in mid-stream that conntrack does not know go on where it is 1, and are invalid where it is 0"},
	"nf_conntrack_tcp_be_liberal":         {Warning, "segments out of the window that one router let pass are invalid on the other"},
	"nf_conntrack_tcp_ignore_invalid_rst": {Warning, "an RST out of the window ends a connection on one router only"},
	"nf_conntrack_helper":                 {Warning, "FTP, SIP and the like lose their data connections on the router where it is 0"},
	"nf_conntrack_acct":                   {Warning, "packets and bytes of connections are counted on one router only"},
	"nf_conntrack_timestamp":              {Warning, "the age of connections is known on one router only"},
	"nf_conntrack_checksum":               {Warning, "packets with a wrong checksum are invalid on one router only"},
}

func (c *comparison) sysctls() {
	names := make(map[string]bool)
	for name := range c.own.Sysctls {
		names[name] = true
	}
	for _, name := range sorted(names) {
		here := c.own.Sysctls[name]
		there, known := c.peer.Sysctls[name]
		if !known || here == there { // a kernel may lack a setting
			continue
		}
		what := cmp.Or(ofSysctl[name], ofSysctl[strings.TrimPrefix(name, "net/netfilter/")])
		if what.breaks == "" && strings.Contains(name, "timeout") {
			what.breaks = "idle connections that live on one router have ended on the other: what they send then is taken for a new connection, or is invalid"
		}
		what = consequence{cmp.Or(what.state, Warning), cmp.Or(what.breaks, "conntrack treats connections otherwise after a failover")}
		c.add(what.state, "sysctl", strings.ReplaceAll(name, "/", "."), here, there, what.breaks)
	}
}

// ofOption says what an option of the configuration breaks.
var ofOption = map[string]string{
	"sync.mode":            "of connections that begin on the router in async mode, the youngest may be unknown to the other at a crash",
	"sync.scope":           "the router with the narrower scope does not tell of some connections: they break when it fails",
	"sync.protocols":       "connections of a protocol that one router does not tell of break when it fails",
	"sync.ignore":          "connections that one router does not tell of break when it fails",
	"sync.expect":          "data connections of FTP, SIP and the like that are expected break when the router fails where it is false",
	"sync.standby_timeout": "connections of a router that has gone are kept for another time, depending on which one it is",
	"sync.delete_hold":     "the end of connections is told after another time, depending on who is MASTER",
	"sync.strict_timeout":  "how long a reply may be held depends on who is MASTER",
	"sync.ready_timeout":   "how long a router that comes back waits for the connections depends on which one it is",
	"sync.no_rst":          "how long a new MASTER leaves unknown connections without an RST depends on which router it is",
	"dataplane.max_flows":  "the router where it is less may not hold all connections of the other: the rest break at a failover to it",
	"fastpath":             "nothing: connections go on alike, but slower where the fast path is off",
	"vrrp.lease":           "how soon a router without a living daemon stops pinning depends on which one it is",
}

// breaking are the options whose difference breaks connections for certain.
var breaking = []string{"sync.scope", "sync.protocols", "sync.ignore"}

func (c *comparison) options() {
	for _, name := range sorted(keysOf(c.own.Options)) {
		here := c.own.Options[name]
		there, known := c.peer.Options[name]
		if !known || here == there {
			continue
		}
		state := Warning
		check, about := "sync", name
		switch {
		case name == "fastpath":
			state, check, about = Note, name, "the fast path"
		case slices.Contains(breaking, name):
			state = Error
		}
		c.add(state, check, about, here, there, cmp.Or(ofOption[name], "the routers treat connections otherwise"))
	}
}

// interfaces compares what is connected by what.
func (c *comparison) interfaces() {
	for _, couple := range c.pairing.couples {
		a, b := couple.here, couple.there
		if a == nil || b == nil {
			continue
		}
		label := couple.label
		if a.MTU != b.MTU && a.MTU != 0 && b.MTU != 0 {
			c.warning("mtu", label, fmt.Sprint(a.MTU), fmt.Sprint(b.MTU),
				"after a failover, packets of living connections may be too large for the smaller one: they are fragmented, or stall where ICMP is filtered")
		}
		if here, there := otherwise(a.Networks, b.Networks), otherwise(b.Networks, a.Networks); here+there != "" {
			c.error("network", label, here, there, "hosts that are neighbours for one router are behind a gateway for the other, or nowhere: what goes to them is lost there")
		}
		c.settings(label, a.Settings, b.Settings)
	}
}

// otherwise lists the networks that overlap one of the other's and are none of
// them.
func otherwise(a, b []netip.Prefix) string {
	var list []netip.Prefix
	for _, one := range a {
		if !slices.Contains(b, one) && slices.ContainsFunc(b, one.Overlaps) {
			list = append(list, one)
		}
	}
	return joined(list)
}

func (c *comparison) settings(label string, a, b map[string]string) {
	for _, name := range sorted(keysOf(a)) {
		here := a[name]
		there, known := b[name]
		if !known || here == there {
			continue
		}
		what := map[string]consequence{
			"forwarding":   {Error, "what comes in there is not forwarded where it is 0"},
			"disable_ipv6": {Error, "there is no IPv6 where it is 1: its connections stop at a failover to that router"},
			"rp_filter":    {Warning, "the router with 1 (strict) drops what comes in where the route back does not lead, the other does not: connections over several uplinks stop at a failover to it"},
		}[name]
		what = consequence{cmp.Or(what.state, Warning), cmp.Or(what.breaks, "packets are treated otherwise")}
		check := "sysctl"
		if name == "forwarding" {
			check = "forwarding"
		}
		c.add(what.state, check, name+" on "+label, here, there, what.breaks)
	}
}
