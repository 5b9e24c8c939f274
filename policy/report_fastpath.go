// SPDX-License-Identifier: Apache-2.0

package policy

// FastpathForwarded is in Packets what was forwarded. All else took the stack, but
// for those of FastpathNotStack, which are counted where packets leave it.
const FastpathForwarded = "forwarded"

// FastpathNotStack: see FastpathForwarded.
var FastpathNotStack = []string{FastpathForwarded, "learnt", "not_learnt"}

// How words end that name a firewall rule which is to see every packet: in Closed, since
// no packet may take the fast path then, and in PaceWhy.
const (
	FastpathQueues = " hands packets of established connections to a program, which is to see each of them"
	FastpathMeters = ", which goes by how many packets it sees"
)

// FastpathState is what "fastpath ls" shows.
type FastpathState struct {
	Enabled     bool              `json:"enabled"`
	EnabledBy   EnabledBy         `json:"enabled_by"`
	All         bool              `json:"all"`          // established flows that are not pinned, too
	Open        bool              `json:"open"`         // it forwards; else Closed says why not
	Closed      string            `json:"closed"`       // "" while open
	Generation  uint32            `json:"generation"`   // every change of routes, neighbours, firewall, roles makes the next one
	PaceS       float64           `json:"pace_s"`       // how long a flow goes without a packet through the stack, at most
	PaceWhy     string            `json:"pace_why"`     // what in the firewall changes without an event; "" when nothing does
	Flows       int               `json:"flows"`        // directions of flows that are learnt and valid
	Capacity    int               `json:"capacity"`     // directions of flows, per family
	MemoryBytes uint64            `json:"memory_bytes"` // of the tables
	Interfaces  []FastpathDevice  `json:"interfaces"`
	Packets     map[string]uint64 `json:"packets"`  // by what became of them: forwarded, or why they took the stack
	Unlearnt    map[string]uint64 `json:"unlearnt"` // packets that taught nothing, by reason
	Loosened    uint64            `json:"loosened"` // TCP connections whose windows conntrack no longer watches
	Warnings    []string          `json:"warnings"`
}

// FastpathDevice is an interface of fastpath.interfaces.
type FastpathDevice struct {
	Interface string   `json:"interface"`
	Ifindex   int      `json:"ifindex"` // 0: absent
	Mode      string   `json:"mode"`    // native, generic, "" when not attached
	VLANs     []VLAN   `json:"vlans"`   // tags of the VLANs on it
	Refused   string   `json:"refused"` // why it is not attached; ""
	Warnings  []string `json:"warnings"`
	// Interfaces on it whose virtual MACs are held here: frames to these are taken, too.
	Virtual []string `json:"virtual"`
}

// FastpathFlow is what the fast path has done for one flow.
type FastpathFlow struct {
	Packets, Bytes uint64 // of both directions
	IdleS          float64
}
