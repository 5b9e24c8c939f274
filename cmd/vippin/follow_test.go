// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"
	"time"

	"vippin/loader"
	"vippin/policy"
)

func wanFace(index int, name string, uniques ...string) policy.PlanInterface {
	face := policy.PlanInterface{Index: index, Name: name, Slot: 1}
	for _, text := range uniques {
		face.Uniques = append(face.Uniques, netip.MustParseAddr(text))
	}
	return face
}

// What a takeover does to an interface must wait for a pause; what a new
// interface needs must not.
func TestIsUrgent(t *testing.T) {
	const own4, own6, ll = "198.51.100.3", "2001:db8::3", "fe80::3"
	wan := wanFace(3, "wan0", own4, own6, ll)
	other := wanFace(4, "wan1")
	for _, test := range []struct {
		what      string
		now, next []policy.PlanInterface
		want      bool
	}{
		{"nothing", []policy.PlanInterface{wan}, []policy.PlanInterface{wan}, false},
		{"another address", []policy.PlanInterface{wan}, []policy.PlanInterface{wanFace(3, "wan0", "198.51.100.4", own4, own6, ll)}, false},
		{"an address less", []policy.PlanInterface{wan}, []policy.PlanInterface{wanFace(3, "wan0", own6)}, false},
		{"a link-local VIP", []policy.PlanInterface{wan}, []policy.PlanInterface{wanFace(3, "wan0", own4, own6, ll, "fe80::20:1")}, false},
		{"a link-local address, the first", []policy.PlanInterface{other}, []policy.PlanInterface{wanFace(4, "wan1", ll)}, false},
		{"the first IPv4 address", []policy.PlanInterface{wanFace(3, "wan0", own6, ll)}, []policy.PlanInterface{wan}, true},
		{"the first IPv6 address", []policy.PlanInterface{wanFace(3, "wan0", own4, ll)}, []policy.PlanInterface{wan}, true},
		{"it comes", nil, []policy.PlanInterface{wanFace(3, "wan0")}, true},
		{"it goes", []policy.PlanInterface{wan, other}, []policy.PlanInterface{wan}, true},
		{"another number", []policy.PlanInterface{wan}, []policy.PlanInterface{wanFace(5, "wan0", own4, own6, ll)}, true},
		{"another name", []policy.PlanInterface{wan}, []policy.PlanInterface{wanFace(3, "ext0", own4, own6, ll)}, true},
		{"one for another", []policy.PlanInterface{wan}, []policy.PlanInterface{other}, true},
	} {
		if got := isUrgent(policy.Plan{Interfaces: test.now}, policy.Plan{Interfaces: test.next}); got != test.want {
			t.Errorf("%s: urgent %v, want %v", test.what, got, test.want)
		}
	}
}

// The plan is due after a pause, and without one 40 ms after the first change,
// counted from when the kernel told of it.
func TestWhenThePlanIsDue(t *testing.T) {
	const begin = time.Minute
	var f following
	if f.dueAt != 0 {
		t.Fatal("due before anything has changed")
	}
	at := func(ms time.Duration) time.Duration { return begin + ms*time.Millisecond }
	for _, step := range []struct{ now, due time.Duration }{{5, 25}, {15, 35}, {24, 40}, {39, 40}} {
		event := loader.LinkEvent{Kind: loader.AddrChanged, Ifindex: 3, Time: at(step.now)}
		if step.now == 5 {
			event.Time = begin // it waited
		}
		f.add(event, at(step.now))
		if f.dueAt != at(step.due) {
			t.Errorf("after %d ms it is due at %s, want %s", step.now, f.dueAt-begin, at(step.due)-begin)
		}
	}
	if f.changed(3) {
		t.Error("addresses changed, not the interface")
	}
	f.add(loader.LinkEvent{Kind: loader.LinkChanged, Ifindex: 4, Time: at(40)}, at(40))
	if f.changed(3) || !f.changed(4) {
		t.Error("interface 4 alone has changed")
	}
	f.add(loader.LinkEvent{Kind: loader.Resync, Time: at(41)}, at(41))
	if !f.changed(3) {
		t.Error("after lost events any interface may have changed")
	}
	f.done()
	if f.dueAt != 0 || f.since != 0 || f.changed(3) || f.changed(4) {
		t.Errorf("after the plan %+v is left", f)
	}
}

// Only an address that masquerade may choose, on an interface that had none, is
// worth a plan at once.
func TestGotFirstAddress(t *testing.T) {
	full := wanFace(3, "wan0", "198.51.100.3", "2001:db8::3")
	only4 := wanFace(3, "wan0", "198.51.100.3", "fe80::3")
	only4.VIPs = []netip.Addr{netip.MustParseAddr("2001:db8::2")}
	for _, test := range []struct {
		what, added string
		face        policy.PlanInterface
		on          int // the interface whose addresses changed
		want        bool
	}{
		{"one more", "2001:db8::4/64", full, 3, false},
		{"the first of a family", "2001:db8::4/64", only4, 3, true},
		{"the same, elsewhere", "2001:db8::4/64", only4, 4, false},
		{"a second of the other family", "198.51.100.4/24", only4, 3, false},
		{"a VIP", "2001:db8::2/128", only4, 3, false},
		{"a link-local address", "fe80::4/64", only4, 3, false},
	} {
		var f following
		f.add(loader.LinkEvent{Kind: loader.AddrChanged, Ifindex: test.on, Time: time.Second}, time.Second)
		var link policy.Link
		link.Index = test.face.Index
		for _, had := range test.face.Uniques {
			link.Addrs = append(link.Addrs, policy.Addr{Prefix: netip.PrefixFrom(had, had.BitLen())})
		}
		link.Addrs = append(link.Addrs, policy.Addr{Prefix: netip.MustParsePrefix(test.added)})
		got := f.gotFirstAddress(policy.Plan{Interfaces: []policy.PlanInterface{test.face}}, policy.Observed{Links: []policy.Link{link}})
		if got != test.want {
			t.Errorf("%s: %v, want %v", test.what, got, test.want)
		}
	}
}
