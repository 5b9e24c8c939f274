// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vippin/policy"
	"vippin/test/lab"
)

// rehearse is "vippin failovers --rehearse -j" with one peer, which exits with 1 if
// a failover would break something.
func (p *pair) rehearse(r *lab.Router) policy.Rehearsal {
	p.t.Helper()
	out, complaint, exit := p.Vippin(r, "failovers", "--rehearse", "-j")
	var rehearsals []policy.Rehearsal
	if err := json.Unmarshal([]byte(out), &rehearsals); err != nil || len(rehearsals) != 1 {
		p.t.Fatalf("rehearse on %s: exit %d: %s%s", r.Name, exit, out, complaint)
	}
	got := rehearsals[0]
	if broken := len(got.Failures)+len(got.Missing) > 0 || !got.Complete; broken != (exit == 1) {
		p.t.Errorf("rehearse on %s: exit %d with %+v", r.Name, exit, got)
	}
	return got
}

// A standby rehearses while traffic goes on: all fits, and nothing of it is to be
// seen. Then each thing that it lacks is found.
func TestRehearse(t *testing.T) {
	t.Parallel()
	p := setPair(t, "rehearse", lab.Options{Hosts: 2}, "")
	four, six := p.muster(60, 20000, false), p.muster(30, 20000, true)
	count := four.count + six.count
	p.awaitAgreement(count)
	entries := p.translated(p.RB)
	healthy := p.rehearse(p.RB)
	if healthy.Flows != uint64(count) || healthy.Fit != healthy.Flows || len(healthy.Failures)+len(healthy.Missing) != 0 || healthy.Note != "" {
		t.Errorf("healthy: %+v, want %d flows", healthy, count)
	}
	if again := p.translated(p.RB); again != entries {
		t.Errorf("rb had %d translated connections, and has %d", entries, again)
	}
	if own := p.rehearse(p.RA); own.Flows != 0 || !strings.Contains(own.Note, "this router is MASTER of RouterCore itself") {
		t.Errorf("as MASTER: %+v", own)
	}
	lacks := func(kind, example string, faults []policy.RehearsalFault, flows int) {
		t.Helper()
		for _, fault := range faults {
			if fault.What == kind && fault.Flows == uint64(flows) && strings.Contains(strings.Join(fault.Example, ", "), example) {
				return
			}
		}
		t.Errorf("%s of %d flows with %s is not among %+v", kind, flows, example, faults)
	}

	// A socket of the standby has a flow's end on the wire.
	flow := p.udpFlow()
	p.must(p.RB.Do(func() error {
		dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(flow.Public)), Control: func(_, _ string, raw syscall.RawConn) (err error) {
			control := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1) })
			if err == nil {
				err = control
			}
			return err
		}}
		conn, err := dialer.Dial("udp4", flow.Remote)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
		return nil
	}))
	got := p.rehearse(p.RB)
	lacks("clash", "as "+flow.Public, got.Failures, 1)
	if got.Fit != uint64(count)-1 || len(got.Missing) != 0 {
		t.Errorf("a clash: %+v", got)
	}
	// It has no way to the server, and does not masquerade.
	p.ip(p.RB.Node, fmt.Sprintf("route del default via %s", lab.ServerWAN.V4))
	got = p.rehearse(p.RB)
	lacks("route", lab.ServerFar.V4.String(), got.Missing, four.count-1)
	p.ip(p.RB.Node, routes("wan0")[0])
	p.must(p.RB.NFT(p.ctx, "flush chain inet nat postrouting"))
	got = p.rehearse(p.RB)
	lacks("rule", "", got.Missing, four.count)
	lacks("rule", "", got.Missing, six.count)
	four.allAnswered()
	six.allAnswered()
}

// udpFlow is one of the flows that ra has.
func (p *pair) udpFlow() policy.FlowStatus {
	p.t.Helper()
	for _, flow := range p.flows(p.RA) {
		if flow.Proto == "udp" && strings.HasPrefix(flow.Public, vip.V4.String()+":") {
			return flow
		}
	}
	p.t.Fatal("no UDP flow")
	return policy.FlowStatus{}
}
