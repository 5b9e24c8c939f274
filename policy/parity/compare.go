// SPDX-License-Identifier: Apache-2.0

package parity

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"vippin/policy"
)

// How bad a difference is. Error: a failover breaks connections. Warning: it may
// break some, or hides what happens. Note: it may be meant so, and breaks nothing.
const (
	Error   = "error"
	Warning = "warning"
	Note    = "note"
)

// ranks is the order of checks that are equally bad: what breaks most comes first.
var ranks = []string{"vlan", "interface", "group", "vrid", "vip", "pin", "nat", "forwarding", "network", "sync", "sysctl", "mtu", "tier", "version", "clock", "facts", "fastpath"}

// nothing is shown for what one router does not have.
const nothing = "-"

// Compare lists what two routers have not alike, the worst first. ReceivedAt is this
// router's time when the peer's facts came. It calls the peer by name.
func Compare(own, peer Facts, name string, receivedAt time.Time) []policy.Difference {
	c := &comparison{
		own: own, peer: peer, name: name, pairing: pair(&own, &peer),
		absent: make(map[policy.VLAN]bool), regrouped: make(map[[2]string]bool), found: []policy.Difference{},
	}
	c.pins()
	c.vrids()
	c.groups()
	c.nat()
	c.sysctls()
	c.interfaces()
	c.options()
	c.versions()
	c.clocks(receivedAt)
	c.leftOut()
	slices.SortStableFunc(c.found, func(a, b policy.Difference) int {
		return cmp.Or(Worst(a, b), cmp.Compare(slices.Index(ranks, a.Check), slices.Index(ranks, b.Check)))
	})
	return c.found
}

// Worst orders by how bad differences are, the worst first.
func Worst(a, b policy.Difference) int {
	states := []string{Error, Warning, Note}
	return cmp.Compare(slices.Index(states, a.State), slices.Index(states, b.State))
}

// Errors counts the differences that break connections.
func Errors(list []policy.Difference) int { return Count(list, Error) }

// Count counts those that are so bad.
func Count(list []policy.Difference, state string) (n int) {
	for _, d := range list {
		if d.State == state {
			n++
		}
	}
	return n
}

// comparison is one in the making.
type comparison struct {
	own, peer Facts
	name      string // of the peer
	pairing   pairing
	absent    map[policy.VLAN]bool // VLANs that one router has no pin or interface for
	regrouped map[[2]string]bool   // groups here and there that pins differ in
	found     []policy.Difference
}

func (c *comparison) add(state, check, about, here, there, breaks string) {
	c.found = append(c.found, policy.Difference{
		Peer: c.name, Check: check, About: brief(about), Here: cmp.Or(brief(here), nothing), There: cmp.Or(brief(there), nothing), State: state, Breaks: breaks,
	})
}

// brief bounds what a peer may have made long.
func brief(text string) string {
	const most = 1000
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

func (c *comparison) error(check, about, here, there, breaks string, args ...any) {
	c.add(Error, check, about, here, there, fmt.Sprintf(breaks, args...))
}

func (c *comparison) warning(check, about, here, there, breaks string, args ...any) {
	c.add(Warning, check, about, here, there, fmt.Sprintf(breaks, args...))
}

// lacking names the router that has not what the other has.
func (c *comparison) lacking(hereHas bool) string {
	if hereHas {
		return c.name
	}
	return "this router"
}

// both puts two lists side by side, by key.
func both[K comparable, T any](a, b []T, key func(T) K) (keys []K, here, there map[K]T) {
	here, there = make(map[K]T), make(map[K]T)
	for _, one := range a {
		if _, twice := here[key(one)]; !twice {
			keys = append(keys, key(one))
		}
		here[key(one)] = one
	}
	for _, one := range b {
		_, known := here[key(one)]
		if _, twice := there[key(one)]; !known && !twice {
			keys = append(keys, key(one))
		}
		there[key(one)] = one
	}
	return keys, here, there
}

func (c *comparison) versions() {
	if c.own.Tier != c.peer.Tier {
		c.warning("tier", "the dataplane", tierText(c.own), tierText(c.peer),
			"the routers see connections by other means: of some that are pinned on one, the other leaves the like unpinned (a tier with \"marks\" cannot tell all cases apart, and has no fast path)")
	}
	if c.own.Version != c.peer.Version || c.own.Protocol != c.peer.Protocol {
		c.warning("version", "vippin", c.own.Version, c.peer.Version,
			"what one version tells of a connection the other may not understand, and may decide otherwise: bring both to the same one")
	}
}

func tierText(f Facts) string {
	if f.Kernel == "" {
		return f.Tier
	}
	return f.Tier + " on Linux " + f.Kernel
}

// clockApart is what passes for the same time: the facts were on their way for a
// while.
const clockApart = 5 * time.Second

func (c *comparison) clocks(receivedAt time.Time) {
	if c.peer.Clock.Time.IsZero() || receivedAt.IsZero() {
		return
	}
	offset := c.peer.Clock.Time.Sub(receivedAt)
	if offset.Abs() <= clockApart {
		return
	}
	c.warning("clock", "the time, "+offset.Abs().Round(time.Second).String()+" apart",
		clockText(c.own.Clock, receivedAt), clockText(c.peer.Clock, c.peer.Clock.Time),
		"the routers' records of a failover do not fit together, and rules that go by the time of day do not agree: let both take the time from the same source")
}

func clockText(clock policy.Clock, at time.Time) string {
	source := strings.Join(clock.Sources, ", ")
	if source == "" {
		source = "no program sets it"
	}
	if !clock.Synced {
		source += ", not synchronised"
	}
	return at.UTC().Format(time.DateTime) + " UTC (" + source + ")"
}

// leftOut tells what could not be compared.
func (c *comparison) leftOut() {
	const unknown = "what else differs is not known"
	if c.own.LeftOut != c.peer.LeftOut || c.own.LeftOut != (LeftOut{}) {
		text := func(l LeftOut) string {
			return fmt.Sprintf("%d rules, %d pins, %d interfaces left out", l.Rules, l.Pins, l.Interfaces)
		}
		c.warning("facts", "more than is compared", text(c.own.LeftOut), text(c.peer.LeftOut), unknown)
	}
	if len(c.own.Unread)+len(c.peer.Unread) > 0 {
		c.warning("facts", "what could not be read", strings.Join(c.own.Unread, "; "), strings.Join(c.peer.Unread, "; "), unknown)
	}
}
