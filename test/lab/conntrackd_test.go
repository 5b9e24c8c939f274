// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vippin/test/traffic"
)

// startConntrackd sets both routers up as people do today: ra is MASTER.
func startConntrackd(t *testing.T, l *Lab, c Conntrackd) context.Context {
	t.Helper()
	ctx := testContext(t)
	if err := l.AddSyncLink(); err != nil {
		t.Fatal(err)
	}
	for _, r := range l.Routers() {
		if _, err := l.StartConntrackd(ctx, r, c); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range l.Routers() { // ra first
		k := Keepalived{IPv4Only: true, Global: "\tscript_user root\n", Group: r.NotifyConntrackd()}
		if _, err := l.StartKeepalived(r, k); err != nil {
			t.Fatal(err)
		}
		if err := l.RA.AwaitMaster(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.RB.Keepalived().AwaitLog(ctx, "Entering BACKUP STATE"); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// A flow gets into the peer's external cache by the sync link, and not without
// it; a takeover has the script commit it. The flow leaves with the VIP.
func TestConntrackdCommitsAtTakeover(t *testing.T) {
	l := ForTest(t, "ctd", Options{Hosts: 1, Masquerade: MasqueradeSNAT})
	ctx := startConntrackd(t, l, Conntrackd{Shorten: true})
	server := serve(t, l)
	wantSources(t, sourceOf(t, l.Hosts[0], server, ServerWAN.V4), WAN.VIP4)

	cached := func(port string) func() (bool, error) {
		return func() (bool, error) {
			out, err := l.RB.Conntrackd(ctx, "-e")
			return strings.Contains(out, "sport="+port), err
		}
	}
	ask := func(port uint16) {
		t.Helper()
		local := netip.AddrPortFrom(HostEnds(0).V4, port)
		if _, err := traffic.Ask(ctx, l.Hosts[0].Do, "udp", local, Port(ServerWAN.V4, testPort), 3*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	ask(4001)
	if err := Await(ctx, "the flow in rb's external cache", cached("4001")); err != nil {
		t.Fatal(err)
	}
	if err := l.CutSync(l.RA); err != nil {
		t.Fatal(err)
	}
	ask(4002)
	if err := l.Crash(l.RA); err != nil {
		t.Fatal(err)
	}
	if err := Await(ctx, "rb's commit", func() (bool, error) {
		log, err := l.RB.ConntrackdLog()
		return strings.Contains(log, "commit has taken"), err
	}); err != nil {
		t.Fatal(err)
	}
	table, err := l.RB.Run(ctx, "conntrack", "-L", "-p", "udp")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table, "sport=4001") || strings.Contains(table, "sport=4002") {
		t.Errorf("rb's table after the commit:\n%s", table)
	}
}

// LinksDown is a failure from within: the links are down, keepalived is dead,
// whatever else ran lives on and is heard on the sync link.
func TestLinksDown(t *testing.T) {
	l := ForTest(t, "down", Options{Hosts: 1, Masquerade: MasqueradeSNAT})
	ctx := startConntrackd(t, l, Conntrackd{Direct: true})
	if err := l.LinksDown(l.RA); err != nil {
		t.Fatal(err)
	}
	if err := l.RB.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
	if l.RA.Keepalived().Alive() {
		t.Error("keepalived lives")
	}
	for _, s := range l.Segments() {
		link, err := l.RA.Netlink().LinkByName(s.Name)
		if err != nil || link.Attrs().RawFlags&1 != 0 { // IFF_UP
			t.Errorf("%s is up (%v)", s.Name, err)
		}
	}
	if _, err := l.RA.Conntrackd(ctx, "-s"); err != nil {
		t.Errorf("conntrackd on ra: %v", err)
	}
	if _, err := l.RA.Run(ctx, "ping", "-c", "1", "-W", "5", SyncRB.String()); err != nil {
		t.Errorf("the sync link: %v", err)
	}
}
