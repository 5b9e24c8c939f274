// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"net/netip"
	"time"
)

// What the server listens on.
const (
	TCPPort   = 7000
	UDPPort   = 7001 // and the following ones
	ProbePort = 7100
	ChurnPort = 10000 // and the following ones
)

const (
	firstPort   = 20000 // of the inside hosts; ICMP identifiers too
	socketFlows = 10000 // UDP flows to each of the server's ports, so that NAT finds free ones
)

// Layout says which flow uses which ports. Every inside host uses the same
// source ports to the same server, and they are taken already by a decoy: so NAT
// must choose another port for every counted flow, at random, and a router
// without the state cannot choose it again by luck.
type Layout struct {
	Hosts    int         // inside hosts, without the decoys'
	Flows    [Protos]int // of all hosts together
	UDPPorts int         // of the server, among which the UDP flows are spread
}

// NewLayout spreads flows over hosts.
func NewLayout(hosts int, flows [Protos]int) Layout {
	return Layout{Hosts: hosts, Flows: flows, UDPPorts: 1 + max(0, flows[UDP]-1)/socketFlows}
}

// Slot is a flow's place.
type Slot struct {
	Host       int    // from 0
	SourcePort uint16 // ICMP: the identifier
	ServerPort uint16 // ICMP: 0
}

// Slot finds the place of a flow.
func (l Layout) Slot(proto Proto, id int) Slot {
	host, k := id%l.Hosts, id/l.Hosts
	switch proto {
	case TCP:
		return Slot{host, uint16(firstPort + k), TCPPort}
	case UDP:
		return Slot{host, uint16(firstPort + k/l.UDPPorts), uint16(UDPPort + k%l.UDPPorts)}
	}
	return Slot{Host: host, SourcePort: uint16(firstPort + k)}
}

// Decoys is the layout of one host that holds every source port.
func (l Layout) Decoys() Layout {
	d := Layout{Hosts: 1, UDPPorts: l.UDPPorts}
	for p, n := range l.Flows {
		d.Flows[p] = (n + l.Hosts - 1) / l.Hosts
	}
	return d
}

// Crowd is the part of a layout that one worker makes.
type Crowd struct {
	Layout
	Host     int
	Local    netip.Addr
	Server   netip.Addr
	Decoys   bool          // not counted
	Rate     int           // flows opened a second
	Interval time.Duration // between the requests of a flow
	Sparse   time.Duration // of every second flow until the fault; 0 = the same
}

// sparse tells whether a flow is one of those that are seldom heard.
func (c Crowd) sparse(id int) bool { return c.Sparse != 0 && id/c.Hosts%2 == 1 }
