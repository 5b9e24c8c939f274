// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"net/netip"
	"testing"
	"time"
)

// Addresses of the loopback interface that nobody else serves.
var (
	stormServer = netip.MustParseAddr("127.77.0.1")
	stormClient = netip.MustParseAddr("127.77.0.2")
)

// stormAway makes connections until there are enough attempts, and all have an end.
func stormAway(t *testing.T, attempts int) []Attempt {
	t.Helper()
	s, err := startStorm(StormPlan{Local: stormClient, Server: stormServer, Ports: 2, Rate: 500, Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for start, ended := time.Now(), false; ; time.Sleep(time.Millisecond) {
		r, err := s.report()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Attempts) >= attempts && !ended {
			s.end()
			ended = true
			continue
		}
		if ended && r.Waiting == 0 {
			return r.Attempts
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("%d attempts, %d of them under way", len(r.Attempts), r.Waiting)
		}
	}
}

// A storm tells connections that were made from those that were refused, on every
// port.
func TestStorm(t *testing.T) {
	s, err := startServer(ServerPlan{Local: stormServer, Ports: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range stormAway(t, 50) {
		if a.Took <= 0 {
			t.Errorf("attempt %d was not made", i)
		}
	}
	if took, err := connect(ConnectPlan{Local: stormClient, Server: stormServer, Count: 3}); err != nil || len(took) != 3 || took[2] <= 0 {
		t.Errorf("connections took %v (%v)", took, err)
	}
	s.close()
	for i, a := range stormAway(t, 10) {
		if a.Took != 0 {
			t.Errorf("attempt %d was made in %s, and nobody listens", i, a.Took)
		}
	}
	if took, err := connect(ConnectPlan{Local: stormClient, Server: stormServer, Count: 2}); err != nil || took[0] != 0 || took[1] != 0 {
		t.Errorf("connections took %v (%v), and nobody listens", took, err)
	}
}

// The server listens on one port alone if no more were asked for.
func TestServerPorts(t *testing.T) {
	s, err := startServer(ServerPlan{Local: stormServer, TCP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for i, a := range stormAway(t, 10) {
		if made := a.Took > 0; made != (i%2 == 0) {
			t.Errorf("attempt %d at port %d: made %v", i, TCPPort+i%2, made)
		}
	}
}

// What is not answered in time has failed.
func TestStormPatience(t *testing.T) {
	s := &storm{plan: StormPlan{Patience: time.Second}, ended: true}
	now := time.Now()
	for _, age := range []time.Duration{3 * time.Second, 2 * time.Second, time.Second / 2} {
		s.attempts, s.sockets = append(s.attempts, Attempt{Begun: now.Add(-age)}), append(s.sockets, -1)
	}
	s.onTick(now)
	if s.overdue != 2 {
		t.Errorf("%d of 3 are overdue, want 2", s.overdue)
	}
}
