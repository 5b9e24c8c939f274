// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"vippin/loader/conntrack"
	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// crowd is living flows: TCP with a request a second, and one-way UDP.
type crowd struct {
	name    string
	tcp     traffic.Flows
	streams traffic.Flows
	source  netip.Addr // where they all come from
}

// gather starts flows from both hosts, which use the same source ports.
func (s *scene) gather(name string, tcp, streams int, firstPort uint16, source netip.Addr) *crowd {
	s.t.Helper()
	c := &crowd{name: name, source: source}
	remote := lab.Port(lab.ServerWAN.V4, serverPort)
	for h, host := range s.Hosts {
		options := func(proto string, oneWay bool) func(int) traffic.FlowOptions {
			return func(i int) traffic.FlowOptions {
				return traffic.FlowOptions{
					ID: fmt.Sprintf("%s-%s-%d-%d", name, proto, h, i), Proto: proto, OneWay: oneWay,
					Local: lab.Port(lab.HostEnds(h).V4, firstPort+uint16(i)), Remote: remote,
					Interval: time.Second, Timeout: 20 * time.Second,
				}
			}
		}
		flows, err := traffic.StartFlows(s.ctx, host.Do, tcp/len(s.Hosts), options("tcp", false))
		s.must(err)
		c.tcp = append(c.tcp, flows...)
		flows, err = traffic.StartFlows(s.ctx, host.Do, streams/len(s.Hosts), options("udp", true))
		s.must(err)
		c.streams = append(c.streams, flows...)
	}
	s.t.Cleanup(func() { c.tcp.Stop(); c.streams.Stop() })
	return c
}

// unharmed waits for further answers and datagrams of every flow, and checks
// that each came from one source all its life.
func (s *scene) unharmed(c *crowd) {
	s.t.Helper()
	before := map[string]uint64{}
	for _, f := range c.tcp {
		before[f.Report().ID] = f.Report().Answered
	}
	for id, stream := range s.server.Streams() {
		if stream.Proto == "udp" {
			before[id] = stream.Packets
		}
	}
	s.must(lab.Await(s.ctx, "an answer on every TCP flow of "+c.name, func() (bool, error) {
		for _, f := range c.tcp {
			r := f.Report()
			if !r.Broken() && r.Answered <= before[r.ID] {
				return false, nil
			}
		}
		return true, nil
	}))
	for _, f := range c.streams {
		id := f.Report().ID
		stream, err := s.server.AwaitStream(s.ctx, id, before[id]+1)
		s.must(err)
		if len(stream.Sources) != 1 || stream.Sources[0].Addr() != c.source {
			s.t.Errorf("%s: stream %s came from %v, want one source on %s", c.name, id, stream.Sources, c.source)
		}
		if stream.Missing != 0 {
			s.t.Errorf("%s: stream %s lost %d datagrams", c.name, id, stream.Missing)
		}
	}
	report := c.tcp.Report()
	if len(report.Broken()) > 0 || len(report.Moved()) > 0 {
		s.t.Errorf("%s: %s", c.name, report)
	}
	if report.Addresses()[c.source] != len(c.tcp) {
		s.t.Errorf("%s: sources %v, want all %d from %s", c.name, report.Addresses(), len(c.tcp), c.source)
	}
}

// livingSize is how many TCP flows there are, and which part of everything is done:
// all of it, a fifth in a short test; $VIPPIN_LIVING says how many flows else.
func livingSize() (flows, part int) {
	if n, err := strconv.Atoi(os.Getenv("VIPPIN_LIVING")); err == nil {
		return n, 1
	}
	if testing.Short() {
		return 200, 5
	}
	return 1000, 1
}

// Nothing that is done to vippin touches a living flow: not toggling, not
// reloading, not killing the daemon. Half of the flows are older than pinning,
// half are pinned.
func TestLivingFlowsAreLeftAlone(t *testing.T) {
	s := setScene(t, "living", lab.Options{SingleRouter: true})
	flows, part := livingSize()
	old := s.gather("old", flows/2, flows/20, 10000, lab.WAN.RA.V4)
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	pinned := s.gather("pinned", flows/2, flows/20, 20000, lab.WAN.VIP4)
	s.unharmed(old)
	s.unharmed(pinned)

	for i := range 50 / part {
		s.vippin(s.RA, "pin", "off", "2")
		if i == 5 { // a flow born while it is off, for the rest of the test
			late := s.gather("late", 10, 10, 30000, lab.WAN.RA.V4)
			defer s.unharmed(late)
		}
		s.vippin(s.RA, "pin", "on", "2")
	}
	s.unharmed(old)
	s.unharmed(pinned)

	for i := range 20 / part {
		config := onWAN
		if i%2 == 0 { // another tag, another pin, the first one off
			config += "  - {vlan: 9, interface: lan0, vips: [192.168.101.1], enabled: false}\nvrrp: {tag: {mark: \"0x10/0xf0\"}}\n"
		}
		s.must(s.WriteVippin(s.RA, config))
		s.vippin(s.RA, "reload")
	}
	s.unharmed(old)
	s.unharmed(pinned)

	for range 10 / part {
		s.must(daemon.Kill9())
		s.must(daemon.Restart())
		s.must(s.AwaitVippin(s.ctx, s.RA))
	}
	s.unharmed(old)
	s.unharmed(pinned)
	if got := s.source(s.Hosts[0], "tcp", netip.AddrPort{}, lab.ServerWAN.V4); got.Addr() != lab.WAN.VIP4 {
		t.Errorf("a new flow after all that came from %s, want the VIP", got)
	}
	if pin := s.pin(s.RA, 2); pin.UnpinnedBy["born_before"] == 0 || pin.UnpinnedBy["off"] == 0 || pin.UnpinnedBy["error"] != 0 {
		t.Errorf("unpinned by %v", pin.UnpinnedBy)
	}
}

// While a pin is taken out of the configuration, its living flows keep the VIP;
// when it is put in again they are its own again.
func TestRemovedPinKeepsItsFlows(t *testing.T) {
	s := setScene(t, "removed", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	pinned := s.gather("pinned", 4, 4, 20000, lab.WAN.VIP4)
	s.must(s.WriteVippin(s.RA, "pins:\n  - {vlan: 9, interface: lan0, vips: [192.168.101.1], enabled: false}\n"))
	s.vippin(s.RA, "reload")
	s.unharmed(pinned)
	if got := s.source(s.Hosts[0], "udp", netip.AddrPort{}, lab.ServerWAN.V4); got.Addr() != lab.WAN.RA.V4 {
		t.Errorf("a new flow without its pin came from %s, want the router's own address", got)
	}
	s.must(s.WriteVippin(s.RA, onWAN))
	s.vippin(s.RA, "reload")
	s.unharmed(pinned)
	if got := s.pin(s.RA, 2).Flows; got < 8 {
		t.Errorf("the pin is back with %d flows, want its 8", got)
	}
}

// A flow that takes a tuple from TIME_WAIT makes conntrack end the old entry:
// its DESTROY comes when the new flow is living already, and must not take the
// mapping from it.
func TestTupleReusedFromTimeWait(t *testing.T) {
	s := setScene(t, "timewait", lab.Options{Hosts: 1, SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	host, remote := s.Hosts[0], lab.Port(lab.ServerWAN.V4, serverPort)
	local := lab.Port(lab.HostEnds(0).V4, 4000)
	// The host itself must be ready to use the port again at once.
	s.must(host.Sysctl("net/ipv4/tcp_tw_reuse", "1"))
	var living *traffic.Flow
	for i := range 5 {
		if living != nil {
			living.Stop()
			s.must(s.awaitTimeWait(local, remote))
		}
		s.must(lab.Await(s.ctx, "port 4000 to be free", func() (bool, error) {
			flow, err := traffic.StartFlow(s.ctx, host.Do, traffic.FlowOptions{
				ID: fmt.Sprintf("life%d", i), Proto: "tcp", Local: local, Remote: remote, Interval: 100 * time.Millisecond,
			})
			if err != nil {
				return false, nil
			}
			living = flow
			return true, nil
		}))
	}
	defer living.Stop()
	// Longer than the sweep's grace, with the DESTROYs of the earlier lives behind us.
	s.must(lab.Await(s.ctx, "five seconds of answers", func() (bool, error) {
		r := living.Report()
		return r.Answered >= 50 || r.Broken(), nil
	}))
	report := living.Report()
	if report.Broken() || report.Moved() || report.Sources[0] != lab.Port(lab.WAN.VIP4, 4000) {
		t.Errorf("the living flow: sources %v, errors %v, want one source %s:4000", report.Sources, report.Errors, lab.WAN.VIP4)
	}
	if flows := s.flows(s.RA); len(flows) != 1 || flows[0].Public != "198.51.100.2:4000" {
		t.Errorf("flows: %+v, want the one that lives", flows)
	}
}

// awaitTimeWait waits until conntrack has seen both ends of a connection close.
func (s *scene) awaitTimeWait(local, remote netip.AddrPort) error {
	tuple := conntrack.Tuple{
		Src: local.Addr(), Dst: remote.Addr(), Proto: 6, SrcPort: local.Port(), DstPort: remote.Port(),
	}
	return lab.Await(s.ctx, "TIME_WAIT in the router", func() (waits bool, err error) {
		err = s.RA.Do(func() error {
			conn, err := conntrack.Dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			flow, err := conn.Get(tuple)
			if err != nil {
				return err
			}
			waits = flow.TCP != nil && flow.TCP.State == conntrack.TCPTimeWait
			return nil
		})
		return waits, err
	})
}
