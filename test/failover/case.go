// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vippin/test/traffic/swarm"
)

// kind is what a case measures.
type kind string

// The kinds.
const (
	survive kind = "survive" // flows that live on after a fault, and how long nobody was answered
	cost    kind = "cpu"     // the daemons' processor time for replicated flows
	rate    kind = "rate"    // new flows for some seconds: does the peer get all of them?
	bulk    kind = "bulk"    // a peer that has restarted gets everything again
	memory  kind = "memory"  // what a flow costs in the daemons' memory
	newborn kind = "young"   // TCP connections that are made within the second before a crash
	trials  kind = "faults"  // connections that are made while something is wrong with replication
	latency kind = "latency" // how long a connection takes to be made, 1 ms away
)

var kinds = []kind{survive, newborn, latency, trials, cost, rate, bulk, memory}

// replicates tells whether only arms that replicate can be measured so.
func (k kind) replicates() bool { return k != survive && k != newborn && k != latency }

// The values of the other fields of a Case.
const (
	hard     = "hard"     // links set down inside the router, keepalived killed
	crash    = "crash"    // cables pulled at the switches, everything killed
	graceful = "graceful" // keepalived ends by SIGTERM
	none     = "none"     // nothing happens: a floor for the harness itself

	open     = "open"
	stateful = "stateful" // WAN: only established flows, no pick-up in mid-stream

	young = "young"
	old   = "old" // more than 150 s, half of the flows sparse

	oneWay  = "one-way"
	replies = "replies"
)

var (
	faults    = []string{hard, crash, graceful, none}
	firewalls = []string{open, stateful}
	families  = []string{"ipv4", "ipv6"}
	ages      = []string{young, old}
	ways      = []string{oneWay, replies}
)

// Case is one measurement. Its key is all of it.
type Case struct {
	Kind     kind   `json:"kind"`
	Arm      string `json:"arm"`
	Fault    string `json:"fault,omitempty"`
	Firewall string `json:"firewall,omitempty"`
	Family   string `json:"family"`
	Age      string `json:"age,omitempty"`
	Way      string `json:"way,omitempty"`
	Flows    int    `json:"flows"`             // survive: of each protocol
	Only     string `json:"only,omitempty"`    // survive: of this protocol alone
	Adverts  int    `json:"adverts,omitempty"` // milliseconds
	Round    int    `json:"round"`             // from 0
}

// Key names the case in the results.
func (c Case) Key() string {
	parts := []string{string(c.Kind), c.Arm, c.Fault, c.Firewall, c.Family, c.Age, c.Way, strconv.Itoa(c.Flows), c.Only}
	if c.Adverts != 0 {
		parts = append(parts, fmt.Sprintf("%dms", c.Adverts))
	}
	parts = append(parts, fmt.Sprintf("#%d", c.Round))
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), " ")
}

// row is the case without what is compared or repeated: a line of the table.
func (c Case) row() Case {
	c.Round = 0
	return c
}

// setting is the row without the arm: what the arms share.
func (c Case) setting() Case {
	c = c.row()
	c.Arm = ""
	return c
}

// counts are the flows by protocol.
func (c Case) counts() (flows [swarm.Protos]int) {
	for p := range flows {
		if c.Only == "" || c.Only == swarm.Proto(p).String() {
			flows[p] = c.Flows
		}
	}
	return flows
}

func (c Case) total() int {
	sum := 0
	for _, n := range c.counts() {
		sum += n
	}
	return sum
}

// interval is how often each flow of a crowd asks: all together not more than
// 10,000 times a second, which two cores can carry beside the routers.
func (c Case) interval() time.Duration {
	const most = 10000
	return max(time.Second, time.Duration(c.total())*time.Second/most)
}

// selection is the cases that were asked for, every field a list.
type selection struct {
	kinds                                   []kind
	arms, faults, firewalls, families, ages []string
	ways, only                              []string
	flows, adverts                          []int
	rounds                                  int
}

// cases lists all combinations that make sense, the rounds outermost, and the
// arms of one setting beside each other.
func (s selection) cases() []Case {
	var cases []Case
	for round := range s.rounds {
		for _, k := range s.kinds {
			for _, n := range s.flows {
				for _, family := range s.families {
					c := Case{Kind: k, Flows: n, Family: family, Round: round}
					switch k {
					case survive:
						cases = append(cases, s.faulty(c)...)
						continue
					case newborn:
						cases = append(cases, s.newborn(c)...)
						continue
					case latency, trials:
						c.Only = "tcp"
						cases = append(cases, s.withArms(c)...)
						continue
					}
					for _, way := range s.ways {
						c.Way = way
						cases = append(cases, s.withArms(c)...)
					}
				}
			}
		}
	}
	return cases
}

func (s selection) faulty(c Case) (cases []Case) {
	for _, c.Only = range s.only {
		for _, c.Age = range s.ages {
			for _, c.Adverts = range s.adverts {
				for _, c.Firewall = range s.firewalls {
					for _, c.Fault = range s.faults {
						cases = append(cases, s.withArms(c)...)
					}
				}
			}
		}
	}
	return cases
}

// newborn are cases of TCP alone, and of a crash.
func (s selection) newborn(c Case) (cases []Case) {
	c.Only, c.Fault = "tcp", crash
	for _, c.Adverts = range s.adverts {
		for _, c.Firewall = range s.firewalls {
			cases = append(cases, s.withArms(c)...)
		}
	}
	return cases
}

func (s selection) withArms(c Case) (cases []Case) {
	for _, c.Arm = range s.arms {
		if !c.Kind.replicates() || armNamed(c.Arm).replicates() {
			cases = append(cases, c)
		}
	}
	return cases
}

// merge puts several lists into one, without repetitions, round by round.
func merge(lists ...[]Case) []Case {
	var all []Case
	seen := make(map[string]bool)
	for _, list := range lists {
		for _, c := range list {
			if !seen[c.Key()] {
				seen[c.Key()] = true
				all = append(all, c)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Case) int { return a.Round - b.Round })
	return all
}
