// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"vippin/policy"
	"vippin/policy/flight"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// How far a record's times may be from what the wire says: those that the programs
// took, where the machine may stand still for a moment between program and capture,
// and those of what the kernel tells a daemon that waits for a processor.
const (
	accuracy = 20 * time.Millisecond
	told     = time.Second
)

// A failover's record says what a packet capture of it says, knows what became of
// the flows, and outlives the daemon.
func TestFailoverRecord(t *testing.T) {
	t.Parallel()
	s := setScene(t, "flight", lab.Options{Hosts: 2})
	s.must(s.AddSyncLink())
	p := &pair{scene: s}
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	var daemon *lab.Proc
	for _, r := range s.Routers() {
		daemon = s.start(r, p.config(r, strings.Replace(onWAN, "vrids: [20]", `vrids: [20, "10@lan0"]`, 1)))
	}
	p.awaitRole(s.RA, policy.RoleMaster)
	p.awaitSync()
	troop := p.patrol(15)
	p.awaitAgreement(troop.count)
	p.awaitSync()
	p.overAndBackTold()
	wire := p.captureBoth(s.RB)
	_, err := wire.wan.Await(s.ctx, 1, isAdvert(false))
	s.must(err)
	s.must(s.RA.Keepalived().Kill9()) // or it might resign when the first cable is pulled
	s.must(p.Crash(s.RA))
	troop.allAnswered()
	record := p.awaitRecord(s.RB, troop.count)
	p.compareWithWire(record, wire)

	if record.Group != lab.SyncGroup || record.Role != policy.RoleMaster || record.Was != policy.RoleBackup || record.Other != "ra" {
		t.Errorf("the record is about %s: %s, was %s, took over from %q", record.Group, record.Role, record.Was, record.Other)
	}
	if !strings.Contains(record.Cause, "the adverts of ra (") || !strings.Contains(record.Cause, "stopped") {
		t.Errorf("the cause is %q", record.Cause)
	}
	flows := record.Flows
	if n := uint64(troop.count); flows.TakenOver != n || flows.SpokeAgain != n || flows.Lost != 0 || flows.Normalised > n || flows.Resets != 0 {
		t.Errorf("of %d flows: %+v", n, flows)
	}
	p.outlivesDaemon(s.RB, daemon, record)
	if t.Failed() {
		t.Logf("the story:\n%s", s.vippin(s.RB, "failovers"))
	}
}

// overAndBackTold wants both sides' stories of a resignation and of a return, as
// keepalived makes them.
func (p *pair) overAndBackTold() {
	p.t.Helper()
	p.must(p.RA.Keepalived().Stop())
	p.awaitTold(p.RB, policy.RoleMaster, "ra (198.51.100.3) resigned (priority 0)")
	p.awaitTold(p.RA, policy.RoleBackup, "this router resigned (priority 0)")
	p.must(p.RA.Keepalived().Restart())
	p.awaitTold(p.RA, policy.RoleMaster, "this router preempted rb (", "): priority 150 over 100")
	p.awaitTold(p.RB, policy.RoleBackup, "preempted by ra (", "): priority 150 over 100")
	p.awaitSync()
}

// awaitTold waits until a router's last record tells of a role and its cause.
func (p *pair) awaitTold(r *lab.Router, role policy.Role, cause ...string) {
	p.t.Helper()
	var records []policy.Failover
	err := p.await("a record on "+r.Name, func() (bool, error) {
		records = p.failovers(r)
		if len(records) == 0 {
			return false, nil
		}
		last := records[len(records)-1]
		return last.Role == role && !slices.ContainsFunc(cause, func(part string) bool { return !strings.Contains(last.Cause, part) }), nil
	})
	if err != nil {
		p.t.Logf("%s tells: %s", r.Name, p.vippin(r, "failovers"))
	}
	p.must(err)
}

// patrol starts so many flows on each host, TCP and UDP in turn. Unlike those of a
// troop, the UDP ones do not wait long for what was lost.
func (p *pair) patrol(each int) *troop {
	p.t.Helper()
	tr := &troop{p: p, count: each * len(p.Hosts)}
	for h, host := range p.Hosts {
		flows, err := traffic.StartFlows(p.ctx, host.Do, each, func(i int) traffic.FlowOptions {
			return traffic.FlowOptions{
				ID: fmt.Sprintf("patrol-%d-%d", h, i), Proto: []string{"tcp", "udp"}[i%2], Interval: 100 * time.Millisecond,
				Local: lab.Port(lab.HostEnds(h).V4, 20000+uint16(i)), Remote: lab.Port(lab.ServerFar.V4, serverPort),
			}
		})
		p.must(err)
		tr.flows = append(tr.flows, flows...)
	}
	p.t.Cleanup(tr.dismiss)
	return tr
}

// captures is what passes a router's two interfaces.
type captures struct {
	wan, lan *traffic.Capture
	mac      net.HardwareAddr // of the WAN's
}

func (p *pair) captureBoth(r *lab.Router) captures {
	p.t.Helper()
	start := func(ifname string) *traffic.Capture {
		c, err := traffic.StartCapture(r.Do, ifname)
		p.must(err)
		p.t.Cleanup(func() { c.Close() })
		return c
	}
	link, err := r.Netlink().LinkByName(lab.WAN.Name)
	p.must(err)
	return captures{wan: start(lab.WAN.Name), lan: start(lab.LAN.Name), mac: link.Attrs().HardwareAddr}
}

// on is the times of the frames on some captures that match.
func on(match func(traffic.Frame) bool, from ...*traffic.Capture) (times []time.Time) {
	for _, c := range from {
		for _, f := range c.Frames(match) {
			times = append(times, f.Time)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	return times
}

// isAdvert matches VRRP of either family.
func isAdvert(outgoing bool) func(traffic.Frame) bool {
	return func(f traffic.Frame) bool {
		four, _ := f.Packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		six, _ := f.Packet.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
		return f.Outgoing == outgoing &&
			(four != nil && four.Protocol == layers.IPProtocolVRRP || six != nil && six.NextHeader == layers.IPProtocolVRRP)
	}
}

// isFromVIP matches the flows' packets of IPv4.
func isFromVIP(f traffic.Frame) bool {
	ip, _ := f.Packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	return ip != nil && f.Outgoing && ip.SrcIP.Equal(net.IP(vip.V4.AsSlice()))
}

// isToVIP matches their answers. A switch that has lost a port sends what was for
// that one's router everywhere.
func (c captures) isToVIP(f traffic.Frame) bool {
	ethernet, _ := f.Packet.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	ip, _ := f.Packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	return ethernet != nil && ip != nil && !f.Outgoing && ip.DstIP.Equal(net.IP(vip.V4.AsSlice())) && bytes.Equal(ethernet.DstMAC, c.mac)
}

// isAnnouncement matches gratuitous ARP for the VIP.
func isAnnouncement(f traffic.Frame) bool {
	arp, _ := f.Packet.Layer(layers.LayerTypeARP).(*layers.ARP)
	return arp != nil && f.Outgoing && net.IP(arp.SourceProtAddress).Equal(net.IP(vip.V4.AsSlice()))
}

// failovers is "vippin failovers -j".
func (s *scene) failovers(r *lab.Router) (records []policy.Failover) {
	s.t.Helper()
	s.must(json.Unmarshal([]byte(s.vippin(r, "failovers", "-j")), &records))
	return records
}

// awaitRecord waits until the last record knows the first answer, and that all
// flows have spoken.
func (p *pair) awaitRecord(r *lab.Router, flows int) (record policy.Failover) {
	p.t.Helper()
	err := p.await("the record of the failover", func() (bool, error) {
		records := p.failovers(r)
		record = records[len(records)-1]
		if record.Role != policy.RoleMaster {
			return false, nil
		}
		_, answered := stepOf(record, flight.FirstReply)
		return answered && record.Flows.SpokeAgain >= uint64(flows), nil
	})
	if err != nil {
		p.t.Logf("the last one: %+v", record)
	}
	p.must(err)
	return record
}

// stepOf finds a step by what it is, and by words in its details.
func stepOf(record policy.Failover, what string, words ...string) (policy.FailoverStep, bool) {
	i := slices.IndexFunc(record.Steps, func(s policy.FailoverStep) bool {
		return s.What == what && !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(s.Detail, word) })
	})
	if i < 0 {
		return policy.FailoverStep{}, false
	}
	return record.Steps[i], true
}

// compareWithWire checks each time that the wire knows too.
func (p *pair) compareWithWire(record policy.Failover, wire captures) {
	p.t.Helper()
	heard := on(isAdvert(false), wire.wan, wire.lan)
	for what, seen := range map[string][]time.Time{
		flight.LastAdvert:     heard[max(0, len(heard)-1):],
		flight.FirstOwnAdvert: on(isAdvert(true), wire.wan, wire.lan),
		flight.FirstPinned:    on(isFromVIP, wire.wan),
		flight.FirstReply:     on(wire.isToVIP, wire.wan),
	} {
		step, known := stepOf(record, what)
		if !known || len(seen) == 0 {
			p.t.Errorf("%s: told %t, seen on the wire %d times", what, known, len(seen))
			continue
		}
		off := step.Time.Sub(seen[0])
		p.t.Logf("%s: %s after the wire", what, off)
		if off.Abs() > accuracy {
			p.t.Errorf("%s: the record says %s, the wire %s", what, step.Time, seen[0])
		}
	}
	// keepalived advertises, adds the VIPs, and announces them by ARP.
	announced := on(isAnnouncement, wire.wan)
	own, _ := stepOf(record, flight.FirstOwnAdvert)
	added, known := stepOf(record, flight.VIPAdded, vip.V4.String())
	role, _ := stepOf(record, flight.RoleDecided)
	inForce, _ := stepOf(record, flight.RoleInForce)
	switch {
	case !known || len(announced) == 0:
		p.t.Errorf("VIP added: told %t, announced %d times", known, len(announced))
	case added.Time.Before(own.Time) || added.Time.After(announced[0].Add(told)):
		p.t.Errorf("VIP added at %s, the first own advert left at %s, the announcement at %s", added.Time, own.Time, announced[0])
	case role.Time.Before(added.Time) || inForce.Time.Before(role.Time):
		p.t.Errorf("VIP added at %s, role decided %s, in force %s", added.Time, role.Time, inForce.Time)
	}
}

// outlivesDaemon kills the daemon in the midst of a record: the record stays, says
// so, and is there when the daemon is back.
func (p *pair) outlivesDaemon(r *lab.Router, daemon *lab.Proc, record policy.Failover) {
	p.t.Helper()
	p.must(p.await("the record on the disk", func() (bool, error) {
		data, err := os.ReadFile(filepath.Join(r.StateDir(), "failovers.json"))
		var records []policy.Failover
		if err != nil || json.Unmarshal(data, &records) != nil || len(records) == 0 {
			return false, nil
		}
		last := records[len(records)-1]
		_, answered := stepOf(last, flight.FirstReply)
		return answered && last.Time.Equal(record.Time), nil
	}))
	p.must(daemon.Kill9())
	check := func(when string) {
		p.t.Helper()
		records := p.failovers(r)
		if len(records) == 0 {
			p.t.Fatalf("%s: no records", when)
		}
		last := records[len(records)-1]
		if !last.Time.Equal(record.Time) || last.Complete || !strings.Contains(last.Note, "daemon ended") {
			p.t.Errorf("%s: %+v", when, last)
		}
	}
	check("without a daemon")
	p.must(daemon.Restart())
	p.must(p.AwaitVippin(p.ctx, r))
	p.awaitRole(r, policy.RoleMaster)
	check("after its restart")
}
