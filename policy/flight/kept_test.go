// SPDX-License-Identifier: Apache-2.0

package flight

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"vippin/policy"
)

// The daemon ends in the midst of a record, and begins again.
func TestRestart(t *testing.T) {
	p := standby(t)
	p.sent(1361*ms, 100)
	p.role(1364*ms, policy.RoleMaster)
	kept := p.Records(p.clock(2000 * ms))

	again := newTape(t, kept...)
	again.role(3000*ms, policy.RoleMaster) // as before: nothing happened
	records := again.Records(again.clock(4000 * ms))
	if len(records) != 1 || records[0].Complete || !strings.Contains(records[0].Note, "the daemon ended") {
		t.Errorf("after a restart: %+v", records)
	}

	missed := newTape(t, kept...)
	missed.role(3000*ms, policy.RoleBackup)
	f := missed.last(4000 * ms)
	missed.wantCause(f, "while vippin did not run")
	if len(missed.Records(missed.clock(4000*ms))) != 2 || f.Was != policy.RoleMaster || f.Role != policy.RoleBackup || !f.Complete {
		t.Errorf("a change that nobody saw: %+v", f)
	}

	booted := newTape(t, kept...)
	booted.step = time.Hour
	booted.role(3000*ms, policy.RoleFault)
	booted.wantCause(booted.last(4000*ms), "this router was booted")

	fresh := newTape(t)
	fresh.role(0, policy.RoleMaster)
	if records := fresh.Records(fresh.clock(1000 * ms)); len(records) != 0 {
		t.Errorf("the first start of all made %+v", records)
	}
}

// A clock that is set does not tear the record apart.
func TestClockStep(t *testing.T) {
	p := standby(t)
	p.sent(1361*ms, 100)
	p.role(1364*ms, policy.RoleMaster)
	p.step = -time.Hour
	p.Passages(core, boot+1370*ms, boot+1371*ms)
	f := p.last(2000 * ms)
	p.wantStory(f, "last_advert 1000.0", "first_own_advert 1361.0", "role 1364.0", "role_in_force 1364.5", "first_pinned 1370.0", "first_reply 1371.0")
	if !strings.Contains(f.Note, "the clock was set back by 1h0m0s meanwhile") {
		t.Errorf("the note is %q", f.Note)
	}
}

// A reign before left passages behind, which are not this one's.
func TestPassagesOfBefore(t *testing.T) {
	p := standby(t)
	p.sent(1361*ms, 100)
	p.role(1364*ms, policy.RoleMaster)
	p.Passages(core, boot-time.Minute, boot-time.Minute)
	p.wantStory(p.last(2000*ms), "last_advert 1000.0", "first_own_advert 1361.0", "role 1364.0", "role_in_force 1364.5")
	if p.Open()[0].Passed {
		t.Error("it looks as if packets had passed")
	}
}

// Nothing grows without bound, whatever others send.
func TestBounds(t *testing.T) {
	p := standby(t)
	for i := range 3 * keptRecords {
		at := time.Duration(i+2) * time.Second
		for range 3 * mostEvents {
			p.Link(core, boot+at, "wan0", true)
		}
		p.role(at+ms, []policy.Role{policy.RoleMaster, policy.RoleBackup}[i%2])
	}
	records := p.Records(p.clock(time.Hour))
	if len(records) != keptRecords {
		t.Errorf("%d records", len(records))
	}
	if steps := len(records[0].Steps); steps > mostEvents+10 {
		t.Errorf("%d steps", steps)
	}
	if !strings.Contains(records[0].Note, "more events") {
		t.Errorf("the note is %q", records[0].Note)
	}
	if _, err := json.Marshal(records); err != nil {
		t.Error(err)
	}
}
