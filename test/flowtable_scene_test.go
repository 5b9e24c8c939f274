// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vippin/loader/conntrack"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// Flow tables of nf_tables need nf_flow_table, which not every kernel has: package vm
// runs the tests of them on ones that do.

// What a flow table takes no longer comes by here: the counters are of what does.
const flowtableRules = `
table inet ft {
	flowtable fast { hook ingress priority 0; devices = { %[1]s }; }
	chain forward {
		type filter hook forward priority 10; policy accept;
		meta l4proto { tcp, udp } counter
		meta l4proto { tcp, udp } ct state established flow add @fast
	}
}
`

// addFlowtable has a router's established flows take a flow table.
func (s *scene) addFlowtable(r *lab.Router) {
	s.t.Helper()
	s.must(r.NFT(s.ctx, fmt.Sprintf(flowtableRules, r.Ifname(lab.LAN)+", "+r.Ifname(lab.WAN))))
}

// needFlowtable skips the test where the kernel has no flow tables. It tries one in a
// network namespace that ends with the command.
func needFlowtable(t *testing.T) {
	t.Helper()
	nft := exec.CommandContext(t.Context(), "nft", "table inet try { flowtable try { hook ingress priority 0; devices = { lo }; }; }")
	nft.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	switch out, err := nft.CombinedOutput(); {
	case err == nil:
	case strings.Contains(string(out), "No such file or directory"):
		t.Skip("this kernel has no flow tables of nf_tables (module nf_flow_table)")
	default:
		t.Fatalf("try a flow table: %v: %s", err, out)
	}
}

// setTimeouts shortens timeouts of a router's conntrack: of UDP flows, of those that go
// on as a stream, and of flow tables.
func (s *scene) setTimeouts(r *lab.Router, udp, stream, table time.Duration) {
	s.t.Helper()
	for name, timeout := range map[string]time.Duration{
		"nf_conntrack_udp_timeout": udp, "nf_conntrack_udp_timeout_stream": stream,
		"nf_flowtable_udp_timeout": table, "nf_flowtable_tcp_timeout": table,
	} {
		s.must(r.Sysctl("net/netfilter/"+name, fmt.Sprint(int(timeout.Seconds()))))
	}
}

// What conntrack gives UDP flows in these tests: more than a flow of muster says nothing
// when a request is lost, on a slow machine, too.
var (
	udpAnswered = lab.Slowly(3 * time.Second)
	udpStream   = lab.Slowly(6 * time.Second)
)

// setOffloading is setPair whose routers have a flow table each, and conntrack
// timeouts that are soon over.
func setOffloading(t *testing.T, name string, opts lab.Options, extra string) *pair {
	t.Helper()
	needFlowtable(t)
	opts.Firewall = true
	p := setPair(t, name, opts, extra)
	for _, r := range p.Routers() {
		p.addFlowtable(r)
		p.setTimeouts(r, udpAnswered, udpStream, 30*time.Second)
		for _, state := range []string{"time_wait", "close"} {
			p.must(r.Sysctl("net/netfilter/nf_conntrack_tcp_timeout_"+state, "2"))
		}
	}
	return p
}

// offloaded counts a router's flows, and those of them in a flow table.
func (p *pair) offloaded(r *lab.Router) (flows, inTable int) {
	p.t.Helper()
	p.withConntrack(r, func(conn *conntrack.Conn) error {
		return conn.Dump(p.ctx, conntrack.Filter{}, func(flow *conntrack.Flow) error {
			if flow.Status&conntrack.SrcNAT == 0 || flow.Orig.IsICMP() {
				return nil
			}
			flows++
			if flow.Status&conntrack.Offload != 0 {
				inTable++
			}
			return nil
		})
	})
	return flows, inTable
}

// awaitOffloaded waits until so many flows are in a router's flow table.
func (p *pair) awaitOffloaded(r *lab.Router, want int) {
	p.t.Helper()
	var flows, inTable int
	err := lab.Await(p.ctx, "flows in the flow table of "+r.Name, func() (bool, error) {
		flows, inTable = p.offloaded(r)
		return inTable >= want, nil
	})
	if err != nil {
		p.t.Fatalf("%v: %d of %d are, %d wanted\n%s", err, inTable, flows, want, p.Describe())
	}
}

// forwarded counts the TCP and UDP packets that took a router's forward chain, not its
// flow table.
func (s *scene) forwarded(r *lab.Router) uint64 {
	s.t.Helper()
	return s.packetsIn(r.Node, "inet", "ft", "forward")[0]
}

// ownTable counts on the WAN what flows send from routers' own and inside addresses.
const ownTable = `
table bridge own {
	chain seen {
		type filter hook prerouting priority -300; policy accept;
		meta l4proto { tcp, udp } ip saddr { %s } counter
		meta l4proto { tcp, udp } ip6 saddr { %s } counter
	}
}
`

// watchOwn wants no packet of a flow to be seen on the WAN with another source than
// the VIP, until the end of the test.
func (s *scene) watchOwn() {
	s.t.Helper()
	v4, v6 := lab.LAN.Prefix4().String(), lab.LAN.Prefix6().String()
	for _, r := range s.Routers() {
		ends := r.Own(lab.WAN)
		v4, v6 = v4+", "+ends.V4.String(), v6+", "+ends.V6.String()
	}
	s.must(s.WANSwitch.NFT(s.ctx, fmt.Sprintf(ownTable, v4, v6)))
	s.t.Cleanup(func() {
		for i, n := range s.packetsIn(s.WANSwitch, "bridge", "own", "seen") {
			if n != 0 {
				s.t.Errorf("the WAN saw %d packets of flows from routers' own or inside addresses, by IPv%d", n, 4+2*i)
			}
		}
	})
}

// drives are datagrams of both families from both hosts, which use the same port.
func (s *scene) drives(port uint16) (drives []*traffic.Drive) {
	s.t.Helper()
	for h, host := range s.Hosts {
		for _, f := range families {
			drives = append(drives, s.drive(host, traffic.FlowOptions{
				Local: lab.Port(f.of(lab.HostEnds(h)), port), Remote: lab.Port(f.of(lab.ServerFar), serverPort), Interval: lab.Slowly(2 * time.Millisecond),
			}))
		}
	}
	return drives
}

// unmoved checks that datagrams have come from one source all the while.
func (s *scene) unmoved(drives []*traffic.Drive) {
	s.t.Helper()
	for i, d := range drives {
		if r := d.Report(); len(r.Sources) != 1 {
			s.t.Errorf("datagrams of flow %d arrived from %v", i, r.Sources)
		}
	}
}
