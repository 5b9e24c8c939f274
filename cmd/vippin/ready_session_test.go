// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"vippin/policy"
)

// gatedTable reads its flows, and does not come to the end before the gate opens.
type gatedTable struct {
	*fakeTable
	gate chan struct{}
}

func (g *gatedTable) Dump(ctx context.Context, yield func(*policy.Flow) error) error {
	if err := g.fakeTable.Dump(ctx, yield); err != nil {
		return err
	}
	select {
	case <-g.gate:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// A peer that is MASTER holds this router back until its bulk has ended, in every
// session anew; that a session ends does not.
func TestReadyAfterTheBulkOfTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		defer c.close()
		synctest.Wait()
		k := keep(t, "a")
		k.plan(core)
		words := newPeerWords()
		c.b.flows.ready, c.b.flows.words = k.readyKeeper, words
		wants := func(ready bool, why string) {
			t.Helper()
			if s := k.Statuses()[0]; s.Ready != ready || !strings.Contains(s.Why, why) {
				t.Errorf("%+v, want %v for %q", s, ready, why)
			}
		}
		wants(false, "not known yet")
		for port := range uint16(3) {
			flow := tableFlow(port + 1)
			c.a.kernel.put(&flow)
		}
		c.a.flows.SetRole(core, policy.RoleMaster)
		for range 2 {
			table := &gatedTable{c.a.kernel, make(chan struct{})}
			c.a.flows.table = table
			c.join()
			wants(false, "a is MASTER, and not all")
			if word := words.Take()["a"]; word.gone || word.roles[core] != policy.RoleMaster {
				t.Errorf("a says %+v", word)
			}
			close(table.gate)
			c.settle()
			wants(true, "all that a has told of is here")
			c.b.wants(1, 2, 3)
			c.cut()
			wants(true, "all that the last MASTER told of")
			if word := words.Take()["a"]; !word.gone {
				t.Errorf("a says %+v", word)
			}
			k.SetRole(core, policy.RoleFault)
			k.SetRole(core, policy.RoleBackup)
			wants(false, "not known yet") // what it said before is forgotten
		}
	})
}

// A session that takes the place of another one begins anew, and the end of the old
// one changes nothing.
func TestReadyWhenASessionIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		defer c.close()
		synctest.Wait()
		k := keep(t, "a")
		k.plan(core)
		c.b.flows.ready = k.readyKeeper
		ready := func() bool { return k.Statuses()[0].Ready }
		c.a.flows.SetRole(core, policy.RoleMaster)
		c.join()
		if !ready() {
			t.Errorf("%+v", k.Statuses())
		}
		cut, table := c.cut, &gatedTable{c.a.kernel, make(chan struct{})}
		c.a.flows.table = table
		c.join()
		if ready() {
			t.Error("ready by what an earlier session told")
		}
		close(table.gate)
		c.settle()
		cut()
		if !ready() {
			t.Errorf("%+v", k.Statuses())
		}
	})
}

// Of two masters this one resigns: the other one's flows are to come first.
func TestReadyAfterASplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		defer c.close()
		synctest.Wait()
		k := keep(t, "a")
		k.plan(core)
		c.b.flows.ready = k.readyKeeper
		become := func(role policy.Role) {
			c.b.flows.SetRole(core, role)
			k.SetRole(core, role)
		}
		become(policy.RoleMaster)
		c.join()
		table := &gatedTable{c.a.kernel, make(chan struct{})}
		c.a.flows.table = table
		c.a.flows.SetRole(core, policy.RoleMaster)
		c.settle()
		become(policy.RoleBackup)
		if s := k.Statuses()[0]; s.Ready || !strings.Contains(s.Why, "a is MASTER") {
			t.Errorf("%+v", s)
		}
		close(table.gate)
		c.settle()
		if s := k.Statuses()[0]; !s.Ready {
			t.Errorf("%+v", s)
		}
	})
}

// Nobody is MASTER, and says so: there is nothing to wait for. Becoming MASTER ends
// all waiting.
func TestReadyWhenNobodyIsMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		defer c.close()
		synctest.Wait()
		k := keep(t, "a")
		k.plan(core)
		c.b.flows.ready = k.readyKeeper
		c.join()
		if s := k.Statuses()[0]; !s.Ready || !strings.Contains(s.Why, "no other MASTER") {
			t.Errorf("%+v", s)
		}
		table := &gatedTable{c.a.kernel, make(chan struct{})}
		c.a.flows.table = table
		c.a.flows.SetRole(core, policy.RoleMaster)
		c.settle()
		if s := k.Statuses()[0]; s.Ready || !strings.Contains(s.Why, "a is MASTER") {
			t.Errorf("%+v", s)
		}
		k.SetRole(core, policy.RoleMaster)
		c.b.flows.SetRole(core, policy.RoleMaster)
		if s := k.Statuses()[0]; !s.Ready {
			t.Errorf("%+v", s)
		}
		close(table.gate)
	})
}
