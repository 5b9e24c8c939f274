// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/test/traffic"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childMode) {
	case "":
	case spins:
		spin()
	default:
		os.Exit(child())
	}
	// Labs wait rather than work: more of them at a time than there are CPUs.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(Main(m))
}

const testPort = 7000

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// serve runs an echo server on every address that the lab's server has.
func serve(t *testing.T, l *Lab) *traffic.Server {
	t.Helper()
	ends := []Ends{ServerWAN, ServerFar}
	if l.Options.WAN1 {
		ends = append(ends, ServerWAN1)
	}
	opts := traffic.ServerOptions{Ping: true}
	for _, e := range ends {
		for _, addr := range []netip.Addr{e.V4, e.V6} {
			opts.TCP = append(opts.TCP, Port(addr, testPort))
			opts.UDP = append(opts.UDP, Port(addr, testPort))
		}
	}
	server, err := traffic.Serve(l.Server.Do, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// pingsNamed numbers pings: the server remembers what it saw of a name.
var pingsNamed atomic.Int64

// sourceOf asks the server, by each protocol, which address it sees.
func sourceOf(t *testing.T, from *Node, server *traffic.Server, to netip.Addr) map[string]netip.Addr {
	t.Helper()
	ctx := testContext(t)
	seen := make(map[string]netip.Addr)
	for _, proto := range []string{"tcp", "udp"} {
		source, err := traffic.Ask(ctx, from.Do, proto, netip.AddrPort{}, Port(to, testPort), 3*time.Second)
		if err != nil {
			t.Fatalf("%s from %s to %s: %v", proto, from.Name, to, err)
		}
		seen[proto] = source.Addr()
	}
	pings, err := traffic.StartPings(ctx, from.Do, traffic.PingOptions{
		Remote: to, Identifiers: []uint16{77}, Name: fmt.Sprintf("ping%d", pingsNamed.Add(1)), Interval: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	err = pings.Await(ctx, 1)
	report := pings.Stop(server)
	if err != nil {
		t.Fatalf("ping from %s: %v: %s", from.Name, err, report)
	}
	seen["icmp"] = report.Flows[0].Sources[0].Addr()
	return seen
}

func wantSources(t *testing.T, seen map[string]netip.Addr, want netip.Addr) {
	t.Helper()
	for proto, source := range seen {
		if source != want {
			t.Errorf("%s arrived from %s, want %s", proto, source, want)
		}
	}
}

// The flaw that vippin is there for: the router's own address leaves, not the
// virtual one, although the router holds it.
func TestMasqueradeShowsOwnAddress(t *testing.T) {
	for i, how := range []Masquerade{MasqueradeNFT, MasqueradeRandom, MasqueradeIPTables, MasqueradeNone} {
		t.Run(string(how), func(t *testing.T) {
			l := ForTest(t, fmt.Sprintf("masq%d", i), Options{Hosts: 1, SingleRouter: true, Masquerade: how})
			server := serve(t, l)
			want := l.RA.Own(WAN)
			if how == MasqueradeNone {
				want = HostEnds(0)
			}
			for _, to := range []Ends{ServerWAN, ServerFar} {
				wantSources(t, sourceOf(t, l.Hosts[0], server, to.V4), want.V4)
				wantSources(t, sourceOf(t, l.Hosts[0], server, to.V6), want.V6)
			}
		})
	}
}

// The firewall lets answers in, and nothing that was not asked for.
func TestFirewall(t *testing.T) {
	for _, on := range []bool{true, false} {
		l := ForTest(t, fmt.Sprintf("fw%t", on), Options{Hosts: 1, SingleRouter: true, Firewall: on})
		server := serve(t, l)
		wantSources(t, sourceOf(t, l.Hosts[0], server, ServerFar.V4), WAN.RA.V4)
		wantSources(t, sourceOf(t, l.Hosts[0], server, ServerFar.V6), WAN.RA.V6)
		for _, router := range []netip.Addr{WAN.RA.V4, WAN.VIP4, WAN.RA.V6, WAN.VIP6} {
			pings, err := traffic.StartPings(testContext(t), l.Server.Do, traffic.PingOptions{
				Remote: router, Identifiers: []uint16{1}, Interval: 20 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			answered := pings.Await(ctx, 1) == nil
			cancel()
			pings.Stop(nil)
			if answered == on {
				t.Errorf("firewall %t: %s answers the WAN: %t", on, router, answered)
			}
		}
	}
}

// A rebooted router has forgotten everything, and has the addresses it had.
func TestReboot(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	l := ForTest(t, "reboot", Options{Firewall: true, Hosts: 1})
	if err := l.AddSyncLink(); err != nil {
		t.Fatal(err)
	}
	if err := l.StartRouters(ctx, Keepalived{IPv4Only: true}); err != nil {
		t.Fatal(err)
	}
	server := serve(t, l)
	sourceOf(t, l.Hosts[0], server, ServerFar.V4)
	describe := func() string {
		text, err := l.RA.Run(ctx, "sh", "-c", "(ip -br link; ip -br addr; ip route) | sed 's/@if[0-9]*//' | tr -s ' '; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward")
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, vip := range l.RA.VIPs() {
		if held, err := l.RA.Holds(vip); err != nil || !held {
			t.Fatalf("ra does not hold %s (%v)", vip, err)
		}
	}
	if err := l.RA.Keepalived().Stop(); err != nil { // so that the VIPs are not compared
		t.Fatal(err)
	}
	before := describe()
	if err := l.Reboot(ctx, l.RA); err != nil {
		t.Fatal(err)
	}
	if err := l.RB.AwaitMaster(ctx); err != nil {
		t.Fatal(err)
	}
	if after := describe(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	entries, err := l.RA.Netlink().ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil || len(entries) > 0 {
		t.Errorf("conntrack knows %v (%v)", entries, err)
	}
	if _, err := l.StartKeepalived(l.RA, Keepalived{IPv4Only: true}); err != nil {
		t.Fatal(err)
	}
	if err := l.RA.AwaitMaster(ctx); err != nil { // and works
		t.Fatal(err)
	}
	sourceOf(t, l.Hosts[0], server, ServerFar.V4)
}
