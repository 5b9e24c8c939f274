// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"net/netip"
	"time"
)

// FlowState is what a client knows of one of its flows.
type FlowState struct {
	Proto    Proto
	ID       int
	Port     uint16 // its own: source port or identifier
	Sparse   bool
	Answered bool      // a request of phase After was answered on the same socket
	Broken   bool      // TCP: an error or an end
	Made     time.Time // TCP: when the client had its connection; zero = never
}

// Seen is what the server saw of a flow.
type Seen struct {
	Source netip.AddrPort // the first; ICMP: the identifier as port. Invalid: nothing was seen
	Moved  bool           // another source has been seen, too
	After  bool           // a request of phase After has been seen
}

// Survival counts the flows of one kind.
type Survival struct {
	Flows    int `json:"flows"`
	Survived int `json:"survived"` // answered on the same socket, from the same source
	Moved    int `json:"moved"`    // the server saw another source
	Broken   int `json:"broken"`   // TCP: reset
	Silent   int `json:"silent"`   // none of these, and no answer
	Lucky    int `json:"lucky"`    // NAT had kept the port: could survive by chance, and is not counted
}

// Judge counts what became of the flows; seen is by kind and id.
func Judge(states []FlowState, seen [Protos][]Seen, keep func(FlowState) bool) (counts [Protos]Survival) {
	for _, f := range states {
		if !keep(f) {
			continue
		}
		c, at := &counts[f.Proto], Seen{}
		if f.ID < len(seen[f.Proto]) {
			at = seen[f.Proto][f.ID]
		}
		if at.Source.IsValid() && at.Source.Port() == f.Port {
			c.Lucky++
			continue
		}
		c.Flows++
		switch {
		case at.Moved:
			c.Moved++
		case f.Broken:
			c.Broken++
		case f.Answered && at.After:
			c.Survived++
		default:
			c.Silent++
		}
	}
	return counts
}
