// SPDX-License-Identifier: Apache-2.0

package parity

import (
	"fmt"
	"slices"
	"strings"
)

// rulesShown bounds the differences of rules that are listed one by one.
const rulesShown = 64

func (c *comparison) nat() {
	if !c.own.NAT.Known || !c.peer.NAT.Known {
		return // Unread says why
	}
	if !slices.Equal(c.own.NAT.Legacy, c.peer.NAT.Legacy) {
		c.warning("nat", "legacy iptables", legacyText(c.own.NAT.Legacy), legacyText(c.peer.NAT.Legacy),
			"rules of legacy iptables cannot be compared: those that one router has alone translate otherwise after a failover")
	}
	if c.own.LeftOut.Rules+c.peer.LeftOut.Rules > 0 {
		return // what is cut off looks like a difference
	}
	here := dialectOf(&c.own, c.pairing.here).chains(c.own.NAT.Chains)
	there := dialectOf(&c.peer, c.pairing.there).chains(c.peer.NAT.Chains)
	places := make(map[string]bool)
	for place := range here {
		places[place] = true
	}
	for place := range there {
		places[place] = true
	}
	shown := 0
	for _, place := range sorted(places) {
		shown = c.rules(place, here[place], there[place], shown)
	}
	if shown > rulesShown {
		c.error("nat", "further rules", fmt.Sprintf("%d differ", shown-rulesShown), "", "they translate otherwise after a failover")
	}
}

func legacyText(families []string) string {
	if len(families) == 0 {
		return "none"
	}
	return "rules for " + strings.Join(families, " and ")
}

// rules tells how two lists of rules differ, and returns how many differences there
// are now.
func (c *comparison) rules(place string, here, there []rule, shown int) int {
	tell := func(a, b int, why string) {
		if shown++; shown > rulesShown {
			return
		}
		about := fmt.Sprintf("%s, rule %d", place, max(a, b)+1)
		if a >= 0 && b >= 0 && a != b {
			about = fmt.Sprintf("%s, rule %d here and %d there", place, a+1, b+1)
		}
		c.error("nat", about, textOf(here, a), textOf(there, b), "%s", why)
	}
	differing := gaps(here, there)
	for _, pair := range moved(here, there, differing) {
		tell(pair[0], pair[1], "the first rule that fits decides: with another order, another rule may")
	}
	for _, g := range differing {
		for i := range max(len(g.here), len(g.there)) {
			a, b := placeAt(g.here, i), placeAt(g.there, i)
			tell(a, b, c.consequence(textOf(here, a)+textOf(there, b), a >= 0, b >= 0))
		}
	}
	return shown
}

func placeAt(list []int, i int) int {
	if i < len(list) {
		return list[i]
	}
	return -1
}

func textOf(list []rule, at int) string {
	if at < 0 {
		return ""
	}
	return list[at].String()
}

// movedMost bounds the work of finding rules in another place.
const movedMost = 512

// moved takes the rules out of the gaps that both lists have in other places.
func moved(here, there []rule, list []gap) (pairs [][2]int) {
	total := 0
	for _, g := range list {
		total += len(g.here) + len(g.there)
	}
	if total > movedMost {
		return nil
	}
	for i := range list {
		list[i].here = slices.DeleteFunc(list[i].here, func(a int) bool {
			for j := range list {
				at := slices.IndexFunc(list[j].there, func(b int) bool { return here[a].same(there[b]) })
				if at >= 0 {
					pairs = append(pairs, [2]int{a, list[j].there[at]})
					list[j].there = slices.Delete(list[j].there, at, at+1)
					return true
				}
			}
			return false
		})
	}
	return pairs
}

// consequence says what a rule that differs breaks, by what it does.
func (c *comparison) consequence(text string, hereHas, thereHas bool) string {
	where := "after a failover"
	if hereHas != thereHas {
		where = "while " + c.lacking(hereHas) + " is MASTER"
	}
	switch {
	case strings.Contains(text, "masquerade"), strings.Contains(text, "snat to"):
		return "new connections that it takes leave with another source " + where + ", or untranslated, and are not pinned"
	case strings.Contains(text, "dnat to"), strings.Contains(text, "redirect"):
		return "new connections to the service that it publishes go elsewhere " + where + ", or nowhere"
	}
	return "new connections that it takes are translated otherwise " + where
}
