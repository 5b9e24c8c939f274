// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/policy"
)

const (
	ms  = time.Millisecond
	adv = 100 * ms // every router's interval in the stories

	fault  = policy.RoleFault
	backup = policy.RoleBackup
	master = policy.RoleMaster
)

// Interfaces of the stories.
const (
	eth0 = 10 // trunk
	vl2  = 2  // eth0.2, VLAN 2
	vl20 = 20 // eth0.20, VLAN 20
	vmac = 30 // vrrp.10, made while needed, over eth0.2
)

// Ends of the stories.
const (
	vip2   = "198.51.100.2"
	vip2b  = "2001:db8:2::2"
	ll2    = "fe80::2"
	vip20  = "203.0.113.2"
	self2  = "198.51.100.3"
	other2 = "198.51.100.4"
	third2 = "198.51.100.5"
)

// story is a tracker, what its kernel has, and the time.
type story struct {
	t       *testing.T
	tracker *Tracker
	now     time.Duration
	links   map[int]*policy.Link
	seen    []string // changes so far, in words
}

// planOf makes a plan: pin 1 on eth0.2 and pin 2 on eth0.20 in group 1
// "RouterCore", VRID 10 on eth0.2 and 20 on eth0.20.
func planOf() policy.Plan {
	return policy.Plan{
		Interfaces: []policy.PlanInterface{
			{Index: vl2, Name: "eth0.2", Slot: 1, VRIDs: []policy.PlanVRID{{VRID: 10, Group: 1}}},
			{Index: vl20, Name: "eth0.20", Slot: 2, VRIDs: []policy.PlanVRID{{VRID: 20, Group: 1}}},
		},
		Pins: []policy.PlanPin{
			{ID: 1, Group: 1, VLAN: policy.VLAN{Outer: 2}, Interface: "eth0.2", Ifindex: vl2, VIPs: addrs(vip2)},
			{ID: 2, Group: 1, VLAN: policy.VLAN{Outer: 20}, Interface: "eth0.20", Ifindex: vl20, VIPs: addrs(vip20)},
		},
		Groups: []policy.PlanGroup{{ID: 1, Name: "RouterCore"}},
	}
}

// onePin is pin 1 alone, its group bound by the VIPs that adverts announce.
func onePin(vips ...string) policy.Plan {
	plan := planOf()
	plan.Interfaces = plan.Interfaces[:1]
	plan.Interfaces[0].VRIDs = nil
	plan.Pins = plan.Pins[:1]
	plan.Pins[0].VIPs = addrs(vips...)
	return plan
}

func tell(t *testing.T, plan policy.Plan) *story {
	s := &story{t: t, tracker: NewTracker(Config{}), now: time.Hour, links: map[int]*policy.Link{
		eth0: {Index: eth0, Name: "eth0", Kind: "device", Up: true},
		vl2:  {Index: vl2, Name: "eth0.2", Kind: "vlan", Parent: eth0, VLAN: policy.VLAN{Outer: 2}, Up: true},
		vl20: {Index: vl20, Name: "eth0.20", Kind: "vlan", Parent: eth0, VLAN: policy.VLAN{Outer: 20}, Up: true},
	}}
	s.add(vl2, self2)
	s.note(s.tracker.Update(s.now, plan))
	s.observe()
	return s
}

// note writes changes down and checks that they add up to the state.
func (s *story) note(changes []Change) {
	s.t.Helper()
	for _, c := range changes {
		who := "group " + c.Name
		switch {
		case c.Pin != 0:
			who = "pin " + c.Name
		case c.Group == 0:
			who = c.Name
		}
		if c.RoleChanged {
			s.seen = append(s.seen, fmt.Sprintf("%s %s", who, c.Role))
		}
		if c.ConflictChanged {
			s.seen = append(s.seen, fmt.Sprintf("%s conflict %q", who, c.Conflict))
		}
		if c.Group != 0 && len(c.Evidence) == 0 {
			s.t.Errorf("change without evidence: %+v", c)
		}
	}
}

// run lets time pass, with a Tick whenever the tracker asked for one.
func (s *story) run(d time.Duration) {
	s.t.Helper()
	end := s.now + d
	for {
		next := s.tracker.Next()
		if next == 0 || next > end {
			break
		}
		if next < s.now {
			s.t.Fatalf("Next is %s before now", s.now-next)
		}
		s.now = next
		s.note(s.tracker.Tick(s.now))
		if again := s.tracker.Next(); again == next {
			s.t.Fatalf("a Tick at %s asks for the same again", next)
		}
	}
	s.now = end
}

func (s *story) observe() {
	s.t.Helper()
	var obs policy.Observed
	for _, link := range s.links {
		l := *link
		l.Addrs = slices.Clone(link.Addrs)
		obs.Links = append(obs.Links, l)
	}
	s.note(s.tracker.Observe(s.now, obs))
}

func (s *story) add(ifindex int, texts ...string) {
	for _, text := range texts {
		a := netip.MustParseAddr(text)
		s.links[ifindex].Addrs = append(s.links[ifindex].Addrs, policy.Addr{Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
}

func (s *story) hold(ifindex int, texts ...string) {
	s.t.Helper()
	s.add(ifindex, texts...)
	s.observe()
}

func (s *story) drop(ifindex int, text string) {
	s.t.Helper()
	s.links[ifindex].Addrs = without(s.links[ifindex].Addrs, text)
	s.observe()
}

// without is a copy of a list of addresses that lacks one.
func without(list []policy.Addr, text string) []policy.Addr {
	return slices.DeleteFunc(slices.Clone(list), func(a policy.Addr) bool {
		return a.Prefix.Addr() == netip.MustParseAddr(text)
	})
}

// packet is an advert as the dataplane would report it.
func (s *story) packet(ifindex int, dir policy.Direction, src string, vrid, priority uint8, vips ...string) policy.AdvertSeen {
	s.t.Helper()
	from := netip.MustParseAddr(src)
	a := Advert{Version: 3, VRID: vrid, Priority: priority, Interval: adv, Checksum: ChecksumPseudo, VIPs: addrs(vips...)}
	dst := multicastV4
	if from.Is6() {
		dst, a.Checksum = netip.MustParseAddr("ff02::12"), ChecksumRFC
	}
	payload, err := Append(nil, a, from, dst)
	if err != nil {
		s.t.Fatal(err)
	}
	return policy.AdvertSeen{
		Time: s.now, Ifindex: ifindex, Direction: dir, Src: from, Dst: dst, TTL: 255,
		SrcMAC: [6]byte{2, 0, 0, 0, 0, 1}, Payload: payload,
	}
}

func (s *story) send(priority uint8) {
	s.t.Helper()
	s.note(s.tracker.Advert(s.now, s.packet(vl2, policy.Out, self2, 10, priority, vip2)))
}

func (s *story) hear(src string, priority uint8) {
	s.t.Helper()
	s.note(s.tracker.Advert(s.now, s.packet(vl2, policy.In, src, 10, priority, vip2)))
}

// adverts repeats one round of events each interval.
func (s *story) adverts(rounds int, events ...func()) {
	s.t.Helper()
	for range rounds {
		for _, event := range events {
			event()
			s.run(adv / time.Duration(len(events)))
		}
	}
}

// changes checks what has been seen since the last call, in order; "…" at the
// end of a text leaves the rest open.
func (s *story) changes(want ...string) {
	s.t.Helper()
	got := s.seen
	s.seen = nil
	ok := len(got) == len(want)
	for i := 0; ok && i < len(want); i++ {
		if open, cut := strings.CutSuffix(want[i], "…"); cut {
			ok = strings.HasPrefix(got[i], open)
		} else {
			ok = got[i] == want[i]
		}
	}
	if !ok {
		s.t.Fatalf("changes:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// is checks the state: the group's role, the words its conflict must contain
// (none: there is no conflict), and that the pins agree with the changes told.
func (s *story) is(role policy.Role, conflict ...string) {
	s.t.Helper()
	g := s.tracker.Groups(s.now, time.Unix(0, 0))[0]
	if g.Role != role {
		s.t.Fatalf("group is %s, want %s; evidence: %s", g.Role, role, strings.Join(g.Evidence, "; "))
	}
	if len(conflict) == 0 && g.Conflict != "" {
		s.t.Fatalf("unexpected conflict: %s", g.Conflict)
	}
	for _, words := range conflict {
		if !strings.Contains(g.Conflict, words) {
			s.t.Fatalf("conflict %q lacks %q", g.Conflict, words)
		}
	}
}

func (s *story) pins(want map[uint32]policy.Role) {
	s.t.Helper()
	got := s.tracker.Pins()
	for id, role := range want {
		if got[id] != role {
			s.t.Fatalf("pin %d is %s, want %s", id, got[id], role)
		}
	}
	if len(got) != len(want) {
		s.t.Fatalf("%d pins, want %d", len(got), len(want))
	}
}

// master brings a story of one pin to a settled mastership.
func (s *story) master() {
	s.t.Helper()
	s.send(150)
	s.hold(vl2, vip2)
	s.adverts(5, func() { s.send(150) })
	s.is(master)
	s.seen = nil
}

func (s *story) evidence(words ...string) {
	s.t.Helper()
	all := strings.Join(s.tracker.Groups(s.now, time.Unix(0, 0))[0].Evidence, "\n")
	for _, w := range words {
		if !strings.Contains(all, w) {
			s.t.Fatalf("evidence lacks %q:\n%s", w, all)
		}
	}
}
