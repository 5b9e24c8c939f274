// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"sync"
	"time"

	"vippin/policy"
	"vippin/policy/natsync"
)

// peerWords carries what peers say of their roles from their sessions to the loop:
// the latest word of each, and a wake-up. A nil one carries nothing.
type peerWords struct {
	wake chan struct{}

	mu     sync.Mutex
	latest map[string]peerWord // not yet taken
}

// peerWord is what a peer said, or that it has gone.
type peerWord struct {
	at    time.Duration
	gone  bool
	roles map[string]policy.Role // by group
}

func newPeerWords() *peerWords {
	return &peerWords{wake: make(chan struct{}, 1), latest: make(map[string]peerWord)}
}

func (w *peerWords) put(peer string, word peerWord) {
	w.mu.Lock()
	w.latest[peer] = word
	w.mu.Unlock()
	poke(w.wake)
}

// Say takes what a peer says of its groups.
func (w *peerWords) Say(peer string, now time.Duration, groups []natsync.GroupState) {
	if w == nil {
		return
	}
	roles := make(map[string]policy.Role, len(groups))
	for _, group := range groups {
		roles[group.Name] = group.Role
	}
	w.put(peer, peerWord{at: now, roles: roles})
}

// Gone says that a peer has no session any more.
func (w *peerWords) Gone(peer string) {
	if w != nil {
		w.put(peer, peerWord{gone: true})
	}
}

// Take hands over what has come.
func (w *peerWords) Take() map[string]peerWord {
	w.mu.Lock()
	defer w.mu.Unlock()
	words := w.latest
	w.latest = make(map[string]peerWord)
	return words
}

// peersSaid tells the tracker. The loop calls it.
func (d *daemon) peersSaid() {
	for peer, word := range d.words.Take() {
		now := d.env.monotonic()
		if word.gone {
			d.decided(d.state.tracker.PeerGone(now, peer))
			continue
		}
		d.decided(d.state.tracker.PeerWord(now, peer, word.at, word.roles))
	}
}

// setPeers tells who may have a word.
func (d *daemon) setPeers(config *policy.Config) {
	d.ready.Set(config.Sync)
	d.hush.Set(config.Sync.NoRST)
	d.decided(d.state.tracker.SetPeers(d.env.monotonic(), config.Sync.PeerNames()))
}

// spoke takes what a peer says. Called with mu, after the authority has heard it;
// before is what it said last.
func (l *peerLink) spoke(before []natsync.GroupState) {
	r := l.r
	r.words.Say(l.peer, r.monotonic(), l.groups)
	if before == nil || !slices.Equal(before, l.groups) {
		r.ready.Believed(l.peer, r.authority)
	}
}
