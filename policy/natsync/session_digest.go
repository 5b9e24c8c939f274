// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"bytes"
	"fmt"
	"time"
)

// The digest is what the routers should have alike. The session does not look into
// it.

const (
	digestPause  = 2 * time.Second  // between two that are sent, the latest wins
	digestsMost  = 16               // that are taken
	digestWithin = 10 * time.Second // in such a time
)

// digestOut is what the peer is told.
type digestOut struct {
	latest []byte
	due    bool
	told   bool // at least once
	at     time.Duration
}

// digestsIn is when the last digestsMost digests came.
type digestsIn struct {
	count int
	at    [digestsMost]time.Duration
}

// SetDigest is told to the peer once, after State and all that waits, and again when
// it has changed. The session keeps the slice. One of over MaxDigest octets is
// refused: the peer keeps what it has.
func (s *Session) SetDigest(digest []byte) error {
	if len(digest) > MaxDigest {
		return fmt.Errorf("digest has %d octets, over %d", len(digest), MaxDigest)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(digest, s.digest.latest) {
		return nil
	}
	s.digest.latest, s.digest.due = digest, true
	poke(s.wake)
	return nil
}

// composeDigest tells the digest if it is due. What is held back goes with a beat.
func (w *writer) composeDigest() error {
	d, now := &w.digest, w.config.Now()
	if !d.due || d.told && now-d.at < digestPause {
		return nil
	}
	d.due, d.told, d.at = false, true, now
	return w.message(frameDigest, &WireDigest{Digest: d.latest})
}

// takeDigest hands a digest to the handler. A flood of them ends the session.
func (r *reader) takeDigest(b []byte) error {
	digest, err := readDigest(b)
	if err != nil {
		return err
	}
	n, now := &r.news, r.config.Now()
	at := &n.at[n.count%digestsMost]
	if n.count >= digestsMost && now-*at < digestWithin {
		return fmt.Errorf("over %d in %v", digestsMost, digestWithin)
	}
	*at = now
	n.count++
	r.call(func() { r.config.Handler.Digest(digest) })
	return nil
}
