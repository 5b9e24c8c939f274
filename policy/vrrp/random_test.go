// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"math/rand/v2"
	"testing"
	"time"

	"vippin/policy"
)

// TestChangesAddUp throws events about: whoever applies the changes must end
// with the state that the snapshots show, and time alone must bring the same
// whether or not somebody asks in between.
func TestChangesAddUp(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		s := tell(t, planOf())
		pins, conflict, role := map[uint32]policy.Role{}, "", policy.RoleFault
		apply := func(changes []Change) {
			for _, c := range changes {
				switch {
				case c.Pin != 0:
					if c.Was != pins[c.Pin] {
						t.Fatalf("seed %d: pin %d was %s, told %s", seed, c.Pin, pins[c.Pin], c.Was)
					}
					pins[c.Pin] = c.Role
				case c.Group != 0:
					conflict, role = c.Conflict, c.Role
				}
			}
		}
		// Once more from the start, so that the first decisions are seen.
		tracker := NewTracker(Config{})
		s.tracker = tracker
		apply(tracker.Update(s.now, planOf()))
		observe := func() {
			var obs policy.Observed
			for _, link := range s.links {
				obs.Links = append(obs.Links, *link)
			}
			apply(tracker.Observe(s.now, obs))
		}
		observe()
		apply(tracker.SetPeers(s.now, []string{"router-b"}))
		toggle := func(ifindex int, vip string) {
			before := len(s.links[ifindex].Addrs)
			s.links[ifindex].Addrs = without(s.links[ifindex].Addrs, vip)
			if len(s.links[ifindex].Addrs) == before {
				s.add(ifindex, vip)
			}
			observe()
		}
		for range 400 {
			s.now += time.Duration(random.IntN(int(adv)))
			for next := tracker.Next(); next != 0 && next <= s.now && random.IntN(4) > 0; next = tracker.Next() {
				apply(tracker.Tick(s.now))
			}
			switch random.IntN(13) {
			case 0:
				toggle(vl2, vip2)
			case 1:
				toggle(vl20, vip20)
			case 2, 3:
				apply(tracker.Advert(s.now, s.packet(vl2, policy.Out, self2, 10, uint8(random.IntN(8)*30), vip2)))
			case 4, 5:
				apply(tracker.Advert(s.now, s.packet(vl20, policy.In, other2, 20, uint8(random.IntN(8)*30), vip20)))
			case 6:
				states := []string{"MASTER", "BACKUP", "FAULT", "STOP", "DELETED"}
				apply(tracker.FIFO(s.now, "GROUP", "RouterCore", states[random.IntN(len(states))], 0))
			case 8, 9:
				apply(tracker.Claim(s.now, policy.ClaimSeen{
					Time: s.now, Ifindex: vl2, VIP: addrs(vip2)[0], MAC: otherMAC, Kind: policy.ClaimKind(random.IntN(3)),
				}))
				tracker.Probes()
			case 10, 11:
				roles := map[string]policy.Role{"RouterCore": policy.Role(random.IntN(3))}
				apply(tracker.PeerWord(s.now, "router-b", s.now, roles))
			case 12:
				apply(tracker.PeerGone(s.now, "router-b"))
			case 7:
				s.links[vl20].Up = random.IntN(3) > 0
				observe()
			}
		}
		apply(tracker.Tick(s.now))
		for id, got := range tracker.Pins() {
			if pins[id] != got {
				t.Fatalf("seed %d: pin %d is %s, the changes say %s", seed, id, got, pins[id])
			}
		}
		g := tracker.Groups(s.now, time.Time{})[0]
		if g.Conflict != conflict || g.Role != role {
			t.Fatalf("seed %d: group is %s %q, the changes say %s %q", seed, g.Role, g.Conflict, role, conflict)
		}
		if changes := tracker.Tick(s.now); len(changes) != 0 {
			t.Fatalf("seed %d: the same moment again decides otherwise: %+v", seed, changes)
		}
	}
}

// TestTicksMissNothing: between two points that Next names, a Tick at any
// other moment decides nothing.
func TestTicksMissNothing(t *testing.T) {
	s := tell(t, planOf())
	s.send(150)
	s.hold(vl2, vip2)
	s.hold(vl20, vip20)
	s.adverts(3, func() { s.send(150) }, func() { s.hear(other2, 100) })
	s.note(s.tracker.FIFO(s.now, "GROUP", "RouterCore", "BACKUP", 0))
	for end := s.now + 5*time.Second; s.now < end; s.now += ms {
		next := s.tracker.Next()
		changes := s.tracker.Tick(s.now)
		if len(changes) > 0 && (next == 0 || next > s.now) {
			t.Fatalf("a Tick %s before the time named (%s) decides %+v", next-s.now, next, changes)
		}
	}
	s.is(fault, "adverts have stopped")
}
