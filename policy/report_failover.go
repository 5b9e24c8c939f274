// SPDX-License-Identifier: Apache-2.0

package policy

import "time"

// ReadyStatus is one group in "vippin ready": whether this router may take it over
// by its own choice.
type ReadyStatus struct {
	Group   string  `json:"group"`
	Ready   bool    `json:"ready"`
	Why     string  `json:"why"`       // in words
	Waiting float64 `json:"waiting_s"` // how long it has not been ready, 0 = it is
}

// Failover is one role change of a group, as the flight recorder keeps it.
type Failover struct {
	Time     time.Time      `json:"time"` // when the role took effect
	Group    string         `json:"group"`
	Role     Role           `json:"role"`
	Was      Role           `json:"was"`
	Other    string         `json:"other"`    // the router that was MASTER before, or is now: the peer's name or its address; "" = unknown
	Cause    string         `json:"cause"`    // in words
	Complete bool           `json:"complete"` // false: still open, or the daemon ended meanwhile (Note says so)
	Note     string         `json:"note"`
	Steps    []FailoverStep `json:"steps"` // in order of time
	Flows    FailoverFlows  `json:"flows"`
}

// FailoverStep is one thing that happened.
type FailoverStep struct {
	What   string    `json:"what"` // last_advert, link_down, vip_added, role, first_pinned, first_reply, … (docs/JSON.md)
	Time   time.Time `json:"time"`
	Offset float64   `json:"offset_ms"` // since the first step
	Detail string    `json:"detail"`
}

// FailoverFlows counts what became of the flows.
type FailoverFlows struct {
	TakenOver  uint64 `json:"taken_over"`  // stood ready when the role changed
	SpokeAgain uint64 `json:"spoke_again"` // of them, had packets since
	Lost       uint64 `json:"lost"`        // the old MASTER had told of them and they did not stand ready
	Normalised uint64 `json:"normalised"`  // got their ordinary timeout
	Resets     uint64 `json:"resets"`      // TCP RSTs that this router sent from a VIP since
	ResetsHeld uint64 `json:"resets_held"` // segments that sync.no_rst kept from being answered by one
}

// Difference is one thing that two routers should have alike and have not.
type Difference struct {
	Peer   string `json:"peer"`
	Check  string `json:"check"` // vlan, vip, vrid, group, pin, nat, sysctl, tier, version, clock, mtu, …
	About  string `json:"about"` // which VLAN, VRID, sysctl …
	Here   string `json:"here"`
	There  string `json:"there"`
	State  string `json:"state"`  // error, warning, note
	Breaks string `json:"breaks"` // what it would break at a failover
}

// Rehearsal is what a takeover would meet, tried without one.
type Rehearsal struct {
	Peer     string           `json:"peer"`
	Flows    uint64           `json:"flows"`    // of the peer's table
	Fit      uint64           `json:"fit"`      // of them could be installed
	Failures []RehearsalFault `json:"failures"` // flows that could not, by reason
	Missing  []RehearsalFault `json:"missing"`  // VIPs, routes, rules that this router lacks
	Took     float64          `json:"took_ms"`  // to install
	Complete bool             `json:"complete"` // the peer's table came whole
	Note     string           `json:"note"`     // what was not tried, or why it is not complete; "" = nothing
}

// RehearsalFault is one reason why flows would break.
type RehearsalFault struct {
	What    string   `json:"what"` // clash, full, no_pin, …; vip, route, rule
	Why     string   `json:"why"`  // in words
	Flows   uint64   `json:"flows"`
	Example []string `json:"examples"` // some of them
}

// Notification is what a transition script tells of VRRP.
type Notification struct {
	Kind     string `json:"kind"` // GROUP or INSTANCE
	Name     string `json:"name"`
	State    string `json:"state"` // MASTER, BACKUP, FAULT, STOP
	Priority uint8  `json:"priority"`
}
