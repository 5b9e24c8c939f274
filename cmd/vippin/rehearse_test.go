// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/natsync"
)

// Rehearse takes what it is told and finds that all fits.
func (f *fakeTable) Rehearse(ctx context.Context, what loader.Rehearsing) (policy.Rehearsal, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rehearsed = append(f.rehearsed, what)
	return policy.Rehearsal{Flows: uint64(len(what.Flows)), Fit: uint64(len(what.Flows)), Complete: true}, ctx.Err()
}

func portsOf(flows []policy.Flow) (ports []uint16) {
	for _, flow := range flows {
		ports = append(ports, flow.Src.Port)
	}
	slices.Sort(ports)
	return ports
}

func (s *station) rehearse(peer string) policy.Rehearsal {
	s.t.Helper()
	rehearsals, err := s.flows.rehearseAll(s.t.Context(), []string{peer}, policy.Plan{}, policy.Observed{})
	if err != nil {
		s.t.Fatal(err)
	}
	return rehearsals[0]
}

// The standby rehearses with the MASTER's whole table as it is now, which it asks
// for.
func TestRehearseWithThePeersTable(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2, 3)
		c.settle()
		c.a.end(2)
		c.a.begin(4)
		got := c.b.rehearse("a")
		if got.Peer != "a" || got.Flows != 3 || !got.Complete || got.Note != "" {
			t.Errorf("%+v", got)
		}
		what := c.b.kernel.rehearsed[0]
		if ports := portsOf(what.Flows); !slices.Equal(ports, []uint16{1, 3, 4}) || !what.Believed[core] || len(what.Pins) != 1 || what.Pins[0] != corePin {
			t.Errorf("with %v: %+v", ports, what)
		}
		c.b.flows.mu.Lock()
		link := c.b.flows.links["a"]
		c.b.flows.mu.Unlock()
		if link.table.wanted.Load() || link.table.flows != nil || link.table.at == nil {
			t.Error("flows are still taken down")
		}
	})
}

// Who is MASTER has nothing to rehearse, and says so; nor is there anything without
// a session.
func TestRehearseNothing(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		if got := c.a.rehearse("b"); got.Note != "this router is MASTER of RouterCore itself; there is nothing to take over" || !got.Complete {
			t.Errorf("as MASTER: %+v", got)
		}
		c.a.flows.SetRole(core, policy.RoleBackup)
		c.settle()
		if got := c.b.rehearse("a"); got.Note != "nobody is known to be MASTER of RouterCore; there is nothing to take over" || !got.Complete {
			t.Errorf("without a MASTER: %+v", got)
		}
		c.cut()
		if got := c.b.rehearse("a"); got.Note != "not connected" || got.Complete {
			t.Errorf("without a session: %+v", got)
		}
		if len(c.a.kernel.rehearsed)+len(c.b.kernel.rehearsed) != 0 {
			t.Error("something was rehearsed")
		}
	})
}

// It takes time and memory: not everybody's to ask for.
func TestRehearseNeedsRights(t *testing.T) {
	b := newRig(t)
	if os.Geteuid() == 0 {
		b.dialAs(1001)
	}
	b.serveAs(sampleController(), access{self: uint32(os.Geteuid()) + 1, group: func() string { return "vippin" }, accounts: fakeAccounts{}})
	code, _, stderr := b.run("failovers", "--rehearse")
	if code != exitFailed || !strings.Contains(stderr, "may look but not change") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// A table that does not come, or breaks off, is not whole. One rehearsal at a time.
func TestRehearseHalfATable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table peerTable
		asked := 0
		flow, other := tableFlow(1), tableFlow(2)
		other.Group = "Edge"
		began := time.Now()
		table.note(&natsync.Batch{Flows: []policy.Flow{flow}}) // nobody wants it
		whole := table.take(t.Context(), []string{core, ""}, func() {
			asked++
			table.end() // of a bulk that began before
			table.note(&natsync.Batch{Flows: []policy.Flow{flow}})
			table.begin([]string{""})
			table.note(&natsync.Batch{Flows: []policy.Flow{flow}})
			table.end() // it was not of all groups
			table.begin([]string{core, "", "Edge"})
			table.note(&natsync.Batch{Flows: []policy.Flow{flow, other}})
			table.begin([]string{core, "", "Edge"}) // given up, begun anew
			table.note(&natsync.Batch{Flows: []policy.Flow{tableFlow(7), flow, tableFlow(8), flow}})
			table.note(&natsync.Batch{Gones: []natsync.Gone{{Key: tableFlow(7).FlowKey}, {Key: tableFlow(9).FlowKey}}})
		})
		if whole || asked != 1 || time.Since(began) != rehearseTable {
			t.Errorf("whole: %v, asked %d times, after %v", whole, asked, time.Since(began))
		}
		if ports := portsOf(table.flows); !slices.Equal(ports, []uint16{1, 8}) {
			t.Errorf("it has %v", ports)
		}
		table.drop()
		if !table.take(t.Context(), []string{core}, func() { table.begin([]string{core}); table.end() }) || len(table.flows) != 0 {
			t.Errorf("an empty table is not whole, or has %d flows", len(table.flows))
		}
	})
	inCouple(t, func(t *testing.T, c *couple) {
		c.b.flows.rehearsing.Lock()
		if _, err := c.b.flows.rehearseAll(t.Context(), nil, policy.Plan{}, policy.Observed{}); err == nil {
			t.Error("two rehearsals at a time")
		}
		c.b.flows.rehearsing.Unlock()
	})
}
