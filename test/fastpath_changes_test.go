// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// How long the fast path may go on as it was, after the command that changed
// something has ended: what the kernel tells of, which takes milliseconds unless the
// machine pauses, and what nobody tells of.
const (
	withEvent    = time.Second
	withoutEvent = 5 * time.Second
)

// carried is living flows on the fast path, UDP and TCP in both families, that a
// capture follows on both sides of ra.
type carried struct {
	*scene
	drives   []*traffic.Drive
	tcp      traffic.Flows
	wan, lan *traffic.Capture
}

// carry starts the flows and waits until the fast path has them.
func (s *scene) carry() *carried {
	s.t.Helper()
	c := &carried{scene: s}
	for i, f := range families {
		opts := traffic.FlowOptions{
			Local:    lab.Port(f.of(lab.HostEnds(0)), uint16(5000+i)),
			Remote:   lab.Port(f.of(lab.ServerFar), serverPort),
			Interval: 2 * time.Millisecond,
		}
		c.drives = append(c.drives, s.drive(s.Hosts[0], opts))
		opts.Proto, opts.Interval, opts.Timeout = "tcp", 5*time.Millisecond, time.Minute
		flow, err := traffic.StartFlow(s.ctx, s.Hosts[0].Do, opts)
		s.must(err)
		c.tcp = append(c.tcp, flow)
	}
	s.t.Cleanup(func() { c.tcp.Stop() })
	for side, at := range map[**traffic.Capture]*lab.Node{&c.wan: s.WANSwitch, &c.lan: s.LANSwitch} {
		capture, err := traffic.StartCapture(at.Do, "ra")
		s.must(err)
		s.t.Cleanup(func() { s.must(capture.Close()) })
		*side = capture
	}
	return c
}

// ready waits until every flow takes the fast path, both ways.
func (c *carried) ready() {
	c.t.Helper()
	c.goOn()
	c.awaitOn(c.RA, "all flows", func(state policy.FastpathState) bool { return state.Flows >= 8 })
	c.settle(c.RA, c.drives...)
}

// goOn waits for answers to all flows.
func (c *carried) goOn() {
	c.t.Helper()
	c.answers(20, c.drives...)
	for _, f := range c.tcp {
		before := f.Report().Answered
		s := c.scene
		s.must(s.await("answers to "+f.Report().ID, func() (bool, error) {
			r := f.Report()
			return r.Answered > before+5 || r.Broken(), nil
		}))
		if r := f.Report(); r.Broken() || r.Moved() {
			c.t.Errorf("%s: errors %q, sources %v", r.ID, r.Errors, r.Sources)
		}
	}
}

// ours are the frames of the flows that ra has sent.
func ours(f traffic.Frame) bool {
	if f.Outgoing {
		return false // of the switch, to ra
	}
	switch l4 := f.Packet.TransportLayer().(type) {
	case *layers.TCP:
		return l4.DstPort == serverPort || l4.SrcPort == serverPort
	case *layers.UDP:
		return l4.DstPort == serverPort || l4.SrcPort == serverPort
	}
	return false
}

// answers are those from the server.
func answers(f traffic.Frame) bool {
	transport := f.Packet.TransportLayer()
	return ours(f) && binary.BigEndian.Uint16(transport.TransportFlow().Src().Raw()) == serverPort
}

// lastOf is when the last frame that matches came out of ra, on either side.
func (c *carried) lastOf(match func(traffic.Frame) bool) (last time.Time) {
	for _, capture := range []*traffic.Capture{c.wan, c.lan} {
		if frames := capture.Frames(match); len(frames) > 0 {
			if at := frames[len(frames)-1].Time; at.After(last) {
				last = at
			}
		}
	}
	return last
}

// within makes a change and checks that the last frame that matches came out of
// ra soon after. It is the last when none came for a second.
func (c *carried) within(limit time.Duration, match func(traffic.Frame) bool, change func()) {
	c.t.Helper()
	change()
	changed := time.Now()
	ctx, cancel := context.WithTimeout(c.ctx, limit+patience)
	defer cancel()
	var last time.Time
	err := lab.Await(ctx, "the last of the frames", func() (bool, error) {
		last = c.lastOf(match)
		return time.Since(last) > time.Second && time.Since(changed) > time.Second, nil
	})
	took := last.Sub(changed)
	c.t.Logf("the last frame came %s after the change, of %s", took.Round(100*time.Microsecond), limit)
	if last.IsZero() {
		c.t.Error("there was no such frame at all")
	}
	if err != nil || took > limit {
		c.t.Errorf("%s after the change frames still came (%v), want none after %s; %+v", took, err, limit, c.fastpath(c.RA))
	}
}

// cut is something in the firewall that ends the flows, as commands.
type cut struct {
	name    string
	within  time.Duration
	probe   string // what fails, in another namespace, where a feature is missing
	prepare string // before the flows are on the fast path
	change  string
	inside  bool // change is made on the host
	answers bool // it ends answers alone
	undo    string
}

// cuts begins with those of which the kernel tells; legacy iptables is last, since
// its tables stay.
var cuts = []cut{{
	name: "nft rule", within: withEvent,
	change: `nft 'table inet cut { chain forward { type filter hook forward priority filter; th dport 7000 drop; th sport 7000 drop; }; }'`,
	undo:   `nft delete table inet cut`,
}, {
	name: "nft rule for answers", within: withEvent, answers: true,
	change: `nft 'table inet cut { chain forward { type filter hook prerouting priority filter; iifname wan0 th sport 7000 drop; }; }'`,
	undo:   `nft delete table inet cut`,
}, {
	name: "iptables-nft rule", within: withEvent,
	change: `iptables-nft -I FORWARD -j DROP; ip6tables-nft -I FORWARD -j DROP`,
	undo:   `iptables-nft -D FORWARD -j DROP; ip6tables-nft -D FORWARD -j DROP`,
}, {
	name: "set element", within: withoutEvent,
	prepare: `nft 'table inet cut { set bad4 { type ipv4_addr; }; set bad6 { type ipv6_addr; }
		chain forward { type filter hook forward priority filter; ip saddr @bad4 drop; ip6 saddr @bad6 drop; ip daddr @bad4 drop; ip6 daddr @bad6 drop; }; }'`,
	change: `nft 'add element inet cut bad4 { 192.168.101.11 }; add element inet cut bad6 { 2001:db8:101::11 }'`,
	undo:   `nft delete table inet cut`,
}, {
	name: "quota", within: withoutEvent,
	prepare: `nft 'table inet cut { chain forward { type filter hook forward priority filter; quota over 1 mbytes drop; }; }'`,
	change:  `while ping -q -c 20 -i 0.002 -s 1400 -W 0.2 198.18.0.10; do :; done`, // what takes the stack uses it up
	inside:  true,
	undo:    `nft delete table inet cut`,
}, {
	name: "ipset", within: withoutEvent,
	probe: `ipset create bad4 hash:ip && iptables-nft -I FORWARD -m set --match-set bad4 src -j DROP`,
	prepare: `ipset create bad4 hash:ip; ipset create bad6 hash:ip family inet6
		iptables-nft -I FORWARD -m set --match-set bad4 src -j DROP; ip6tables-nft -I FORWARD -m set --match-set bad6 src -j DROP
		iptables-nft -I FORWARD -m set --match-set bad4 dst -j DROP; ip6tables-nft -I FORWARD -m set --match-set bad6 dst -j DROP`,
	change: `ipset add bad4 192.168.101.11; ipset add bad6 2001:db8:101::11`,
	undo:   `iptables-nft -F FORWARD; ip6tables-nft -F FORWARD; ipset destroy bad4; ipset destroy bad6`,
}, {
	name: "first legacy iptables rule", within: withoutEvent,
	probe:  legacy,
	change: `iptables-legacy -I FORWARD -j DROP; ip6tables-legacy -I FORWARD -j DROP`,
	undo:   `iptables-legacy -D FORWARD -j DROP; ip6tables-legacy -D FORWARD -j DROP`,
}, {
	name: "legacy iptables rule", within: withoutEvent,
	probe:   legacy,
	prepare: `iptables-legacy -I FORWARD -s 198.18.7.1 -j DROP`,
	change:  `iptables-legacy -I FORWARD -j DROP; ip6tables-legacy -I FORWARD -j DROP`,
	undo:    `iptables-legacy -F FORWARD; ip6tables-legacy -F FORWARD`,
}}

const legacy = `iptables-legacy -L -n && ip6tables-legacy -L -n`

// shell runs commands in a node.
func (s *scene) shell(n *lab.Node, script string) error {
	_, err := n.Run(s.ctx, "sh", "-ec", script)
	return err
}

// in is the same flows in a part of the test.
func (c *carried) in(name string, do func(c *carried)) {
	c.t.Helper()
	c.run(name, func(s *scene) {
		inner := *c
		inner.scene = s
		do(&inner)
	})
}

// What changes a packet's fate changes that of the flows on the fast path: rules,
// routes and neighbours that the kernel tells of at once, others soon.
func TestFastPathFollowsChanges(t *testing.T) {
	s := setFast(t, "fastchanges", lab.Options{Hosts: 1, Transit: true})
	c := s.carry()
	c.ready()
	if state := s.fastpath(s.RA); state.PaceWhy != "" || state.PaceS < withoutEvent.Seconds() {
		t.Fatalf("flows are looked at every %g s because of %q: an event that is missed would not be seen", state.PaceS, state.PaceWhy)
	}
	c.in("neighbour", (*carried).followsNeighbour)
	c.in("route", (*carried).followsRoute)
	for _, cut := range cuts {
		c.in(cut.name, func(c *carried) {
			if err := c.shell(c.LANSwitch, cut.probe); err != nil {
				c.t.Skipf("the kernel, or the machine, has no %s: %v", cut.name, err)
			}
			c.must(c.shell(c.RA.Node, cut.prepare))
			c.unhurried()
			c.ready()
			at := c.RA.Node
			if cut.inside {
				at = c.Hosts[0]
			}
			match := ours
			if cut.answers {
				match = answers
			}
			c.within(cut.within, match, func() { c.must(c.shell(at, cut.change)) })
			c.must(c.shell(c.RA.Node, cut.undo))
			c.goOn()
		})
	}
}

// unhurried has the flows learnt when the firewall has been read: while that is
// being done they are judged anew every few seconds, whatever is in it.
func (c *carried) unhurried() {
	c.t.Helper()
	c.awaitOn(c.RA, "the firewall to be read", func(state policy.FastpathState) bool {
		return !strings.Contains(state.PaceWhy, "just changed")
	})
	c.must(c.shell(c.RA.Node, "ip route replace blackhole 198.18.7.1; ip route del blackhole 198.18.7.1"))
}

// toMAC is the frames of the flows that ra sends to an Ethernet address.
func toMAC(mac net.HardwareAddr) func(traffic.Frame) bool {
	return func(f traffic.Frame) bool {
		ethernet, ok := f.Packet.LinkLayer().(*layers.Ethernet)
		return ok && bytes.Equal(ethernet.DstMAC, mac) && ours(f)
	}
}

func (c *carried) macOf(n *lab.Node) net.HardwareAddr {
	c.t.Helper()
	link, err := n.Netlink().LinkByName("eth0")
	c.must(err)
	return link.Attrs().HardwareAddr
}

// followsNeighbour gives the server another Ethernet address, of which it tells.
func (c *carried) followsNeighbour() {
	for _, key := range []string{"ipv4/conf/eth0/arp_notify", "ipv6/conf/eth0/ndisc_notify"} {
		c.must(c.Server.Sysctl("net/"+key, "1"))
	}
	c.ready()
	before := c.macOf(c.Server)
	c.within(withEvent, toMAC(before), func() { c.must(c.shell(c.Server, "ip link set eth0 address 02:00:00:00:64:10")) })
	c.ready()
	if got := c.lastOf(toMAC(c.macOf(c.Server))); time.Since(got) > time.Second {
		c.t.Errorf("the last frame to the new address was sent at %s", got)
	}
}

// followsRoute leads the flows by another router, and back.
func (c *carried) followsRoute() {
	c.must(c.Transit.Sysctl("net/ipv4/conf/all/send_redirects", "0"))
	c.must(c.Transit.Sysctl("net/ipv4/conf/eth0/send_redirects", "0"))
	c.must(c.shell(c.Transit, fmt.Sprintf("ip route add %s/32 via %s; ip route add %s/128 via %s",
		lab.ServerFar.V4, lab.ServerWAN.V4, lab.ServerFar.V6, lab.ServerWAN.V6)))
	c.ready()
	c.within(withEvent, toMAC(c.macOf(c.Server)), func() {
		c.must(c.shell(c.RA.Node, fmt.Sprintf("ip route add %s/32 via %s; ip route add %s/128 via %s",
			lab.ServerFar.V4, lab.TransitWAN.V4, lab.ServerFar.V6, lab.TransitWAN.V6)))
	})
	c.ready()
	c.within(withEvent, toMAC(c.macOf(c.Transit)), func() {
		c.must(c.shell(c.RA.Node, fmt.Sprintf("ip route del %s/32; ip route del %s/128", lab.ServerFar.V4, lab.ServerFar.V6)))
	})
	c.ready()
}

// A link goes down, and the flows take the other way at once.
func TestFastPathFollowsLinks(t *testing.T) {
	s := setFast(t, "fastlinks", lab.Options{Hosts: 1, WAN1: true, Masquerade: lab.MasqueradeNone})
	s.reload(s.RA, onWAN+"fastpath: {enabled: true, all: true, interfaces: [lan0, wan0, wan1]}\n")
	s.must(s.shell(s.RA.Node, fmt.Sprintf("ip route add default via %s metric 20000; ip -6 route add default via %s metric 20000",
		lab.ServerWAN1.V4, lab.ServerWAN1.V6)))
	s.must(s.shell(s.Server, fmt.Sprintf("ip route add %s via %s metric 20000; ip route add %s via %s metric 20000",
		lab.LAN.Prefix4(), lab.WAN1.VIP4, lab.LAN.Prefix6(), lab.WAN1.VIP6)))
	c := s.carry()
	other, err := traffic.StartCapture(s.WANSwitch.Do, "ra1")
	s.must(err)
	t.Cleanup(func() { s.must(other.Close()) })
	c.ready()
	s.must(s.shell(s.RA.Node, "ip link set wan0 down"))
	changed := time.Now()
	s.must(s.shell(s.Server, "ip link set eth0 down")) // answers go the other way, too
	for _, udp := range []gopacket.LayerType{layers.LayerTypeIPv4, layers.LayerTypeIPv6} {
		frames, err := other.Await(s.ctx, 1, func(f traffic.Frame) bool { return ours(f) && f.Packet.Layer(udp) != nil })
		s.must(err)
		took := frames[0].Time.Sub(changed)
		t.Logf("the first frame of %s on the other way came %s after the link was down", udp, took.Round(100*time.Microsecond))
		if took > withEvent {
			t.Errorf("%s on the other way came %s after the link was down, want %s", udp, took, withEvent)
		}
	}
	c.ready()
}
