// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// What is translated otherwise outlives the master, too: a port forward on the
// virtual address, and an explicit SNAT to it, which no pin rewrites.
func TestFailoverOfOtherTranslations(t *testing.T) {
	t.Parallel()
	p := setPair(t, "othernat", lab.Options{Hosts: 2, Masquerade: lab.MasqueradeSNAT}, "")
	for _, r := range p.Routers() {
		p.must(r.NFT(p.ctx, fmt.Sprintf(`
table inet forwards {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "wan0" ip daddr %s meta l4proto { tcp, udp } th dport %d dnat ip to %s:%d
	}
}
`, vip.V4, forwardedPort, lab.HostEnds(0).V4, serverPort)))
	}
	inside := lab.Port(lab.HostEnds(0).V4, serverPort)
	p.serve(p.Hosts[0], traffic.ServerOptions{TCP: []netip.AddrPort{inside}, UDP: []netip.AddrPort{inside}})
	var flows traffic.Flows
	for _, proto := range []string{"tcp", "udp"} {
		in, err := traffic.StartFlows(p.ctx, p.Server.Do, 20, func(i int) traffic.FlowOptions {
			return traffic.FlowOptions{ID: fmt.Sprintf("in-%s-%d", proto, i), Proto: proto,
				Remote: lab.Port(vip.V4, forwardedPort), Interval: 200 * time.Millisecond, Timeout: patience}
		})
		p.must(err)
		flows = append(flows, in...)
		for h, host := range p.Hosts {
			out, err := traffic.StartFlows(p.ctx, host.Do, 20, func(i int) traffic.FlowOptions {
				return traffic.FlowOptions{ID: fmt.Sprintf("out-%s-%d-%d", proto, h, i), Proto: proto,
					Local: lab.Port(lab.HostEnds(h).V4, 20000+uint16(i)), Remote: lab.Port(lab.ServerFar.V4, serverPort),
					Interval: 200 * time.Millisecond, Timeout: patience}
			})
			p.must(err)
			flows = append(flows, out...)
		}
	}
	defer flows.Stop()
	p.awaitEntries(p.RB, len(flows))
	p.must(p.Crash(p.RA))
	p.awaitRole(p.RB, policy.RoleMaster)
	p.goOn(flows)
}

// awaitEntries waits until a router's conntrack table has so many translated
// entries of the tests' ports.
func (p *pair) awaitEntries(r *lab.Router, least int) {
	p.t.Helper()
	var n int
	err := lab.Await(p.ctx, fmt.Sprintf("%d entries on %s", least, r.Name), func() (bool, error) {
		n = p.translated(r)
		return n >= least, nil
	})
	if err != nil {
		p.t.Fatalf("%d entries on %s: %v\n%s", n, r.Name, err, p.Describe())
	}
	p.awaitSync()
}

// goOn waits until every flow has been answered again, from one source.
func (p *pair) goOn(flows traffic.Flows) {
	p.t.Helper()
	before := map[string]uint64{}
	for _, r := range flows.Report().Flows {
		before[r.ID] = r.Answered
	}
	err := lab.Await(p.ctx, "an answer on every flow", func() (bool, error) {
		for _, r := range flows.Report().Flows {
			if r.Answered <= before[r.ID]+1 && !r.Broken() {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		p.t.Error(err)
	}
	report := flows.Report()
	if len(report.Broken()) > 0 || len(report.Moved()) > 0 {
		p.t.Errorf("%s\n%s", report, p.Describe())
	}
}

// The routers' interfaces have different names and numbers, and no VRRP: the VIPs
// are moved by hand.
func TestFailoverBetweenUnlikeRouters(t *testing.T) {
	t.Parallel()
	s := setScene(t, "unlike", lab.Options{})
	s.must(s.AddSyncLink())
	s.ip(s.RB.Node, "link add filler type veth peer name relliv", "link del filler", "link set wan0 down",
		"link set wan0 name uplink7", "link set uplink7 up", routes("uplink7")[0])
	s.must(s.RA.AddVIPs())
	p := &pair{scene: s}
	s.start(s.RA, p.config(s.RA, onWAN))
	s.start(s.RB, p.config(s.RB, strings.Replace(onWAN, "interface: wan0", "name: outside, interface: uplink7", 1)))
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitSync()
	troop := p.muster(60, 20000, false)
	p.awaitAgreement(troop.count)
	p.must(p.Crash(p.RA))
	s.ip(s.RB.Node, append(vipAddresses("uplink7"), fmt.Sprintf("addr add %s/24 dev lan0", lab.LAN.VIP4))...)
	for _, n := range append(p.Hosts, p.Server) { // nobody has told them
		s.ip(n, "neigh flush dev eth0")
	}
	p.awaitRole(p.RB, policy.RoleMaster)
	troop.allAnswered()
}

// Three routers: the flows outlive the master, and then the next one.
func TestFailoverTwice(t *testing.T) {
	t.Parallel()
	p := setPair(t, "twice", lab.Options{Firewall: true, ThirdRouter: true}, "")
	troop := p.muster(60, 20000, false)
	p.awaitAgreement(troop.count)
	p.awaitAgreementOf(p.RA, p.RC, troop.count)
	p.must(p.Crash(p.RA))
	p.awaitRole(p.RB, policy.RoleMaster)
	troop.allAnswered()
	late := p.muster(30, 30000, false)
	p.awaitAgreementOf(p.RB, p.RC, troop.count+late.count)
	p.must(p.Crash(p.RB))
	p.awaitRole(p.RC, policy.RoleMaster)
	troop.allAnswered()
	late.allAnswered()
}

// conntrackd runs beside, with its external cache, as routers have it that come from
// there: neither minds the other.
func TestFailoverBesideConntrackd(t *testing.T) {
	t.Parallel()
	s := setScene(t, "beside", lab.Options{Firewall: true})
	s.must(s.AddSyncLink())
	p := &pair{scene: s}
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	for _, r := range s.Routers() {
		_, err := s.StartConntrackd(s.ctx, r, lab.Conntrackd{})
		s.must(err)
		s.start(r, p.config(r, onWAN))
	}
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitRole(s.RB, policy.RoleBackup)
	p.awaitSync()
	troop := p.muster(60, 20000, false)
	p.awaitAgreement(troop.count)
	p.must(p.LinksDown(p.RA))
	p.awaitRole(p.RB, policy.RoleMaster)
	troop.allAnswered()
}

// Who has no key gets nowhere, and disturbs nobody.
func TestStrangersAtTheDoor(t *testing.T) {
	t.Parallel()
	p := setPair(t, "strangers", lab.Options{}, "")
	troop := p.muster(30, 20000, false)
	p.awaitAgreement(troop.count)
	var open []net.Conn
	p.must(p.RB.Do(func() error { // from the peer's own address
		for range 2000 {
			conn, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", p.RA.SyncAddr(), syncPort), time.Second)
			if err == nil { // else it was refused at once
				open = append(open, conn)
			}
		}
		return nil
	}))
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	for i, conn := range first(open, 50) {
		_, _ = conn.Write([]byte(strings.Repeat("garbage", 1+i))) // the router may have hung up
	}
	more := p.muster(30, 30000, false)
	p.awaitAgreement(troop.count + more.count)
	if refused := p.status(p.RA).ConnectionsRefused; refused["half_open"]+refused["handshake"] < 1000 {
		t.Errorf("refused %v", refused)
	}
	troop.allAnswered()
	more.allAnswered()
}

// What replication carries cannot be read on the wire.
func TestNothingReadableOnTheSyncLink(t *testing.T) {
	t.Parallel()
	s := setScene(t, "secret", lab.Options{})
	s.must(s.AddSyncLink())
	p := &pair{scene: s}
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	capture, err := traffic.StartCapture(s.RA.Do, lab.SyncLink)
	s.must(err)
	defer capture.Close()
	for _, r := range s.Routers() {
		s.start(r, p.config(r, onWAN))
	}
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitSync()
	troop := p.muster(60, 20000, false)
	p.awaitAgreement(troop.count)
	octets, addresses := 0, 0
	for _, frame := range capture.Frames(nil) {
		layer := frame.Packet.TransportLayer()
		if layer == nil {
			continue
		}
		payload := string(layer.LayerPayload())
		octets += len(payload)
		addresses += strings.Count(payload, string(lab.ServerFar.V4.AsSlice()))
		if strings.Contains(payload, "RouterCore") {
			t.Error("the group's name can be read")
		}
	}
	if octets < 20*troop.count {
		t.Errorf("saw %d octets of payload: was this the wire?", octets)
	}
	if addresses > troop.count/10 { // four octets turn up in noise, but not once a flow
		t.Errorf("the server's address can be read %d times", addresses)
	}
}
