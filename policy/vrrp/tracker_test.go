// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"testing"
	"time"

	"vippin/policy"
)

func TestRoleFollowsAddresses(t *testing.T) {
	s := tell(t, planOf())
	s.changes("pin 2 BACKUP", "pin 20 BACKUP", "group RouterCore BACKUP")
	s.evidence(vip2+" is not on eth0.2", vip20+" is not on eth0.20")

	s.hold(vl2, vip2)
	s.changes("pin 2 MASTER")
	s.is(backup)
	s.observe()
	s.changes() // the same again changes nothing

	s.hold(vl20, vip20)
	s.changes("pin 20 MASTER", "group RouterCore MASTER")
	s.evidence(vip2 + " is on eth0.2")

	s.drop(vl2, vip2)
	s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
	s.pins(map[uint32]policy.Role{1: backup, 2: master})
}

func TestVIPOnMacvlan(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.links[vmac] = &policy.Link{Index: vmac, Name: "vrrp.10", Kind: "macvlan", Parent: vl2, Up: true}
	s.hold(vmac, vip2)
	s.is(master)
	s.drop(vmac, vip2)
	s.is(backup)

	// On another interface, or on a VLAN over it, it is not here.
	s.hold(vl20, vip2)
	s.is(backup)
	s.evidence("198.51.100.2 is on eth0.20")
	s.drop(vl20, vip2)
	s.links[vmac].Kind = "vlan"
	s.hold(vmac, vip2)
	s.is(backup)
}

func TestInterfaceGone(t *testing.T) {
	s := tell(t, planOf())
	s.hold(vl2, vip2)
	s.hold(vl20, vip20)
	s.is(master)
	s.seen = nil

	s.links[vl2].Up = false
	s.observe()
	s.changes("pin 2 FAULT", "group RouterCore FAULT")
	s.pins(map[uint32]policy.Role{1: fault, 2: master})
	s.evidence("eth0.2 is down")

	s.links[vl2].Up = true
	s.observe()
	s.changes("pin 2 MASTER", "group RouterCore MASTER")

	link := s.links[vl20]
	delete(s.links, vl20)
	s.observe()
	s.changes("pin 20 FAULT", "group RouterCore FAULT")
	s.evidence("eth0.20 is missing")
	s.links[vl20] = link
	s.observe()
	s.is(master)
}

func TestLinkLocalVIPOnlyWitnesses(t *testing.T) {
	s := tell(t, onePin(ll2, vip2b))
	s.hold(vl2, vip2b)
	s.is(master)
	s.run(time.Second - 1)
	s.is(master)
	s.run(1)
	s.is(master, "2001:db8:2::2 is here", "fe80::2 is not on eth0.2")
	s.hold(vl2, ll2)
	s.is(master)
	s.drop(vl2, vip2b)
	s.is(backup)

	alone := tell(t, onePin(ll2))
	alone.is(backup)
	alone.hold(vl2, ll2)
	alone.is(master)
}

func TestSomeVIPsHeld(t *testing.T) {
	s := tell(t, onePin(vip2, vip2b))
	s.seen = nil
	s.hold(vl2, vip2)
	s.run(900 * ms)
	s.changes() // keepalived adds them one by one
	s.run(100 * ms)
	s.changes(`group RouterCore conflict "198.51.100.2 is here, but 2001:db8:2::2 is not on eth0.2"`)
	s.is(backup, vip2)
	s.hold(vl2, vip2b)
	s.changes("pin 2 MASTER", "group RouterCore MASTER", `group RouterCore conflict ""`)
}

func TestOwnAdvertsStop(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	// 3 intervals, skew of (256-150)/256 intervals, slack; the last advert was an interval ago.
	limit := 3*adv + 106*adv/256 + defaultSlack - adv
	s.run(limit - 1)
	s.is(master)
	s.run(1)
	s.changes("pin 2 FAULT", "group RouterCore FAULT",
		`group RouterCore conflict "198.51.100.2 is here, but this router's adverts have stopped"`)
	s.evidence("own adverts of VRID 10 on eth0.2 (ipv4) stopped")

	s.hear(other2, 100)
	s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
	s.run(time.Second)
	s.changes("pin 2 FAULT", "group RouterCore FAULT") // that one is silent too

	s.send(150)
	s.is(master)
}

// A daemon that had no time for a while decides before it reads the adverts that
// left meanwhile: they are as good as ever.
func TestAdvertsReadTooLate(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	left := s.now
	s.now += time.Second
	s.note(s.tracker.Tick(s.now))
	s.is(fault, "adverts have stopped")
	for ; left <= s.now; left += adv {
		advert := s.packet(vl2, policy.Out, self2, 10, 150, vip2)
		advert.Time = left
		s.note(s.tracker.Advert(s.now, advert))
	}
	s.is(master)
}

func TestGraceAfterVIPCame(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	s.drop(vl2, vip2)
	s.run(time.Minute)
	s.seen = nil
	s.hold(vl2, vip2) // and no advert leaves
	s.changes("pin 2 MASTER", "group RouterCore MASTER")
	limit := 3*adv + 106*adv/256 + defaultSlack
	s.run(limit - 1)
	s.is(master)
	s.run(1)
	s.is(fault, "adverts have stopped")
}

func TestManualVIPs(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.hold(vl2, vip2)
	s.run(time.Hour)
	s.is(master)

	s.hear(other2, 100)
	s.is(master)
	s.run(adv)
	s.hear(other2, 100)
	s.is(master, "both masters", vip2+" is here without adverts", other2)
	s.run(time.Second)
	s.is(master)
}

func TestResigning(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	s.send(0) // keepalived is stopped: it resigns, then takes the VIP away
	s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
	s.evidence("this router resigned VRID 10")
	s.run(ms)
	s.drop(vl2, vip2)
	s.run(time.Minute)
	s.changes()
	s.is(backup)

	s.hold(vl2, vip2) // set by hand, keepalived is not there
	s.run(time.Minute)
	s.is(master)
}

func TestResigningSeenAfterVIPLeft(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	s.drop(vl2, vip2)
	s.send(0)
	s.is(backup)
	s.hold(vl2, vip2)
	s.run(time.Minute)
	s.is(master)
}

func TestResignedAndVIPStays(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	s.send(0)
	s.is(backup)
	s.run(time.Second)
	s.is(fault)
	s.hear(other2, 100)
	s.is(backup)
}

func TestAdvertsWithoutVIP(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.send(150) // a takeover: the advert precedes the VIP
	s.run(20 * ms)
	s.is(backup)
	s.adverts(9, func() { s.send(150) })
	s.is(backup)
	s.adverts(3, func() { s.send(150) })
	s.is(backup, "adverts of VRID 10 leave eth0.2, but 198.51.100.2 is not there")
	s.hold(vl2, vip2)
	s.is(master)

	// The other way round nothing is said of adverts that left before.
	s.adverts(20, func() { s.send(150) })
	s.seen = nil
	s.drop(vl2, vip2)
	s.run(time.Minute)
	s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
}

func TestOwnAdvertBeforeRestart(t *testing.T) {
	// keepalived was killed 5 s ago, then the daemon restarted.
	s := tell(t, onePin(vip2))
	s.hold(vl2, vip2)
	s.is(master)
	s.note(s.tracker.OwnAdvert(s.now, 1, s.now-5*time.Second, adv))
	s.run(time.Second)
	s.is(fault, "adverts have stopped")

	// It was there long before: there is nothing to wait for.
	s = tell(t, onePin(vip2))
	s.hold(vl2, vip2)
	s.run(time.Minute)
	s.is(master)
	s.note(s.tracker.OwnAdvert(s.now, 1, s.now-5*time.Second, adv))
	s.is(fault, "adverts have stopped")
	s.note(s.tracker.OwnAdvert(s.now, 1, s.now-adv, adv))
	s.is(master)
	s.run(3*adv + defaultSlack - 1)
	s.is(master)
	s.run(1)
	s.is(fault, "adverts have stopped")

	// It lives: nothing happens.
	s = tell(t, onePin(vip2))
	s.hold(vl2, vip2)
	s.note(s.tracker.OwnAdvert(s.now, 1, s.now-adv/2, adv))
	s.run(adv / 2)
	s.adverts(20, func() { s.send(150) })
	s.is(master)
	for _, told := range s.seen {
		if told == "pin 2 FAULT" {
			t.Error("flickered:", s.seen)
		}
	}
	if got := s.tracker.OwnAdvert(s.now, 99, s.now, adv); got != nil {
		t.Errorf("an unknown group: %v", got)
	}
}

func TestFIFO(t *testing.T) {
	for _, kind := range []string{"GROUP", "INSTANCE"} {
		s := tell(t, onePin(vip2))
		s.seen = nil
		s.note(s.tracker.FIFO(s.now, kind, "RouterCore", "FAULT", 0))
		s.changes("pin 2 FAULT", "group RouterCore FAULT")
		s.evidence("keepalived said FAULT (" + kind)
		s.note(s.tracker.FIFO(s.now, kind, "RouterCore", "BACKUP", 0))
		s.is(backup)
		s.note(s.tracker.FIFO(s.now, kind, "other", "MASTER", 0))
		s.note(s.tracker.FIFO(s.now, kind, "RouterCore", "{UNKNOWN}", 0))
		s.run(time.Minute)
		s.is(backup)

		s.hold(vl2, vip2) // the address precedes keepalived's word
		s.is(master)
		s.run(20 * ms)
		s.note(s.tracker.FIFO(s.now, kind, "RouterCore", "MASTER", 0))
		s.run(time.Minute)
		s.is(master)

		s.note(s.tracker.FIFO(s.now, kind, "RouterCore", "STOP", 0))
		s.run(time.Second - 1)
		s.is(master)
		s.run(1)
		s.is(master, "keepalived says STOP, the addresses and adverts say MASTER")
		s.note(s.tracker.FIFO(s.now, kind, "RouterCore", "DELETED", 0))
		s.is(master)

		s.drop(vl2, vip2)
		s.note(s.tracker.FIFO(s.now, kind, "RouterCore", "MASTER_RX_LOWER_PRI", 100))
		s.is(backup)
		s.run(time.Second)
		s.is(backup, "keepalived says MASTER_RX_LOWER_PRI, the addresses and adverts say BACKUP")
	}
}

func TestTransitionScript(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.note(s.tracker.Script(s.now, "GROUP", "RouterCore", "BACKUP", 0))
	s.evidence("a transition script said BACKUP (GROUP, priority 0)")
	s.hold(vl2, vip2)
	s.run(time.Second)
	s.is(master, "a transition script says BACKUP, the addresses and adverts say MASTER")
	s.note(s.tracker.FIFO(s.now, "GROUP", "RouterCore", "MASTER", 150))
	s.is(master)
	s.evidence("keepalived said MASTER (GROUP, priority 150)")
}

func TestFIFOGroupBeatsInstance(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.note(s.tracker.FIFO(s.now, "GROUP", "RouterCore", "BACKUP", 0))
	s.note(s.tracker.FIFO(s.now, "INSTANCE", "RouterCore", "FAULT", 0))
	s.is(backup)
}

func TestParseFIFO(t *testing.T) {
	for line, want := range map[string]string{
		`GROUP "Router Core" MASTER 0` + "\n":  "GROUP|Router Core|MASTER|0|",
		`INSTANCE "VI_2" BACKUP_PRIORITY 100`:  "INSTANCE|VI_2|BACKUP_PRIORITY|100|",
		`INSTANCE "VI" 2" MASTER 255`:          `INSTANCE|VI" 2|MASTER|255|`,
		`GROUP RouterCore MASTER 0`:            "error",
		`GROUP "RouterCore MASTER 0`:           "error",
		`VRRP "RouterCore" MASTER 0`:           "error",
		`GROUP "RouterCore" MASTER`:            "error",
		`GROUP "RouterCore" {UNKNOWN} 1`:       "error",
		`GROUP "" MASTER 1`:                    "error",
		`GROUP "a" MASTER -1`:                  "error",
		`INSTANCE "a" DELETED 1`:               "INSTANCE|a|DELETED|1|",
		`INSTANCE "a" MASTER_RX_LOWER_PRI 1`:   "INSTANCE|a|MASTER_RX_LOWER_PRI|1|",
		`GROUP "RouterCore" MASTER 0 x`:        "error",
		`GROUP "RouterCore" MASTER 256`:        "error",
		`GROUP "RouterCore" MASTER 0 GROUP "b`: "error",
		``:                                     "error",
	} {
		kind, name, state, priority, err := ParseFIFO(line)
		got := fmt.Sprintf("%s|%s|%s|%d|", kind, name, state, priority)
		if (err != nil) != (want == "error") || err == nil && got != want {
			t.Errorf("ParseFIFO(%q) = %s, %v, want %s", line, got, err, want)
		}
	}
}

func TestUpdateKeepsState(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	since := s.tracker.Groups(s.now, time.Unix(1000, 0))[0].Since
	s.adverts(3, func() { s.send(150) })
	s.note(s.tracker.Update(s.now, planOf())) // VLAN 20 is added
	s.changes("pin 20 BACKUP", "group RouterCore BACKUP")
	s.hold(vl20, vip20)
	s.changes("pin 20 MASTER", "group RouterCore MASTER")
	s.run(10 * adv)
	s.is(fault, "adverts have stopped") // it still knows that they left before

	plan := onePin(vip2)
	plan.Pins = append(plan.Pins, policy.PlanPin{ID: 9, Group: 1, Retired: true, VIPs: addrs(vip20)})
	s.note(s.tracker.Update(s.now, plan))
	s.pins(map[uint32]policy.Role{1: fault})
	if since.IsZero() {
		t.Error("no time since when")
	}

	// Adverts that nobody's VRID announced before are its group's from now on.
	plan = onePin(vip2b)
	plan.Groups[0].Name = "Later"
	s.note(s.tracker.Update(s.now, plan))
	s.hold(vl2, vip2b)
	s.send(150)
	s.run(adv)
	plan.Interfaces[0].VRIDs = []policy.PlanVRID{{VRID: 10, Group: 1}}
	s.note(s.tracker.Update(s.now, plan))
	s.is(master)
	s.run(time.Second)
	s.is(fault, "adverts have stopped")

	// The same number for another pin: nothing is carried over.
	s.drop(vl2, vip2b)
	plan = onePin(vip2b)
	plan.Pins[0].Name, plan.Groups[0].Name = "voip", "Voice"
	s.seen = nil
	s.note(s.tracker.Update(s.now, plan))
	s.changes("pin 2/voip BACKUP", "group Voice BACKUP")
}

func TestSince(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.run(3 * time.Second)
	s.hold(vl2, vip2)
	s.run(5 * time.Second)
	wall := time.Unix(100000, 0)
	if got := s.tracker.Groups(s.now, wall)[0].Since; !got.Equal(wall.Add(-5 * time.Second)) {
		t.Errorf("MASTER since %s, want 5 s before %s", got, wall)
	}
}

func TestNothingIsDecidedBlind(t *testing.T) {
	tracker := NewTracker(Config{})
	if got := tracker.Update(1, planOf()); got != nil {
		t.Errorf("decided without having seen the interfaces: %+v", got)
	}
	if tracker.Next() != 0 {
		t.Error("waits for something")
	}
	if got := tracker.Observe(2, policy.Observed{}); len(got) != 3 {
		t.Errorf("first decision tells %d changes, want those of 2 pins and a group", len(got))
	}
}

func TestGroupWithoutPins(t *testing.T) {
	plan := planOf()
	plan.Pins = nil
	s := tell(t, plan)
	s.is(backup)
	s.send(150)
	s.is(master)
	s.run(time.Second)
	s.is(backup)
	s.note(s.tracker.FIFO(s.now, "GROUP", "RouterCore", "FAULT", 0))
	s.is(fault)
}
