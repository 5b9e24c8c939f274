// SPDX-License-Identifier: Apache-2.0

package flight

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/policy"
)

const (
	core = "RouterCore"
	ms   = time.Millisecond
	boot = 10 * time.Minute // CLOCK_MONOTONIC when a tape begins
)

var (
	began    = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	here     = netip.MustParseAddr("198.51.100.3")
	there    = netip.MustParseAddr("198.51.100.4")
	wan4     = netip.MustParseAddr("198.51.100.2")
	interval = 100 * ms
)

// tape is a recorder and the time, in ms since the beginning.
type tape struct {
	*Recorder
	t    *testing.T
	step time.Duration // by how much the clock on the wall was set
}

func newTape(t *testing.T, kept ...policy.Failover) *tape {
	return &tape{Recorder: New(kept), t: t}
}

func (p *tape) clock(at time.Duration) Clock {
	return Clock{Mono: boot + at, Wall: began.Add(at + p.step)}
}

func (p *tape) heard(at time.Duration, priority uint8) { p.heardFrom(core, at, priority) }

func (p *tape) heardFrom(group string, at time.Duration, priority uint8) {
	p.Heard(group, Advert{At: boot + at, Source: there, Interface: "wan0", VRID: 20, Priority: priority, Interval: interval})
}

func (p *tape) sent(at time.Duration, priority uint8) {
	p.Sent(core, Advert{At: boot + at, Source: here, Interface: "wan0", VRID: 20, Priority: priority, Interval: interval})
}

// adverts go on from one time to another.
func adverts(send func(time.Duration, uint8), from, to time.Duration, priority uint8) {
	for at := from; at <= to; at += interval {
		send(at, priority)
	}
}

func (p *tape) vip(at time.Duration, added bool) {
	p.VIPs(core, boot+at, "wan0", added, []netip.Addr{wan4})
}

func (p *tape) role(at time.Duration, role policy.Role) { p.roleOf(core, at, role) }

func (p *tape) roleOf(group string, at time.Duration, role policy.Role) {
	p.InForce(group, boot+at+ms/2)
	p.Role(p.clock(at+ms), group, boot+at, role)
}

// last is the last record at a time.
func (p *tape) last(at time.Duration) policy.Failover {
	p.t.Helper()
	records := p.Records(p.clock(at))
	if len(records) == 0 {
		p.t.Fatal("there is no record")
	}
	return records[len(records)-1]
}

// story is a record's steps with their times in ms since the beginning.
func story(f policy.Failover) (steps []string) {
	for _, s := range f.Steps {
		steps = append(steps, fmt.Sprintf("%s %.1f", s.What, float64(s.Time.Sub(began).Microseconds())/1000))
	}
	return steps
}

func (p *tape) wantStory(f policy.Failover, want ...string) {
	p.t.Helper()
	if got := story(f); !slices.Equal(got, want) {
		p.t.Errorf("the story is\n%q\nwant\n%q", got, want)
	}
}

func (p *tape) wantCause(f policy.Failover, part string) {
	p.t.Helper()
	if !strings.Contains(f.Cause, part) {
		p.t.Errorf("the cause is %q, want %q in it", f.Cause, part)
	}
}

// standby is a router that hears the MASTER for a second.
func standby(t *testing.T) *tape {
	p := newTape(t)
	p.role(-time.Minute, policy.RoleBackup)
	p.PeerRole("router-b", core, policy.RoleMaster)
	adverts(p.heard, 0, 1000*ms, 150)
	return p
}

// master is a router that has been MASTER for long.
func master(t *testing.T) *tape {
	p := newTape(t)
	p.role(-time.Minute, policy.RoleMaster)
	p.PeerRole("router-b", core, policy.RoleBackup)
	adverts(p.sent, 0, 1000*ms, 150)
	return p
}

func TestCrashOfTheMaster(t *testing.T) {
	p := standby(t)
	p.Peer(boot+1100*ms, "router-b", false)
	p.sent(1361*ms, 100)
	p.vip(1363*ms, true)
	p.role(1364*ms, policy.RoleMaster)
	p.Taken(core, boot+1365*ms, 30, 2)
	p.Passages(core, boot+1366*ms, 0)
	p.Passages(core, boot+1366*ms, boot+1367*ms)
	p.Passages(core, boot+9000*ms, boot+9000*ms) // another pin's
	p.Spoke(core, 28)
	p.Spoke(core, 27)
	p.Normalised(core, boot+1400*ms, 20)
	p.Normalised(core, boot+1500*ms, 8)
	f := p.last(2000 * ms)
	p.wantCause(f, "the adverts of router-b (198.51.100.4) stopped")
	p.wantStory(f, "last_advert 1000.0", "peer_lost 1100.0", "first_own_advert 1361.0", "vip_added 1363.0", "role 1364.0",
		"role_in_force 1364.5", "taken_over 1365.0", "first_pinned 1366.0", "first_reply 1367.0", "normalised 1500.0")
	if f.Other != "router-b" || f.Role != policy.RoleMaster || f.Was != policy.RoleBackup || f.Complete {
		t.Errorf("the record is %+v", f)
	}
	if want := (policy.FailoverFlows{TakenOver: 30, SpokeAgain: 28, Lost: 2, Normalised: 28}); f.Flows != want {
		t.Errorf("flows %+v, want %+v", f.Flows, want)
	}
	if f.Steps[0].Offset != 0 || f.Steps[2].Offset != 361 || !f.Time.Equal(began.Add(1364*ms+ms/2)) {
		t.Errorf("offsets %+v, time %s", f.Steps, f.Time)
	}
	if !strings.Contains(f.Steps[0].Detail, "198.51.100.4, VRID 20 on wan0, priority 150, every 100ms") {
		t.Errorf("the last advert is %q", f.Steps[0].Detail)
	}
}

// What left or came before an event that was taken first belongs before it.
func TestAdvertsThatWaitedBehindTheVIP(t *testing.T) {
	p := standby(t)
	p.vip(1363*ms, true)
	p.role(1364*ms, policy.RoleMaster)
	p.heard(1010*ms, 150) // of the other family
	p.sent(1361*ms, 100)
	p.sent(1462*ms, 100)
	p.Passages(core, boot+1362*ms, boot+1363*ms)
	p.wantStory(p.last(2000*ms), "last_advert 1010.0", "first_own_advert 1361.0", "first_pinned 1362.0", "vip_added 1363.0",
		"first_reply 1363.0", "role 1364.0", "role_in_force 1364.5")
}

func TestCausesOfARise(t *testing.T) {
	for _, c := range []struct {
		name, cause, other string
		happen             func(p *tape)
	}{
		{"resigned", "router-b (198.51.100.4) resigned (priority 0)", "router-b", func(p *tape) {
			p.heard(1050*ms, 0)
			p.sent(1111*ms, 100)
			p.vip(1112*ms, true)
		}},
		{"preempted", "this router preempted router-b (198.51.100.4): priority 200 over 150", "router-b", func(p *tape) {
			p.sent(1050*ms, 200)
			p.vip(1052*ms, true)
		}},
		{"by hand", "without VRRP, by hand or by another program: no advert of this router left, router-b (198.51.100.4) was heard last", "router-b",
			func(p *tape) { p.vip(1060*ms, true) }},
		{"although", "although router-b (198.51.100.4) does, with priority 150 over 100", "router-b", func(p *tape) {
			p.sent(1060*ms, 100)
			p.vip(1061*ms, true)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := standby(t)
			c.happen(p)
			p.role(1120*ms, policy.RoleMaster)
			f := p.last(2000 * ms)
			p.wantCause(f, c.cause)
			if f.Other != c.other {
				t.Errorf("the other one is %q", f.Other)
			}
		})
	}
}

// A router is named by an address that says something, whichever family's advert
// came last.
func TestNameOfTheOther(t *testing.T) {
	p := newTape(t)
	p.role(-time.Minute, policy.RoleBackup)
	p.heard(0, 150)
	p.Heard(core, Advert{At: boot + ms, Source: netip.MustParseAddr("fe80::4"), Interface: "wan0", VRID: 20, Priority: 150, Interval: interval})
	p.sent(361*ms, 100)
	p.role(364*ms, policy.RoleMaster)
	f := p.last(1000 * ms)
	p.wantCause(f, "the adverts of 198.51.100.4 stopped")
	if f.Other != there.String() || !strings.HasPrefix(f.Steps[0].Detail, "fe80::4, ") {
		t.Errorf("took over from %q, %q", f.Other, f.Steps[0].Detail)
	}
}

// A peer may say that it is MASTER before this router knows that it is not.
func TestPeerSpeaksFirst(t *testing.T) {
	p := master(t)
	p.heard(1050*ms, 200)
	p.PeerRole("router-b", core, policy.RoleMaster)
	p.role(1060*ms, policy.RoleBackup)
	if f := p.last(1100 * ms); f.Other != "router-b" {
		t.Errorf("%q took over", f.Other)
	}
	p.sent(1411*ms, 150)
	p.role(1415*ms, policy.RoleMaster)
	if f := p.last(1500 * ms); f.Other != "router-b" {
		t.Errorf("took over from %q", f.Other)
	}
}

// Both are MASTER: what looked like a crash was none.
func TestSplitBrainBegins(t *testing.T) {
	p := standby(t)
	p.sent(1361*ms, 100)
	p.role(1364*ms, policy.RoleMaster)
	p.Conflict(core, boot+1564*ms, "both masters")
	p.wantCause(p.last(2000*ms), "the adverts of router-b (198.51.100.4) stopped, and yet it was MASTER: they did not get through")
}

// keepalived resigns when a VIP is taken away, and is MASTER again at once.
func TestBackAtOnce(t *testing.T) {
	p := master(t)
	p.vip(1050*ms, false)
	p.role(1050*ms+ms/2, policy.RoleBackup)
	p.sent(1051*ms, 0)
	p.sent(1052*ms, 150)
	p.sent(1053*ms, 0)
	p.wantCause(p.last(1060*ms), "198.51.100.2 on wan0, removed by hand")
	p.sent(1090*ms, 150)
	p.vip(1092*ms, true)
	p.role(1093*ms, policy.RoleMaster)
	f := p.last(1500 * ms)
	p.wantCause(f, "began as the only router")
	p.wantStory(f, "first_own_advert 1090.0", "vip_added 1092.0", "role 1093.0", "role_in_force 1093.5")
}

func TestAloneFromTheBeginning(t *testing.T) {
	p := newTape(t)
	p.role(0, policy.RoleFault)
	p.Link(core, boot+2000*ms, "wan0", true)
	p.role(2000*ms, policy.RoleBackup)
	p.sent(5609*ms, 100)
	p.vip(5610*ms, true)
	p.role(5611*ms, policy.RoleMaster)
	f := p.last(7000 * ms)
	p.wantCause(f, "began as the only router: nobody else was heard, wan0 had come up")
	p.wantStory(f, "link_up 2000.0", "role 2000.0", "first_own_advert 5609.0", "vip_added 5610.0", "role 5611.0", "role_in_force 5611.5")
	if f.Other != "" || f.Was != policy.RoleBackup {
		t.Errorf("took over from %q, was %s", f.Other, f.Was)
	}

	p = newTape(t)
	p.role(0, policy.RoleBackup)
	p.vip(1000*ms, true)
	p.role(1001*ms, policy.RoleMaster)
	p.wantCause(p.last(2000*ms), "no advert of this router left")
}

func TestCausesOfAFall(t *testing.T) {
	for _, c := range []struct {
		name, cause, other string
		role               policy.Role
		happen             func(p *tape)
		story              []string
	}{
		{"interface down", "interface wan0 went down", "", policy.RoleFault,
			func(p *tape) { p.Link(core, boot+1100*ms, "wan0", false) },
			[]string{"last_own_advert 1000.0", "link_down 1100.0", "role 1120.0", "role_in_force 1120.5"}},
		{"preempted", "preempted by 198.51.100.4: priority 200 over 150", "198.51.100.4", policy.RoleBackup,
			func(p *tape) { p.heard(1110*ms, 200); p.vip(1112*ms, false) },
			[]string{"last_own_advert 1000.0", "first_advert 1110.0", "vip_removed 1112.0", "role 1120.0", "role_in_force 1120.5"}},
		{"split brain", "two routers were MASTER, and 198.51.100.4 stays: priority 200 over 150", "198.51.100.4", policy.RoleBackup,
			func(p *tape) {
				p.Conflict(core, boot+1050*ms, "both masters")
				p.heard(1110*ms, 200)
				p.vip(1112*ms, false)
			},
			[]string{"last_own_advert 1000.0", "conflict 1050.0", "first_advert 1110.0", "vip_removed 1112.0", "role 1120.0", "role_in_force 1120.5"}},
		{"resigned", "this router resigned (priority 0)", "", policy.RoleBackup,
			func(p *tape) { p.sent(1100*ms, 0); p.vip(1112*ms, false) },
			[]string{"last_own_advert 1100.0", "vip_removed 1112.0", "role 1120.0", "role_in_force 1120.5"}},
		{"resigned, the removal was taken first", "this router resigned (priority 0)", "", policy.RoleBackup,
			func(p *tape) { p.vip(1112*ms, false) }, nil},
		{"by hand", "198.51.100.2 on wan0, removed by hand", "", policy.RoleBackup,
			func(p *tape) { p.vip(1112*ms, false) },
			[]string{"last_own_advert 1000.0", "vip_removed 1112.0", "role 1120.0", "role_in_force 1120.5"}},
		{"by hand, and keepalived resigns", "198.51.100.2 on wan0, removed by hand or by another program: the VRRP daemon here resigned", "", policy.RoleBackup,
			func(p *tape) { p.vip(1105*ms, false); p.sent(1106*ms, 0); p.sent(1107*ms, 150); p.sent(1108*ms, 0) },
			[]string{"vip_removed 1105.0", "last_own_advert 1108.0", "role 1120.0", "role_in_force 1120.5"}},
		{"one virtual router after the other", "this router resigned (priority 0): its VRRP daemon was stopped", "", policy.RoleBackup,
			func(p *tape) {
				p.sent(1106*ms, 0)
				p.vip(1107*ms, false)
				p.sent(1108*ms, 150)
				p.sent(1109*ms, 0)
				p.vip(1110*ms, false)
			}, nil},
		{"nothing known", "not known", "", policy.RoleBackup, func(*tape) {}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := master(t)
			c.happen(p)
			p.role(1120*ms, c.role)
			if strings.Contains(c.name, "taken first") {
				p.sent(1111*ms, 0)
			}
			f := p.last(2000 * ms)
			p.wantCause(f, c.cause)
			if c.story != nil {
				p.wantStory(f, c.story...)
			}
			if f.Other != c.other || f.Role != c.role || f.Was != policy.RoleMaster {
				t.Errorf("the record is %+v", f)
			}
		})
	}
}

func TestOwnAdvertsStop(t *testing.T) {
	p := master(t)
	p.role(1500*ms, policy.RoleFault)
	p.wantCause(p.last(2000*ms), "this router's adverts stopped")
	p.heard(1700*ms, 100)
	p.PeerRole("router-b", core, policy.RoleMaster)
	f := p.last(2000 * ms)
	p.wantStory(f, "last_own_advert 1000.0", "role 1500.0", "role_in_force 1500.5", "first_advert 1700.0")
	if f.Other != "router-b" {
		t.Errorf("the other one is %q", f.Other)
	}
}

// A record is complete after a minute, or when the role changes again; then it
// stays as it is.
func TestComplete(t *testing.T) {
	p := standby(t)
	p.sent(1361*ms, 100)
	p.role(1364*ms, policy.RoleMaster)
	p.Tick(p.clock(61 * time.Second))
	if p.last(61*time.Second).Complete || len(p.Completed()) != 0 {
		t.Fatal("complete before its time")
	}
	p.Tick(p.clock(61365 * ms))
	done := p.Completed()
	if len(done) != 1 || !done[0].Complete || len(p.Completed()) != 0 || len(p.Open()) != 0 {
		t.Fatalf("completed: %+v", done)
	}
	p.Spoke(core, 5)
	p.Passages(core, boot+2000*ms, boot+2000*ms)
	if after := p.last(62 * time.Second); after.Flows.SpokeAgain != 0 || len(after.Steps) != len(done[0].Steps) {
		t.Errorf("it goes on: %+v", after)
	}
	p.Link(core, boot+70*time.Second, "wan0", false)
	p.role(70*time.Second+ms, policy.RoleFault)
	p.role(72*time.Second, policy.RoleMaster)
	done = p.Completed()
	if len(done) != 1 || done[0].Note != "the role changed again after 1.999s" || done[0].Role != policy.RoleFault {
		t.Errorf("completed: %+v", done)
	}
	if records := p.Records(p.clock(73 * time.Second)); len(records) != 3 || records[2].Complete {
		t.Errorf("there are %+v", records)
	}
}

// What belongs to one change is not told again with the next.
func TestChangesInQuickSuccession(t *testing.T) {
	p := standby(t)
	p.sent(1361*ms, 100)
	p.vip(1363*ms, true)
	p.role(1364*ms, policy.RoleMaster)
	p.vip(1370*ms, true) // a late one
	adverts(p.sent, 1461*ms, 20061*ms, 100)
	p.Link(core, boot+20100*ms, "wan0", false)
	p.role(20101*ms, policy.RoleFault)
	p.wantStory(p.last(20200*ms), "last_own_advert 20061.0", "link_down 20100.0", "role 20101.0", "role_in_force 20101.5")
	p.sent(20130*ms, 100) // of another interface, a moment late
	p.vip(20110*ms, false)
	p.sent(21300*ms, 100)
	p.wantStory(p.last(20200*ms), "link_down 20100.0", "role 20101.0", "role_in_force 20101.5", "vip_removed 20110.0", "last_own_advert 20130.0")
	p.Link(core, boot+20900*ms, "wan0", true)
	p.role(20901*ms, policy.RoleBackup)
	p.vip(21301*ms, true)
	p.role(21302*ms, policy.RoleMaster)
	f := p.last(22000 * ms)
	p.wantCause(f, "nobody else was heard") // not again what was heard before the first change
	p.wantStory(f, "link_up 20900.0", "role 20901.0", "first_own_advert 21300.0", "vip_added 21301.0", "role 21302.0", "role_in_force 21302.5")
}

func TestTwoGroups(t *testing.T) {
	p := standby(t)
	const other = "Guests"
	p.roleOf(other, -time.Minute, policy.RoleMaster)
	p.heardFrom(other, 900*ms, 0)
	p.sent(1361*ms, 100)
	p.role(1364*ms, policy.RoleMaster)
	p.Link(other, boot+1365*ms, "wan1", false)
	p.roleOf(other, 1366*ms, policy.RoleFault)
	p.Taken(core, boot+1367*ms, 7, 0)
	p.Taken(other, boot+1367*ms, 9, 9)
	p.ResetsHeld(3)
	p.Resets(core, 10)
	p.Resets(core, 12)
	records := p.Records(p.clock(2000 * ms))
	if len(records) != 2 || records[0].Group != core || records[1].Group != other {
		t.Fatalf("the records are %+v", records)
	}
	p.wantCause(records[0], "stopped")
	p.wantCause(records[1], "interface wan1 went down")
	p.wantStory(records[1], "link_down 1365.0", "role 1366.0", "role_in_force 1366.5")
	if want := (policy.FailoverFlows{TakenOver: 7, ResetsHeld: 3, Resets: 2}); records[0].Flows != want {
		t.Errorf("flows %+v, want %+v", records[0].Flows, want)
	}
	if records[1].Flows != (policy.FailoverFlows{}) {
		t.Errorf("flows of the one that ceased: %+v", records[1].Flows)
	}
	open := p.Open()
	if len(open) != 2 || open[0].Group != other || open[0].Master || !open[1].Master || open[1].Since != boot+1361*ms {
		t.Errorf("open: %+v", open)
	}
}

// RSTs that were sent between two looks before the takeover are not its own.
func TestResetsOfBefore(t *testing.T) {
	p := standby(t)
	p.Resets(core, 40)
	p.sent(1361*ms, 100)
	p.role(1364*ms, policy.RoleMaster)
	p.Resets(core, 41) // the first look is late
	if n := p.last(2000 * ms).Flows.Resets; n != 1 {
		t.Errorf("%d RSTs, want 1", n)
	}
	p.Resets(core, 2) // the counters began anew
	if n := p.last(2000 * ms).Flows.Resets; n != 0 {
		t.Errorf("%d RSTs", n)
	}
}

func TestHeadline(t *testing.T) {
	for want, f := range map[string]policy.Failover{
		"G: MASTER, took over from b; x":  {Group: "G", Role: policy.RoleMaster, Other: "b", Cause: "x"},
		"G: MASTER; x":                    {Group: "G", Role: policy.RoleMaster, Cause: "x"},
		"G: BACKUP, b took over; x":       {Group: "G", Role: policy.RoleBackup, Other: "b", Cause: "x"},
		"G: FAULT, no MASTER any more; x": {Group: "G", Role: policy.RoleFault, Cause: "x"},
	} {
		if got := Headline(f); got != want {
			t.Errorf("headline %q, want %q", got, want)
		}
	}
}
