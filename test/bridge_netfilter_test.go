// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"vippin/policy"
	"vippin/policy/doctor"
	"vippin/test/lab"
)

// setBridge makes a bridge of ra's interface on a segment, with the cable as its port.
func (s *scene) setBridge(ifname, port string) {
	s.t.Helper()
	s.ip(s.RA.Node, "link set "+ifname+" down", "link set "+ifname+" name "+port, "addr flush dev "+port,
		"link add "+ifname+" type bridge", "link set "+port+" master "+ifname, "link set "+port+" up", "link set "+ifname+" up")
}

// addressInside gives ra's LAN interface what it had.
func (s *scene) addressInside(ifname string, prefixes []netip.Prefix) {
	s.t.Helper()
	for _, prefix := range prefixes {
		nodad := map[bool]string{true: " nodad"}[prefix.Addr().Is6()]
		s.ip(s.RA.Node, "addr replace "+prefix.String()+" dev "+ifname+nodad)
	}
}

// callNetfilter has ra's netfilter see the frames of bridges on the ports, or not. It
// skips the test where the kernel cannot (module br_netfilter).
func (s *scene) callNetfilter(on bool) {
	s.t.Helper()
	value := map[bool]string{true: "1", false: "0"}[on]
	for _, call := range []string{"iptables", "ip6tables"} {
		err := s.RA.Sysctl("net/bridge/bridge-nf-call-"+call, value)
		if errors.Is(err, os.ErrNotExist) {
			s.t.Skip("netfilter does not see bridges on this kernel (module br_netfilter)")
		}
		s.must(err)
	}
}

// newFlows begins some of each protocol, whose answers must come, and returns how many.
func (s *scene) newFlows(port uint16, want lab.Ends) (flows int) {
	s.t.Helper()
	for i, f := range families {
		host, server := f.of(lab.HostEnds(0)), f.of(lab.ServerFar)
		for j, proto := range []string{"tcp", "udp"} {
			if got := s.source(s.Hosts[0], proto, lab.Port(host, port+uint16(2*i+j)), server); got.Addr() != f.of(want) {
				s.t.Errorf("%s comes from %s, want %s", proto, got, f.of(want))
			}
		}
		if got := s.pingSource(s.Hosts[0], port, server); got.Addr() != f.of(want) {
			s.t.Errorf("a ping comes from %s, want %s", got, f.of(want))
		}
		flows += 3
		if server.Is4() && s.Options.Trunk == lab.TrunkNone { // answers in pieces; of IPv6, and between VLANs, see the limits in docs/ARCHITECTURE.md
			_, err := s.Hosts[0].Run(s.ctx, "ping", "-c", "1", "-W", "10", "-s", "4000", server.String())
			s.must(err)
			flows++
		}
	}
	return flows
}

// doctorSaysBridge tells whether doctor calls netfilter on the pinned bridge an error.
func (s *scene) doctorSaysBridge() bool {
	s.t.Helper()
	return slices.ContainsFunc(s.doctor(s.RA), func(f doctor.Finding) bool {
		return f.Check == "bridge_netfilter" && f.State == doctor.Error && strings.Contains(f.Found, "the bridge wan0")
	})
}

// awaitBridge waits until the daemon's status complains of netfilter on the bridge, or
// does no more.
func (s *scene) awaitBridge(want bool) {
	s.t.Helper()
	s.must(s.await(fmt.Sprintf("status to complain of the bridge: %t", want), func() (bool, error) {
		return want == slices.ContainsFunc(s.status(s.RA).Warnings, func(text string) bool {
			return strings.Contains(text, "sysctl -w net.bridge.bridge-nf-call-iptables=0")
		}), nil
	}))
}

// pinBlindly pins without a daemon, and then has netfilter see bridges, which nobody
// notices: so it is for flows that live when it is told to.
func (s *scene) pinBlindly(ifname string) {
	s.t.Helper()
	s.callNetfilter(false)
	s.must(s.WriteVippin(s.RA, "pins:\n  - {vlan: 2, interface: "+ifname+", vips: [198.51.100.2, \"2001:db8:100::2\"]}\n"))
	s.vippin(s.RA, "load", "--master")
	s.callNetfilter(true)
}

// On a bridge netfilter may see an answer before the programs do. While it does new
// flows keep the router's own address, and living ones go on.
func TestBridgeNetfilter(t *testing.T) {
	s := setScene(t, "brnf", lab.Options{Hosts: 1, SingleRouter: true})
	s.setBridge("wan0", "port0")
	s.configure("wan0")
	s.callNetfilter(false)
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	living := s.drives(4000)
	for i, on := range []bool{false, true, false, true} {
		s.callNetfilter(on)
		s.answers(50, living...)
		s.awaitBridge(on)
		s.answers(50, living...)
		before := s.pin(s.RA, 2)
		flows := s.newFlows(uint16(5000+100*i), map[bool]lab.Ends{false: vip, true: own}[on])
		now := s.pin(s.RA, 2)
		if !on && now.Flows < before.Flows+uint64(flows) {
			t.Errorf("%d flows of %d are pinned", now.Flows-before.Flows, flows)
		}
		if kept := now.UnpinnedBy["bridge"] > before.UnpinnedBy["bridge"]; kept != on {
			t.Errorf("packets that are not pinned for the bridge: %t, want %t", kept, on)
		}
		if s.doctorSaysBridge() != on {
			t.Errorf("doctor complains of the bridge: %t, want %t", !on, on)
		}
	}
	s.unmoved(living)
}

// Errors that name a pinned flow come in by the bridge, too.
func TestBridgeNetfilterErrors(t *testing.T) {
	s := setScene(t, "brnferr", lab.Options{Hosts: 1, SingleRouter: true})
	s.setBridge("wan0", "port0")
	s.configure("wan0")
	s.pinBlindly("wan0")
	s.must(s.RA.NFT(s.ctx, `table inet errors { chain in { type filter hook forward priority 0; oifname "lan0" icmp type destination-unreachable counter; oifname "lan0" icmpv6 type destination-unreachable counter; }; }`))
	for i, f := range families {
		// Nobody listens there.
		script := fmt.Sprintf("exec 3<>/dev/udp/%s/9; echo x >&3", f.of(lab.ServerFar))
		_, err := s.Hosts[0].Run(s.ctx, "bash", "-c", script)
		s.must(err)
		s.must(s.await("the error that the port is closed", func() (bool, error) {
			return s.packetsIn(s.RA.Node, "inet", "errors", "in")[i] > 0, nil
		}))
	}
	if pin := s.pin(s.RA, 2); pin.PacketsPinned == 0 || pin.PacketsReturned == 0 {
		t.Errorf("the errors were of no pinned flow: %+v", pin)
	}
}

// The inside on a bridge changes nothing, nor do both sides.
func TestBridgeNetfilterInside(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("both=%t", both), func(t *testing.T) {
			s := setScene(t, "brnfin", lab.Options{Hosts: 1, SingleRouter: true})
			addrs, err := s.RA.Addresses()
			s.must(err)
			s.setBridge("lan0", "inside0")
			s.addressInside("lan0", addrs["lan0"])
			if both {
				s.setBridge("wan0", "port0")
				s.configure("wan0")
			}
			s.pinBlindly("wan0")
			s.newFlows(5000, vip)
		})
	}
}

// What passes from port to port is not the router's: a neighbour's own flows, and those
// of a neighbour that has taken the VIP over, whose flow has the public end of a
// mapping that lives here.
func TestBridgeNetfilterBetweenPorts(t *testing.T) {
	s := setScene(t, "brnfport", lab.Options{Hosts: 2, SingleRouter: true})
	s.setBridge("wan0", "port0")
	s.configure("wan0")
	neighbour := s.Hosts[1]
	s.ip(neighbour, "link del eth0")
	s.ip(s.RA.Node, "link add port1 type veth peer name eth0 netns "+neighbour.NS, "link set port1 master wan0 up")
	s.must(s.TakeXDP(s.ctx, s.RA.Node, "port1"))
	other := lab.Ends{V4: lab.ServerWAN.V4.Next(), V6: lab.ServerWAN.V6.Next()}
	s.ip(neighbour, append(addresses("eth0", other), "link set eth0 up")...)
	s.pinBlindly("wan0")
	s.newFlows(4000, vip)
	mine := s.pin(s.RA, 2)
	ask := func(from lab.Ends) {
		for i, f := range families {
			for j, proto := range []string{"tcp", "udp"} {
				local := lab.Port(f.of(from), uint16(4000+2*i+j))
				if got := s.source(neighbour, proto, local, f.of(lab.ServerFar)); got != local {
					t.Errorf("%s of the neighbour's %s comes from %s", proto, local, got)
				}
			}
		}
	}
	s.ip(neighbour, routes("eth0")...)
	ask(other)
	s.ip(s.RA.Node, strings.ReplaceAll(strings.Join(vipAddresses("wan0"), "\n"), "addr add", "addr del"))
	s.ip(neighbour, vipAddresses("eth0")...)
	s.ip(s.Server, "neigh flush dev eth0") // as unsolicited ARP and neighbour advertisements would
	ask(vip)
	if now := s.pin(s.RA, 2); now.PacketsReturned != mine.PacketsReturned {
		t.Errorf("%d answers to the neighbour were counted as the router's", now.PacketsReturned-mine.PacketsReturned)
	}
}

// A pinned VLAN on a bridge that is a trunk's end: netfilter looks behind the tags.
func TestBridgeNetfilterVLAN(t *testing.T) {
	s := setScene(t, "brnfvlan", lab.Options{Hosts: 1, SingleRouter: true, Trunk: lab.TrunkTagged, TrunkNames: true})
	s.callNetfilter(true) // skips where it cannot
	s.must(s.RA.Sysctl("net/bridge/bridge-nf-filter-vlan-tagged", "1"))
	addrs, err := s.RA.Addresses()
	s.must(err)
	s.ip(s.RA.Node, "link add br0 type bridge", "link set eth0 master br0", "link set br0 up")
	for _, segment := range []lab.Segment{lab.LAN, lab.WAN} {
		ifname := s.RA.Ifname(segment)
		s.ip(s.RA.Node, "link del "+ifname, fmt.Sprintf("link add link br0 name %s type vlan id %d", ifname, segment.Tag), "link set "+ifname+" up")
	}
	s.addressInside(s.RA.Ifname(lab.LAN), addrs[s.RA.Ifname(lab.LAN)])
	s.configure(s.RA.Ifname(lab.WAN))
	s.pinBlindly(s.RA.Ifname(lab.WAN))
	s.newFlows(5000, vip)
	if pin := s.pin(s.RA, lab.WAN.Tag); pin.PacketsReturned == 0 {
		t.Errorf("no answer was counted: %+v", pin)
	}
}
