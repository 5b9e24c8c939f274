// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"vippin/test/traffic"
)

// A breaker that has tripped loses all that its router says on every segment and
// on the sync link, and nothing of the other's.
func TestBreaker(t *testing.T) {
	t.Parallel()
	l := ForTest(t, "breaker", Options{Hosts: 1})
	if err := l.AddSyncLink(); err != nil {
		t.Fatal(err)
	}
	b, err := l.AddBreaker(l.RA)
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	heard := func(what string, from *Node, at netip.Addr, want bool) {
		t.Helper()
		pings, err := traffic.StartPings(ctx, from.Do, traffic.PingOptions{
			Remote: at, Identifiers: []uint16{1}, Interval: 10 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer pings.Stop(nil)
		if want {
			if err := pings.Await(ctx, 1); err != nil {
				t.Errorf("%s: %s does not hear of %v: %v", what, from.Name, at, err)
			}
			return
		}
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		if pings.Await(short, 1) == nil {
			t.Errorf("%s: %s hears of %v", what, from.Name, at)
		}
	}
	ways := []struct {
		from  *Node
		ra    netip.Addr
		other netip.Addr
	}{
		{l.Hosts[0], LAN.RA.V4, LAN.RB.V4}, {l.Server, WAN.RA.V4, WAN.RB.V4}, {l.RB.Node, SyncRA, SyncRB}, {l.Server, WAN.RA.V6, WAN.RB.V6},
	}
	for _, w := range ways {
		heard("before", w.from, w.ra, true)
	}
	if err := b.Trip(); err != nil {
		t.Fatal(err)
	}
	for _, w := range ways {
		heard("cut off", w.from, w.ra, false)
		heard("cut off", w.from, w.other, true)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for _, w := range ways {
		heard("closed", w.from, w.ra, true)
	}
}
