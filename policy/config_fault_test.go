// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// aPin is a configuration with one good pin and something more in it.
func aPin(more string) string { return "pins: [{vlan: 2, vips: [192.0.2.2], " + more + "}]" }

func TestParseConfigFaults(t *testing.T) {
	const pins = "pins: [{vlan: 2, vips: [192.0.2.2]}]\n"
	tests := []struct {
		name, text string
		want       []string // each a "line: beginning of the message" of one fault, in order; no others
	}{
		{"empty", "", []string{"1: the file is empty: it needs at least one pin"}},
		{"comments only", "# nothing\n\n", []string{"1: the file is empty"}},
		{"null", "---\n~\n", []string{"1: the file is empty"}},
		{"a list", "- a\n", []string{"1: top level: expected keys and values, found a list (known keys: bpffs"}},
		{"a word", "vippin", []string{`1: top level: expected keys and values, found "vippin"`}},
		{"two documents", pins + "---\n" + pins, []string{"2: a second document begins here"}},
		{"broken second document", pins + "---\n[", []string{"3: not YAML near this line"}},
		{"tab", "pins:\n\t- {}\n", []string{"2: not YAML near this line: found"}},
		{"open bracket", "pins: [{vlan: 2}\n", []string{"1: not YAML near this line"}},
		{"bare IPv6 in list", "node: x\npins: [{vlan: 2, vips: [192.0.2.1, ::1]}]", []string{"2: not YAML: put quotes around IPv6 addresses in [lists]"}},
		{"bare IPv6 with a space", aPin("sources: [fe80:: ]"), []string{
			"1: pins.sources: expected one value, found keys and values (values with a colon, such as IPv6 addresses, need quotes)",
		}},
		{"not UTF-8", "node: \xff\n", []string{"1: not YAML near this line: invalid leading UTF-8 octet"}},
		{"unknown key", pins + "vrp: {lease: 2s}\n", []string{`2: top level: unknown key "vrp": did you mean "vrrp"? (known keys: bpffs, `}},
		{"unknown key in a pin", "pins:\n  - vlan: 2\n    vip: [192.0.2.2]\n", []string{`3: pins: unknown key "vip": did you mean "vips"?`}},
		{"key twice", pins + "node: a\nnode: b\n", []string{`3: top level: key "node" is given twice, first on line 2`}},
		{"list as key", "? [a]\n: 1\n", []string{"1: top level: a list stands where a key is expected"}},
		{"anchor", "pins: &p [{vlan: 2, vips: [192.0.2.2]}]\n", []string{"1: pins: anchors and aliases"}},
		{"merge key", "x: &x {vlan: 2}\npins: [{<<: *x, vips: [192.0.2.2]}]\n", []string{
			`1: top level: unknown key "x"`, `2: pins: unknown key "<<"`,
		}},
		{"tag", "node: !!str a\n", []string{`1: node: tags ("!!str") are not taken`}},
		{"no value", "node:\n", []string{"1: node: has no value"}},
		{"list for one", "node: [a]\n", []string{"1: node: expected one value, found a list"}},
		{"one for list", aPin("sources: 192.168.0.0/16"), []string{`1: pins.sources: expected a list, found "192.168.0.0/16": put it in [ ]`}},
		{"section as word", "sync: async\n", []string{`1: sync: expected keys and values, found "async"`}},
		{"pin as word", "pins: [2, 20]\n", []string{`1: pins: expected keys and values, found "2"`, `1: pins: expected keys and values, found "20"`}},

		{"no host name", "node: \"\"\n", []string{"1: node: is empty"}},
		{"space in node", "node: my router\n", []string{`1: node: "my router" contains ' '`}},
		{"relative path", "run_dir: run/vippin\n", []string{`1: run_dir: path "run/vippin" is not absolute`}},
		{"log level", "log: {level: verbose}\n", []string{`1: log.level: unknown word "verbose": write one of debug, info, warn, error`}},
		{"max_flows 0", "dataplane: {max_flows: 0}\n", []string{"1: dataplane.max_flows: 0 is out of range (1 to 16777216)"}},
		{"max_flows too many", "dataplane: {max_flows: 16777217}\n", []string{"1: dataplane.max_flows: 16777217 is out of range"}},
		{"max_flows with underscore", "dataplane: {max_flows: 262_144}\n", []string{`1: dataplane.max_flows: "262_144" is not a whole number`}},

		{"octal VLAN", "pins: [{vlan: 020, vips: [192.0.2.2]}]", []string{`1: pins.vlan: read VLAN "020": "020" begins with a zero`}},
		{"hexadecimal VLAN", "pins: [{vlan: 0x14, vips: [192.0.2.2]}]", []string{`1: pins.vlan: read VLAN "0x14": "0x14" is not a whole number`}},
		{"sexagesimal VLAN", "pins: [{vlan: 10:20, vips: [192.0.2.2]}]", []string{`1: pins.vlan: read VLAN "10:20"`}},
		{"float VLAN", "pins: [{vlan: 1e3, vips: [192.0.2.2]}]", []string{`1: pins.vlan: read VLAN "1e3"`}},
		{"reserved VLAN", "pins: [{vlan: 4095, vips: [192.0.2.2]}]", []string{`1: pins.vlan: read VLAN "4095": 4095 is out of range (1 to 4094)`}},
		{"inner VLAN 0", "pins: [{vlan: 100.0, vips: [192.0.2.2]}]", []string{`1: pins.vlan: read inner tag of VLAN "100.0"`}},
		{"no VLAN", "pins: [{vips: [192.0.2.2]}]", []string{`1: pins: a pin has no VLAN: add "vlan" (0 = untagged)`}},
		{"yes", aPin("enabled: yes"), []string{`1: pins.enabled: "yes" is neither true nor false`}},
		{"quoted true", aPin(`enabled: "true"`), []string{`1: pins.enabled: "true" is neither true nor false`}},
		{"pin name with slash", aPin("name: a/b"), []string{`1: pins.name: name "a/b" contains '/'`}},
		{"pin name too long", aPin("name: " + strings.Repeat("n", 32)), []string{`1: pins.name: name "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" has 32 octets: shorten it to 31`}},
		{"interface too long", aPin("interface: eth0.4094.4094xx"), []string{`1: pins.interface: interface name "eth0.4094.4094xx" has 16 octets: Linux allows 15`}},
		{"interface with slash", aPin("interface: eth0/2"), []string{`1: pins.interface: interface name "eth0/2" contains '/'`}},
		{"VRID 0", aPin("vrid: 0"), []string{"1: pins.vrid: 0 is out of range (1 to 255)"}},
		{"VRID 256", aPin("vrid: 256"), []string{"1: pins.vrid: 256 is out of range (1 to 255)"}},

		{"no VIP", "pins: [{vlan: 2}]", []string{"1: pin 2 has no VIP"}},
		{"empty VIPs", "pins:\n- vlan: 2\n  vips: []", []string{"3: pin 2 has no VIP"}},
		{"VIP with length", "pins: [{vlan: 2, vips: [192.0.2.2/24]}]", []string{`1: pins.vips: VIP "192.0.2.2/24" has a prefix length: write 192.0.2.2`}},
		{"VIP with zone", `pins: [{vlan: 2, vips: ["fe80::1%eth0"]}]`, []string{`1: pins.vips: VIP "fe80::1%eth0" has a zone: write fe80::1`}},
		{"mapped VIP", `pins: [{vlan: 2, vips: ["::ffff:192.0.2.2"]}]`, []string{`1: pins.vips: VIP "::ffff:192.0.2.2" is an IPv4 address in IPv6 form: write 192.0.2.2`}},
		{"unspecified, multicast, loopback, broadcast", "pins: [{vlan: 2, vips: [0.0.0.0, 224.0.0.18, 127.0.0.1, 255.255.255.255, \"::\", \"ff02::12\", \"::1\"]}]", []string{
			"1: pins.vips: VIP 0.0.0.0 is no unicast address", "1: pins.vips: VIP 224.0.0.18", "1: pins.vips: VIP 127.0.0.1",
			"1: pins.vips: VIP 255.255.255.255", "1: pins.vips: VIP ::", "1: pins.vips: VIP ff02::12", "1: pins.vips: VIP ::1",
		}},
		{"VIP octal", "pins: [{vlan: 2, vips: [192.0.2.010]}]", []string{`1: pins.vips: VIP "192.0.2.010" is not an IPv4 or IPv6 address`}},
		{"VIP twice", "pins: [{vlan: 2, vips: [\"2001:db8::1\",\n \"2001:DB8:0::1\"]}]", []string{"2: pin 2: VIP 2001:db8::1 is there twice"}},
		{"link-local VIPs only", `pins: [{vlan: 2, vips: ["fe80::1", 169.254.0.1]}]`, []string{"1: pin 2 has link-local VIPs only"}},

		{"host bits", aPin("sources: [192.168.101.5/24]"), []string{
			"1: pins.sources: prefix 192.168.101.5/24 has host bits: write 192.168.101.0/24 for the network, or 192.168.101.5/32 for the address",
		}},
		{"source without length", aPin("sources: [192.168.101.5]"), []string{`1: pins.sources: prefix "192.168.101.5" has no length: write 192.168.101.5/32`}},
		{"source twice", aPin("sources: [10.0.0.0/8, 10.0.0.0/8]"), []string{"1: pin 2: source 10.0.0.0/8 is there twice"}},
		{"source of a family without VIP", aPin(`sources: ["2001:db8::/32"]`), []string{"1: pin 2: source 2001:db8::/32 is IPv6, but the pin has no IPv6 VIP"}},
		{"empty sources", aPin("sources: []"), []string{"1: pin 2: sources is empty"}},

		{"pin twice", "pins:\n- {vlan: 2, name: a, vips: [192.0.2.2]}\n- {vlan: 2, name: a, vips: [192.0.2.3]}", []string{"3: pin 2/a is there twice, first on line 2"}},
		{"VLAN twice without names", "pins:\n- {vlan: 2, vips: [192.0.2.2]}\n- {vlan: 2, name: b, vips: [192.0.2.3]}", []string{`2: pin 2: 2 pins share VLAN 2: give each of them a "name"`}},
		{"untagged twice without names", "pins:\n- {vlan: 0, vips: [192.0.2.2]}\n- {vlan: 0, vips: [192.0.2.3]}", []string{"2: pin 0: 2 pins share VLAN 0", "3: pin 0: 2 pins share VLAN 0"}},
		{"interface of two VLANs", "pins:\n- {vlan: 2, interface: eth0.2, vips: [192.0.2.2]}\n- {vlan: 3, interface: eth0.2, vips: [192.0.2.3]}", []string{"3: pin 3: interface eth0.2 is VLAN 2 on line 2"}},
		{"no such group", "groups: [{name: Core}]\n" + aPin("group: core"), []string{`2: pin 2: group "core" is not there: did you mean "Core"?`}},
		{"no groups", aPin("group: core"), []string{`1: pin 2: group "core" is not there: add it under "groups"`}},
		{"group called like a pin", "groups: [{name: \"2\"}]\n" + pins, []string{`2: pin 2 has no group and would get one of its own called "2"`}},
		{"group without name", pins + "groups: [{vrids: [1]}]", []string{`2: groups: a group has no name`}},
		{"group twice", pins + "groups:\n- name: a\n- name: a\n", []string{`4: group "a" is there twice, first on line 3`}},
		{"group VRIDs", pins + "groups:\n- {name: a, vrids: [0, 011, \"11@\", \"11@a/b\", 300, x]}\n", []string{
			`3: groups.vrids: VRID "0": 0 is out of range (1 to 255)`, `3: groups.vrids: VRID "011": "011" begins with a zero`,
			`3: groups.vrids: VRID "11@": the interface name is empty`, `3: groups.vrids: VRID "11@a/b": interface name "a/b" contains '/'`,
			`3: groups.vrids: VRID "300": 300 is out of range`, `3: groups.vrids: VRID "x": "x" is not a whole number`,
		}},
		{"VRID twice in a group", pins + "groups: [{name: a, vrids: [1, 1]}]", []string{`2: group "a": VRID 1 is there twice`}},
		{"VRID of two groups", pins + "groups: [{name: a, vrids: [1@e, 1]}, {name: b, vrids: [1@e, 1]}]", []string{`2: group "b": VRID 1@e speaks for group "a" already`}},

		{"mark without mask", "vrrp: {tag: {mark: 0x70}}", []string{`1: vrrp.tag.mark: mark "0x70" has no mask: write VALUE/MASK`}},
		{"mark outside mask", "vrrp: {tag: {mark: 0x170/0xf0}}", []string{`1: vrrp.tag.mark: mark "0x170/0xf0" has the bits 0x100 outside its mask`}},
		{"mark too wide", "vrrp: {tag: {mark: 0x1/0x1ffffffff}}", []string{`1: vrrp.tag.mark: mask of "0x1/0x1ffffffff"`}},
		{"marks overlap", "vrrp: {tag: {mark: 0x10/0x30}}\nsync: {strict_mark: 0x20/0x20}", []string{"2: sync.strict_mark and vrrp.tag.mark share the mask bits 0x20"}},
		{"mark overlaps a default", "vrrp: {tag: {mark: 0x100/0x100}}", []string{"1: sync.strict_mark and vrrp.tag.mark share the mask bits 0x100"}},
		{"priority", "vrrp: {tag: {priority: high}}", []string{`1: vrrp.tag.priority: "high" is not a whole number`}},
		{"lease without unit", "vrrp: {lease: 2}", []string{`1: vrrp.lease: duration "2" has no unit: write for example 2ms, 2s or 2m`}},
		{"lease too short", "vrrp: {lease: 99ms}", []string{"1: vrrp.lease: duration 99ms is out of range (100ms to 1m0s)"}},
		{"lease no duration", "vrrp: {lease: soon}", []string{`1: vrrp.lease: "soon" is not a duration`}},
		{"negative hold", "sync: {delete_hold: -1s}", []string{"1: sync.delete_hold: duration -1s is out of range"}},
		{"listen without address", "metrics: {listen: \":9407\"}", []string{`1: metrics.listen: ":9407" has no address: write [::]:9407`}},
		{"listen with name", "metrics: {listen: \"localhost:9407\"}", []string{`1: metrics.listen: "localhost:9407" is not ADDRESS:PORT`}},
		{"listen port 0", "metrics: {listen: \"127.0.0.1:0\"}", []string{`1: metrics.listen: "127.0.0.1:0" has port 0`}},
		{"mode", "sync: {mode: sync}", []string{`1: sync.mode: unknown word "sync": write one of async, strict`}},
		{"protocols", "sync: {protocols: [tcp, sctp]}", []string{`1: sync.protocols: unknown word "sctp"`}},
		{"no protocols", "sync: {protocols: []}", []string{"1: sync.protocols is empty"}},
		{"queue", "sync: {strict_queue: 65536}", []string{"1: sync.strict_queue: 65536 is out of range (0 to 65535)"}},
		{"peers without listen", "sync: {peers: [{name: b, address: \"192.0.2.1:1\"}]}", []string{"1: sync.peers: there are peers, but sync.listen is missing"}},
		{"peers", "node: a\nsync:\n  listen: 192.0.2.1:1\n  peers:\n  - {name: a, address: 192.0.2.2:1}\n  - {name: b}\n  - {name: b, address: 192.0.2.3:1}\n  - {address: 192.0.2.4:1}\n", []string{
			`5: sync.peers: peer "a" is called like this node`, `6: sync.peers: peer "b" has no address`,
			`7: sync.peers: peer "b" is there twice, first on line 6`, "8: sync.peers: a peer has no name",
		}},
		{"bad key", "sync: {listen: \"192.0.2.1:1\", peers: [{name: b, address: \"192.0.2.2:1\", key: abc=}]}", []string{
			`1: sync.peers.key: "abc=" is not a public key`}},
		{"one key for two", "sync:\n  listen: 192.0.2.1:1\n  peers:\n" +
			"  - {name: b, address: 192.0.2.2:1, key: Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0=}\n" +
			"  - {name: c, address: 192.0.2.3:1, key: Mc0QtSE2UeHH8dqkCLfKEH0RkO4Fn2AYzSbHNp7WTa0=}\n", []string{
			`5: sync.peers: peer "c" has the key of peer "b"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := ParseConfig([]byte(test.text), "f.yaml", "host")
			if cfg != nil {
				t.Errorf("a configuration came with the fault")
			}
			var faults ConfigErrors
			if !errors.As(err, &faults) {
				t.Fatalf("got %v, want ConfigErrors", err)
			}
			for i, fault := range faults {
				if i >= len(test.want) || !strings.HasPrefix(fmt.Sprintf("%d: %s", fault.Line, fault.Text), test.want[i]) {
					t.Errorf("fault %d: %v\nwant all of %q", i, fault, test.want)
				}
			}
			if len(faults) < len(test.want) {
				t.Errorf("%d faults, want %d:\n%v", len(faults), len(test.want), err)
			}
		})
	}
}

// TestParseConfigAllFaultsAtOnce is the promise that a file is corrected in one
// go: faults of every stage come together, in the order of the lines.
func TestParseConfigAllFaultsAtOnce(t *testing.T) {
	_, err := ParseConfig([]byte(`groups:
  - {name: Core, vrids: [10, 999]}
pins:
  - vlan: 020
    vips: [192.0.2.2]
  - vlan: 3
    vips: [192.0.2.2, 192.0.2.2]
    grup: Core
  - vlan: 4
    vips: [0.0.0.0]
    group: Cora
vrrp:
  lease: 2
`), "/etc/vippin/vippin.yaml", "host")
	want := `/etc/vippin/vippin.yaml:2: groups.vrids: VRID "999": 999 is out of range (1 to 255)
/etc/vippin/vippin.yaml:4: pins.vlan: read VLAN "020": "020" begins with a zero, which some programs read as octal: leave the zero out
/etc/vippin/vippin.yaml:7: pin 3: VIP 192.0.2.2 is there twice: remove one
/etc/vippin/vippin.yaml:8: pins: unknown key "grup": did you mean "group"? (known keys: enabled, group, interface, name, sources, vips, vlan, vrid)
/etc/vippin/vippin.yaml:10: pins.vips: VIP 0.0.0.0 is no unicast address of a network: write the virtual address that VRRP moves
/etc/vippin/vippin.yaml:11: pin 4: group "Cora" is not there: did you mean "Core"? Or add it under "groups"
/etc/vippin/vippin.yaml:13: vrrp.lease: duration "2" has no unit: write for example 2ms, 2s or 2m`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 7 {
		t.Errorf("the error does not give its 7 faults one by one")
	}
}

func TestParseConfigUnknownHostName(t *testing.T) {
	_, err := ParseConfig([]byte("pins: []"), "f", "")
	if err == nil || err.Error() != "f:1: node: the host name is unknown: give this router a name" {
		t.Errorf("got %v", err)
	}
	if _, err := ParseConfig([]byte("node: a"), "f", ""); err != nil {
		t.Errorf("with a name: %v", err)
	}
}

func TestParseConfigLimits(t *testing.T) {
	var text strings.Builder
	text.WriteString("pins:\n")
	for i := range PinsMax + 1 {
		fmt.Fprintf(&text, "- {vlan: %d.%d, vips: [192.0.2.2]}\n", i/1000+1, i%1000+1)
	}
	_, err := ParseConfig([]byte(text.String()), "f", "host")
	if err == nil || err.Error() != "f:1: pins: there are 4096: remove some, 4095 fit" {
		t.Errorf("4096 pins: %v", err)
	}
	_, err = ParseConfig(make([]byte, configSizeMax+1), "f", "host")
	if err == nil || !strings.Contains(err.Error(), "shorten it to 1048576") {
		t.Errorf("huge file: %v", err)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"group", "interface", "name", "vips", "vlan", "vrid"}
	for word, want := range map[string]string{"vlna": "vlan", "vip": "vips", "iface": "name", "Interfaces": "interface", "": "name", "vrids": "vrid", strings.Repeat("x", 9999): "group"} {
		if got := nearest(word, known); got != want {
			t.Errorf("nearest(%.20q) = %q, want %q", word, got, want)
		}
	}
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"kitten", "sitting", 3}, {"a", "", 1}, {"", "abc", 3}, {"flaw", "lawn", 2}} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("distance(%q, %q) = %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
