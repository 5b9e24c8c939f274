// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"testing"

	"vippin/policy"
)

const core = "RouterCore"

func says(role policy.Role, epoch uint64) []GroupState {
	return []GroupState{{Name: core, Role: role, Epoch: epoch}}
}

func TestAuthorityOfATakeover(t *testing.T) {
	a := NewAuthority("key-b")
	a.SetRole(core, policy.RoleBackup)
	a.Heard("a", "key-a", says(policy.RoleMaster, 7))
	if !a.Believes("a", core) || a.MasterOf(core) != "a" {
		t.Error("the only MASTER is not believed")
	}
	if a.Believes("a", "another group") {
		t.Error("MASTER of a group that it did not name")
	}
	if was := a.SetRole(core, policy.RoleMaster); was != policy.RoleBackup {
		t.Errorf("was %v", was)
	}
	if a.Believes("a", core) {
		t.Error("a MASTER believes another one")
	}
	if states := a.States(); len(states) != 1 || states[0] != (GroupState{Name: core, Role: policy.RoleMaster, Epoch: 8}) {
		t.Errorf("after 7 reigns %+v", states)
	}
}

func TestAuthorityDoesNotBelieveAReturner(t *testing.T) {
	a := NewAuthority("key-c")
	a.SetRole(core, policy.RoleBackup)
	a.Heard("a", "key-a", says(policy.RoleMaster, 3))
	a.Heard("b", "key-b", says(policy.RoleMaster, 4))
	if a.Believes("a", core) || !a.Believes("b", core) {
		t.Error("of two MASTERs the one of the later epoch is right")
	}
	a.Gone("b")
	if a.Believes("a", core) {
		t.Error("the later epoch is forgotten with the session")
	}
	if a.MasterOf(core) != "" {
		t.Error("believes somebody all the same")
	}
	a.Heard("a", "key-a", says(policy.RoleMaster, 5))
	if !a.Believes("a", core) {
		t.Error("a new reign is not believed")
	}
}

func TestAuthorityEqualEpochs(t *testing.T) {
	a := NewAuthority("key-c")
	a.Heard("x", "key-2", says(policy.RoleMaster, 4))
	a.Heard("y", "key-1", says(policy.RoleMaster, 4))
	if a.Believes("x", core) || !a.Believes("y", core) {
		t.Error("between equal epochs the smaller key is right, on every router")
	}
}

// The side that stays MASTER after a split brain is right, even if the other one
// counted further meanwhile.
func TestAuthorityAfterASplitBrain(t *testing.T) {
	stays, yields := NewAuthority("key-a"), NewAuthority("key-b")
	stays.SetRole(core, policy.RoleMaster)
	yields.Heard("a", "key-a", stays.States())
	yields.SetRole(core, policy.RoleMaster) // epoch 2
	if stays.Heard("b", "key-b", yields.States()) {
		t.Error("raises its epoch against a MASTER: both would do so for ever")
	}
	yields.Heard("a", "key-a", stays.States())
	if yields.Believes("a", core) || stays.Believes("b", core) {
		t.Error("a MASTER believes the other one")
	}
	yields.SetRole(core, policy.RoleBackup)
	if yields.Believes("a", core) {
		t.Error("believes an epoch that is over")
	}
	if !stays.Heard("b", "key-b", yields.States()) {
		t.Fatal("the survivor does not reign anew")
	}
	yields.Heard("a", "key-a", stays.States())
	if !yields.Believes("a", core) {
		t.Errorf("the survivor is not believed: %+v", stays.States())
	}
}

func TestAuthorityKeeps(t *testing.T) {
	a := NewAuthority("key-a")
	a.SetRole(core, policy.RoleMaster)
	a.SetRole("gone", policy.RoleMaster)
	if !a.Keep([]string{core}) || a.Keep([]string{core}) {
		t.Error("does not tell what it forgot")
	}
	if groups := a.Mastered(); len(groups) != 1 || groups[0] != core || !a.IsMaster() {
		t.Errorf("MASTER of %q", groups)
	}
}
