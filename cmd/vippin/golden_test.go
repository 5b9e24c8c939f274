// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"vippin/policy"
)

var errBroken = errors.New("unload: 2 connections would break (use --force)")

func addrs(list ...string) []netip.Addr {
	var parsed []netip.Addr
	for _, text := range list {
		parsed = append(parsed, netip.MustParseAddr(text))
	}
	return parsed
}

func samplePins() []policy.PinStatus {
	return []policy.PinStatus{{
		PinState: policy.PinState{VLAN: policy.VLAN{Outer: 2}, Interface: "eth0.2", VIPs: addrs("198.51.100.2", "2001:db8:2::2"),
			Group: "RouterCore", Enabled: true, Role: policy.RoleMaster},
		Flows: 12, PacketsPinned: 345678, PacketsUnpinned: 19,
		UnpinnedBy: map[string]uint64{"born_before": 17, "helper": 2, "off": 0},
	}, {
		PinState: policy.PinState{VLAN: policy.VLAN{Outer: 20}, Name: "voip", Interface: "eth0.20", VIPs: addrs("203.0.113.20"),
			Group: "20/voip", EnabledBy: policy.EnabledByToggle, Role: policy.RoleBackup},
		PacketsVIPWhileBackup: 3, PortClashes: 2, PacketsForeign: 1,
	}, {
		PinState: policy.PinState{VLAN: policy.VLAN{Outer: 100, Inner: 20}, Interface: "eth1.100.20", Group: "100.20", Enabled: true},
	}}
}

func sampleStatus() policy.Status {
	bulk := testNow.Add(-90 * time.Second)
	return policy.Status{
		Node: "router-a", Version: "1.0", Tier: "tcx", Uptime: 93784,
		Groups: []policy.GroupStatus{{
			Name: "RouterCore", Role: policy.RoleMaster, Since: testNow.Add(-61 * time.Minute),
			Evidence: []string{"198.51.100.2 is on eth0.2", "own adverts of VRID 10 leave eth0.2, the last 40ms ago"},
			Conflict: "198.51.100.4 advertises VRID 10 on eth0.2 too",
		}, {
			Name: "20/voip", Role: policy.RoleBackup, Since: testNow.Add(-26 * time.Hour), Evidence: []string{"203.0.113.20 is not here"},
		}},
		Pins: samplePins(),
		Peers: []policy.PeerStatus{
			{Name: "router-b", State: "up", LagFlows: 1, FlowsSent: 100, FlowsReceived: 7, LastBulk: &bulk},
			{Name: "router-c", State: "down"},
		},
		ConnectionsRefused: map[string]uint64{"half_open": 120, "unknown_key": 3, "version": 0},
		UnpinnedWithoutPin: map[string]uint64{"source": 12},
		Fastpath:           new(sampleFastpath()),
		Warnings:           []string{"interface eth1.100.20 is absent: pin 100.20 waits for it"},
	}
}

func sampleFastpath() policy.FastpathState {
	return policy.FastpathState{
		Enabled: true, EnabledBy: policy.EnabledByToggle, Open: true, Generation: 17, PaceS: 4,
		PaceWhy: "legacy iptables tables", Flows: 2048, Capacity: 524288, MemoryBytes: 96 << 20, Loosened: 900,
		Interfaces: []policy.FastpathDevice{
			{Interface: "eth0", Ifindex: 2, Mode: "native", VLANs: []policy.VLAN{{Outer: 2}, {Outer: 20}, {Outer: 100, Inner: 20}}, Virtual: []string{"vrrp4.10", "vrrp6.10"}},
			{Interface: "eth1", Ifindex: 3, Mode: "generic", Warnings: []string{"its driver has no XDP: slower than it could be"}},
			{Interface: "eth2", Ifindex: 4, Refused: "a foreign XDP program is on it"},
			{Interface: "eth3", Refused: "there is no such interface"},
		},
		Packets:  map[string]uint64{"forwarded": 987654, "miss": 1200, "flags": 300, "other_host": 0, "learnt": 1100, "not_learnt": 50},
		Unlearnt: map[string]uint64{"not_liberal": 40, "not_established": 10},
		Warnings: []string{"12 requests to make TCP connections liberal were lost"},
	}
}

func sampleVRRP() []policy.VRRPStatus {
	return []policy.VRRPStatus{{
		Interface: "eth0.2", VLAN: policy.VLAN{Outer: 2}, VRID: 10, Family: "ipv4", Version: 3, Checksum: "pseudo-header",
		Role: policy.RoleMaster, VirtualMAC: true,
		Routers: []policy.RouterStatus{
			{Address: netip.MustParseAddr("198.51.100.3"), Priority: 150, Interval: 100, LastSeen: 40, Self: true},
			{Address: netip.MustParseAddr("198.51.100.4"), Priority: 100, Interval: 100, LastSeen: 2140.5},
		},
		Ignored: map[string]uint64{"ttl": 4, "checksum": 1}, Conflict: "two routers advertise",
	}, {
		Interface: "eth0.20", VLAN: policy.VLAN{Outer: 20}, VRID: 20, Family: "ipv6", Role: policy.RoleFault,
	}}
}

func sampleFlows() []policy.FlowStatus {
	packets, bytes := uint64(11), uint64(4096)
	return []policy.FlowStatus{{
		VLAN: policy.VLAN{Outer: 2}, Proto: "tcp", Client: "192.168.101.7:40000", Remote: "192.0.2.80:443",
		Public: "198.51.100.2:40000", Local: "198.51.100.3:40000", Origin: "local", Acked: true,
		Packets: &packets, Bytes: &bytes, Age: 3725, Idle: 0.25, Fastpath: true,
	}, {
		VLAN: policy.VLAN{Outer: 2}, Proto: "icmpv6", Remote: "[2001:db8:ffff::1]:0",
		Public: "[2001:db8:2::2]:7", Local: "[2001:db8:2::3]:7", Origin: "local", Age: 12.34, Idle: 1,
	}}
}

func samplePeers() []policy.PeerReport {
	ago := func(d time.Duration) *time.Time { then := testNow.Add(-d); return &then }
	return []policy.PeerReport{{
		Name: "router-b", Address: netip.MustParseAddrPort("198.51.100.130:7443"), Key: "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0=",
		State: "up", Since: testNow.Add(-62 * time.Minute), Node: "rb", Version: "1.0", Protocol: 1,
		Groups:   []policy.PeerGroup{{Name: "RouterCore", Role: policy.RoleBackup, Epoch: 6}, {Name: "20/voip", Role: policy.RoleMaster, Epoch: 2}},
		LagFlows: 3, Lag: 12.25, FlowsSent: 104712, FlowsReceived: 77, GonesSent: 99000, GonesReceived: 12, Acked: 203709, Overruns: 1,
		FlowsSentRate: 1199.6, FlowsReceivedRate: 0.2, BytesSent: 17 << 20, BytesReceived: 1023, LastBulk: ago(time.Hour),
		Refused: map[string]uint64{"clash": 2}, RefusedByPeer: map[string]uint64{"no_pin": 40, "full": 1, "clash": 0},
		LastError: "nobody listens at 198.51.100.130:7443", LastErrorAt: ago(63 * time.Minute),
	}, {
		Name: "router-c", Address: netip.MustParseAddrPort("[2001:db8::130]:7443"), Key: "9vT0jRbvDYHvwrkTYWRz0Y8MuPHnNnCBaoX2Q3MABpA=",
		State: "bulk", Since: testNow.Add(-900 * time.Millisecond), Node: "rc", Version: "0.9", Protocol: 1, FlowsSent: 52000, BytesSent: 5 << 30,
		BulkOut: &policy.BulkProgress{Done: 52000, Total: 100000}, BulkIn: &policy.BulkProgress{Done: 7},
	}, {
		Name: "router-d", Address: netip.MustParseAddrPort("198.51.100.131:7443"), State: "down", Since: testNow.Add(-time.Minute),
		ConnectionsRefused: map[string]uint64{"unknown_key": 30}, ShownKey: "9vT0jRbvDYHvwrkTYWRz0Y8MuPHnNnCBaoX2Q3MABpA=",
		LastError: "a connection from its address was refused", LastErrorAt: ago(time.Second),
	}, {
		Name: "router-e", Address: netip.MustParseAddrPort("198.51.100.132:7443"), Key: "9vT0jRbvDYHvwrkTYWRz0Y8MuPHnNnCBaoX2Q3MABpA=", State: "connecting",
	}}
}

func sampleReport() policy.DryRun {
	return policy.DryRun{OK: true, Warnings: []string{"eth1.100.20 is absent"}, Pins: statesIn(samplePins())}
}

func sampleController() *fakeController {
	return &fakeController{
		status: sampleStatus(), pins: samplePins(), vrrp: sampleVRRP(), peers: samplePeers(), flows: sampleFlows(), reload: sampleReport(),
		fastpath: sampleFastpath(),
		hub:      newEventHub(func() time.Time { return testNow }),
	}
}

// TestShowing compares everything that is shown, for people, for scripts, and
// on a terminal in colours and cut to its width.
func TestShowing(t *testing.T) {
	failedReload := sampleController()
	failedReload.reload = policy.DryRun{Errors: []string{"vippin.yaml:7: VLAN 4095 is out of range (1 to 4094)", "vippin.yaml:9: no VIP"}}
	empty := &fakeController{}
	closedFastpath := &fakeController{fastpath: policy.FastpathState{Closed: "this kernel lacks BTF"}}
	cases := []struct {
		name    string
		control *fakeController
		args    []string
		width   int
		code    int
	}{
		{"status", sampleController(), []string{"status"}, 0, exitDegraded},
		{"status-json", sampleController(), []string{"status", "-j"}, 0, exitDegraded},
		{"status-terminal", sampleController(), []string{"status"}, 72, exitDegraded},
		{"status-empty", empty, []string{"status"}, 0, exitDone},
		{"status-empty-json", empty, []string{"status", "-j"}, 0, exitDone},
		{"pin-ls", sampleController(), []string{"pin", "ls"}, 0, exitDone},
		{"pin-ls-json", sampleController(), []string{"pin", "ls", "-j"}, 0, exitDone},
		{"pin-ls-terminal", sampleController(), []string{"pin", "ls"}, 100, exitDone},
		{"pin-ls-empty", empty, []string{"pin", "ls"}, 0, exitDone},
		{"pin-ls-empty-json", empty, []string{"pin", "ls", "-j"}, 0, exitDone},
		{"pin-on", sampleController(), []string{"pin", "on", "2,20"}, 0, exitDone},
		{"pin-off-json", sampleController(), []string{"pin", "off", "20/voip", "-j"}, 0, exitDone},
		{"pin-on-unknown", sampleController(), []string{"pin", "on", "2,30", "40-42"}, 0, exitFailed},
		{"pin-on-unknown-json", sampleController(), []string{"pin", "on", "-j", "2,30"}, 0, exitFailed},
		{"vrrp", sampleController(), []string{"vrrp"}, 0, exitDone},
		{"vrrp-json", sampleController(), []string{"vrrp", "-j"}, 0, exitDone},
		{"vrrp-empty-json", empty, []string{"vrrp", "-j"}, 0, exitDone},
		{"peers", sampleController(), []string{"peers"}, 0, exitDone},
		{"peers-json", sampleController(), []string{"peers", "-j"}, 0, exitDone},
		{"peers-terminal", sampleController(), []string{"peers"}, 110, exitDone},
		{"peers-narrow", sampleController(), []string{"peers"}, 60, exitDone},
		{"peers-empty", empty, []string{"peers"}, 0, exitDone},
		{"peers-empty-json", empty, []string{"peers", "-j"}, 0, exitDone},
		{"flows", sampleController(), []string{"flows"}, 0, exitDone},
		{"flows-json", sampleController(), []string{"flows", "-j"}, 0, exitDone},
		{"flows-empty", empty, []string{"flows"}, 0, exitDone},
		{"flows-empty-json", empty, []string{"flows", "-j"}, 0, exitDone},
		{"fastpath-ls", sampleController(), []string{"fastpath", "ls"}, 0, exitDone},
		{"fastpath-ls-json", sampleController(), []string{"fastpath", "ls", "-j"}, 0, exitDone},
		{"fastpath-ls-terminal", sampleController(), []string{"fastpath", "ls"}, 72, exitDone},
		{"fastpath-ls-empty", empty, []string{"fastpath", "ls"}, 0, exitDone},
		{"fastpath-ls-empty-json", empty, []string{"fastpath", "ls", "-j"}, 0, exitDone},
		{"fastpath-on", sampleController(), []string{"fastpath", "on"}, 0, exitDone},
		{"fastpath-on-json", sampleController(), []string{"fastpath", "on", "-j"}, 0, exitDone},
		{"fastpath-on-closed", closedFastpath, []string{"fastpath", "on"}, 0, exitFailed},
		{"fastpath-off", &fakeController{}, []string{"fastpath", "off"}, 0, exitDone},
		{"fastpath-reset", &fakeController{}, []string{"fastpath", "reset"}, 0, exitDone},
		{"reload", sampleController(), []string{"reload"}, 0, exitDone},
		{"reload-json", sampleController(), []string{"reload", "-j"}, 0, exitDone},
		{"reload-failed", failedReload, []string{"reload"}, 0, exitFailed},
		{"reload-failed-json", failedReload, []string{"reload", "-j"}, 0, exitFailed},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newRig(t)
			b.width = c.width
			b.serve(c.control)
			code, stdout, stderr := b.run(c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d (%s)", code, c.code, stderr)
			}
			golden(t, c.name, []byte(stdout+stderr))
		})
	}
}

// TestShowingWithoutDaemon compares the verbs that work from files and maps.
func TestShowingWithoutDaemon(t *testing.T) {
	cases := []struct {
		name   string
		config string
		loaded bool // "load" ran before
		args   []string
		code   int
	}{
		{"check", testConfig, false, []string{"check"}, exitDone},
		{"check-json", testConfig, false, []string{"check", "-j"}, exitDone},
		{"check-failed", brokenConfig, false, []string{"check"}, exitFailed},
		{"check-failed-json", brokenConfig, false, []string{"check", "-j"}, exitFailed},
		{"load", testConfig, false, []string{"load"}, exitDone},
		{"load-json", testConfig, false, []string{"load", "-j"}, exitDone},
		{"load-master", testConfig, false, []string{"load", "--master"}, exitDone},
		{"load-failed", brokenConfig, false, []string{"load"}, exitFailed},
		{"offline-pin-ls", testConfig, true, []string{"pin", "ls"}, exitDone},
		{"offline-pin-ls-json", testConfig, true, []string{"pin", "ls", "-j"}, exitDone},
		{"offline-pin-on", testConfig, true, []string{"pin", "on", "20"}, exitDone},
		{"offline-pin-unknown", testConfig, true, []string{"pin", "on", "20,30"}, exitFailed},
		{"offline-flows", testConfig, true, []string{"flows"}, exitDone},
		{"offline-flows-json", testConfig, true, []string{"flows", "-j"}, exitDone},
		{"offline-fastpath-ls", fastConfig, true, []string{"fastpath", "ls"}, exitDone},
		{"offline-fastpath-ls-json", fastConfig, true, []string{"fastpath", "ls", "-j"}, exitDone},
		{"offline-fastpath-on", testConfig, true, []string{"fastpath", "on"}, exitFailed},
		{"nothing-fastpath-ls", testConfig, false, []string{"fastpath", "ls"}, exitFailed},
		{"check-fastpath", fastConfig, false, []string{"check"}, exitDone},
		{"load-fastpath", fastConfig, false, []string{"load"}, exitDone},
		{"offline-status", testConfig, true, []string{"status"}, exitFailed},
		{"nothing-pin-ls", testConfig, false, []string{"pin", "ls"}, exitFailed},
		{"nothing-flows", testConfig, false, []string{"flows"}, exitFailed},
		{"nothing-unload", testConfig, false, []string{"unload"}, exitFailed},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newRig(t)
			if c.loaded {
				if code, _, stderr := b.run("load"); code != exitDone {
					t.Fatalf("load: %s", stderr)
				}
				b.plane.mappings = sampleMappings(b.plane.plan.Pins[0].ID)
				b.plane.fastpath = &fakeReader{state: sampleFastpath()}
			}
			b.configure(c.config)
			code, stdout, stderr := b.run(c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d (%s)", code, c.code, stderr)
			}
			golden(t, c.name, []byte(stdout+stderr))
		})
	}
}

// fastConfig names interfaces that cannot take the fast path, too.
const fastConfig = testConfig + `fastpath: {enabled: true, interfaces: [eth0, eth0.2, eth9]}
`

const brokenConfig = `node: router-a
pins:
  - {vlan: 4095, vips: [198.51.100.2]}
  - {vlan: 20, vip: [203.0.113.20]}
`

func sampleMappings(pin uint32) []policy.Mapping {
	return []policy.Mapping{{
		Pin: pin, Slot: 1, Proto: 6, Public: netip.MustParseAddrPort("198.51.100.2:1024"),
		Local: netip.MustParseAddrPort("198.51.100.3:40000"), Remote: netip.MustParseAddrPort("192.0.2.80:443"),
		Born: 50 * time.Minute, LastOut: 59 * time.Minute, LastIn: 58 * time.Minute,
	}, {
		Pin: pin, Slot: 1, Proto: 58, Public: netip.MustParseAddrPort("[2001:db8:2::2]:7"),
		Local: netip.MustParseAddrPort("[2001:db8:2::3]:7"), Remote: netip.MustParseAddrPort("[2001:db8:ffff::1]:0"),
		Born: 59 * time.Minute,
	}}
}
