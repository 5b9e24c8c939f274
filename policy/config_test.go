// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var comparable = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// parse reads a configuration that must have no fault.
func parse(t *testing.T, text string) *Config {
	t.Helper()
	cfg, err := ParseConfig([]byte(text), "vippin.yaml", "host")
	if err != nil {
		t.Fatalf("ParseConfig: %v", err)
	}
	return cfg
}

func TestParseConfigDefaults(t *testing.T) {
	cfg := parse(t, "pins:\n  - {vlan: 2, vips: [192.0.2.2]}\n")
	want := &Config{
		File: "vippin.yaml", Node: "host",
		RunDir: "/run/vippin", StateDir: "/var/lib/vippin", BPFFS: "/sys/fs/bpf/vippin",
		Log:       LogConfig{Level: slog.LevelInfo},
		Control:   ControlConfig{Group: "vippin"},
		Dataplane: DataplaneConfig{MaxFlows: 262144},
		Pins:      []PinConfig{{VLAN: VLAN{Outer: 2}, VIPs: addrs("192.0.2.2"), Enabled: true, Line: 2}},
		VRRP:      VRRPConfig{Tag: TagConfig{Mark: MarkConfig{0x70, 0xf0}, Priority: 7}, Lease: 2 * time.Second},
		Sync: SyncConfig{
			Mode: SyncAsync, Scope: ScopeNAT, Protocols: []string{"tcp", "udp", "icmp", "icmpv6", "other"},
			Expect: true, StrictTimeout: 20 * time.Millisecond, StrictQueue: 747, StrictMark: MarkConfig{0x100, 0x100},
			StandbyTimeout: time.Hour, DeleteHold: 3 * time.Second, ReadyTimeout: time.Minute,
			ReadyFile: "/run/vippin/ready", NoRST: 10 * time.Second,
		},
		Metrics: MetricsConfig{Listen: netip.MustParseAddrPort("127.0.0.1:9407")},
	}
	if diff := cmp.Diff(want, cfg, comparable); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

// everything sets each key to something that is not its default.
const everything = `
node: router-a
run_dir: /run/other/
state_dir: /var/lib/other
bpffs: /sys/fs/bpf/other
log: {level: debug}
control: {group: ""}
dataplane: {max_flows: 16}
groups:
  - {name: RouterCore, vrids: [10, "11@eth0.101"]}
pins:
  - vlan: 2
    name: ""
    interface: eth0.2
    vips: [10.10.10.2, 2001:db8:2::2, "fe80::2"]
    vrid: 10
    group: RouterCore
    enabled: false
    sources: [192.168.101.0/24, "2001:db8:101::/48"]
  - {vlan: 100.20, name: voip, vips: ["fe80::3", "2001:db8::3"]}
  - {vlan: "100.2", name: rest, vips: [198.51.100.3]}
  - {vlan: 0, interface: wan, vips: [198.51.100.4]}
vrrp:
  keepalived_fifo: /run/k.fifo
  tag: {mark: 0x30/0xf0, priority: 0x10014}
  lease: 500ms
sync:
  listen: "[2001:db8::1]:7443"
  mode: strict
  scope: all
  protocols: [udp]
  ignore: [198.18.0.0/15]
  expect: false
  strict_timeout: 5ms
  strict_queue: 0
  strict_mark: "256/0x300"
  standby_timeout: 2h
  delete_hold: 0s
  ready_timeout: 30s
  no_rst: 1m
  peers:
    - {name: router-b, address: 198.51.100.2:7443, key: "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0="}
fastpath: {enabled: true, interfaces: [eth0, eth1], all: true, force: true}
metrics: {listen: ""}
`

func TestParseConfigEverything(t *testing.T) {
	cfg := parse(t, everything)
	want := &Config{
		File: "vippin.yaml", Node: "router-a",
		RunDir: "/run/other", StateDir: "/var/lib/other", BPFFS: "/sys/fs/bpf/other",
		Log:       LogConfig{Level: slog.LevelDebug},
		Dataplane: DataplaneConfig{MaxFlows: 16},
		Groups:    []GroupConfig{{Name: "RouterCore", VRIDs: []VRIDConfig{{VRID: 10}, {VRID: 11, Interface: "eth0.101"}}, Line: 10}},
		Pins: []PinConfig{
			{
				VLAN: VLAN{Outer: 2}, Interface: "eth0.2", VIPs: addrs("10.10.10.2", "2001:db8:2::2", "fe80::2"), VRID: 10,
				Group: "RouterCore", Sources: prefixes("192.168.101.0/24", "2001:db8:101::/48"), Line: 12,
			},
			{VLAN: VLAN{100, 20}, Name: "voip", VIPs: addrs("fe80::3", "2001:db8::3"), Enabled: true, Line: 20},
			{VLAN: VLAN{100, 2}, Name: "rest", VIPs: addrs("198.51.100.3"), Enabled: true, Line: 21},
			{Interface: "wan", VIPs: addrs("198.51.100.4"), Enabled: true, Line: 22},
		},
		VRRP: VRRPConfig{
			KeepalivedFIFO: "/run/k.fifo",
			Tag:            TagConfig{Mark: MarkConfig{0x30, 0xf0}, Priority: 0x10014},
			Lease:          500 * time.Millisecond,
		},
		Sync: SyncConfig{
			Listen: netip.MustParseAddrPort("[2001:db8::1]:7443"), Mode: SyncStrict, Scope: ScopeAll,
			Protocols: []string{"udp"}, Ignore: prefixes("198.18.0.0/15"),
			StrictTimeout: 5 * time.Millisecond, StrictMark: MarkConfig{0x100, 0x300},
			StandbyTimeout: 2 * time.Hour, ReadyTimeout: 30 * time.Second,
			ReadyFile: "/run/other/ready", NoRST: time.Minute,
			Peers: []PeerConfig{{Name: "router-b", Address: netip.MustParseAddrPort("198.51.100.2:7443"), Key: "Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0=", Line: 42}},
		},
		Fastpath: FastpathConfig{Enabled: true, Interfaces: []string{"eth0", "eth1"}, All: true, Force: true},
	}
	if diff := cmp.Diff(want, cfg, comparable); diff != "" {
		t.Errorf("everything (-want +got):\n%s", diff)
	}
}

func TestParseConfigFromAnotherEditor(t *testing.T) {
	want := parse(t, everything)
	got := parse(t, "\ufeff"+strings.ReplaceAll(everything, "\n", "\r\n"))
	if diff := cmp.Diff(want, got, comparable); diff != "" {
		t.Errorf("with a byte order mark and CRLF (-without +with):\n%s", diff)
	}
}

func TestPinConfigSources(t *testing.T) {
	pin := parse(t, everything).Pins[1]
	if pin.VIP4().IsValid() || pin.VIP6() != netip.MustParseAddr("2001:db8::3") {
		t.Errorf("VIP4 %v, VIP6 %v: want none and 2001:db8::3, a link-local VIP is no source", pin.VIP4(), pin.VIP6())
	}
	if pin.Key().String() != "100.20/voip" || pin.GroupName() != "100.20/voip" {
		t.Errorf("key %s, group %s: want 100.20/voip twice", pin.Key(), pin.GroupName())
	}
}

func TestDefaultConfigIsWhatParsingStartsFrom(t *testing.T) {
	cfg := parse(t, "pins: []")
	if diff := cmp.Diff(DefaultConfig("vippin.yaml", "host"), cfg, comparable); diff != "" {
		t.Errorf("(-DefaultConfig +parsed):\n%s", diff)
	}
}

func TestSectionsWithoutAValueKeepTheirDefaults(t *testing.T) {
	cfg := parse(t, "pins:\ngroups:\nlog:\ncontrol:\ndataplane:\nvrrp:\n  tag:\nsync:\nfastpath:\nmetrics:\n")
	if diff := cmp.Diff(DefaultConfig("vippin.yaml", "host"), cfg, comparable); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

const sampleFile = "../docs/vippin.yaml"

func TestSampleParses(t *testing.T) {
	data, err := os.ReadFile(sampleFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := ParseConfig(data, sampleFile, "host")
	if err != nil {
		t.Fatalf("the sample configuration has faults:\n%v", err)
	}
	if len(cfg.Pins) != 4 || len(cfg.Groups) != 1 || len(cfg.Sync.Peers) != 1 {
		t.Errorf("the sample has %d pins, %d groups, %d peers; want 4, 1, 1", len(cfg.Pins), len(cfg.Groups), len(cfg.Sync.Peers))
	}
	// The comments promise that what is no example is the default.
	sample, defaults := *cfg, *DefaultConfig(sampleFile, "host")
	sample.Node, sample.Groups, sample.Pins = defaults.Node, nil, nil
	sample.Sync.Listen, sample.Sync.Ignore, sample.Sync.Peers = netip.AddrPort{}, nil, nil
	sample.Fastpath.Interfaces = nil
	if diff := cmp.Diff(defaults, sample, comparable); diff != "" {
		t.Errorf("the sample says other defaults (-true +sample):\n%s", diff)
	}
}

// TestSampleNamesEveryKey asks the parser itself which keys it knows.
func TestSampleNamesEveryKey(t *testing.T) {
	_, err := ParseConfig([]byte(`
zz: 1
log: {zz: 1}
control: {zz: 1}
dataplane: {zz: 1}
groups: [{zz: 1}]
pins: [{zz: 1}]
vrrp: {zz: 1, tag: {zz: 1}}
sync: {zz: 1, peers: [{zz: 1}]}
fastpath: {zz: 1}
metrics: {zz: 1}
`), "f", "host")
	var faults ConfigErrors
	if !errors.As(err, &faults) || len(faults) != 12 {
		t.Fatalf("want one fault a section, 12 together, got:\n%v", err)
	}
	data, err := os.ReadFile(sampleFile)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, fault := range faults {
		_, list, found := strings.Cut(strings.TrimSuffix(fault.Text, ")"), "(known keys: ")
		if !found {
			t.Fatalf("no known keys in %q", fault.Text)
		}
		for key := range strings.SplitSeq(list, ", ") {
			count++
			if !regexp.MustCompile(`(?m)^[ #-]*` + key + `:`).Match(data) {
				t.Errorf("%s does not show the key %q", sampleFile, key)
			}
		}
	}
	if count < 50 {
		t.Errorf("only %d keys found in the messages: the test is blind", count)
	}
}
