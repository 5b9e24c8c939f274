// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// setFast is setScene with one router that pins, forwards by XDP, and is watched.
func setFast(t *testing.T, name string, opts lab.Options) *scene {
	t.Helper()
	opts.SingleRouter, opts.Fastpath = true, true
	s := setScene(t, name, opts)
	if opts.Masquerade != lab.MasqueradeNone {
		s.watchLeaks(s.RA)
	} else { // something must want to know of connections, or nobody tracks them
		s.must(s.RA.NFT(s.ctx, "table inet tracked { chain forward { type filter hook forward priority filter; ct state established; }; }"))
	}
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.awaitFast(s.RA)
	return s
}

// fastpath is "vippin fastpath ls -j".
func (s *scene) fastpath(r *lab.Router) (state policy.FastpathState) {
	s.t.Helper()
	s.must(json.Unmarshal([]byte(s.vippin(r, "fastpath", "ls", "-j")), &state))
	return state
}

// awaitFast waits until a router's fast path is open on every segment.
func (s *scene) awaitFast(r *lab.Router) {
	s.t.Helper()
	var state policy.FastpathState
	err := s.await("an open fast path on "+r.Name, func() (bool, error) {
		state = s.fastpath(r)
		native := 0
		for _, device := range state.Interfaces {
			if device.Mode == "native" {
				native++
			}
		}
		return state.Open && native == len(s.Segments()), nil
	})
	if err != nil {
		s.t.Fatalf("%v: %+v\n%s", err, state, s.Describe())
	}
}

// awaitOn waits until a router's fast path is in some state.
func (s *scene) awaitOn(r *lab.Router, what string, holds func(policy.FastpathState) bool) {
	s.t.Helper()
	var state policy.FastpathState
	if err := s.await(what, func() (bool, error) {
		state = s.fastpath(r)
		return holds(state), nil
	}); err != nil {
		s.t.Fatalf("%v: %+v\n%s", err, state, s.Describe())
	}
}

// ways are packets by what XDP did with them.
type ways struct{ forwarded, passed uint64 }

// tally counts them, also over the end of the counters, which go with the tables
// when the fast path is switched off: it is looked at before that.
type tally struct {
	ways
	s    *scene
	r    *lab.Router
	last map[string]uint64
}

func (s *scene) tally(r *lab.Router) *tally {
	s.t.Helper()
	return &tally{s: s, r: r, last: s.fastpath(r).Packets}
}

// look adds what was counted since the last look.
func (t *tally) look() ways {
	t.s.t.Helper()
	now := t.s.fastpath(t.r).Packets
	if len(now) == 0 { // nothing is loaded
		return t.ways
	}
	for what, n := range now {
		if n >= t.last[what] {
			n -= t.last[what]
		}
		switch what {
		case "forwarded":
			t.forwarded += n
		case "learnt", "not_learnt": // counted at egress, once more
		default:
			t.passed += n
		}
	}
	t.last = now
	return t.ways
}

// fastWays says how many packets took the fast path during a step, and how many
// the stack.
func (s *scene) fastWays(r *lab.Router, step func()) ways {
	s.t.Helper()
	t := s.tally(r)
	step()
	return t.look()
}

// mostlyFast checks that nearly all packets of a step took the fast path.
func (s *scene) mostlyFast(r *lab.Router, least uint64, step func()) {
	s.t.Helper()
	s.wantFast(r, s.fastWays(r, step), least, 20)
}

// wantFast checks that so many packets took the fast path, and so many times as
// many as took the stack.
func (s *scene) wantFast(r *lab.Router, w ways, least, times uint64) {
	s.t.Helper()
	s.t.Logf("%s: %d packets took the fast path, %d the stack", r.Name, w.forwarded, w.passed)
	if w.forwarded < least || w.forwarded < times*w.passed {
		s.t.Errorf("%s: %d packets took the fast path and %d the stack, want at least %d and %d times as many; %+v",
			r.Name, w.forwarded, w.passed, least, times, s.fastpath(r))
	}
}

// A leak is an inside address on the WAN: what happens to a packet that conntrack
// finds invalid, since NAT leaves it alone. It is looked for in the switch, behind
// all that a router does; and in the routers, where such packets are counted.
const (
	leakTable = `
table bridge leaks
delete table bridge leaks
table bridge leaks {
	chain seen {
		type filter hook prerouting priority -300; policy accept;
		ip saddr %s counter
		ip6 saddr %s counter
		meta l4proto { tcp, udp } counter
	}
}
`
	invalidTable = `
table inet invalid
delete table inet invalid
table inet invalid {
	chain leaving {
		type filter hook postrouting priority srcnat + 50; policy accept;
		ct state invalid meta l4proto { tcp, udp } counter
	}
}
`
)

var counted = regexp.MustCompile(`counter packets (\d+)`)

// packetsIn are the counters of a chain, in the order of its rules.
func (s *scene) packetsIn(n *lab.Node, chain ...string) (packets []uint64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // also at the end of a test
	defer cancel()
	out, err := n.Run(ctx, "nft", append([]string{"list", "chain"}, chain...)...)
	s.must(err)
	for _, match := range counted.FindAllStringSubmatch(out, -1) {
		count, err := strconv.ParseUint(match[1], 10, 64)
		s.must(err)
		packets = append(packets, count)
	}
	return packets
}

// watchLeaks looks until the end of the test for packets with an inside address on the
// WAN, and for packets that conntrack finds invalid as they leave a router.
func (s *scene) watchLeaks(routers ...*lab.Router) {
	s.t.Helper()
	s.must(s.WANSwitch.NFT(s.ctx, fmt.Sprintf(leakTable, lab.LAN.Prefix4(), lab.LAN.Prefix6())))
	for _, r := range routers {
		s.must(r.NFT(s.ctx, invalidTable))
	}
	s.t.Cleanup(func() {
		if leaks := s.leaks(); leaks != 0 {
			s.t.Errorf("the WAN saw %d packets from inside addresses", leaks)
		}
		for _, r := range routers {
			if r.Netlink() == nil {
				continue // off
			}
			if n := s.invalid(r); n != 0 {
				s.t.Errorf("conntrack on %s found %d packets invalid", r.Name, n)
			}
		}
	})
}

// leaks counts what the WAN saw from inside addresses.
func (s *scene) leaks() uint64 {
	s.t.Helper()
	seen := s.packetsIn(s.WANSwitch, "bridge", "leaks", "seen")
	if len(seen) != 3 || seen[2] == 0 {
		s.t.Errorf("the WAN's counters are %v: nothing was watched", seen)
	}
	return seen[0] + seen[1]
}

func (s *scene) invalid(r *lab.Router) uint64 {
	s.t.Helper()
	return s.packetsIn(r.Node, "inet", "invalid", "leaving")[0]
}

// drive sends a datagram every millisecond, whose answers come back.
func (s *scene) drive(from *lab.Node, opts traffic.FlowOptions) *traffic.Drive {
	s.t.Helper()
	d, err := traffic.StartDrive(s.ctx, from.Do, opts)
	s.must(err)
	s.t.Cleanup(func() { d.Stop() })
	return d
}

// settle waits until a drive's packets take the fast path, most of them.
func (s *scene) settle(r *lab.Router, drives ...*traffic.Drive) {
	s.t.Helper()
	err := s.await("the fast path to carry the flows", func() (bool, error) {
		w := s.fastWays(r, func() { s.answers(100, drives...) })
		return w.forwarded > 190*uint64(len(drives)) && w.passed < w.forwarded/4, nil
	})
	if err != nil {
		s.t.Fatalf("%v: %+v\n%s", err, s.fastpath(r), s.Describe())
	}
}

// answers waits for so many further answers to each drive.
func (s *scene) answers(more uint64, drives ...*traffic.Drive) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	before := make([]uint64, len(drives))
	for i, d := range drives {
		before[i] = d.Report().Answered
	}
	for i, d := range drives {
		s.must(lab.Await(ctx, "answers to datagrams", func() (bool, error) {
			return d.Report().Answered >= before[i]+more, nil
		}))
	}
}

// likeNICs has every cable taken by NAPI, as NICs are, whatever programs are on it. Else
// packets wait in a queue of each CPU, and a sender that moves to another one overtakes
// itself; so does what comes next when a program is attached.
func (s *scene) likeNICs() {
	s.t.Helper()
	nodes := []*lab.Node{s.LANSwitch, s.WANSwitch, s.Server}
	nodes = append(nodes, s.Hosts...)
	for _, r := range s.Routers() {
		nodes = append(nodes, r.Node)
	}
	for _, n := range nodes {
		links, err := n.Netlink().LinkList()
		s.must(err)
		for _, link := range links {
			if link.Type() == "veth" {
				_, err := n.Run(s.ctx, "ethtool", "-K", link.Attrs().Name, "gro", "on")
				s.must(err)
			}
		}
	}
}

// often does something at an interval until stop is called, which waits for it.
func often(interval time.Duration, do func(i int)) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			case <-ticker.C:
				do(i)
			}
		}
	}()
	return func() { close(quit); <-done }
}
