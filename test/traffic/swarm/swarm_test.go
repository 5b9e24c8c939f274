// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"net/netip"
	"testing"
	"time"
)

// Every flow has a place of its own, every inside host uses the same ports to
// the same ports of the server, and a decoy holds each of these.
func TestLayout(t *testing.T) {
	const hosts = 4
	for _, flows := range [][Protos]int{{100, 100, 100}, {0, 50_000, 0}, {10_001, 10_002, 10_003}, {1, 0, 3}} {
		l := NewLayout(hosts, flows)
		type place struct {
			proto  Proto
			source uint16
			server uint16
		}
		users := make(map[place]map[int]bool)
		each := func(l Layout, do func(place, int)) {
			for p, n := range l.Flows {
				for id := range n {
					s := l.Slot(Proto(p), id)
					do(place{Proto(p), s.SourcePort, s.ServerPort}, s.Host)
				}
			}
		}
		each(l, func(at place, host int) {
			if users[at] == nil {
				users[at] = make(map[int]bool)
			}
			if users[at][host] {
				t.Fatalf("%v: two flows of host %d at %v", flows, host, at)
			}
			users[at][host] = true
		})
		held := make(map[place]bool)
		each(l.Decoys(), func(at place, _ int) { held[at] = true })
		for at, by := range users {
			if !held[at] {
				t.Errorf("%v: no decoy holds %v", flows, at)
			}
			if flows[at.proto]%hosts == 0 && len(by) != hosts {
				t.Errorf("%v: %d hosts use %v", flows, len(by), at)
			}
		}
		if l.UDPPorts*socketFlows < flows[UDP] {
			t.Errorf("%v: only %d ports of the server", flows, l.UDPPorts)
		}
	}
}

func TestRecord(t *testing.T) {
	r := record{
		proto: ICMP, phase: After, id: 49_999 | decoyID, number: 1 << 31,
		source: netip.MustParseAddrPort("[2001:db8::1]:65535"),
	}
	var raw [recordLen]byte
	r.put(raw[:])
	if got, ok := parse(raw[:]); !ok || got != r {
		t.Errorf("%+v became %+v", r, got)
	}
	for name, spoil := range map[string]func([]byte){
		"magic": func(b []byte) { b[0]++ }, "kind": func(b []byte) { b[12] = Protos }, "phase": func(b []byte) { b[13] = phases },
	} {
		spoiled := raw
		spoil(spoiled[:])
		if _, ok := parse(spoiled[:]); ok {
			t.Errorf("a wrong %s was read", name)
		}
	}
	if _, ok := parse(raw[:recordLen-1]); ok {
		t.Error("a short record was read")
	}
}

// The checksum of a whole ICMP message adds up to zero, RFC 1071.
func TestEcho(t *testing.T) {
	message := make([]byte, echoHeader+recordLen)
	want := record{proto: ICMP, id: 7, number: 9}
	want.put(message[echoHeader:])
	putEcho(message, false, 20_000, 9)
	var sum uint32
	for i := 0; i < len(message); i += 2 {
		sum += uint32(message[i])<<8 + uint32(message[i+1])
	}
	if sum = sum>>16 + sum&0xffff; sum != 0xffff {
		t.Errorf("the checksum adds up to %#x", sum)
	}
	packet := append([]byte{0x45, 19: 0}, message...) // with an IPv4 header
	if id, r, ok := readEcho(packet, false, true); !ok || id != 20_000 || r != want {
		t.Errorf("read %d %+v %t", id, r, ok)
	}
	if _, _, ok := readEcho(packet, false, false); ok {
		t.Error("a request was taken for a reply")
	}
	if _, _, ok := readEcho(packet[:40], false, true); ok {
		t.Error("a cut message was read")
	}
}

// A flow survives only if everything is right; each mutation makes it something
// else.
func TestJudge(t *testing.T) {
	source := netip.MustParseAddrPort("198.51.100.2:40000")
	state := FlowState{Proto: UDP, ID: 0, Port: 20_000, Answered: true}
	good := Seen{Source: source, After: true}
	for name, c := range map[string]struct {
		change func(*FlowState, *Seen)
		want   Survival
	}{
		"good":           {func(*FlowState, *Seen) {}, Survival{Flows: 1, Survived: 1}},
		"moved":          {func(_ *FlowState, s *Seen) { s.Moved = true }, Survival{Flows: 1, Moved: 1}},
		"broken":         {func(f *FlowState, _ *Seen) { f.Broken = true }, Survival{Flows: 1, Broken: 1}},
		"no answer":      {func(f *FlowState, _ *Seen) { f.Answered = false }, Survival{Flows: 1, Silent: 1}},
		"not seen after": {func(_ *FlowState, s *Seen) { s.After = false }, Survival{Flows: 1, Silent: 1}},
		"never seen":     {func(_ *FlowState, s *Seen) { *s = Seen{} }, Survival{Flows: 1, Silent: 1}},
		"port kept":      {func(f *FlowState, _ *Seen) { f.Port = 40_000 }, Survival{Lucky: 1}},
		"beyond":         {func(f *FlowState, _ *Seen) { f.ID = 1 }, Survival{Flows: 1, Silent: 1}},
	} {
		f, s := state, good
		c.change(&f, &s)
		got := Judge([]FlowState{f}, [Protos][]Seen{UDP: {s}}, func(FlowState) bool { return true })
		if got[UDP] != c.want || got[TCP] != (Survival{}) {
			t.Errorf("%s: %+v, want %+v", name, got[UDP], c.want)
		}
	}
	if got := Judge([]FlowState{state}, [Protos][]Seen{UDP: {good}}, func(FlowState) bool { return false }); got[UDP] != (Survival{}) {
		t.Errorf("a flow that was left out: %+v", got[UDP])
	}
}

func TestServerNotes(t *testing.T) {
	s := &server{plan: ServerPlan{Flows: [Protos]int{UDP: 1}}}
	s.seen[UDP] = make([]Seen, 1)
	one, other := netip.MustParseAddrPort("198.51.100.2:1"), netip.MustParseAddrPort("198.51.100.2:2")
	s.note(UDP, one, record{proto: UDP})
	s.note(UDP, one, record{proto: UDP, phase: After})
	if want := (Seen{Source: one, After: true}); s.seen[UDP][0] != want {
		t.Errorf("seen %+v, want %+v", s.seen[UDP][0], want)
	}
	s.note(UDP, other, record{proto: UDP}) // late, and from elsewhere
	s.note(UDP, one, record{proto: UDP, phase: After})
	if want := (Seen{Source: one, After: true, Moved: true}); s.seen[UDP][0] != want {
		t.Errorf("seen %+v, want %+v", s.seen[UDP][0], want)
	}
	s.note(UDP, one, record{proto: UDP, id: decoyID}) // no flow: must not be looked up
	s.note(TCP, one, record{proto: UDP})
}

// A pace skips what is too late, except where everything is to be done once: a
// machine that stalls at the beginning must not leave flows unopened.
func TestPace(t *testing.T) {
	start := time.Unix(0, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	p := pace{start: start, interval: time.Second, size: 10, burst: 5}
	for _, step := range []struct {
		after    time.Duration
		from, to int
	}{{0, 0, 0}, {250 * time.Millisecond, 0, 2}, {250 * time.Millisecond, 2, 2}, {time.Second, 5, 10}, {1100 * time.Millisecond, 10, 11}} {
		if from, to := p.due(at(step.after)); from != step.from || to != step.to {
			t.Errorf("after %s: [%d, %d), want [%d, %d)", step.after, from, to, step.from, step.to)
		}
	}
	once := pace{start: start, interval: time.Second, size: 10, burst: 10, once: true}
	if from, to := once.due(at(time.Minute)); from != 0 || to != 10 {
		t.Errorf("late: [%d, %d), want all", from, to)
	}
	if from, to := once.due(at(time.Hour)); from != to {
		t.Errorf("a second round: [%d, %d)", from, to)
	}
}

func TestOutages(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms ...int) (times []time.Time) {
		for _, m := range ms {
			times = append(times, start.Add(time.Duration(m)*time.Millisecond))
		}
		return times
	}
	// The fault is at 100, the takeover at 400, the end at 1000.
	log := ProbeLog{
		at(0, 50, 99, 402, 600, 650, 980),  // the gap after 650 is no part of it
		at(0, 90, 101, 300, 395, 401, 990), // an outage that was over before the takeover
		at(0, 99),                          // dead
		at(0, 99, 402),                     // answered once, then dead
		nil,
	}
	got := log.Outages(start.Add(100*time.Millisecond), start.Add(400*time.Millisecond), start.Add(time.Second))
	want := []Outage{
		{303 * time.Millisecond, start.Add(402 * time.Millisecond)},
		{589 * time.Millisecond, start.Add(990 * time.Millisecond)},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("outages %v, want %v", got, want)
	}
}

// Only an answer to a request after the fault counts, on the flow's own place.
func TestAnswers(t *testing.T) {
	c := &crowd{Crowd: Crowd{Layout: NewLayout(2, [Protos]int{UDP: 4}), Host: 1}}
	c.flows[UDP] = []*flow{{proto: UDP, id: 1}, {proto: UDP, id: 3}}
	f := c.flowOf(UDP, record{proto: UDP, id: 3})
	if f != c.flows[UDP][1] {
		t.Fatalf("flow 3 is %+v", f)
	}
	if c.answered(f, record{phase: Living}); !f.opened || f.answered {
		t.Errorf("an answer before the fault: %+v", f)
	}
	if c.answered(f, record{phase: After}); !f.answered {
		t.Errorf("an answer after the fault: %+v", f)
	}
	for name, r := range map[string]record{
		"another kind": {proto: TCP, id: 3}, "another host's": {proto: UDP, id: 2}, "none": {proto: UDP, id: 5},
	} {
		if f := c.flowOf(UDP, r); f != nil {
			t.Errorf("%s: %+v", name, f)
		}
	}
}
