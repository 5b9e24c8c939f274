// SPDX-License-Identifier: Apache-2.0

package traffic_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"go.uber.org/goleak"

	"vippin/test/lab"
	"vippin/test/traffic"
)

func TestMain(m *testing.M) {
	code := lab.Main(m)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "goroutines left over:", err)
		code = 1
	}
	os.Exit(code)
}

const port = 7000

var (
	server4 = lab.Port(lab.ServerWAN.V4, port)
	server6 = lab.Port(lab.ServerWAN.V6, port)
)

// network builds a lab with one router and an echo server.
func network(t *testing.T, name string, opts lab.Options) (*lab.Lab, *traffic.Server, context.Context) {
	t.Helper()
	opts.SingleRouter = true
	l := lab.ForTest(t, name, opts)
	both := []netip.AddrPort{server4, server6}
	server, err := traffic.Serve(l.Server.Do, traffic.ServerOptions{TCP: both, UDP: both, Ping: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return l, server, ctx
}

// Two hosts on the same source port get two sources, and each flow learns its
// own one.
func TestFlowsLearnTheirSource(t *testing.T) {
	l, server, ctx := network(t, "flows", lab.Options{})
	for _, proto := range []string{"tcp", "udp"} {
		for _, remote := range []netip.AddrPort{server4, server6} {
			sources := make(map[netip.AddrPort]bool)
			for _, host := range l.Hosts {
				flow, err := traffic.StartFlow(ctx, host.Do, traffic.FlowOptions{
					Proto: proto, Remote: remote, Local: netip.AddrPortFrom(netip.Addr{}, 5555),
					Interval: 5 * time.Millisecond, Requests: 5, Timeout: 20 * time.Second,
				})
				if err != nil {
					t.Fatal(err)
				}
				<-flow.Done()
				report := flow.Stop()
				if report.Sent != 5 || report.Answered != 5 || report.Broken() || len(report.Sources) != 1 {
					t.Fatalf("%s: %+v", host.Name, report)
				}
				if report.Local.Port() != 5555 {
					t.Errorf("%s: local end %s, want port 5555", host.Name, report.Local)
				}
				seen := server.Stream(report.ID)
				if seen.Packets != 5 || seen.Missing != 0 || seen.Sources[0] != report.Sources[0] {
					t.Errorf("the server saw %+v, the client was told %v", seen, report.Sources)
				}
				sources[report.Sources[0]] = true
			}
			if len(sources) != len(l.Hosts) {
				t.Errorf("%s to %s: sources %v, want one for each of %d hosts", proto, remote, sources, len(l.Hosts))
			}
		}
	}
}

// A source that changes in mid-flow is seen, one-way streams included.
func TestMovedSourcesAreSeen(t *testing.T) {
	l, server, ctx := network(t, "moved", lab.Options{Hosts: 1})
	udp, err := traffic.StartFlow(ctx, l.Hosts[0].Do, traffic.FlowOptions{Proto: "udp", Remote: server4, Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	oneWay, err := traffic.StartFlow(ctx, l.Hosts[0].Do, traffic.FlowOptions{ID: "stream", Proto: "udp", Remote: server6, Interval: 5 * time.Millisecond, OneWay: true})
	if err != nil {
		t.Fatal(err)
	}
	pings, err := traffic.StartPings(ctx, l.Hosts[0].Do, traffic.PingOptions{Remote: server4.Addr(), Identifiers: []uint16{7, 8}, Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	before, err := server.AwaitStream(ctx, "stream", 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := pings.Await(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if len(before.Sources) != 1 || udp.Report().Moved() || len(pings.Report(server).Moved()) != 0 {
		t.Fatalf("moved before anything happened: %v, %+v", before.Sources, udp.Report())
	}
	// Another rule and an empty table: every flow gets a new mapping.
	if err := l.RA.NFT(ctx, `flush ruleset
		table inet nat {
			chain postrouting {
				type nat hook postrouting priority srcnat;
				meta nfproto ipv4 snat ip to 198.51.100.2
				meta nfproto ipv6 snat ip6 to 2001:db8:100::2
			}
		}`); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RA.Run(ctx, "conntrack", "-F"); err != nil {
		t.Fatal(err)
	}
	if err := lab.Await(ctx, "flows from two sources", func() (bool, error) {
		return udp.Report().Moved() && len(server.Stream("stream").Sources) == 2 && len(pings.Report(server).Moved()) == 2, nil
	}); err != nil {
		t.Errorf("%v: %+v %+v %s", err, udp.Report(), server.Stream("stream"), pings.Report(server))
	}
	report := traffic.Report{Flows: []traffic.FlowReport{udp.Stop()}}
	if !strings.Contains(report.String(), "1 moved") || report.Addresses()[lab.WAN.VIP4] != 1 {
		t.Errorf("report: %s", report)
	}
	oneWay.Stop()
	pings.Stop(server)
}

// An outage is a gap; for TCP, one longer than the timeout breaks the flow.
func TestOutageIsSeen(t *testing.T) {
	l, _, ctx := network(t, "outage", lab.Options{Hosts: 1})
	start := func(proto string, timeout time.Duration) *traffic.Flow {
		flow, err := traffic.StartFlow(ctx, l.Hosts[0].Do, traffic.FlowOptions{Proto: proto, Remote: server4, Interval: 10 * time.Millisecond, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		return flow
	}
	patient, hasty, udp := start("tcp", 20*time.Second), start("tcp", 2*time.Second), start("udp", 250*time.Millisecond)
	if err := l.CutCable(l.RA, lab.WAN); err != nil {
		t.Fatal(err)
	}
	<-hasty.Done() // this is how long the outage lasts
	plugged := time.Now()
	if err := l.PlugCable(l.RA, lab.WAN); err != nil {
		t.Fatal(err)
	}
	over := func(r traffic.FlowReport) bool { // a stall of the machine may be a gap, too
		return slices.ContainsFunc(r.Gaps, func(g traffic.Gap) bool {
			return g.Length > 300*time.Millisecond && g.Start.Before(plugged) && g.Start.Add(g.Length).After(plugged)
		})
	}
	before := [2]uint64{patient.Report().Answered, udp.Report().Answered}
	if err := lab.Await(ctx, "answers after the outage", func() (bool, error) {
		a, b := patient.Report(), udp.Report()
		return a.Answered > before[0] && over(a) && b.Answered > before[1] && over(b), nil
	}); err != nil {
		t.Errorf("%v: %+v %+v", err, patient.Report(), udp.Report())
	}
	if report := hasty.Stop(); !report.Broken() || !over(report) {
		t.Errorf("the hasty flow: %+v, want it broken", report)
	}
	if report := patient.Stop(); report.Broken() {
		t.Errorf("the patient flow broke: %+v", report)
	}
	udp.Stop()
}

// Bulk transfers with offloads on and off. The wire tells whether the offloads
// did what they say.
func TestBulk(t *testing.T) {
	const octets = 16 << 20
	for _, offloads := range []lab.Offloads{lab.OffloadsOn, lab.OffloadsOff} {
		t.Run(string(offloads), func(t *testing.T) {
			l, _, ctx := network(t, "bulk"+string(offloads), lab.Options{Hosts: 1, Offloads: offloads})
			wire, err := traffic.StartCapture(l.RA.Do, lab.WAN.Name)
			if err != nil {
				t.Fatal(err)
			}
			for _, transfer := range []func(context.Context, traffic.Enter, netip.AddrPort, int64) (traffic.Bulk, error){traffic.Put, traffic.Get} {
				for _, remote := range []netip.AddrPort{server4, server6} {
					bulk, err := transfer(ctx, l.Hosts[0].Do, remote, octets)
					if err != nil {
						t.Fatal(err)
					}
					want := lab.WAN.RA.V4
					if remote == server6 {
						want = lab.WAN.RA.V6
					}
					if bulk.Source.Addr() != want || bulk.Sent != bulk.Received || len(bulk.Sent) != 64 {
						t.Errorf("transfer: %+v", bulk)
					}
				}
			}
			if err := wire.Close(); err != nil {
				t.Fatal(err)
			}
			big := wire.Frames(func(f traffic.Frame) bool { return len(f.Packet.Data()) > 1514 })
			if offloads == lab.OffloadsOn && len(big) == 0 || offloads == lab.OffloadsOff && len(big) > 0 {
				t.Errorf("%d frames above the MTU", len(big))
			}
			for _, node := range []*lab.Node{l.Hosts[0], l.Server} {
				if n, err := traffic.ChecksumErrors(node.Do); err != nil || n != 0 {
					t.Errorf("%s: %d checksum errors (%v)", node.Name, n, err)
				}
			}
		})
	}
}

// A wrong checksum is counted: the assertion of none above can fail.
func TestChecksumErrorsAreCounted(t *testing.T) {
	l, _, ctx := network(t, "sums", lab.Options{Hosts: 1, Offloads: lab.OffloadsOff})
	// The payload of every datagram is changed behind the stack's back.
	if err := l.WANSwitch.NFT(ctx, `table bridge spoil {
			chain forward {
				type filter hook forward priority 0;
				oifname "srv" udp dport 7000 @th,64,16 set 0x4141
			}
		}`); err != nil {
		t.Fatal(err)
	}
	for _, remote := range []netip.AddrPort{server4, server6} {
		before, err := traffic.ChecksumErrors(l.Server.Do)
		if err != nil {
			t.Fatal(err)
		}
		flow, err := traffic.StartFlow(ctx, l.Hosts[0].Do, traffic.FlowOptions{Proto: "udp", Remote: remote, Interval: 10 * time.Millisecond, OneWay: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := lab.Await(ctx, "a checksum error", func() (bool, error) {
			now, err := traffic.ChecksumErrors(l.Server.Do)
			return now > before, err
		}); err != nil {
			t.Error(err)
		}
		flow.Stop()
	}
}

// A thousand flows start fast enough, and their report adds up.
func TestManyFlows(t *testing.T) {
	l, server, ctx := network(t, "many", lab.Options{})
	const count = 1000
	flows, err := traffic.StartFlows(ctx, l.Hosts[0].Do, count, func(i int) traffic.FlowOptions {
		return traffic.FlowOptions{Proto: "tcp", Remote: server4}
	})
	if err != nil {
		t.Fatal(err)
	}
	identifiers := make([]uint16, 200)
	for i := range identifiers {
		identifiers[i] = uint16(i)
	}
	pings, err := traffic.StartPings(ctx, l.Hosts[1].Do, traffic.PingOptions{Remote: server6.Addr(), Identifiers: identifiers})
	if err != nil {
		t.Fatal(err)
	}
	if err := pings.Await(ctx, 1); err != nil {
		t.Error(err)
	}
	if r := pings.Stop(server); r.Addresses()[lab.WAN.RA.V6] != len(identifiers) {
		t.Errorf("pings: %s", r)
	}
	if r := flows.Stop(); len(r.Flows) != count || len(r.Broken())+len(r.Moved())+len(r.Silent()) != 0 || r.Addresses()[lab.WAN.RA.V4] != count {
		t.Errorf("flows: %s", r)
	}
}

// A capture sees both directions and tells them apart.
func TestCaptureTellsDirections(t *testing.T) {
	l, _, ctx := network(t, "capture", lab.Options{Hosts: 1})
	wire, err := traffic.StartCapture(l.RA.Do, lab.WAN.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer wire.Close()
	if _, err := traffic.Ask(ctx, l.Hosts[0].Do, "udp", netip.AddrPort{}, server4, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	udp := func(outgoing bool, source netip.Addr) func(traffic.Frame) bool {
		return func(f traffic.Frame) bool {
			ip, ok := f.Packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
			return ok && f.Packet.Layer(layers.LayerTypeUDP) != nil && f.Outgoing == outgoing && ip.SrcIP.String() == source.String()
		}
	}
	for _, match := range []func(traffic.Frame) bool{udp(true, lab.WAN.RA.V4), udp(false, server4.Addr())} {
		if _, err := wire.Await(ctx, 1, match); err != nil {
			t.Error(err)
		}
	}
	if wrong := wire.Frames(udp(false, lab.WAN.RA.V4)); len(wrong) != 0 {
		t.Errorf("%d frames of the router's own came in", len(wrong))
	}
}

// A drive goes on sending while nothing is answered, and tells the gap.
func TestDriveDoesNotWait(t *testing.T) {
	l, server, ctx := network(t, "drive", lab.Options{Hosts: 1})
	d, err := traffic.StartDrive(ctx, l.Hosts[0].Do, traffic.FlowOptions{ID: "driven", Remote: server4})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Stop()
	grown := func(what string, count func(traffic.DriveReport) uint64) {
		t.Helper()
		before := count(d.Report())
		if err := lab.Await(ctx, what, func() (bool, error) { return count(d.Report()) >= before+50, nil }); err != nil {
			t.Fatal(err)
		}
	}
	sent := func(r traffic.DriveReport) uint64 { return r.Sent }
	answered := func(r traffic.DriveReport) uint64 { return r.Answered }
	grown("answers", answered)
	if err := l.Server.NFT(ctx, "table inet deaf { chain input { type filter hook input priority filter; udp dport 7000 drop; }; }"); err != nil {
		t.Fatal(err)
	}
	d.Mend()
	grown("requests without answers", sent)
	if err := l.Server.NFT(ctx, "delete table inet deaf"); err != nil {
		t.Fatal(err)
	}
	grown("answers again", answered)
	report := d.Report()
	if report.LongestGap < 40*time.Millisecond || len(report.Sources) != 1 {
		t.Errorf("%+v, want a gap of 50 requests and one source", report)
	}
	if seen := server.Stream("driven"); seen.Missing == 0 || seen.Packets == 0 {
		t.Errorf("the server saw %+v", seen)
	}
}

// Transfers follow each other over one connection, which the caller ends.
func TestLineCarriesSeveralTransfers(t *testing.T) {
	l, _, ctx := network(t, "line", lab.Options{Hosts: 1})
	line, err := traffic.OpenLine(ctx, l.Hosts[0].Do, netip.AddrPortFrom(netip.Addr{}, 4000), server6)
	if err != nil {
		t.Fatal(err)
	}
	for _, transfer := range []func(int64) (traffic.Bulk, error){line.Put, line.Get, line.Put} {
		bulk, err := transfer(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		if bulk.Source != line.Source || bulk.Source.Port() != 4000 || bulk.Octets != 1<<20 {
			t.Errorf("%+v over a connection from %s", bulk, line.Source)
		}
	}
	if err := line.Reset(); err != nil {
		t.Error(err)
	}
	counts, err := traffic.Counters(l.Hosts[0].Do)
	if err != nil || counts["TcpOutRsts"] != 1 {
		t.Errorf("%d segments with RST were sent (%v), want 1", counts["TcpOutRsts"], err)
	}
}
