// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// Interfaces that appear later, go and come back, change their number, name,
// address, state or namespace. Each test says what the kernel lets live: it
// forgets masqueraded flows when their interface goes or is set down, and when
// the address they were masqueraded to goes; a lost carrier or another name
// makes it forget nothing.

// living are flows of every kind from the first host.
type living struct {
	s       *scene
	flows   traffic.Flows
	ping    *traffic.Pinger
	sources []netip.AddrPort
}

// live starts flows, which are pinned.
func (s *scene) live(port uint16) *living {
	s.t.Helper()
	host := s.Hosts[0]
	l := &living{s: s}
	for _, proto := range []string{"tcp", "udp"} {
		l.flows = append(l.flows,
			s.flow(host, proto, lab.Port(lab.HostEnds(0).V4, port), lab.Port(lab.ServerWAN.V4, serverPort)),
			s.flow(host, proto, lab.Port(lab.HostEnds(0).V6, port), lab.Port(lab.ServerWAN.V6, serverPort)))
	}
	l.ping = s.ping(host, port, lab.ServerWAN.V4)
	s.t.Cleanup(func() { l.flows.Stop(); l.ping.Stop(nil) })
	l.sources = s.goesOn(l.reports()...)
	for i, source := range l.sources {
		if source.Addr() != vip.V4 && source.Addr() != vip.V6 {
			s.t.Errorf("living flow %d comes from %s, want the VIP", i, source)
		}
	}
	return l
}

func (l *living) reports() (reports []func() traffic.FlowReport) {
	for _, f := range l.flows {
		reports = append(reports, f.Report)
	}
	return append(reports, func() traffic.FlowReport { return l.s.report(l.ping) })
}

// goesOn wants every flow to be answered further on, from the source it had.
func (l *living) goesOn(s *scene) {
	s.t.Helper()
	for i, source := range s.goesOn(l.reports()...) {
		if source != l.sources[i] {
			s.t.Errorf("living flow %d comes from %s, was from %s", i, source, l.sources[i])
		}
	}
}

// outlast waits until the mappings of flows that the kernel has forgotten have been
// silent for longer than those of flows that end are kept.
func (s *scene) outlast(l *living) {
	s.t.Helper()
	var flows []policy.FlowStatus
	err := s.await("mappings that stay", func() (bool, error) {
		flows = s.flows(s.RA)
		silent := func(flow policy.FlowStatus) bool { return flow.Client == "" && flow.Idle > 4 }
		return !slices.ContainsFunc(flows, func(flow policy.FlowStatus) bool { return !silent(flow) }), nil
	})
	if err != nil || len(flows) != len(l.sources) {
		s.t.Fatalf("%d flows were forgotten, the mappings that stay are %+v (%v)", len(l.sources), flows, err)
	}
}

// An interface that is not there when vippin starts: its pin waits, status says
// for what. Without the link event nothing would ever be pinned on it.
func TestInterfaceAppearsLater(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "later", lab.Options{Hosts: 1, SingleRouter: true})
	m.ip(m.RA.Node, "link del wan0")
	m.begin(onWAN)
	m.follow("wan0")
	m.warned("pin 2", "interface wan0 does not exist", "create it or correct \"interface\"", "waits")
	if status := m.status(m.RA); status.Groups[0].Role != policy.RoleFault ||
		!strings.Contains(strings.Join(status.Groups[0].Evidence, "\n"), "wan0 is missing") {
		t.Errorf("group %+v, want FAULT since wan0 is missing", status.Groups[0])
	}
	m.cable("wan0", wanMAC, 0)
	m.follow("wan0")
	m.configure("wan0")
	m.follow("wan0")
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
	t.Logf("followed: %s", spread(m.took))
}

// VyOS deletes and makes interfaces on commit. The kernel forgets the flows; the
// mappings stay for some minutes, and take the flows that go on to the same public
// end, when the programs are there before the first packet. It is the client that
// must speak: conntrack cannot know whose an answer is.
func TestInterfaceMadeAnew(t *testing.T) {
	m := setMoving(t, "anew", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	m.run("with another number", func(m *moving) {
		before, flows := m.number("wan0"), m.live(4000)
		flows.flows.Between(func() { m.ip(m.RA.Node, "link del wan0") })
		m.awaitForgotten(own.V4)
		m.follow("wan0")
		m.warned("pin 2", "interface wan0 does not exist")
		m.outlast(flows)
		m.cable("wan0", wanMAC, 0)
		if now := m.number("wan0"); now == before {
			m.t.Fatalf("wan0 has number %d again", now)
		}
		m.follow("wan0") // whoever configures interfaces takes longer than that
		m.configure("wan0")
		flows.goesOn(m.scene)
		m.follow("wan0")
		m.sees(m.Hosts[0], lab.ServerWAN, vip)
	})
	// Name, number, addresses: the plan is the same, only the programs are not
	// there any more.
	m.run("with the same number, unseen", func(m *moving) {
		number := m.number("wan0")
		m.blindly(func() {
			m.ip(m.RA.Node, "link del wan0")
			m.cable("wan0", wanMAC, number)
			m.configure("wan0")
		})
		m.follow("wan0")
		m.unwarned()
		m.sees(m.Hosts[0], lab.ServerWAN, vip)
	})
	m.run("again and again", func(m *moving) {
		m.took = nil
		for range 10 {
			m.ip(m.RA.Node, "link del wan0")
			m.follow("wan0")
			m.cable("wan0", wanMAC, 0)
			m.follow("wan0")
			m.configure("wan0")
			m.follow("wan0")
		}
		m.t.Logf("followed: %s", spread(m.took))
		m.unwarned()
		m.sees(m.Hosts[0], lab.ServerWAN, vip)
	})
}

// The number of a deleted interface goes to another device before the daemon
// looks, while mappings live: the other device is none of our business, even
// with the same address and a flow of the same ports.
func TestNumberReusedByAnotherDevice(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "reused", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	local := lab.Port(lab.HostEnds(0).V4, 4000)
	m.flow(m.Hosts[0], "udp", local, lab.Port(lab.ServerWAN.V4, serverPort)).Stop()
	number := m.number("wan0")
	m.blindly(func() {
		m.ip(m.RA.Node, "link del wan0")
		m.cable("wan9", wanMAC, number)
	})
	m.follow("wan0") // which is absent: our programs are nowhere
	m.ip(m.RA.Node, append(addresses("wan9", own), routes("wan9")...)...)
	if got := m.source(m.Hosts[0], "udp", local, lab.ServerWAN.V4); got.Addr() != own.V4 {
		t.Errorf("a flow through another device arrives from %s, want %s", got, own.V4)
	}
	m.sees(m.Hosts[0], lab.ServerWAN, own)
	m.ip(m.RA.Node, "link del wan9")
	m.cable("wan0", wanMAC, 0)
	m.configure("wan0")
	m.follow("wan0")
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
}

// The router's own address changes: the kernel forgets the flows on it, new ones
// are pinned from the new one. Then the VIP moves to another address by reload:
// living flows keep theirs.
func TestRenumbered(t *testing.T) {
	m := setMoving(t, "renumbered", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	m.live(4000)
	became := lab.Ends{V4: netip.MustParseAddr("198.51.100.5"), V6: netip.MustParseAddr("2001:db8:100::5")}
	renumber := func(from, to lab.Ends) {
		m.ip(m.RA.Node, "addr del "+from.V6.String()+"/64 dev wan0",
			"addr flush dev wan0 scope global to 198.51.100.0/24")
		m.ip(m.RA.Node, addresses("wan0", to)...)
		m.ip(m.RA.Node, fmt.Sprintf("addr add %s/24 dev wan0", vip.V4))
		m.ip(m.RA.Node, routes("wan0")...)
	}
	renumber(own, became)
	m.follow("wan0")
	m.awaitForgotten(own.V4)
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
	m.took = nil
	for range 5 {
		renumber(became, own)
		m.follow("wan0")
		renumber(own, became)
		m.follow("wan0")
	}
	t.Logf("followed: %s", spread(m.took))

	m.unwarned()
	flows := m.live(5000)
	moved := lab.Ends{V4: netip.MustParseAddr("198.51.100.7"), V6: netip.MustParseAddr("2001:db8:100::7")}
	m.ip(m.RA.Node, fmt.Sprintf("addr add %s/24 dev wan0", moved.V4), fmt.Sprintf("addr add %s/128 dev wan0 nodad preferred_lft 0", moved.V6))
	m.reload(m.RA, strings.NewReplacer(vip.V4.String(), moved.V4.String(), vip.V6.String()+`"`, moved.V6.String()+`"`).Replace(onWAN))
	m.follow("wan0", moved.V4, moved.V6)
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, moved)
	flows.goesOn(m.scene)
}

// A name is all that changes: the kernel lets every flow live, and so do we. The
// pin that names the interface waits for one of that name, and its new flows are
// not pinned; when the configuration follows they are, and the living ones are
// still the pin's.
func TestRenamed(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "renamed", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	flows := m.live(4000)
	m.ip(m.RA.Node, "link set wan0 name wanx0")
	m.warned("pin 2", "interface wan0 does not exist")
	m.sees(m.Hosts[0], lab.ServerWAN, own)
	flows.goesOn(m.scene)
	m.reload(m.RA, strings.Replace(onWAN, "interface: wan0", "interface: wanx0", 1))
	m.follow("wanx0")
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
	flows.goesOn(m.scene)
	if pin := m.pin(m.RA, 2); pin.Interface != "wanx0" || pin.Flows < 5 {
		t.Errorf("the pin is on %s with %d flows, want wanx0 with the living ones", pin.Interface, pin.Flows)
	}
}

// A renamed interface stays in the maps for its living mappings. When it is
// deleted under its new name, no plan changes.
func TestRenamedThenDeleted(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "renamedel", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	flows := m.live(4000)
	m.ip(m.RA.Node, "link set wan0 name wanx0")
	m.warned("pin 2", "interface wan0 does not exist")
	flows.goesOn(m.scene)
	flows.flows.Between(func() { m.ip(m.RA.Node, "link del wanx0") })
	m.follow("wan0")
	m.cable("wan0", wanMAC, 0)
	m.follow("wan0")
	m.configure("wan0")
	m.follow("wan0")
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
	flows.goesOn(m.scene)

	// And when its last mapping has ended, the programs go.
	flows.flows.Stop()
	flows.ping.Stop(nil)
	flow := m.flow(m.Hosts[0], "udp", netip.AddrPort{}, lab.Port(lab.ServerWAN.V4, serverPort))
	m.ip(m.RA.Node, "link set wan0 name wanx0")
	m.warned("pin 2", "interface wan0 does not exist")
	flow.Stop()
	m.must(m.RA.Netlink().ConntrackTableFlush(netlink.ConntrackTable))
	m.awaitFlows(m.RA, 2, 0)
	m.follow("wan0")
}

// A pin that its VLAN finds needs no name: it follows by itself.
func TestRenamedFoundByVLAN(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "byvlan", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(strings.Replace(onWAN, "vlan: 2, interface: wan0", "vlan: 0", 1))
	m.unwarned()
	flows := m.live(4000)
	m.ip(m.RA.Node, "link set wan0 name wanx0")
	m.follow("wanx0")
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
	flows.goesOn(m.scene)
	if pin := m.pin(m.RA, 0); pin.Interface != "wanx0" {
		t.Errorf("the pin is on %s, want wanx0", pin.Interface)
	}
	m.unwarned()
}

// Set down and up under keepalived, which gives the VIPs up and takes them
// again. The kernel forgets the flows; those that go on find their mappings, and
// new ones are pinned once the router is MASTER again.
func TestDownAndUp(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "downup", lab.Options{Hosts: 1})
	m.must(m.RA.Sysctl("net/ipv6/conf/wan0/keep_addr_on_down", "1"))
	_, err := m.StartKeepalived(m.RA, lab.Keepalived{})
	m.must(err)
	m.must(m.RA.AwaitMaster(m.ctx))
	m.begin(onWAN)
	m.unwarned()
	flows := m.live(4000)
	flows.flows.Between(func() { m.ip(m.RA.Node, "link set wan0 down") })
	m.awaitForgotten(own.V4)
	m.becomes(policy.RoleFault)
	m.outlast(flows)
	if evidence := m.status(m.RA).Groups[0].Evidence; !strings.Contains(strings.Join(evidence, "\n"), "wan0 is down") {
		t.Errorf("evidence %q, want that wan0 is down", evidence)
	}
	m.ip(m.RA.Node, append([]string{"link set wan0 up"}, routes("wan0")...)...)
	m.unwarned()
	m.follow("wan0")
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
	flows.goesOn(m.scene)
}

// A cable that is pulled: the kernel forgets nothing, and the flows live on with
// their sources when it is plugged in again.
func TestCarrierLost(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "carrier", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	flows, known := m.live(4000), m.masqueraded(own.V4)
	m.must(m.CutCable(m.RA, lab.WAN))
	m.becomes(policy.RoleFault)
	if now := m.masqueraded(own.V4); now < known {
		t.Errorf("the kernel knew %d flows and forgot %d: then this test shows nothing", known, known-now)
	}
	m.must(m.PlugCable(m.RA, lab.WAN))
	m.unwarned()
	m.ip(m.RA.Node, routes("wan0")...) // IPv6's goes with the carrier
	m.follow("wan0")
	flows.goesOn(m.scene)
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
}

// VIPs that somebody takes away and adds again: the role follows them, and no
// living flow does.
func TestVIPByHand(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "byhand", lab.Options{Hosts: 1, SingleRouter: true})
	m.begin(onWAN)
	m.unwarned()
	flows := m.live(4000)
	m.ip(m.RA.Node, fmt.Sprintf("addr del %s/24 dev wan0", vip.V4))
	m.becomes(policy.RoleBackup)
	m.follow("wan0")
	counted := m.count(m.RA, 2, func() { m.sees(m.Hosts[0], lab.ServerWAN, own) })
	if len(counted.unpinnedBy) != 1 || counted.unpinnedBy["backup"] == 0 {
		t.Errorf("new flows were not pinned by %v, want \"backup\" alone", counted.unpinnedBy)
	}
	flows.goesOn(m.scene)
	m.ip(m.RA.Node, fmt.Sprintf("addr add %s/24 dev wan0", vip.V4))
	m.follow("wan0")
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
	flows.goesOn(m.scene)
}

// keepalived makes its virtual MAC interfaces when it starts and deletes them
// when it ends: VIPs on them count for the pin on the interface below.
func TestVMACAppearsLater(t *testing.T) {
	t.Parallel()
	m := setMoving(t, "vmaclater", lab.Options{Hosts: 1})
	m.begin(onWAN)
	m.becomes(policy.RoleBackup)
	for range 2 {
		_, err := m.StartKeepalived(m.RA, lab.Keepalived{VMAC: true})
		m.must(err)
		m.must(m.RA.AwaitMaster(m.ctx))
		m.unwarned()
		if number := m.number("vrrp4.20"); number == 0 {
			t.Fatal("keepalived made no virtual MAC interface")
		}
		m.follow("wan0") // and no programs on the macvlan
		m.sees(m.Hosts[0], lab.ServerWAN, vip)
		flow := m.flow(m.Hosts[0], "udp", netip.AddrPort{}, lab.Port(lab.ServerWAN.V4, serverPort))
		m.must(m.RA.Keepalived().Stop())
		m.becomes(policy.RoleBackup)
		m.follow("wan0")
		flow.Stop()
	}
}

// An interface that is moved to another namespace takes its programs and its
// number along. Nothing of ours goes on there; here a new one with its number is
// another device; and when it comes back it is as good as new.
func TestMovedToAnotherNamespace(t *testing.T) {
	t.Parallel()
	const number = 4242
	m := setMoving(t, "netns", lab.Options{Hosts: 1, SingleRouter: true})
	m.ip(m.RA.Node, "link del wan0")
	m.cable("wan0", wanMAC, number)
	m.configure("wan0")
	m.begin(onWAN)
	m.unwarned()
	elsewhere := m.LANSwitch
	m.ip(m.RA.Node, "link set wan0 netns "+elsewhere.NS)
	m.follow("wan0")
	m.awaitForgotten(own.V4)
	m.warned("pin 2", "interface wan0 does not exist")
	m.must(elsewhere.Do(func() error {
		if n := programsOn(number); n != 0 {
			return fmt.Errorf("%d of our programs are on wan0 in its new namespace", n)
		}
		return nil
	}))
	m.ip(elsewhere, "link set wan0 netns "+m.RA.NS)
	m.ip(m.RA.Node, "link set wan0 up")
	m.configure("wan0")
	m.follow("wan0")
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, vip)

	m.blindly(func() { // away, and a new device in its place
		m.ip(m.RA.Node, "link set wan0 name wan8 netns "+elsewhere.NS)
		m.ip(m.WANSwitch, "link set p-wan0 name p-wan8")
		m.cable("wan0", wanMAC, number)
		m.configure("wan0")
	})
	m.follow("wan0")
	m.unwarned()
	m.sees(m.Hosts[0], lab.ServerWAN, vip)
}
