// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"time"
)

// The types below are what the showing commands print with -j and what the
// control socket carries. Their JSON names are a contract: more may be added,
// none renamed.

// PinState says what a pin is and whether it is on: what is known without
// counting anything.
type PinState struct {
	VLAN      VLAN         `json:"vlan"`
	Name      string       `json:"name"`
	Interface string       `json:"interface"`
	VIPs      []netip.Addr `json:"vips"`
	Group     string       `json:"group"`
	Enabled   bool         `json:"enabled"`
	EnabledBy EnabledBy    `json:"enabled_by"`
	Role      Role         `json:"role"`
}

// PinStatus is one row of "vippin pin ls".
type PinStatus struct {
	PinState
	Flows                 uint64            `json:"flows"`
	PacketsPinned         uint64            `json:"packets_pinned"`
	PacketsUnpinned       uint64            `json:"packets_unpinned"`
	UnpinnedBy            map[string]uint64 `json:"unpinned_by"`
	PacketsVIPWhileBackup uint64            `json:"packets_vip_while_backup"`
	PacketsReturned       uint64            `json:"packets_returned"` // answers brought back to their flow
	PacketsForeign        uint64            `json:"packets_foreign"`  // of others, from a mapping's public end
	MappingsCreated       uint64            `json:"mappings_created"`
	PortClashes           uint64            `json:"port_clashes"`            // mappings whose port could not be kept
	PacketsEarlyFragments uint64            `json:"packets_early_fragments"` // see loader.PinCounters
	PacketsHeld           uint64            `json:"packets_held"`            // answers that were to wait for the peer
	PacketsReset          uint64            `json:"packets_reset"`           // TCP RSTs of the router's own, from a VIP
}

// FlowStatus is one line of "vippin flows -j". Packets and Bytes are null
// without nf_conntrack_acct: what the fast path has counted is not all of them.
type FlowStatus struct {
	VLAN    VLAN    `json:"vlan"`
	Proto   string  `json:"proto"`
	Client  string  `json:"client"` // inside host, "" when conntrack no longer knows it
	Remote  string  `json:"remote"`
	Public  string  `json:"public"`
	Local   string  `json:"local"`
	Origin  string  `json:"origin"`
	Acked   bool    `json:"acked"`
	Packets *uint64 `json:"packets"`
	Bytes   *uint64 `json:"bytes"`
	Age     float64 `json:"age_s"`
	Idle    float64 `json:"idle_s"`
	// Fastpath: the fast path has learnt it. It forwards its packets unless
	// something changed since.
	Fastpath bool `json:"fastpath"`
}

// GroupStatus is one group in "vippin status".
type GroupStatus struct {
	Name     string    `json:"name"`
	Role     Role      `json:"role"`
	Since    time.Time `json:"since"`
	Evidence []string  `json:"evidence"` // one witness a line
	Conflict string    `json:"conflict"` // "" while the witnesses agree
}

// PeerStatus is one peer in "vippin status".
type PeerStatus struct {
	Name          string     `json:"name"`
	State         string     `json:"state"` // down, connecting, bulk, up
	LagFlows      uint64     `json:"lag_flows"`
	FlowsSent     uint64     `json:"flows_sent"`
	FlowsReceived uint64     `json:"flows_received"`
	LastBulk      *time.Time `json:"last_bulk"`
}

// PeerReport is one peer in "vippin peers". What a peer says of itself (Node,
// Version, Protocol, Groups) is empty until it has said it.
type PeerReport struct {
	Name     string         `json:"name"`
	Address  netip.AddrPort `json:"address"`
	Key      string         `json:"key"`   // the public key it must have, "" = none is known
	State    string         `json:"state"` // down, connecting, bulk, up
	Since    time.Time      `json:"since"`
	Node     string         `json:"node"`
	Version  string         `json:"version"`  // of its program
	Protocol uint32         `json:"protocol"` // version that both speak
	Groups   []PeerGroup    `json:"groups"`

	LagFlows          uint64  `json:"lag_flows"` // not yet acknowledged by it
	Lag               float64 `json:"lag_ms"`    // how long the oldest of them has waited
	FlowsSent         uint64  `json:"flows_sent"`
	FlowsReceived     uint64  `json:"flows_received"`
	GonesSent         uint64  `json:"gones_sent"` // ends of flows
	GonesReceived     uint64  `json:"gones_received"`
	Acked             uint64  `json:"acked"`            // flows and ends sent that it has dealt with, refused ones among them
	Overruns          uint64  `json:"overruns"`         // times that what waited for it was too much; a bulk follows
	FlowsSentRate     float64 `json:"flows_sent_per_s"` // over the last seconds
	FlowsReceivedRate float64 `json:"flows_received_per_s"`
	BytesSent         uint64  `json:"bytes_sent"` // since the start, as the wire sees them
	BytesReceived     uint64  `json:"bytes_received"`

	BulkOut       *BulkProgress     `json:"bulk_out"` // null: none is under way
	BulkIn        *BulkProgress     `json:"bulk_in"`
	LastBulk      *time.Time        `json:"last_bulk"`
	Refused       map[string]uint64 `json:"refused"`         // flows it sent that this router refused, by reason
	RefusedByPeer map[string]uint64 `json:"refused_by_peer"` // flows it was sent and refused, by reason

	ConnectionsRefused map[string]uint64 `json:"connections_refused"` // connections to sync.listen from its address, by reason
	ShownKey           string            `json:"shown_key"`           // the last key that was refused there, "" = none
	LastError          string            `json:"last_error"`          // "" = none since the start
	LastErrorAt        *time.Time        `json:"last_error_at"`
}

// PeerGroup is a group's role as a peer tells it.
type PeerGroup struct {
	Name  string `json:"name"`
	Role  Role   `json:"role"`
	Epoch uint64 `json:"epoch"`
}

// BulkProgress is how far the transfer of a whole table has come.
type BulkProgress struct {
	Done  uint64 `json:"done"`
	Total uint64 `json:"total"` // 0: not known yet
}

// ReplicationStatus counts what became of this router's flows, since the start.
type ReplicationStatus struct {
	Held        int               `json:"held"`         // flows that stand ready for a takeover, or were taken over
	Restored    uint64            `json:"restored"`     // put back after the kernel had flushed them
	NotRestored uint64            `json:"not_restored"` // could not be put back
	Normalised  uint64            `json:"normalised"`   // got their ordinary timeout after a takeover
	EventsLost  uint64            `json:"events_lost"`  // times that a bulk had to make up for
	Skipped     map[string]uint64 `json:"skipped"`      // flows that peers are not told of, by reason
	Strict      *StrictStatus     `json:"strict"`       // null unless sync.mode is strict
}

// StrictStatus counts first answers that waited for the peers, since the start.
type StrictStatus struct {
	Holding  bool    `json:"holding"`   // false: no peer is up, or Failed
	Waiting  uint64  `json:"waiting"`   // now
	Held     uint64  `json:"held"`      // packets that had to wait
	Acked    uint64  `json:"acked"`     // of them went on when every peer had the flow
	TimedOut uint64  `json:"timed_out"` // of them went on after sync.strict_timeout
	Released uint64  `json:"released"`  // of them went on for another reason: no peer is up any more, or none can take the flow
	PassedBy uint64  `json:"passed_by"` // marked but never held: the queue was full, or nobody served it
	Waited   float64 `json:"waited_ms"` // mean of the acked ones
	Failed   string  `json:"failed"`    // why nothing can be held, "" = it can
}

// Status is what "vippin status" shows.
type Status struct {
	Node     string        `json:"node"`
	Version  string        `json:"version"`
	Tier     string        `json:"tier"`
	Uptime   float64       `json:"uptime_s"`
	Groups   []GroupStatus `json:"groups"`
	Pins     []PinStatus   `json:"pins"`
	Peers    []PeerStatus  `json:"peers"`
	Warnings []string      `json:"warnings"`
	// Fastpath is null while it is switched off.
	Fastpath *FastpathState `json:"fastpath"`
	// Replication is null where there are no peers.
	Replication *ReplicationStatus `json:"replication"`
	// Connections to sync.listen that were refused, by reason: unknown_key,
	// own_key, handshake, version, half_open.
	ConnectionsRefused map[string]uint64 `json:"connections_refused"`
	// TCP segments to a VIP that were not answered by RST (sync.no_rst).
	ResetsHeld uint64 `json:"resets_held"`
	// Packets that no pin can answer for: of inside hosts that no pin takes
	// (source), or without a conntrack entry (no_conntrack).
	UnpinnedWithoutPin map[string]uint64 `json:"unpinned_without_pin"`
}

// VRRPStatus is one virtual router in "vippin vrrp".
type VRRPStatus struct {
	Interface  string            `json:"interface"`
	VLAN       VLAN              `json:"vlan"`
	VRID       uint8             `json:"vrid"`
	Family     string            `json:"family"` // ipv4, ipv6
	Version    uint8             `json:"version"`
	Checksum   string            `json:"checksum"` // rfc, pseudo-header
	Role       Role              `json:"role"`
	VirtualMAC bool              `json:"virtual_mac"`
	Routers    []RouterStatus    `json:"routers"`
	Ignored    map[string]uint64 `json:"ignored"`
	Conflict   string            `json:"conflict"`
}

// RouterStatus is one router that advertises a VRID.
type RouterStatus struct {
	Address  netip.Addr `json:"address"`
	Priority uint8      `json:"priority"`
	Interval float64    `json:"interval_ms"`
	LastSeen float64    `json:"last_seen_ms"` // before now
	Self     bool       `json:"self"`
}

// Event is one line of "vippin monitor".
type Event struct {
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"` // role, conflict, pin, fastpath, link, reload, peer, ready, failover, warning
	Group  string    `json:"group,omitempty"`
	Pin    string    `json:"pin,omitempty"` // as the toggling commands name it
	Role   *Role     `json:"role,omitempty"`
	Over   bool      `json:"over,omitempty"` // of a conflict: this is its end
	Detail string    `json:"detail"`
}

// DryRun is what "vippin check" shows: the plan in words, or why there is none.
type DryRun struct {
	OK       bool       `json:"ok"`
	Errors   []string   `json:"errors"`
	Warnings []string   `json:"warnings"`
	Pins     []PinState `json:"pins"`
}
