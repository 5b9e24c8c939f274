// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"math/rand/v2"
	"testing"
	"time"

	"vippin/policy"
)

const readyLimit = time.Minute

// readyStory is a router with peers b and c and the group core.
type readyStory struct {
	t *testing.T
	*Readiness
	now time.Duration
}

func tellReady(t *testing.T, peers ...string) *readyStory {
	s := &readyStory{t: t, Readiness: NewReadiness(readyLimit), now: time.Hour}
	s.SetPeers(s.now, peers)
	return s
}

// is checks how the group stands, and that nothing of it waits for a tick.
func (s *readyStory) is(want Standing) {
	s.t.Helper()
	s.Tick(s.now)
	if got, peer, since := s.Standing("core"); got != want {
		s.t.Fatalf("after %s: stands as %d (%q, since %s), want %d", s.now-time.Hour, got, peer, since, want)
	}
}

func (s *readyStory) run(d time.Duration)   { s.now += d }
func (s *readyStory) role(role policy.Role) { s.SetRole(s.now, "core", role) }
func (s *readyStory) joins(peer string)     { s.Joined(s.now, peer) }
func (s *readyStory) leaves(peer string)    { s.Left(s.now, peer) }
func (s *readyStory) whole(peer string)     { s.Whole(s.now, peer, "core") }
func (s *readyStory) adverts(heard bool)    { s.Heard(s.now, "core", heard) }
func (s *readyStory) says(peer, master string) {
	s.Spoken(s.now, peer)
	s.Believed(s.now, "core", master)
}

const (
	fault  = policy.RoleFault
	backup = policy.RoleBackup
	master = policy.RoleMaster
)

// The ordinary return: unknown, then a MASTER is found, then its bulk is here.
func TestReadyAfterTheBulk(t *testing.T) {
	s := tellReady(t, "b")
	s.role(backup)
	s.is(StandUnknown)
	s.adverts(true)
	s.is(StandApart)
	s.joins("b")
	s.is(StandApart)
	s.says("b", "b")
	s.is(StandMissing)
	s.run(readyGrace)
	s.is(StandMissing)
	s.whole("b")
	s.is(StandComplete)
	s.run(time.Hour)
	s.is(StandComplete)
}

func TestReadyAlone(t *testing.T) {
	none := tellReady(t)
	none.role(backup)
	none.is(StandAlone)

	silent := tellReady(t, "b") // both were off, and the peer is dead
	silent.role(backup)
	silent.run(readyGrace - 1)
	silent.is(StandUnknown)
	if silent.Next() != time.Hour+readyGrace {
		t.Errorf("waits until %s", silent.Next())
	}
	silent.run(1)
	silent.is(StandAlone)

	both := tellReady(t, "b", "c") // nobody is MASTER yet
	both.role(backup)
	both.joins("b")
	both.says("b", "")
	both.is(StandUnknown)
	both.joins("c")
	both.is(StandUnknown)
	both.says("c", "")
	both.is(StandAlone)
	both.says("c", "c") // now one is
	both.is(StandMissing)

	gone := tellReady(t, "b") // the configuration lost its peer
	gone.role(backup)
	gone.is(StandUnknown)
	gone.SetPeers(gone.now, nil)
	gone.is(StandAlone)
}

func TestReadyMaster(t *testing.T) {
	s := tellReady(t, "b")
	s.role(master)
	s.is(StandMaster)
	s.joins("b")
	s.says("b", "b")
	s.is(StandMaster)
	s.role(backup)
	s.is(StandMissing)
	s.role(master)
	s.is(StandMaster)
}

// The moment of a crash: the session ends, and it may end before VRRP has noticed.
func TestReadyKeepsWhenTheSessionEnds(t *testing.T) {
	s := tellReady(t, "b")
	s.role(backup)
	s.adverts(true)
	s.joins("b")
	s.says("b", "b")
	s.whole("b")
	s.leaves("b")
	s.Believed(s.now, "core", "")
	s.is(StandComplete)
	s.run(time.Hour)
	s.is(StandComplete)
	s.joins("b") // and comes back: what happened meanwhile is not here
	s.is(StandComplete)
	s.says("b", "b")
	s.is(StandMissing)
}

// The MASTER dies in the midst of its bulk: held back for as long as it is heard.
func TestReadyWhenTheMasterDies(t *testing.T) {
	s := tellReady(t, "b")
	s.role(backup)
	s.adverts(true)
	s.joins("b")
	s.says("b", "b")
	s.run(2 * readyGrace)
	s.leaves("b")
	s.is(StandApart)
	s.adverts(false)
	s.is(StandAlone)
}

func TestReadyGivesUp(t *testing.T) {
	s := tellReady(t, "b")
	s.role(backup)
	s.adverts(true)
	s.run(readyLimit / 2)
	s.joins("b")
	s.says("b", "b") // its bulk does not come
	s.run(readyLimit/2 - 1)
	s.is(StandMissing)
	if s.Next() != time.Hour+readyLimit {
		t.Errorf("waits until %s", s.Next())
	}
	s.run(1)
	s.is(StandGivenUp)
	for range 3 { // flapping begins no new time
		s.leaves("b")
		s.adverts(false)
		s.is(StandGivenUp)
		s.joins("b")
		s.says("b", "b")
		s.is(StandGivenUp)
	}
	s.whole("b")
	s.is(StandComplete)
	s.leaves("b")
	s.joins("b")
	s.says("b", "b")
	s.is(StandMissing)
}

func TestReadyAfterFault(t *testing.T) {
	s := tellReady(t, "b")
	s.role(fault)
	s.run(readyGrace)
	s.is(StandAlone)
	s.role(backup) // its link comes only now
	s.is(StandUnknown)
	s.joins("b")
	s.says("b", "b")
	s.whole("b")
	s.is(StandComplete)
	s.role(fault)
	s.role(backup) // the session went on
	s.is(StandComplete)
	s.leaves("b")
	s.role(fault)
	s.role(backup)
	s.is(StandUnknown)
}

// What is told of a bulk before the session or of another peer does not count.
func TestReadyWhoseBulk(t *testing.T) {
	s := tellReady(t, "b", "c")
	s.role(backup)
	s.whole("b")
	s.joins("b")
	s.joins("c")
	s.says("b", "b")
	s.whole("c")
	s.is(StandMissing)
	s.Whole(s.now, "b", "other")
	s.is(StandMissing)
	s.whole("b")
	s.is(StandComplete)
	s.says("c", "c") // another one took over, and it was told of as a peer before
	s.is(StandComplete)
	s.leaves("c")
	s.joins("c")
	s.says("c", "c")
	s.is(StandMissing)
	s.Keep(nil)
	if len(s.Behind()) != 0 || s.Next() != 0 {
		t.Error("a group that has gone is waited for")
	}
}

// TestReadyPromises throws events about and checks what is promised whatever
// happens.
func TestReadyPromises(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 5))
		s := tellReady(t, "b", "c")
		s.role(policy.Role(random.IntN(3)))
		joined, believed, role := map[string]bool{}, "", fault
		var heldSince time.Duration
		gaveUp := false
		for step := range 400 {
			limit := s.now + time.Duration(random.Int64N(int64(20*time.Second)))
			for next := s.Next(); next != 0 && next <= limit; next = s.Next() {
				if next > s.now {
					before, _, _ := s.Standing("core")
					s.Tick(next - 1)
					if after, _, _ := s.Standing("core"); before != after {
						t.Fatalf("seed %d step %d: changes before the time that Next names", seed, step)
					}
				}
				s.now = max(s.now, next)
				s.Tick(s.now)
			}
			s.now = limit
			s.Tick(s.now)
			was, _, _ := s.Standing("core")
			peer := []string{"b", "c"}[random.IntN(2)]
			left, whole := false, false
			switch random.IntN(8) {
			case 0:
				role = policy.Role(random.IntN(3))
				s.role(role)
			case 1:
				joined[peer] = true
				s.joins(peer)
			case 2:
				left, joined[peer] = true, false
				if believed == peer {
					believed = ""
				}
				s.leaves(peer)
			case 3, 4:
				if joined[peer] {
					believed = []string{"", peer}[random.IntN(2)]
					s.says(peer, believed)
				}
			case 5:
				whole = joined[peer]
				s.whole(peer)
			case 6, 7:
				s.adverts(random.IntN(2) == 0)
			}
			is, about, since := s.Standing("core")
			switch {
			case role == master && is != StandMaster:
				t.Fatalf("seed %d step %d: MASTER and stands as %d", seed, step, is)
			case left && was.Ready() && !is.Ready():
				t.Fatalf("seed %d step %d: the end of a session took the readiness away", seed, step)
			case is == StandMissing && (about != believed || !joined[about]):
				t.Fatalf("seed %d step %d: waits for %q, MASTER is %q", seed, step, about, believed)
			case is.Ready() != (since == 0):
				t.Fatalf("seed %d step %d: stands as %d since %s", seed, step, is, since)
			case gaveUp && !is.Ready() && !whole:
				t.Fatalf("seed %d step %d: held back again after giving up, without a bulk", seed, step)
			}
			if was.Ready() || is.Ready() {
				heldSince = 0
			}
			if !is.Ready() && heldSince == 0 {
				heldSince = s.now
			}
			if heldSince != 0 && s.now-heldSince >= readyLimit {
				t.Fatalf("seed %d step %d: held back for %s", seed, step, s.now-heldSince)
			}
			gaveUp = is == StandGivenUp
		}
	}
}
