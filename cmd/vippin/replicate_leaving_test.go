// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"vippin/policy"
)

// inTable says which flows are in a router's flow table.
func (f *fakeTable) inTable(ports ...uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inFlowtable = make(map[policy.FlowKey]bool)
	for _, port := range ports {
		f.inFlowtable[tableFlow(port).FlowKey] = true
	}
}

func (f *fakeTable) timesRefreshed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refreshed
}

func (f *fakeTable) timesLooked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.looks
}

// Flows that are in the flow table of a router that ceased to be MASTER get the standby
// timeout when they leave it; then nobody looks any more.
func TestReplicateLeavesFlowtable(t *testing.T) {
	inCouple(t, func(t *testing.T, c *couple) {
		c.a.begin(1, 2, 3)
		c.settle()
		c.a.kernel.inTable(1, 2)
		c.b.kernel.inTable(3) // it is forwarding
		time.Sleep(time.Minute)
		if c.a.kernel.timesRefreshed() != 0 {
			t.Error("the MASTER keeps flows for an hour that are in its flow table")
		}
		c.b.flows.SetRole(core, policy.RoleMaster)
		c.a.flows.SetRole(core, policy.RoleBackup)
		time.Sleep(2 * leaveEvery)
		c.a.kernel.inTable(2)
		before := c.a.kernel.timesRefreshed()
		time.Sleep(leaveEvery + tendTick)
		if n := c.a.kernel.timesRefreshed() - before; n != 1 {
			t.Errorf("%d flows refreshed, want the one that left", n)
		}
		c.a.kernel.inTable()
		before = c.a.kernel.timesRefreshed()
		time.Sleep(leaveEvery + tendTick)
		if n := c.a.kernel.timesRefreshed() - before; n != 1 {
			t.Errorf("%d flows refreshed, want the last one that left", n)
		}
		c.a.kernel.inTable(1)
		before = c.a.kernel.timesRefreshed()
		time.Sleep(10 * leaveEvery)
		if n := c.a.kernel.timesRefreshed() - before; n != 0 {
			t.Errorf("%d flows refreshed after the flow table was empty", n)
		}
		if c.b.kernel.timesRefreshed() != 0 {
			t.Error("the MASTER keeps flows for an hour that it forwards")
		}
		// It takes the flows back before they left.
		c.a.flows.SetRole(core, policy.RoleMaster)
		c.b.flows.SetRole(core, policy.RoleBackup)
		time.Sleep(2 * leaveEvery)
		c.b.flows.SetRole(core, policy.RoleMaster)
		c.a.flows.SetRole(core, policy.RoleBackup)
		time.Sleep(2 * leaveEvery)
		if c.b.kernel.inTable(3); c.b.kernel.timesLooked() == 0 {
			t.Error("nobody looked at b's flow table")
		}
		looks := c.b.kernel.timesLooked()
		time.Sleep(10 * leaveEvery)
		if n := c.b.kernel.timesLooked() - looks; n > 1 {
			t.Errorf("the MASTER looked at its flow table %d times", n)
		}
	})
}
