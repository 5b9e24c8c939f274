// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// Streams at full speed are the same at both ends, and no connection breaks or moves,
// while the fast path is taken from under them: by changes of routes and rules ten
// times a second, by toggles, and by the end of the daemon, killed or not.
func TestFastStreams(t *testing.T) {
	s := setScene(t, "faststreams", lab.Options{Hosts: 1, SingleRouter: true, Fastpath: true})
	s.watchLeaks(s.RA)
	daemon := s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.awaitFast(s.RA)
	// A daemon that is short of time lets a connection in late.
	calm := s.fastWays(s.RA, func() { t.Logf("undisturbed: %s", s.streams(2*time.Second, vip, 0, nil)) })
	s.wantFast(s.RA, calm, 20_000, 4)
	tally := s.tally(s.RA)
	t.Logf("disturbed: %s", s.streams(4*time.Second, vip, 0, func(ctx context.Context) { s.trouble(ctx, daemon, tally) }))
	s.awaitFast(s.RA)
	s.wantFast(s.RA, tally.look(), 10_000, 0)
	s.close(s.lines(vip, 0)) // new ones are pinned as ever
}

// Segments are not lost, sent again or out of order oftener than with the plain kernel,
// in the same trouble.
// Streams are slow enough that no queue runs over, which is what most retransmissions
// at full speed come from. Both kernels take turns, in the same lab, with the same
// changes and commands: what is done to the fast path in one turn, is done in the
// other to that of a router which carries nothing.
func TestFastRetransmissions(t *testing.T) {
	s := setScene(t, "fastagain", lab.Options{Hosts: 1, Fastpath: true})
	s.must(s.RA.AddVIPs())
	s.likeNICs()
	s.watchLeaks(s.RA)
	const length, pace, rounds = 4 * time.Second, 150e6 / 8, 2
	troubled := func(r *lab.Router, role policy.Role, want lab.Ends) turn {
		daemon := s.start(r, onWAN)
		s.awaitRole(r, role)
		s.awaitFast(r)
		tally := s.tally(r)
		tcp := s.streams(length, want, pace, func(ctx context.Context) { s.trouble(ctx, daemon, tally) })
		s.awaitFast(r)
		if w := tally.look(); r == s.RA {
			s.wantFast(r, w, 20_000, 0)
		} else if w.forwarded > 0 {
			s.t.Errorf("the router that carries nothing forwarded %d packets", w.forwarded)
		}
		s.must(daemon.Stop())
		s.vippin(r, "unload")
		s.t.Logf("vippin on %s: %s", r.Name, tcp)
		return tcp
	}
	var plain, fast turn
	for range rounds {
		plain.add(troubled(s.RB, policy.RoleBackup, own))
		fast.add(troubled(s.RA, policy.RoleMaster, vip))
	}
	t.Logf("plain kernel: %s; fast path: %s", plain, fast)
	// Of some 430,000 segments in either kernel. What is left room for is what other tests
	// on the same processors make of it: alone, none was lost in 40 runs.
	for _, c := range []struct {
		what              string
		fast, plain, more uint64
	}{
		{"were lost", fast.lost(), plain.lost(), 16}, // or their DSACK was
		// Up to 11 were probes (RFC 8985 section 7), with either kernel, since the commands
		// took the processor that the receiver wanted.
		{"were sent again", fast.again, plain.again, 64},
		// Up to 2 did while a flow went from the stack to XDP: GRO held the one before.
		{"overtook another", fast.early, plain.early, 64},
	} {
		if c.fast > c.plain+c.more {
			t.Errorf("%d segments %s on the fast path, %d without it", c.fast, c.what, c.plain)
		}
	}
}

// turn is what TCP did during one.
type turn struct {
	octets   int64
	segments uint64
	again    uint64 // segments that were sent once more
	twice    uint64 // segments that the receiver had already (DSACK, RFC 2883)
	early    uint64 // segments that came before an earlier one
}

// lost is how many segments had to be sent again.
func (t turn) lost() uint64 { return t.again - min(t.again, t.twice) }

func (t *turn) add(other turn) {
	t.octets += other.octets
	t.segments += other.segments
	t.again += other.again
	t.twice += other.twice
	t.early += other.early
}

func (t turn) String() string {
	return fmt.Sprintf("%d MiB, %d of %d segments sent again, %d of them lost; %d overtook another",
		t.octets>>20, t.again, t.segments, t.lost(), t.early)
}

// streams transfers for a while, over four connections at a time: both ways, by
// IPv4 and IPv6. What arrives is compared with what was sent. pace is octets a second
// for each, or 0.
func (s *scene) streams(length time.Duration, want lab.Ends, pace int, meanwhile func(context.Context)) turn {
	s.t.Helper()
	lines := s.lines(want, pace) // before anything is done to the pin, which would decide on them
	defer s.close(lines)
	before := s.segments()
	var group errgroup.Group
	var octets atomic.Int64
	ctx, done := context.WithTimeout(s.ctx, length)
	defer done()
	for i, line := range lines {
		transfer := line.Put
		if i%2 == 1 {
			transfer = line.Get
		}
		group.Go(func() error {
			for ctx.Err() == nil {
				bulk, err := transfer(4 << 20)
				if err != nil {
					return err
				}
				octets.Add(bulk.Octets)
			}
			source, err := line.Ask()
			if err == nil && source != line.Source {
				err = fmt.Errorf("a connection moved from %s to %s", line.Source, source)
			}
			return err
		})
	}
	if meanwhile != nil {
		meanwhile(ctx)
	}
	s.must(group.Wait())
	after := s.segments()
	return turn{
		octets.Load(), after.segments - before.segments,
		after.again - before.again, after.twice - before.twice, after.early - before.early,
	}
}

// lines opens two connections by each of IPv4 and IPv6, which must leave with a source.
func (s *scene) lines(want lab.Ends, pace int) (lines []*traffic.Line) {
	s.t.Helper()
	for _, ends := range [][2]netip.Addr{{lab.ServerFar.V4, want.V4}, {lab.ServerFar.V6, want.V6}} {
		for range 2 {
			remote := lab.Port(ends[0], serverPort)
			line, err := traffic.OpenLine(s.ctx, s.Hosts[0].Do, netip.AddrPort{}, remote)
			s.must(err)
			lines = append(lines, line)
			if line.Source.Addr() != ends[1] {
				entry, err := s.entry(6, line.Local(), remote)
				s.t.Errorf("a connection to %s arrived from %s, want %s; conntrack: %+v, %v; counted: %s",
					remote, line.Source, ends[1], entry, err, s.unpinned(s.RA))
			}
			if pace > 0 {
				s.must(line.Pace(pace))
			}
		}
	}
	return lines
}

func (s *scene) close(lines []*traffic.Line) {
	s.t.Helper()
	for _, line := range lines {
		if err := line.Close(); err != nil {
			s.t.Error(err)
		}
	}
}

// unpinned says why a router's packets stayed unpinned, if a daemon is there to ask.
func (s *scene) unpinned(r *lab.Router) string {
	out, complaint, _ := s.Vippin(r, "pin", "ls", "-j")
	var rows []policy.PinStatus
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		return fmt.Sprintf("%v: %s", err, complaint)
	}
	var text string
	for _, row := range rows {
		text += fmt.Sprintf("%s %v; ", row.VLAN, row.UnpinnedBy)
	}
	return text
}

// segments are TCP's counters of both ends of what the host sends and gets.
func (s *scene) segments() (t turn) {
	s.t.Helper()
	for _, n := range []*lab.Node{s.Hosts[0], s.Server} {
		counts, err := traffic.Counters(n.Do)
		s.must(err)
		t.add(turn{
			0, counts["TcpOutSegs"],
			counts["TcpRetransSegs"], counts["TcpExtTCPDSACKRecvSegs"], counts["TcpExtTCPOFOQueue"],
		})
	}
	return t
}

// bumps changes a route or a rule that is nobody's concern ten times a second.
func (s *scene) bumps(ctx context.Context) (stop func()) {
	return often(100*time.Millisecond, func(i int) {
		script := fmt.Sprintf("ip route replace blackhole 198.18.7.%d; ip route replace blackhole 2001:db8:7::%d", i%200, i)
		if i%2 == 1 {
			script = `nft 'add table inet unrelated; add chain inet unrelated nothing; add rule inet unrelated nothing tcp dport 9 counter'`
		}
		if _, err := s.RA.Run(s.ctx, "sh", "-c", script); err != nil && ctx.Err() == nil {
			s.t.Error(err)
		}
	})
}

// trouble disturbs the tally's router until ctx ends, and bumps ra.
func (s *scene) trouble(ctx context.Context, daemon *lab.Proc, tally *tally) {
	defer s.bumps(ctx)()
	for i := 0; ctx.Err() == nil; i++ {
		var err error
		switch i % 4 {
		case 0:
			s.flip(tally.r, "pin", "off", "2")
			s.flip(tally.r, "pin", "on", "2")
		case 1:
			tally.look()
			s.flip(tally.r, "fastpath", "off")
			s.flip(tally.r, "fastpath", "on")
		case 2:
			err = daemon.Kill9()
		case 3:
			err = daemon.Stop()
		}
		if err == nil && !daemon.Alive() {
			err = daemon.Restart()
			if err == nil {
				err = s.AwaitVippin(s.ctx, tally.r)
			}
		}
		if err != nil {
			s.t.Error(err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(400 * time.Millisecond):
		}
	}
}

// flip is a toggle that must succeed, from any goroutine.
func (s *scene) flip(r *lab.Router, args ...string) {
	if _, complaint, exit := s.Vippin(r, args...); exit != 0 {
		s.t.Errorf("vippin %q: exit %d: %s", args, exit, complaint)
	}
}
