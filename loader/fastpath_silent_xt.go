// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Of iptables' matches and targets in nf_tables: NFTA_MATCH_*, NFTA_TARGET_*.
const (
	xtName = 1
	xtRev  = 2
	xtInfo = 3
)

// xtMeters are matches that go by how many packets they see.
var xtMeters = []string{"hashlimit", "limit", "quota"}

// match tells whether any packet goes on.
func (r *firewallRule) match(e *firewallExpr) (matches bool) {
	name := e.text(xtName)
	if name == "conntrack" && r.tracked {
		rev, _ := e.uint32(xtRev)
		info, _ := e.bytes(xtInfo)
		if all, some, known := xtStates(rev, info); known {
			r.all = r.all && all
			return some
		}
	}
	r.all = false
	if what := "iptables match " + name; slices.Contains(xtMeters, name) {
		r.meter(what)
	} else {
		r.silent(what)
	}
	return true
}

// xtStates reads a match by states: struct xt_conntrack_mtinfo2 and 3,
// include/uapi/linux/netfilter/xt_conntrack.h. Of established packets all may match,
// or else some; it is not known when something else than states decides, too.
func xtStates(rev uint32, info []byte) (all, some, known bool) {
	const (
		flagsAt, invertAt, statesAt, size = 146, 148, 150, 154
		byState, alias                    = 1 << 0, 1 << 13
		translated                        = 1<<6 | 1<<7 // SNAT, DNAT
	)
	if rev < 2 || rev > 3 || len(info) < size {
		return false, false, false
	}
	word := func(at int) uint32 { return uint32(binary.NativeEndian.Uint16(info[at:])) }
	if word(flagsAt)&byState == 0 || word(statesAt)&translated != 0 {
		return false, false, false
	}
	matches := (word(statesAt)&established != 0) != (word(invertAt)&byState != 0)
	if !matches {
		return false, false, true
	}
	return true, true, word(flagsAt)&^(byState|alias) == 0
}

// target is what iptables does with a packet.
func (r *firewallRule) target(e *firewallExpr) ruleFate {
	what := fmt.Sprintf("iptables target %s", e.text(xtName))
	if e.text(xtName) == "NFQUEUE" {
		return r.queue(what)
	}
	r.silent(what)
	r.all = false
	return goesOn
}

// firewallDevices are interfaces as rules know them.
type firewallDevices struct {
	names   []string // IFNAMSIZ octets, of zeroes at the end
	numbers []string // ifindex, 4 octets
}

func (d *firewallDevices) add(name string, ifindex int) {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	d.names = append(d.names, string(padded))
	d.numbers = append(d.numbers, string(native32(uint32(ifindex))))
}

// isAmong tells whether one of these begins like this; a name that is meant whole has
// its zeroes.
func isAmong(prefix []byte, list []string) bool {
	return slices.ContainsFunc(list, func(one string) bool { return len(prefix) <= len(one) && one[:len(prefix)] == string(prefix) })
}
