// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"testing"
	"time"

	"vippin/policy"
)

const beat = 500 * ms // how often a peer repeats its word

// tellPeers is a story with peers that have a session but for the last one.
func tellPeers(t *testing.T, peers ...string) *story {
	s := tell(t, onePin(vip2))
	s.note(s.tracker.SetPeers(s.now, peers))
	return s
}

// word is a peer's word of now.
func (s *story) word(peer string, role policy.Role) {
	s.t.Helper()
	s.note(s.tracker.PeerWord(s.now, peer, s.now, map[string]policy.Role{"RouterCore": role}))
}

// words is a peer's word for a while, beside our adverts, and theirs if wanted.
func (s *story) words(d time.Duration, peer string, role policy.Role, others ...func()) {
	s.t.Helper()
	for end := s.now + d; s.now < end; {
		s.word(peer, role)
		s.adverts(int(beat/adv), append([]func(){func() { s.send(150) }}, others...)...)
	}
}

const (
	wordBlocked = `both masters: 198.51.100.2 is here, and router-b says that it is MASTER over the sync link, though no adverts of another router are heard: adverts are blocked between the routers`
	wordAgree   = `router-b says that it is MASTER over the sync link, too: both witnesses agree, there are two masters, and this router hears the other one`
	wordDenied  = `no peer says over the sync link that it is MASTER: the other advertiser is not a peer, or its vippin sees it differently`
)

func TestPeerSaysMasterAlone(t *testing.T) {
	s := tellPeers(t, "router-b")
	s.master()
	s.seen = nil
	s.words(time.Second, "router-b", master)
	s.changes() // it may be a takeover still
	s.words(beat, "router-b", master)
	s.changes(`group RouterCore conflict "` + wordBlocked + `"`)
	s.words(5*time.Second, "router-b", master)
	s.changes()
	s.is(master, wordBlocked) // it changes no pinning
	s.word("router-b", backup)
	s.changes(`group RouterCore conflict ""`)
	s.is(master)
}

// VIPs set by hand have no adverts: words alone bring it about.
func TestPeerSaysMasterWithoutAdverts(t *testing.T) {
	s := tellPeers(t, "router-b")
	s.hold(vl2, vip2)
	for range 4 {
		s.word("router-b", master)
		s.run(beat)
	}
	s.is(master, wordBlocked)
}

func TestBothWitnessesSayMaster(t *testing.T) {
	s := tellPeers(t, "router-b")
	s.master()
	s.words(2*time.Second, "router-b", master, func() { s.hear(other2, 100) })
	s.is(master, "both masters: 198.51.100.3 (this router) and 198.51.100.4 advertise", wordAgree)
	s.adverts(5, func() { s.send(150) }) // now its adverts are lost
	s.words(beat, "router-b", master)
	s.is(master, wordBlocked)
	s.note(s.tracker.PeerGone(s.now, "router-b"))
	s.is(master)
}

func TestOnlyAdvertsSayMaster(t *testing.T) {
	s := tellPeers(t, "router-b", "router-c") // c never connects
	s.master()
	s.words(2*time.Second, "router-b", backup, func() { s.hear(other2, 100) })
	s.is(master, "both masters: 198.51.100.3 (this router)", wordDenied)

	alone := tellPeers(t, "router-b") // nobody's word is no witness
	alone.master()
	alone.adverts(20, func() { alone.send(150) }, func() { alone.hear(other2, 100) })
	alone.is(master, "both masters: 198.51.100.3 (this router) and 198.51.100.4 advertise VRID 10 on eth0.2; seen before: adverts filtered in one direction, a hypervisor that drops the virtual MAC or multicast")
}

// A takeover is none: not a graceful one, in which the peer's word follows, and not
// after a crash, in which its last word stays until the session is given up.
func TestTakeoverIsNoConflictOfWords(t *testing.T) {
	s := tellPeers(t, "router-b")
	for range 5 {
		s.word("router-b", master)
		s.adverts(5, func() { s.hear(other2, 100) })
		s.is(backup)
		s.seen = nil
		s.send(150)
		s.hold(vl2, vip2)
		s.words(time.Second, "router-b", master) // its daemon is slow
		s.words(2*time.Second, "router-b", backup)
		s.changes("pin 2 MASTER", "group RouterCore MASTER")
		s.word("router-b", master)
		s.drop(vl2, vip2)
	}
	s.word("router-b", master)
	s.seen = nil
	s.send(150)
	s.hold(vl2, vip2)
	s.adverts(30, func() { s.send(150) }) // it crashed and says nothing
	s.note(s.tracker.PeerGone(s.now, "router-b"))
	s.changes("pin 2 MASTER", "group RouterCore MASTER")
}

// Being MASTER together twice for a moment is not the same as for long.
func TestWordsBeginAnew(t *testing.T) {
	s := tellPeers(t, "router-b")
	s.master()
	s.seen = nil
	for range 4 {
		s.words(beat+ms, "router-b", master)
		s.word("router-b", backup)
	}
	s.changes()
}

func TestWordEvidence(t *testing.T) {
	s := tellPeers(t, "router-b", "router-c")
	s.evidence("router-b: no word (not connected)", "router-c: no word (not connected)")
	s.word("router-b", master)
	s.note(s.tracker.PeerWord(s.now, "router-c", s.now, map[string]policy.Role{"Other": master}))
	s.note(s.tracker.PeerWord(s.now, "nobody", s.now, map[string]policy.Role{"RouterCore": master}))
	s.run(20 * ms)
	s.evidence("router-b says MASTER over the sync link, 20ms ago", "router-c knows no group RouterCore")
	s.note(s.tracker.PeerGone(s.now, "router-b"))
	s.evidence("router-b: no word (not connected)")
	s.note(s.tracker.SetPeers(s.now, []string{"router-c"}))
	if len(s.tracker.Groups(s.now, time.Time{})[0].Evidence) != 2 {
		t.Errorf("%q", s.tracker.Groups(s.now, time.Time{})[0].Evidence)
	}
}

func TestHearsMaster(t *testing.T) {
	s := tellPeers(t)
	if s.tracker.HearsMaster(s.now, "RouterCore") {
		t.Error("hears somebody in silence")
	}
	s.adverts(3, func() { s.hear(other2, 100) })
	if !s.tracker.HearsMaster(s.now, "RouterCore") || s.tracker.HearsMaster(s.now, "other") {
		t.Error("does not hear the MASTER, or in the wrong group")
	}
	s.run(time.Second)
	if s.tracker.HearsMaster(s.now, "RouterCore") {
		t.Error("hears who is silent")
	}
	s.hear(other2, 0)
	if s.tracker.HearsMaster(s.now, "RouterCore") {
		t.Error("hears who resigned")
	}
}
