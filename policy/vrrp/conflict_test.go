// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"strings"
	"testing"
	"time"
)

// bothText is how a conflict of two masters begins, as a change.
const bothText = `group RouterCore conflict "both masters: 198.51.100.3 (this router) and 198.51.100.4 advertise VRID 10 on eth0.2`

func TestBothMasters(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	ours := func() { s.send(150) }
	theirs := func() { s.hear(other2, 100) }
	start := s.now
	s.adverts(3, ours, theirs)
	s.changes(bothText + "; seen before: adverts filtered in one direction, a hypervisor that drops the virtual MAC or multicast\"")
	if s.now-start > 3*adv {
		t.Errorf("took %s", s.now-start)
	}
	s.adverts(50, ours, theirs)
	s.changes()
	s.is(master, "both masters") // it changes no pinning

	// The other one gives up.
	s.adverts(4, ours)
	s.changes(`group RouterCore conflict ""`)
	s.is(master)
}

func TestBothMastersWithinThreeIntervals(t *testing.T) {
	// Whatever the phase of the other's adverts.
	for phase := time.Duration(1); phase < adv; phase += adv / 7 {
		s := tell(t, onePin(vip2))
		s.master()
		start := s.now
		for s.now < start+3*adv {
			s.send(150)
			s.run(phase)
			s.hear(other2, 100)
			s.run(adv - phase)
		}
		s.is(master, "both masters")
	}
}

func TestBothMastersEndsByResigning(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	s.adverts(5, func() { s.send(150) }, func() { s.hear(other2, 100) })
	s.is(master, "both masters")
	s.hear(other2, 0)
	s.is(master)
	s.adverts(20, func() { s.send(150) })
	s.is(master)
}

func TestBothMastersEndsWithOurVIP(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	s.adverts(5, func() { s.send(150) }, func() { s.hear(other2, 200) })
	s.is(master, "both masters")
	s.drop(vl2, vip2)
	s.is(backup)
	s.adverts(20, func() { s.hear(other2, 200) })
	s.is(backup)
}

func TestBothMastersOtherIntervals(t *testing.T) {
	// They advertise ten times as often as we do, with jitter: no flapping.
	s := tell(t, onePin(vip2))
	s.master()
	for i := range 40 {
		if i%10 == 0 {
			s.send(150)
		}
		s.hear(other2, 100)
		s.run(adv/10 + time.Duration(i%3)*ms)
	}
	s.is(master, "both masters")
	s.changes(bothText + "…")
}

func TestTakeoverRaisesNoConflict(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.adverts(10, func() { s.hear(other2, 100) })
	s.is(backup)
	s.seen = nil

	// We preempt: the old master sends one more.
	for range 30 {
		s.send(150)
		s.hold(vl2, vip2)
		s.run(ms)
		s.hear(other2, 100)
		s.run(adv - ms)
		s.adverts(5, func() { s.send(150) })
		s.changes("pin 2 MASTER", "group RouterCore MASTER")

		// They preempt: we send one more, and the VIP leaves late.
		s.hear(other2, 200)
		s.run(ms)
		s.send(150)
		s.run(ms)
		s.drop(vl2, vip2)
		s.run(adv - 2*ms)
		s.adverts(10, func() { s.hear(other2, 200) })
		s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
	}
}

func TestTakeoverAfterCrash(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.adverts(10, func() { s.hear(other2, 200) })
	s.seen = nil
	s.run(3 * adv)
	s.send(150)
	s.hold(vl2, vip2)
	s.adverts(10, func() { s.send(150) })
	s.changes("pin 2 MASTER", "group RouterCore MASTER")
	// It comes back and preempts.
	s.hear(other2, 200)
	s.drop(vl2, vip2)
	s.adverts(10, func() { s.hear(other2, 200) })
	s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
}

func TestOneWayBlock(t *testing.T) {
	// Their adverts do not reach us: nothing to be seen here.
	deaf := tell(t, onePin(vip2))
	deaf.master()
	deaf.adverts(50, func() { deaf.send(150) })
	deaf.changes()

	// The other side: a backup hears its master, then becomes one too.
	s := tell(t, onePin(vip2))
	s.adverts(20, func() { s.hear(other2, 100) })
	s.is(backup)
	s.send(150)
	s.hold(vl2, vip2)
	start := s.now
	for !strings.Contains(s.tracker.Groups(s.now, time.Time{})[0].Conflict, "both masters") {
		s.run(adv / 2)
		s.hear(other2, 100)
		s.run(adv / 2)
		s.send(150)
		if s.now-start > 3*adv {
			t.Fatal("no conflict within 3 intervals")
		}
	}
}

func TestTwoOthersAreMasters(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.adverts(5, func() { s.hear(other2, 100) }, func() { s.hear(third2, 100) })
	s.is(backup, "both masters: 198.51.100.4 and 198.51.100.5 advertise VRID 10")
	s.adverts(10, func() { s.hear(third2, 100) })
	s.is(backup)
}

func TestOwnAdvertsComeBack(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.master()
	s.adverts(20, func() { s.send(150) }, func() { s.hear(self2, 150) })
	s.changes()
	if got := s.tracker.Routers(s.now)[0].Ignored["echo"]; got != 20 {
		t.Errorf("%d echoes counted, want 20", got)
	}
	// While we do not send, somebody else has our address.
	s.drop(vl2, vip2)
	s.run(time.Second)
	s.adverts(5, func() { s.hear(self2, 150) })
	if got := s.tracker.Routers(s.now)[0]; got.Ignored["echo"] != 20 || len(got.Routers) != 2 {
		t.Errorf("%+v", got)
	}
}

func TestTwoMastersOfUnknownVRID(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.seen = nil
	hear := func(src string) func() {
		return func() {
			s.note(s.tracker.Advert(s.now, s.packet(vl2, 0, src, 77, 100, "198.51.100.77")))
		}
	}
	s.adverts(5, hear(other2), hear(third2))
	s.changes(`VRID 77 on eth0.2 conflict "both masters: 198.51.100.4 and 198.51.100.5…`)
	s.is(backup)
	s.adverts(8, hear(other2))
	s.changes(`VRID 77 on eth0.2 conflict ""`)
}

func TestManualVIPsThenKeepalived(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.hold(vl2, vip2)
	s.adverts(3, func() { s.hear(other2, 100) })
	s.is(master, "here without adverts")
	s.send(150)
	s.is(master) // a takeover, until they overlap
	s.adverts(3, func() { s.hear(other2, 100) }, func() { s.send(150) })
	s.is(master, "this router")
}
