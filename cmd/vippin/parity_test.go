// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vippin/policy"
	"vippin/policy/parity"
)

func sampleDifferences() []policy.Difference {
	return []policy.Difference{{
		Peer: "router-b", Check: "vip", About: "pin 2, source of IPv4", Here: "198.51.100.2", There: "198.51.100.77", State: "error",
		Breaks: "living connections with the one address are not taken over where the other is the VIP: they break",
	}, {
		Peer: "router-b", Check: "nat", About: "postrouting (inet), rule 2", State: "error",
		Here:   "oifname VLAN 20 ip saddr { 192.168.101.0/24 , 192.168.102.0/24 , 192.168.103.0/24 } masquerade fully-random",
		There:  "-",
		Breaks: "new connections that it takes leave with another source while router-b is MASTER, or untranslated, and are not pinned",
	}, {
		Peer: "router-c", Check: "vlan", About: "VLAN 20", Here: "a pin with 203.0.113.20", There: "no pin", State: "error",
		Breaks: "on a failover to router-c, living connections of VLAN 20 break, and new ones leave with its own address",
	}, {
		Peer: "router-b", Check: "mtu", About: "VLAN 2", Here: "1500", There: "1400\x1b", State: "warning",
		Breaks: "after a failover, packets of living connections may be too large for the smaller one",
	}}
}

func TestShowingParity(t *testing.T) {
	none := &fakeController{differences: []policy.Difference{}}
	alone := &fakeController{err: errors.New("no peer is connected: \"vippin peers\" says why")}
	for _, c := range []struct {
		name    string
		control *fakeController
		args    []string
		width   int
		code    int
	}{
		{"parity", &fakeController{differences: sampleDifferences()}, []string{"parity"}, 0, exitFailed},
		{"parity-json", &fakeController{differences: sampleDifferences()}, []string{"parity", "-j"}, 0, exitFailed},
		{"parity-terminal", &fakeController{differences: sampleDifferences()}, []string{"parity"}, 110, exitFailed},
		{"parity-narrow", &fakeController{differences: sampleDifferences()}, []string{"parity"}, 60, exitFailed},
		{"parity-note", &fakeController{differences: []policy.Difference{{
			Peer: "router-b", Check: "fastpath", About: "the fast path", Here: "on", There: "off", State: "note", Breaks: "nothing: connections go on alike",
		}}}, []string{"parity"}, 0, exitDone},
		{"parity-none", none, []string{"parity"}, 0, exitDone},
		{"parity-none-json", none, []string{"parity", "-j"}, 0, exitDone},
		{"parity-alone", alone, []string{"parity"}, 0, exitFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newRig(t)
			b.width = c.width
			b.serve(c.control)
			code, stdout, stderr := b.run(c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d (%s)", code, c.code, stderr)
			}
			for line := range strings.Lines(stdout) {
				if c.width > 0 && visible(strings.TrimSuffix(line, "\n")) > c.width {
					t.Errorf("wider than the terminal: %q", line)
				}
			}
			golden(t, c.name, []byte(stdout+stderr))
		})
	}
}

func TestFolded(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  []string
	}{
		{"", 5, []string{""}}, {"one two", 7, []string{"one two"}}, {"one two", 6, []string{"one", "two"}},
		{"abcdefgh i", 3, []string{"abc", "def", "gh", "i"}}, {"a ééééé", 4, []string{"a", "éééé", "é"}},
	} {
		if got := folded(c.text, c.width); !slices.Equal(got, c.want) {
			t.Errorf("%q in %d: %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

// alikeBench is an alike whose router's facts the test changes.
type alikeBench struct {
	*alike
	guard  sync.Mutex
	facts  parity.Facts
	looked int
	told   [][]byte
}

func newAlikeBench() *alikeBench {
	b := &alikeBench{facts: someFacts("a")}
	start := time.Now()
	e := &env{now: time.Now, monotonic: func() time.Duration { return time.Since(start) }}
	b.alike = newAlike(e, slog.New(slog.DiscardHandler))
	b.gather = func(context.Context) (*parity.Facts, error) {
		b.guard.Lock()
		defer b.guard.Unlock()
		b.looked++
		facts := b.facts
		facts.Clock.Time = time.Now()
		return &facts, nil
	}
	b.tell = func(context.Context) {
		b.guard.Lock()
		defer b.guard.Unlock()
		b.told = append(b.told, b.digest())
	}
	return b
}

func someFacts(node string) parity.Facts {
	return parity.Facts{Format: parity.Format, Node: node, Version: "1", Tier: "tcx", Pins: []parity.Pin{{
		VLAN: policy.VLAN{Outer: 2}, Interface: "wan0", Present: true, VIPs: []netip.Addr{netip.MustParseAddr("198.51.100.2")}, Enabled: true,
	}}}
}

// factsOf is facts of a peer whose clock says now.
func factsOf(t *testing.T, facts parity.Facts, now time.Time) []byte {
	t.Helper()
	facts.Clock.Time = now
	text, err := facts.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Peers are told what changed, soon, and not what did not change.
func TestAlikeTellsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAlikeBench()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()
		wait := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		want := func(when string, looked, told int) {
			t.Helper()
			b.guard.Lock()
			defer b.guard.Unlock()
			if b.looked != looked || len(b.told) != told {
				t.Errorf("%s: looked %d times, told %d, want %d and %d", when, b.looked, len(b.told), looked, told)
			}
		}
		wait(time.Millisecond)
		want("at the start", 1, 1)
		b.guard.Lock()
		b.facts.Tier = "clsact"
		b.guard.Unlock()
		b.rouse()
		b.rouse()
		wait(alikePause)
		want("roused", 2, 2)
		b.rouse()
		wait(alikeSettle)
		want("roused too soon", 2, 2)
		wait(alikePause)
		want("roused for nothing", 3, 2)
		wait(5 * alikeEvery)
		want("by and by", 8, 2)
		wait(6 * alikeEvery)
		want("for the clock's sake", 14, 3)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What a peer says is compared at once, errors are warned of, and a peer that has
// gone is forgotten.
func TestAlikeCompares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAlikeBench()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()
		synctest.Wait()
		other := someFacts("b")
		other.Pins = nil
		reports := []policy.PeerReport{{Name: "router-b"}, {Name: "router-c"}, {Name: "router-d"}}
		connected := []string{"router-b", "router-d"}
		if _, err := b.differences(reports[:1], nil); err == nil || !strings.Contains(err.Error(), "router-b: not connected") {
			t.Errorf("without a peer: %v", err)
		}
		b.heard("router-b", factsOf(t, other, time.Now().Add(-time.Minute)))
		b.heard("router-d", []byte("nonsense"))
		b.await(ctx, connected)
		synctest.Wait()
		found, err := b.differences(reports, connected)
		var checks []string
		for _, d := range found {
			checks = append(checks, d.Peer+" "+d.Check+" "+d.State)
		}
		want := []string{"router-b vlan error", "router-b clock warning", "router-c peer warning", "router-d peer warning"}
		if err != nil || !slices.Equal(checks, want) {
			t.Errorf("%q, %v, want %q", checks, err, want)
		}
		if got := b.warnings(); len(got) != 1 || !strings.HasPrefix(got[0], "1 difference with peer router-b ") {
			t.Errorf("warnings %q", got)
		}
		b.heard("router-b", factsOf(t, someFacts("b"), time.Now().Add(alikeSettle)))
		synctest.Wait()
		if got := b.warnings(); len(got) > 0 {
			t.Errorf("alike now, and warnings %q", got)
		}
		b.gone("router-b")
		if _, err := b.differences(reports[:1], connected); err == nil || !strings.Contains(err.Error(), "has not said") {
			t.Errorf("after the peer has gone: %v", err)
		}
		brief, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		b.await(brief, connected)
		if brief.Err() == nil {
			t.Error("did not wait for a peer that says nothing")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A clock that is set is told of, though nothing else changed.
func TestAlikeClockIsSet(t *testing.T) {
	b := newAlikeBench()
	now, mono := testNow, time.Hour
	b.now, b.mono = func() time.Time { return now }, func() time.Duration { return mono }
	look := func() int {
		if err := b.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(b.told)
	}
	first := look()
	now, mono = now.Add(30*time.Second), mono+30*time.Second
	if look() != first {
		t.Error("told that time passes")
	}
	now = now.Add(-2 * time.Second)
	if look() != first+1 {
		t.Error("did not tell that the clock was set")
	}
	if facts, err := parity.Decode(b.told[1]); err != nil || !facts.Clock.Time.Equal(now) {
		t.Errorf("told %v, %v, want the time of now", facts.Clock.Time, err)
	}
}
