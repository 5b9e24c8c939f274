// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// pinnedWAN1 is onWAN with a second VLAN.
const pinnedWAN1 = onWAN + `  - {vlan: 30, interface: wan1, vips: [203.0.113.2, "2001:db8:113::2"]}
`

// stream sends a datagram every millisecond from a fixed port.
func (s *scene) stream(id string, port uint16) *traffic.Flow {
	s.t.Helper()
	flow, err := traffic.StartFlow(s.ctx, s.Hosts[0].Do, traffic.FlowOptions{
		ID: id, Proto: "udp", OneWay: true, Interval: time.Millisecond,
		Local: lab.Port(lab.HostEnds(0).V4, port), Remote: lab.Port(lab.ServerWAN.V4, serverPort),
	})
	s.must(err)
	s.t.Cleanup(func() { flow.Stop() })
	return flow
}

// The daemon goes and comes, and not one datagram of a busy flow is lost or
// comes from elsewhere; toggles are as they were.
func TestRestartLosesNothing(t *testing.T) {
	s := setScene(t, "restart", lab.Options{Hosts: 1, SingleRouter: true, WAN1: true})
	s.must(s.RA.AddVIPs())
	daemon := s.start(s.RA, pinnedWAN1)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.vippin(s.RA, "pin", "off", "30")
	s.stream("busy", 6000)
	for i := range 3 {
		if i == 2 {
			s.must(daemon.Stop())
		} else {
			s.must(daemon.Kill9())
		}
		// Without a daemon the switches work too.
		s.vippin(s.RA, "pin", "off", "2")
		s.vippin(s.RA, "pin", "on", "2")
		s.must(daemon.Restart())
		s.must(s.AwaitVippin(s.ctx, s.RA))
	}
	seen, err := s.server.AwaitStream(s.ctx, "busy", s.server.Stream("busy").Packets+100)
	s.must(err)
	if seen.Missing != 0 || len(seen.Sources) != 1 || seen.Sources[0] != lab.Port(lab.WAN.VIP4, 6000) {
		t.Errorf("%d of %d datagrams lost, sources %v", seen.Missing, seen.Packets, seen.Sources)
	}
	if pin := s.pin(s.RA, 30); pin.Enabled || pin.EnabledBy != policy.EnabledByToggle {
		t.Errorf("pin 30 after the restarts: %+v, want it off by toggle", pin.PinState)
	}
	s.vippin(s.RA, "pin", "reset", "30,2")
	if pin := s.pin(s.RA, 30); !pin.Enabled || pin.EnabledBy != policy.EnabledByConfig {
		t.Errorf("pin 30 after the reset: %+v, want what the configuration says", pin.PinState)
	}
}

// A VLAN is added to a running router, and taken away, by reload and by SIGHUP.
func TestVLANAddedLive(t *testing.T) {
	s := setScene(t, "added", lab.Options{Hosts: 1, SingleRouter: true, WAN1: true})
	s.must(s.RA.AddVIPs())
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.stream("first", 6000)
	host := s.Hosts[0]
	expect := func(what string, want netip.Addr) {
		t.Helper()
		if got := s.source(host, "tcp", netip.AddrPort{}, lab.ServerWAN1.V4); got.Addr() != want {
			t.Errorf("%s: a flow through wan1 came from %s, want %s", what, got, want)
		}
	}
	expect("before", lab.WAN1.RA.V4)
	s.must(s.WriteVippin(s.RA, pinnedWAN1))
	s.vippin(s.RA, "reload")
	expect("added by reload", lab.WAN1.VIP4)

	// What is wrong changes nothing, and all of it is told with its line.
	s.must(s.WriteVippin(s.RA, pinnedWAN1+"colour: blue\nvrrp: {lease: never}\n"))
	out, complaint, exit := s.Vippin(s.RA, "reload")
	if told := out + complaint; exit != 1 || !strings.Contains(told, "colour") || !strings.Contains(told, "lease") {
		t.Errorf("reload of a broken file: exit %d, %s", exit, told)
	}
	expect("after a broken file", lab.WAN1.VIP4)

	s.must(s.WriteVippin(s.RA, onWAN))
	s.must(daemon.Signal(syscall.SIGHUP))
	s.must(lab.Await(s.ctx, "the pin to go", func() (bool, error) {
		return !strings.Contains(s.vippin(s.RA, "pin", "ls"), "wan1"), nil
	}))
	expect("taken away by SIGHUP", lab.WAN1.RA.V4)

	seen, err := s.server.AwaitStream(s.ctx, "first", s.server.Stream("first").Packets+50)
	s.must(err)
	if seen.Missing != 0 || len(seen.Sources) != 1 {
		t.Errorf("the flow beside it: %d of %d datagrams lost, sources %v", seen.Missing, seen.Packets, seen.Sources)
	}
}

// A VLAN without a pin: nothing is changed, exit 1, the unknown ones are told.
func TestUnknownVLANChangesNothing(t *testing.T) {
	s := setScene(t, "unknown", lab.Options{Hosts: 1, SingleRouter: true})
	s.start(s.RA, onWAN)
	out, complaint, exit := s.Vippin(s.RA, "pin", "off", "2,7-9,wan0,eth9", "-j")
	var answer struct{ Unknown []string }
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("%v: %s %s", err, out, complaint)
	}
	if exit != 1 || strings.Join(answer.Unknown, " ") != "7-9 eth9" {
		t.Errorf("exit %d, unknown %q, want 1 and 7-9 eth9", exit, answer.Unknown)
	}
	if !s.pin(s.RA, 2).Enabled {
		t.Error("pin 2 was switched off all the same")
	}
}

// Monitor tells of toggles and roles as they happen.
func TestMonitor(t *testing.T) {
	s := setScene(t, "monitor", lab.Options{Hosts: 1, SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	// A dry run says it too, from the addresses alone.
	if out := s.vippin(s.RA, "check", "-j"); !strings.Contains(out, `"role": "MASTER"`) {
		t.Errorf("check: %s", out)
	}
	watch, err := s.StartCommand(s.RA, "monitor", "-j")
	s.must(err)
	s.must(lab.Await(s.ctx, "a toggle in monitor", func() (bool, error) {
		s.vippin(s.RA, "pin", "off", "2") // until it is watching
		return strings.Contains(watch.Log(), `"kind":"pin"`), nil
	}))
	s.must(s.RA.RemoveVIPs())
	s.must(watch.AwaitLog(s.ctx, `"role":"BACKUP"`))
	for line := range strings.Lines(watch.Log()) {
		var event policy.Event
		if err := json.Unmarshal([]byte(line), &event); err != nil || event.Kind == "" || event.Time.IsZero() {
			t.Errorf("line %q: %v", line, err)
		}
	}
	s.must(watch.Stop())
}
