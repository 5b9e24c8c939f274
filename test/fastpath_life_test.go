// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// The UDP timeouts of a flow on the fast path, and for how long it goes on.
func fastLife() (timeout, life time.Duration) {
	if full() {
		return 20 * time.Second, 3 * time.Minute
	}
	return 5 * time.Second, 12 * time.Second
}

// A flow that conntrack hardly sees does not time out, and is counted; one that
// has ended does time out.
func TestFastFlowsLiveAndEnd(t *testing.T) {
	t.Parallel()
	timeout, life := fastLife()
	s := setFast(t, "fastlife", lab.Options{Hosts: 1})
	for _, name := range []string{"udp_timeout", "udp_timeout_stream"} {
		s.must(s.RA.Sysctl("net/netfilter/nf_conntrack_"+name, fmt.Sprint(int(timeout.Seconds()))))
	}
	s.must(s.RA.Sysctl("net/netfilter/nf_conntrack_acct", "1"))
	type flow struct {
		*traffic.Drive
		local, remote netip.AddrPort
		id            uint32
	}
	var flows []*flow
	var drives []*traffic.Drive
	for _, f := range families {
		local, remote := lab.Port(f.of(lab.HostEnds(0)), 4000), lab.Port(f.of(lab.ServerFar), serverPort)
		d := s.drive(s.Hosts[0], traffic.FlowOptions{Local: local, Remote: remote})
		entry, err := s.entry(17, local, remote)
		s.must(err)
		flows, drives = append(flows, &flow{d, local, remote, entry.ID}), append(drives, d)
	}
	s.settle(s.RA, drives...)
	s.mostlyFast(s.RA, uint64(2*life/time.Millisecond), func() {
		ticker := time.NewTicker(timeout / 4)
		defer ticker.Stop()
		for end := time.Now().Add(life); time.Now().Before(end); <-ticker.C {
			for _, f := range flows {
				if entry, err := s.entry(17, f.local, f.remote); err != nil || entry.ID != f.id {
					s.t.Fatalf("%s: conntrack's entry is another one, or gone: %v\n%+v", f.local, err, s.fastpath(s.RA))
				}
			}
		}
	})
	var reports []traffic.DriveReport
	for _, d := range drives {
		reports = append(reports, d.Stop())
	}
	shown := make(map[string]policy.FlowStatus)
	for _, f := range s.flows(s.RA) {
		shown[f.Client] = f
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout+patience)
	defer cancel()
	for i, f := range flows {
		report, packets := reports[i], uint64(0)
		if p := shown[f.local.String()].Packets; p != nil {
			packets = *p
		}
		least, most := (report.Sent+report.Answered)*9/10, 2*report.Sent // the last answers may be on their way
		if packets < least || packets > most {
			t.Errorf("%s: %d packets are shown, there were %d to %d", f.local, packets, least, most)
		}
		if len(report.Sources) != 1 {
			t.Errorf("%s: sources %v", f.local, report.Sources)
		}
		s.must(lab.Await(ctx, "the end of the entry", func() (bool, error) {
			_, err := s.entry(17, f.local, f.remote)
			if errors.Is(err, unix.ENOENT) {
				return true, nil
			}
			return false, err
		}))
	}
	s.awaitFlows(s.RA, 2, 0)
}

// A router dies with flows on its fast path. All of them go on, from the same
// source, on the peer's fast path: flows that it never translated itself.
func TestFastFailover(t *testing.T) {
	for name, extra := range map[string]string{"async": "", "strict": strict} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := setPair(t, "fastfall"+name, lab.Options{Firewall: true, Fastpath: true}, extra)
			p.watchLeaks(p.RA, p.RB)
			p.awaitFast(p.RA)
			p.awaitFast(p.RB)
			const each = 20
			troops := []*troop{p.muster(each, 20000, false), p.muster(each, 20000, true)}
			var drives []*traffic.Drive
			for _, f := range families {
				local := lab.Port(f.of(lab.HostEnds(0)), 4000)
				drives = append(drives, p.drive(p.Hosts[0], traffic.FlowOptions{Local: local, Remote: lab.Port(f.of(lab.ServerFar), serverPort)}))
			}
			line, err := traffic.OpenLine(p.ctx, p.Hosts[1].Do, lab.Port(lab.HostEnds(1).V6, 4001), lab.Port(lab.ServerFar.V6, serverPort))
			p.must(err)
			defer line.Close()
			transfer := func() {
				t.Helper()
				_, err := line.Put(8 << 20)
				p.must(err)
				_, err = line.Get(8 << 20)
				p.must(err)
				if source, err := line.Ask(); err != nil || source != line.Source {
					t.Errorf("the connection came from %s, now from %s (%v)", line.Source, source, err)
				}
			}
			directions := 2 * (2*2*each + len(drives) + 1) // TCP and UDP in both families
			onFast := func(r *lab.Router) {
				t.Helper()
				transfer()
				p.awaitOn(r, fmt.Sprintf("%d directions on the fast path of %s", directions, r.Name), func(state policy.FastpathState) bool {
					return state.Flows >= directions
				})
				p.settle(r, drives...)
			}
			onFast(p.RA)
			p.awaitAgreement(2*3*each + len(drives) + 1)
			p.must(p.Crash(p.RA))
			p.awaitRole(p.RB, policy.RoleMaster)
			for _, tr := range troops {
				tr.allAnswered()
			}
			onFast(p.RB)
			for _, tr := range troops {
				tr.allAnswered()
			}
			for _, d := range drives {
				if sources := d.Report().Sources; len(sources) != 1 {
					t.Errorf("a stream of datagrams came from %v", sources)
				}
			}
		})
	}
}
