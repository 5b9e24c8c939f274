// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func digest(b []byte) *WireFrame {
	return &WireFrame{Kind: &WireFrame_Digest{Digest: &WireDigest{Digest: b}}}
}

// The peer hears a digest once, and again when it has changed; of many changes the
// latest.
func TestDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.end()
		set := func(text string) {
			if err := p.a.SetDigest([]byte(text)); err != nil {
				t.Error(err)
			}
		}
		heard := func(want ...string) {
			t.Helper()
			p.rb.mu.Lock()
			defer p.rb.mu.Unlock()
			if got := fmt.Sprintf("%q", p.rb.digests); got != fmt.Sprintf("%q", want) {
				t.Errorf("the peer heard %s, want %q", got, want)
			}
		}
		set("one")
		pass(time.Minute + 100*time.Millisecond) // not at a beat
		heard("one")
		set("one")
		pass(time.Minute)
		heard("one")
		set("two")
		synctest.Wait()
		heard("one", "two")
		pass(time.Second)
		for n := range 100 {
			set(fmt.Sprint("three ", n))
			synctest.Wait()
		}
		heard("one", "two")
		pass(time.Minute)
		heard("one", "two", "three 99")
		set("")
		pass(time.Minute)
		heard("one", "two", "three 99", "")
		if err := p.a.SetDigest(make([]byte, MaxDigest+1)); err == nil {
			t.Error("more than the peer takes is no error")
		}
		if err := p.a.SetDigest(make([]byte, MaxDigest)); err != nil {
			t.Error(err)
		}
		pass(time.Minute)
		if n := len(p.rb.digests); n != 5 || len(p.rb.digests[4]) != MaxDigest {
			t.Errorf("%d digests", n)
		}
	})
}

// lastly notes what was there when a digest came.
type lastly struct {
	*router
	flows, groups int
}

func (l *lastly) Digest(b []byte) {
	l.flows, l.groups = len(l.router.flows), len(l.state.Groups)
	l.router.Digest(b)
}

// Everything else goes first.
func TestDigestGoesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last *lastly
		p := newPair(t, func(_, b *Config) {
			last = &lastly{router: b.Handler.(*router)}
			b.Handler = last
		})
		defer p.end()
		p.rb.hold = make(chan struct{})
		p.a.SetState(ours)
		putMany(p.a, 0, 10000) // more than go out at once
		pass(100 * time.Millisecond)
		p.a.SetDigest([]byte("digest"))
		pass(2 * time.Second)
		close(p.rb.hold)
		pass(time.Second)
		if len(p.rb.digests) != 1 || last.flows != 10000 || last.groups != 2 {
			t.Errorf("%d digests came, after %d flows, %d groups", len(p.rb.digests), last.flows, last.groups)
		}
	})
}

// As many as may come are taken, one more ends the session.
func TestDigestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := meet(t, false, func(c *Config) { c.Beat = time.Minute })
		p.say(hello(1, 1), state())
		for n := range 3 * digestsMost {
			if n%digestsMost == 0 {
				pass(digestWithin)
			}
			p.say(digest([]byte("again")))
		}
		pass(100 * time.Millisecond)
		if n := len(p.r.digests); n != 3*digestsMost || len(p.done) != 0 {
			t.Errorf("%d digests are taken, ended %d", n, len(p.done))
		}
		p.say(digest([]byte("again")))
		if err := p.verdict(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "digest: over 16 in 10s") {
			t.Error(err)
		}
	})
}
