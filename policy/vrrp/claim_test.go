// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vippin/policy"
)

// MACs of the stories.
var (
	selfMAC    = policy.MAC{2, 0, 0, 0, 0, 3} // of eth0 and its VLANs
	otherMAC   = policy.MAC{2, 0, 0, 0, 0, 4}
	virtualMAC = policy.MAC{0, 0, 0x5e, 0, 1, 10}
)

const selfLL = "fe80::3"

// claimedText is the conflict over vip2, as a change.
const claimedText = `group RouterCore conflict "both masters: 198.51.100.2 is here, and 02:00:00:00:00:04 on eth0.2 claims the same; ` +
	`its adverts do not get through; seen before: multicast or IGMP snooping, a VLAN missing on one side"`

// tellClaims begins a story in which we are settled as MASTER of the VIPs.
func tellClaims(t *testing.T, vips ...string) *story {
	s := tell(t, onePin(vips...))
	s.links[vl2].MAC = selfMAC
	s.hold(vl2, vips[1:]...)
	s.hold(vl2, selfLL)
	s.master()
	s.asks()
	return s
}

// claim is what somebody says of VIPs on eth0.2.
func (s *story) claim(mac policy.MAC, vips ...string) {
	s.t.Helper()
	for _, vip := range vips {
		s.note(s.tracker.Claim(s.now, policy.ClaimSeen{Time: s.now, Ifindex: vl2, VIP: netip.MustParseAddr(vip), MAC: mac}))
	}
}

// answer is what somebody says when we have asked.
func (s *story) answer(mac policy.MAC, vips ...string) {
	s.t.Helper()
	for _, vip := range vips {
		s.note(s.tracker.Claim(s.now, policy.ClaimSeen{
			Time: s.now, Ifindex: vl2, VIP: netip.MustParseAddr(vip), MAC: mac, Kind: policy.ClaimAnswers,
		}))
	}
}

// question is somebody's ARP probe for a VIP.
func (s *story) question(mac policy.MAC, vip string) {
	s.t.Helper()
	s.note(s.tracker.Claim(s.now, policy.ClaimSeen{Time: s.now, Ifindex: vl2, VIP: netip.MustParseAddr(vip), MAC: mac, Kind: policy.ClaimAsks}))
}

// asks checks which VIPs are asked about since the last call.
func (s *story) asks(want ...string) {
	s.t.Helper()
	var got []string
	for _, p := range s.tracker.Probes() {
		if p.Ifindex != vl2 || p.MAC != selfMAC || p.VIP.Is6() != (p.From == netip.MustParseAddr(selfLL)) {
			s.t.Errorf("asks %+v", p)
		}
		got = append(got, p.VIP.String())
	}
	if !slices.Equal(got, want) {
		s.t.Fatalf("asks for %v, want %v", got, want)
	}
}

// contest lets time pass, own adverts leave, and somebody with the MAC answer
// every question; it returns how many there were.
func (s *story) contest(d time.Duration, mac policy.MAC) (questions int) {
	s.t.Helper()
	for end := s.now + d; s.now < end; {
		s.send(150)
		for range 10 {
			s.run(adv / 10)
			for _, p := range s.tracker.Probes() {
				questions++
				s.run(ms)
				if mac != (policy.MAC{}) {
					s.answer(mac, p.VIP.String())
				}
			}
		}
	}
	return questions
}

var nobody policy.MAC

func TestClaimIsConflict(t *testing.T) {
	s := tellClaims(t, vip2)
	s.claim(otherMAC, vip2)
	s.run(ms)
	s.send(150)
	s.run(adv)
	s.asks() // it may still be a takeover
	s.send(150)
	s.asks(vip2)
	s.run(ms)
	s.is(master)
	s.changes() // nor is it shown before it is answered
	s.claim(otherMAC, vip2)
	s.changes() // what he says unasked is no answer
	s.answer(otherMAC, vip2)
	s.changes(claimedText)
	s.evidence("02:00:00:00:00:04 claims 198.51.100.2 on eth0.2, heard 0s ago")
	if got := s.tracker.Routers(s.now)[0].Conflict; got == "" {
		t.Error("the virtual router shows no conflict")
	}

	if n := s.contest(5*time.Second, otherMAC); n < 8 || n > 11 {
		t.Errorf("%d questions in 5 s", n)
	}
	s.changes() // it stays, and is told once
	s.is(master, "claims the same")

	// The other one gives the VIP up.
	if n := s.contest(4*time.Second, nobody); n != probeTries {
		t.Errorf("%d questions unanswered, want %d", n, probeTries)
	}
	s.changes(`group RouterCore conflict ""`)
	s.is(master)
	if got := s.tracker.Routers(s.now)[0].Conflict; got != "" {
		t.Error("the virtual router still shows", got)
	}
}

func TestClaimWithinThreeIntervals(t *testing.T) {
	for phase := time.Duration(0); phase < adv; phase += adv / 7 {
		s := tellClaims(t, vip2)
		s.run(phase)
		start := s.now
		s.claim(otherMAC, vip2)
		s.run(adv - phase)
		s.contest(start+3*adv-s.now, otherMAC)
		s.is(master, "claims the same")
	}
}

func TestClaimEndsWithSilence(t *testing.T) {
	s := tellClaims(t, vip2)
	s.claim(otherMAC, vip2)
	s.contest(time.Second, otherMAC)
	s.is(master, "claims the same")
	s.contest(1500*ms, nobody)
	s.is(master, "claims the same") // a question may be lost
	s.contest(1100*ms, nobody)
	s.is(master)
}

func TestClaimEndsWithVIP(t *testing.T) {
	s := tellClaims(t, vip2)
	s.claim(otherMAC, vip2)
	s.contest(time.Second, otherMAC)
	s.is(master, "claims the same")
	s.drop(vl2, vip2)
	s.is(backup)
	if n := s.contest(time.Second, nobody); n != 0 || len(s.tracker.claims) != 0 {
		t.Errorf("%d questions after the VIP left", n)
	}
	s.claim(otherMAC, vip2) // rightly so
	if len(s.tracker.claims) != 0 {
		t.Error("a claim on a VIP that is not here counts")
	}
}

// Takeovers and preemptions with their gratuitous ARP, also at the wrong
// moment, raise nothing, and most do not even make us ask.
func TestTakeoverClaims(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.links[vl2].MAC = selfMAC
	s.adverts(10, func() { s.hear(other2, 100) })
	s.seen = nil
	for round := range 10 {
		// We preempt. The old master repeats its gratuitous ARP once more.
		s.send(150)
		s.hold(vl2, vip2)
		if round%2 == 1 {
			s.claim(otherMAC, vip2)
		}
		s.run(ms)
		s.hear(other2, 100)
		s.run(adv - ms)
		if n := s.contest(3*time.Second, nobody); n != round%2*probeTries {
			t.Errorf("%d questions after our takeover", n)
		}
		s.changes("pin 2 MASTER", "group RouterCore MASTER")

		// They preempt: advert, then gratuitous ARP; ours and the VIP leave late.
		s.hear(other2, 200)
		s.run(ms)
		s.claim(otherMAC, vip2)
		s.send(150)
		s.run(adv)
		s.send(150)
		s.claim(otherMAC, vip2)
		s.run(ms)
		s.asks() // the advert says it
		s.drop(vl2, vip2)
		s.adverts(10, func() { s.hear(other2, 200) }, func() { s.claim(otherMAC, vip2) })
		s.asks()
		s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
	}
}

// A graceful end: the other takes over before our VIP has left.
func TestResigningClaims(t *testing.T) {
	s := tellClaims(t, vip2)
	s.send(0)
	s.claim(otherMAC, vip2)
	s.run(200 * ms)
	s.asks()
	s.drop(vl2, vip2)
	s.run(time.Minute)
	s.asks()
	s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
}

// While we give the VIP away the other one is right.
func TestClaimEndsByResigning(t *testing.T) {
	s := tellClaims(t, vip2)
	s.claim(otherMAC, vip2)
	s.contest(time.Second, otherMAC)
	s.is(master, "claims the same")
	s.send(0)
	s.is(backup)
}

// An answer while the other's adverts are heard is none: at a preemption the
// VIPs are on both routers for a moment, and of two masters adverts tell more.
func TestAnswerWhileAdvertsHeard(t *testing.T) {
	s := tellClaims(t, vip2)
	s.claim(otherMAC, vip2)
	s.contest(300*ms, nobody) // asked
	s.hear(other2, 200)
	s.run(ms)
	s.answer(otherMAC, vip2)
	s.is(master)
	s.send(150)
	s.run(adv)
	s.drop(vl2, vip2)
	s.changes("pin 2 BACKUP", "group RouterCore BACKUP")
	s.asks()
}

// The last of the questions is answered: that is as good as the first.
func TestLateAnswer(t *testing.T) {
	s := tellClaims(t, vip2)
	s.claim(otherMAC, vip2)
	for asked := 0; asked < probeTries; asked += s.contest(adv, nobody) {
		s.is(master)
	}
	s.answer(otherMAC, vip2)
	s.contest(probeEvery*(probeTries-1), nobody)
	s.is(master, "claims the same")
}

// Whoever does not answer is not there any more.
func TestClaimUnanswered(t *testing.T) {
	s := tellClaims(t, vip2)
	s.claim(otherMAC, vip2)
	s.run(ms)
	s.send(150)
	s.run(adv)
	s.send(150)
	s.asks(vip2)
	// What was said before we asked, and is read now, is no answer.
	s.note(s.tracker.Claim(s.now, policy.ClaimSeen{Time: s.now - ms, Ifindex: vl2, VIP: addrs(vip2)[0], MAC: otherMAC, Kind: policy.ClaimAnswers}))
	if n := s.contest(5*time.Second, nobody); n != probeTries-1 {
		t.Errorf("asked %d times again", n)
	}
	s.changes()
	if len(s.tracker.claims) != 0 {
		t.Error("still remembered")
	}
}

func TestClaimByWhom(t *testing.T) {
	for _, c := range []struct {
		name     string
		mac      policy.MAC
		conflict bool
	}{
		{"ourselves", selfMAC, false},
		{"another interface of ours", policy.MAC{2, 0, 0, 0, 0, 0x20}, false},
		{"our virtual MAC, from outside", virtualMAC, true},
		{"somebody else", otherMAC, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := tell(t, onePin(vip2))
			s.links[vl2].MAC = selfMAC
			s.links[vl20].MAC = policy.MAC{2, 0, 0, 0, 0, 0x20}
			s.links[vmac] = &policy.Link{Index: vmac, Name: "vrrp.10", Kind: "macvlan", Parent: vl2, Up: true, MAC: virtualMAC}
			s.send(150)
			s.hold(vmac, vip2)
			s.adverts(5, func() { s.send(150) })
			s.claim(c.mac, vip2)
			s.contest(time.Second, c.mac)
			if c.conflict {
				s.is(master, "claims the same", c.mac.String())
			} else {
				s.is(master)
			}
		})
	}
}

// Adverts tell more than claims: one text, and when they fail it is looked into
// anew.
func TestClaimAndAdverts(t *testing.T) {
	s := tellClaims(t, vip2)
	for range 20 {
		s.send(150)
		s.run(adv / 2)
		s.hear(other2, 100)
		s.claim(otherMAC, vip2)
		s.run(adv / 2)
	}
	s.asks()
	s.changes(bothText + "…")
	// Now the other's adverts are lost, too.
	s.contest(2*time.Second, otherMAC)
	s.changes(`group RouterCore conflict ""`, claimedText)
	// They are heard again.
	for range 10 {
		s.send(150)
		s.run(adv / 2)
		s.hear(other2, 100)
		s.run(adv / 2)
	}
	s.changes(bothText + "…")
	s.tracker.Probes()
	s.contest(2*time.Second, nobody) // and it gives in
	s.changes(`group RouterCore conflict ""`)
}

func TestClaimWhileAdvertsStopped(t *testing.T) {
	s := tellClaims(t, vip2)
	s.claim(otherMAC, vip2)
	s.contest(time.Second, otherMAC)
	s.is(master, "claims the same")
	s.seen = nil
	s.run(time.Second) // keepalived is dead: the other is right
	s.changes("pin 2 FAULT", "group RouterCore FAULT",
		`group RouterCore conflict "198.51.100.2 is here, but this router's adverts have stopped"`)
	s.claim(otherMAC, vip2)
	s.run(time.Second)
	s.asks()
	s.changes()
}

func TestClaimOnManualVIP(t *testing.T) {
	s := tell(t, onePin(vip2))
	s.links[vl2].MAC = selfMAC
	s.hold(vl2, vip2)
	s.run(time.Minute)
	s.claim(otherMAC, vip2)
	s.run(time.Second - 1)
	s.asks()
	s.run(1)
	s.asks(vip2)
	s.run(ms)
	s.answer(otherMAC, vip2)
	s.is(master, "198.51.100.2 is here, and 02:00:00:00:00:04 on eth0.2 claims the same; seen before: set by hand on two routers")
	s.run(4 * time.Second)
	s.is(master)
}

// The first master's question tells the second one, which hears no claim.
func TestQuestionMakesUsAsk(t *testing.T) {
	s := tellClaims(t, vip2)
	s.question(otherMAC, vip2)
	s.asks(vip2) // who asks has waited already
	s.run(ms)
	s.is(master)
	s.answer(otherMAC, vip2)
	s.changes(claimedText)
	for range 10 {
		s.question(otherMAC, vip2) // is no answer to ours
		s.contest(300*ms, nobody)
	}
	s.is(master)

	// Somebody who only asks has nothing, however often.
	s.contest(time.Second, nobody)
	s.seen = nil
	for range 30 {
		s.question(otherMAC, vip2)
		s.contest(adv, nobody)
	}
	s.changes()

	// Just after a takeover it is too early to ask.
	s = tell(t, onePin(vip2))
	s.links[vl2].MAC = selfMAC
	s.send(150)
	s.hold(vl2, vip2)
	s.question(otherMAC, vip2)
	s.run(adv)
	s.send(150)
	s.asks()
	s.run(adv)
	s.send(150)
	s.asks(vip2)
}

// Several VIPs are asked about at once.
func TestClaimsOfSeveralVIPs(t *testing.T) {
	s := tellClaims(t, vip2, ll2, vip2b)
	s.claim(otherMAC, vip2)
	s.run(adv / 2)
	s.claim(otherMAC, vip2b, ll2)
	s.run(adv / 2)
	s.send(150)
	s.run(adv)
	s.send(150)
	s.asks(vip2, vip2b, ll2)
	s.run(ms)
	s.answer(otherMAC, vip2, vip2b, ll2)
	s.is(master, "198.51.100.2, fe80::2 and 2001:db8:2::2 are here, and 02:00:00:00:00:04 on eth0.2 claims the same")
	s.seen = nil
	s.contest(4*time.Second, nobody)
	s.changes(`group RouterCore conflict ""`)
}

// Without an address to ask from, nobody is asked, and nobody accused.
func TestClaimWithoutOwnIPv6(t *testing.T) {
	s := tell(t, onePin(vip2b))
	s.links[vl2].MAC = selfMAC
	s.hold(vl2, vip2b, ll2)
	s.run(time.Minute)
	s.claim(otherMAC, vip2b)
	s.run(time.Second)
	if got := s.tracker.Probes(); len(got) != 1 || got[0].From != netip.MustParseAddr(ll2) {
		t.Fatalf("asks %+v", got) // fe80::2 is no VIP in this plan
	}
	s = tell(t, onePin(vip2b, ll2))
	s.hold(vl2, vip2b, ll2)
	s.run(time.Minute)
	s.claim(otherMAC, vip2b)
	s.run(time.Minute)
	s.asks()
	s.is(master)
}

// Nobody can make the tracker remember more than one claim a VIP.
func TestClaimsAreBounded(t *testing.T) {
	s := tellClaims(t, vip2)
	for i := range 5000 {
		s.claim(policy.MAC{2, byte(i >> 8), byte(i)}, vip2, fmt.Sprintf("198.51.%d.%d", i>>8, i&255))
		s.note(s.tracker.Claim(s.now, policy.ClaimSeen{Ifindex: i, VIP: addrs(vip2)[0], MAC: otherMAC}))
	}
	if len(s.tracker.claims) != 1 {
		t.Errorf("%d claims remembered", len(s.tracker.claims))
	}
	s.seen = nil
	s.contest(time.Second, otherMAC)
	for i := range 500 { // the text does not follow everybody who shouts
		s.claim(policy.MAC{4, byte(i >> 8), byte(i)}, vip2)
	}
	s.changes(claimedText)
	s.note(s.tracker.Update(s.now, onePin(vip2b)))
	if len(s.tracker.claims) != 0 {
		t.Error("a claim outlives its VIP's plan")
	}
}
