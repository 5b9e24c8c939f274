// SPDX-License-Identifier: Apache-2.0

package natsync

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"vippin/policy"
)

func TestStateRoundTrip(t *testing.T) {
	want := ours
	want.Prompt = true
	want.Pins = append(want.Pins,
		PinState{policy.PinName{VLAN: policy.VLAN{Outer: 100, Inner: 20}, VIP: netip.MustParseAddr("2001:db8::2")}, ""},
		PinState{policy.PinName{VIP: vip}, "Edge"})
	wire, _ := stateToWire(want)
	b, err := proto.Marshal(wire)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := readState(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Error(diff)
	}
}

// What a peer would end the session for is left out.
func TestStateLeavesOut(t *testing.T) {
	long := strings.Repeat("x", MaxName+1)
	wire, ids := stateToWire(State{
		Groups: []GroupState{{Name: long}, {Name: ""}, {Name: "a\n"}, {Name: "Core"}, {Name: "Core"}},
		Pins: []PinState{
			{pinName, "Core"}, {pinName, ""}, {policy.PinName{VIP: vip}, long},
			{policy.PinName{}, ""}, {policy.PinName{VIP: vip, VLAN: policy.VLAN{Outer: 4095}}, ""},
		},
	})
	if len(wire.Groups) != 1 || len(wire.Pins) != 1 {
		t.Errorf("left: %v", wire)
	}
	if id, group, ok := ids.pin(pinName); id != 1 || group != "Core" || !ok {
		t.Errorf("the pin has id %d, group %q", id, group)
	}
	var many State
	for n := range MaxPins + 5 {
		many.Groups = append(many.Groups, GroupState{Name: fmt.Sprint("g", n)})
		many.Pins = append(many.Pins, PinState{Pin: policy.PinName{VLAN: policy.VLAN{Outer: uint16(n%4094 + 1), Inner: uint16(n / 4094)}, VIP: vip}})
	}
	wire, _ = stateToWire(many)
	b, err := proto.Marshal(wire)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := readState(b); err != nil || len(got.Groups) != MaxGroups || len(got.Pins) != MaxPins {
		t.Errorf("%d groups, %d pins: %v", len(got.Groups), len(got.Pins), err)
	}
}

func TestBadControl(t *testing.T) {
	long := strings.Repeat("x", MaxName+1)
	addr := vip.AsSlice()
	group := &WireGroup{Id: 1, Name: "Core"}
	boot := make([]byte, 16)
	for _, c := range []struct {
		want string
		bad  proto.Message
	}{
		{"version_min is 0", &WireHello{VersionMax: 1, Boot: boot}},
		{"version_min is 2, version_max is 1", &WireHello{VersionMin: 2, VersionMax: 1, Boot: boot}},
		{"node: 65 octets", &WireHello{VersionMin: 1, VersionMax: 1, Node: long, Boot: boot}},
		{"build: ", &WireHello{VersionMin: 1, VersionMax: 1, Build: "\x1b", Boot: boot}},
		{"boot has 15", &WireHello{VersionMin: 1, VersionMax: 1, Boot: boot[1:]}},
		{"group 1: name is missing", &WireState{Groups: []*WireGroup{group, {Id: 2}}}},
		{"group 0: name: 65 octets", &WireState{Groups: []*WireGroup{{Id: 2, Name: long}}}},
		{"group 0: role is 3", &WireState{Groups: []*WireGroup{{Id: 2, Name: "a", Role: 3}}}},
		{"group 0: role is -1", &WireState{Groups: []*WireGroup{{Id: 2, Name: "a", Role: -1}}}},
		{"group 0: id is 0", &WireState{Groups: []*WireGroup{{Name: "a"}}}},
		{"group 0: id is 4097", &WireState{Groups: []*WireGroup{{Id: 4097, Name: "a"}}}},
		{"group 1: id 1 twice", &WireState{Groups: []*WireGroup{group, {Id: 1, Name: "a"}}}},
		{"pin 0: id is 0", &WireState{Pins: []*WirePin{{Vip: addr}}}},
		{"pin 0: id is 4097", &WireState{Pins: []*WirePin{{Id: 4097, Vip: addr}}}},
		{"pin 1: id 1 twice", &WireState{Pins: []*WirePin{{Id: 1, Vip: addr}, {Id: 1, Vip: addr}}}},
		{"pin 0: vip", &WireState{Pins: []*WirePin{{Id: 1}}}},
		{"pin 0: vip", &WireState{Pins: []*WirePin{{Id: 1, Vip: addr[1:]}}}},
		{"pin 0: vlan_outer is 4095", &WireState{Pins: []*WirePin{{Id: 1, Vip: addr, VlanOuter: 4095}}}},
		{"pin 0: vlan_inner is 65535", &WireState{Pins: []*WirePin{{Id: 1, Vip: addr, VlanOuter: 1, VlanInner: 1 << 20}}}},
		{"pin 0: vlan_inner is set", &WireState{Pins: []*WirePin{{Id: 1, Vip: addr, VlanInner: 1}}}},
		{"pin 0: group id 7", &WireState{Pins: []*WirePin{{Id: 1, Vip: addr, Group: 7}}}},
		{"refusal 0: index is 4096", &WireAck{Refusals: []*WireRefusal{{Index: 4096, Reason: 1}}}},
		{"refusal 0: reason is 0", &WireAck{Refusals: []*WireRefusal{{}}}},
		{"refusal 0: reason is 256", &WireAck{Refusals: []*WireRefusal{{Reason: 256}}}},
		{"bulk is 0", &WireBulkBegin{}},
		{"group 0: 65 octets", &WireBulkBegin{Bulk: 1, Groups: []string{long}}},
		{"4097 groups", &WireBulkBegin{Bulk: 1, Groups: make([]string, 4097)}},
		{"group 0: 65 octets", &WireBulkRequest{Groups: []string{long}}},
		{"262145 octets, over 262144", &WireDigest{Digest: make([]byte, MaxDigest+1)}},
		{"too many fields", &WireBulkRequest{Groups: make([]string, 9000)}},
	} {
		b, err := proto.Marshal(c.bad)
		if err != nil {
			t.Fatal(err)
		}
		if err := readControl(c.bad, b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200v: want %s, got %v", c.bad, c.want, err)
		}
	}
}

func readControl(m proto.Message, b []byte) (err error) {
	switch m.(type) {
	case *WireHello:
		_, err = readHello(b)
	case *WireState:
		_, _, err = readState(b)
	case *WireAck:
		_, _, err = readAck(b)
	case *WireBulkBegin:
		_, err = readBulkBegin(b)
	case *WireBulkRequest:
		_, err = readBulkRequest(b)
	case *WireDigest:
		_, err = readDigest(b)
	}
	return err
}

func TestBadExpectations(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1").AsSlice()
	for _, c := range []struct {
		want string
		bad  func(w *WireExpectation)
	}{
		{"master: ", func(w *WireExpectation) { w.Master = nil }},
		{"proto is 0", func(w *WireExpectation) { w.Proto = 0 }},
		{"proto is 256", func(w *WireExpectation) { w.Proto = 256 }},
		{"unspecified", func(w *WireExpectation) { w.Dst = nil }},
		{"dst: 5 octets", func(w *WireExpectation) { w.Dst = six[:5] }},
		{"src: port is 65536", func(w *WireExpectation) { w.SrcPort = 65536 }},
		{"nat: 5 octets", func(w *WireExpectation) { w.Nat = six[:5] }},
		{"one family", func(w *WireExpectation) { w.Src = six }},
		{"one family", func(w *WireExpectation) { w.Nat = six }},
		{"helper: 65 octets", func(w *WireExpectation) { w.Helper = strings.Repeat("x", 65) }},
		{"function: ", func(w *WireExpectation) { w.Function = "\x00" }},
	} {
		f := udpFlow(1)
		w := expectationToWire(&policy.Expectation{Master: f.FlowKey, Proto: ipTCP, AnySrc: true, Dst: f.To, NAT: f.Src})
		c.bad(w)
		b, err := proto.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readExpectation(b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %s, got %v", c.want, err)
		}
	}
}

func TestCleanName(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"router-a", "router-a"},
		{"a\x1b[31m\n", "a[31m"},
		{strings.Repeat("é", 40), strings.Repeat("é", 32)},
		{"\xff", "\uFFFD"},
	} {
		if got := cleanName(c.text); got != c.want || checkName(got) != nil {
			t.Errorf("%q becomes %q, want %q", c.text, got, c.want)
		}
	}
}
