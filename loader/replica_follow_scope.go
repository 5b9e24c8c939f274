// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
)

// replicaOptions is a SyncConfig, turned round for look-ups. It never changes.
type replicaOptions struct {
	scope          policy.SyncScope
	protocols      [256]bool
	ignore         []netip.Prefix
	expect         bool
	standbyTimeout time.Duration
}

func newReplicaOptions(sync policy.SyncConfig) *replicaOptions {
	o := &replicaOptions{
		scope: sync.Scope, ignore: slices.Clone(sync.Ignore), expect: sync.Expect, standbyTimeout: sync.StandbyTimeout,
	}
	named := map[string]uint8{
		"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP, "icmpv6": unix.IPPROTO_ICMPV6,
	}
	other := slices.Contains(sync.Protocols, "other")
	for proto := range o.protocols {
		o.protocols[proto] = other
	}
	for name, proto := range named {
		o.protocols[proto] = slices.Contains(sync.Protocols, name)
	}
	return o
}

// ignores tells whether an address is one that is never replicated.
func (o *replicaOptions) ignores(addr netip.Addr) bool {
	for _, prefix := range o.ignore {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// skipReason says why a flow is not told to peers; 0: it is.
type skipReason uint8

// The reasons.
const (
	skipProtocol  skipReason = 1 + iota // sync.protocols leaves it out, or it is ICMP other than echo
	skipIgnored                         // an end lies in sync.ignore
	skipOwn                             // the router itself is an end
	skipMulticast                       // it goes to many
	skipScope                           // sync.scope leaves it out
	skipUnique                          // came to the router's own address and was sent on: no peer gets that
	skipNoMapping                       // left with the router's own address, unpinned: likewise
	skipWaiting                         // too many flows waited for their mapping
	skipReasons
)

var skipNames = [skipReasons]string{
	skipProtocol: "protocol", skipIgnored: "ignored", skipOwn: "own", skipMulticast: "multicast",
	skipScope: "scope", skipUnique: "unique", skipNoMapping: "no_mapping", skipWaiting: "waiting",
}

type skipCounters [skipReasons]atomic.Uint64

// Skipped counts the flows that were not told, by reason: "protocol", "ignored",
// "own", "multicast", "scope", "unique", "no_mapping" and "waiting".
func (r *Replica) Skipped() map[string]uint64 {
	counts := make(map[string]uint64, skipReasons)
	for reason, name := range skipNames {
		if name != "" {
			counts[name] = r.skipped[reason].Load()
		}
	}
	return counts
}
