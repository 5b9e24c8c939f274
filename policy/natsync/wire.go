// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"strconv"

	"vippin/policy"
)

// Versions of the protocol that this package speaks.
const (
	MinVersion = 1
	MaxVersion = 1
)

// Limits of what a peer may say: more of it ends the session.
const (
	MaxFrame  = 1 << 20 // octets of one frame, its length prefix not counted
	MaxGroups = 4096    // of a State or a bulk
	MaxPins   = 4096    // of a State
	MaxName   = 64      // octets of a name
	MaxBatch  = 4096    // flows, gones and expectations of a batch together
	MaxDigest = 1 << 18 // octets of a digest
)

// Hello is what a peer says first.
type Hello struct {
	MinVersion, MaxVersion uint32
	Node, Build            string
	Boot                   [16]byte // another one after each boot
}

// State is what a router says of itself: the groups it knows and the pins whose
// flows it tells of. It names both for the flows that follow.
type State struct {
	Groups []GroupState
	Pins   []PinState
	Prompt bool // acknowledgements are due at once; the session's own, see SetPrompt
}

// GroupState is a router's role in a VRRP group.
type GroupState struct {
	Name  string
	Role  policy.Role
	Epoch uint64 // counter of the group's epoch as this router knows it
}

// PinState is a pin and the group it fails over with, "" for none.
type PinState struct {
	Pin   policy.PinName
	Group string
}

// Gone says that a flow has ended.
type Gone struct {
	Key policy.FlowKey
	To  policy.End // its public end
}

// Batch is what a peer tells at once. Each key is in it at most once. Gones come
// before Flows in time (a flow may take the public end of one that is gone), and
// Expectations after.
type Batch struct {
	Flows        []policy.Flow
	Gones        []Gone
	Expectations []policy.Expectation
}

// Refusal says that a flow of a batch was not taken.
type Refusal struct {
	Index  int // in Batch.Flows
	Reason Reason
}

// Reason is why a flow was not taken. A newer peer may have others than these.
type Reason uint8

// The reasons.
const (
	ReasonClash    Reason = 1 // its public end or tuple is another flow's
	ReasonFull     Reason = 2 // a map or the conntrack table is nearly full
	ReasonNoPin    Reason = 3 // no pin of that VLAN and VIP
	ReasonUnwanted Reason = 4 // configured not to be taken
	ReasonFailed   Reason = 5 // the kernel refused it
)

var reasonNames = map[Reason]string{
	ReasonClash:    "clash",
	ReasonFull:     "full",
	ReasonNoPin:    "no_pin",
	ReasonUnwanted: "unwanted",
	ReasonFailed:   "failed",
}

func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return "reason_" + strconv.Itoa(int(r))
}
