// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// Of the flows that begin during a takeover, none keeps the new master's own
// address: not because of the addresses that keepalived moves beside the pin's
// VIPs (here the link-local one), and not because the traffic is here a moment
// before the daemon knows.
func TestNewFlowsDuringTakeover(t *testing.T) {
	s := setScene(t, "newflows", lab.Options{Hosts: 1})
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	for _, r := range s.Routers() {
		s.start(r, strings.Replace(onWAN, "vrids: [20]", `vrids: [20, "10@lan0"]`, 1))
	}
	s.awaitPeace()
	stop := make(chan struct{})
	var mu sync.Mutex
	var askers sync.WaitGroup
	seen := map[netip.Addr]int{}
	for _, remote := range []netip.Addr{lab.ServerFar.V4, lab.ServerFar.V6} {
		askers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				source, err := traffic.Ask(s.ctx, s.Hosts[0].Do, "udp", netip.AddrPort{}, lab.Port(remote, serverPort), 20*time.Millisecond)
				if err == nil { // else nobody was master
					mu.Lock()
					seen[source.Addr()]++
					mu.Unlock()
				}
			}
		})
	}
	g := s.count(s.RB, 2, func() {
		s.must(s.RA.Keepalived().Stop())
		s.awaitRole(s.RB, policy.RoleMaster)
		time.Sleep(3 * advertInterval)
		close(stop)
		askers.Wait()
	})
	t.Logf("the server saw %v; rb counted %+v", seen, g)
	if g.pinned == 0 {
		t.Error("rb pinned nothing")
	}
	if len(g.unpinnedBy) != 0 {
		t.Errorf("rb left packets unpinned: %v", g.unpinnedBy)
	}
}
