// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vippin/loader/conntrack"
	"vippin/policy"
	"vippin/test/lab"
	"vippin/test/traffic"
)

// pair is a scene whose routers tell each other of their flows.
type pair struct {
	*scene
	extra   string // of sync:, beside listen and peers; one key a line
	daemons map[*lab.Router]*lab.Proc
}

const syncPort = 7443

// setPair builds a lab with a sync link, and starts keepalived and vippin on the
// routers. ra is MASTER, and each has heard all of the others.
func setPair(t *testing.T, name string, opts lab.Options, extra string) *pair {
	t.Helper()
	s := setScene(t, name, opts)
	s.must(s.AddSyncLink())
	p := &pair{scene: s, extra: extra, daemons: make(map[*lab.Router]*lab.Proc)}
	s.must(s.StartRouters(s.ctx, lab.Keepalived{}))
	for _, r := range s.Routers() {
		p.daemons[r] = s.start(r, p.config(r, onWAN))
	}
	p.awaitRole(s.RA, policy.RoleMaster)
	for _, r := range s.Routers()[1:] {
		p.awaitRole(r, policy.RoleBackup)
	}
	p.awaitSync()
	return p
}

// full tells whether the long versions of tests are wanted: make test FULL=1.
func full() bool { return os.Getenv("VIPPIN_FULL") != "" }

// other is a router's peer.
func (p *pair) other(r *lab.Router) *lab.Router {
	if r == p.RA {
		return p.RB
	}
	return p.RA
}

// config is a router's configuration with its peers in it.
func (p *pair) config(r *lab.Router, pins string) string {
	p.t.Helper()
	text := pins + fmt.Sprintf("sync:\n  listen: %s:%d\n%s  peers:\n", r.SyncAddr(), syncPort, p.extra)
	for _, peer := range p.Routers() {
		if peer != r {
			text += fmt.Sprintf("    - {name: %s, address: \"%s:%d\", key: %q}\n", peer.Name, peer.SyncAddr(), syncPort, p.key(peer))
		}
	}
	return text
}

// key is a router's public key.
func (p *pair) key(r *lab.Router) string {
	p.t.Helper()
	return strings.TrimSpace(p.vippin(r, "keygen", "--state-dir", r.StateDir()))
}

// peers is "vippin peers -j".
func (p *pair) peers(r *lab.Router) (peers []policy.PeerReport) {
	p.t.Helper()
	p.must(json.Unmarshal([]byte(p.vippin(r, "peers", "-j")), &peers))
	return peers
}

// awaitSync waits until both routers have told each other everything.
func (p *pair) awaitSync() {
	p.t.Helper()
	for _, r := range p.Routers() {
		p.awaitPeer(r, "up")
	}
}

// awaitPeer waits until all peers of a router are in a state and nothing waits
// for them.
func (p *pair) awaitPeer(r *lab.Router, state string) {
	p.t.Helper()
	var last []policy.PeerReport
	err := lab.Await(p.ctx, "peers of "+r.Name+" being "+state, func() (bool, error) {
		last = p.peers(r)
		return len(last) > 0 && !slices.ContainsFunc(last, func(peer policy.PeerReport) bool {
			return peer.State != state || state == "up" && peer.LagFlows > 0
		}), nil
	})
	if err != nil {
		p.t.Logf("peers of %s: %+v", r.Name, last)
	}
	p.must(err)
}

// mappings is every flow that a router has, by what both routers must agree on.
func (p *pair) mappings(r *lab.Router) map[string]policy.FlowStatus {
	p.t.Helper()
	all := make(map[string]policy.FlowStatus)
	for _, flow := range p.flows(r) {
		all[fmt.Sprintf("vlan %v %s %s > %s as %s", flow.VLAN, flow.Proto, flow.Client, flow.Remote, flow.Public)] = flow
	}
	return all
}

// awaitAgreement waits until ra and rb hold the same mappings, at least some.
func (p *pair) awaitAgreement(least int) {
	p.t.Helper()
	p.awaitAgreementOf(p.RA, p.RB, least)
}

func (p *pair) awaitAgreementOf(ra, rb *lab.Router, least int) {
	p.t.Helper()
	var only [2][]string
	var counts [2]int
	err := lab.Await(p.ctx, "the same mappings on both routers", func() (bool, error) {
		a, b := p.mappings(ra), p.mappings(rb)
		only[0], only[1] = missingIn(a, b), missingIn(b, a)
		counts[0], counts[1] = len(a), len(b)
		return len(only[0])+len(only[1]) == 0 && len(a) >= least, nil
	})
	if err != nil {
		p.t.Fatalf("%s has %d mappings, %s %d, at least %d are wanted\nonly on the first (%d): %.10q\nonly on the second (%d): %.10q\n%s",
			ra.Name, counts[0], rb.Name, counts[1], least, len(only[0]), first(only[0], 10), len(only[1]), first(only[1], 10), p.Describe())
	}
}

func missingIn(a, b map[string]policy.FlowStatus) (missing []string) {
	for name := range a {
		if _, there := b[name]; !there {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	return missing
}

func first[T any](list []T, most int) []T { return list[:min(len(list), most)] }

// troop is living flows of every protocol from all hosts, which use the same
// ports: a router that knows nothing cannot give them the same sources by luck.
type troop struct {
	p     *pair
	flows traffic.Flows
	pings []*traffic.Pinger
	v6    bool
	count int
}

// muster starts so many flows of each of TCP, UDP and ICMP echo.
func (p *pair) muster(each int, firstPort uint16, v6 bool) *troop {
	p.t.Helper()
	f := families[0]
	if v6 {
		f = families[1]
	}
	tr := &troop{p: p, v6: v6, count: 3 * each}
	remote := f.of(lab.ServerFar)
	for h, host := range p.Hosts {
		for proto, wait := range map[string]time.Duration{"tcp": 10 * time.Second, "udp": time.Second} { // then the next datagram
			flows, err := traffic.StartFlows(p.ctx, host.Do, each/len(p.Hosts), func(i int) traffic.FlowOptions {
				return traffic.FlowOptions{
					ID:    fmt.Sprintf("%s-%d-%d-%d-%v", proto, h, firstPort, i, v6),
					Proto: proto, Local: lab.Port(f.of(lab.HostEnds(h)), firstPort+uint16(i)), Remote: lab.Port(remote, serverPort),
					Interval: lab.Slowly(300 * time.Millisecond), Timeout: lab.Slowly(wait),
				}
			})
			p.must(err)
			tr.flows = append(tr.flows, flows...)
		}
		identifiers := make([]uint16, each/len(p.Hosts))
		for i := range identifiers {
			identifiers[i] = firstPort + uint16(i)
		}
		pings, err := traffic.StartPings(p.ctx, host.Do, traffic.PingOptions{
			Remote: remote, Identifiers: identifiers, Name: fmt.Sprintf("ping-%d-%d-%v", h, firstPort, v6), Interval: lab.Slowly(300 * time.Millisecond),
		})
		p.must(err)
		tr.pings = append(tr.pings, pings)
		p.must(pings.Await(p.ctx, 1))
	}
	p.t.Cleanup(tr.dismiss)
	return tr
}

func (tr *troop) dismiss() {
	tr.flows.Stop()
	for _, pings := range tr.pings {
		pings.Stop(nil)
	}
}

func (tr *troop) reports() (reports []traffic.FlowReport) {
	reports = tr.flows.Report().Flows
	for _, pings := range tr.pings {
		reports = append(reports, pings.Report(tr.p.server).Flows...)
	}
	return reports
}

// allAnswered waits until every flow has been answered since now, and checks that
// each has come from one source on the virtual address all its life.
func (tr *troop) allAnswered() {
	p := tr.p
	p.t.Helper()
	before := map[string]uint64{}
	for _, r := range tr.reports() {
		before[r.ID] = r.Answered
	}
	var silent []string
	err := lab.Await(p.ctx, "an answer on every flow", func() (bool, error) {
		silent = silent[:0]
		for _, r := range tr.reports() {
			if r.Answered <= before[r.ID] {
				silent = append(silent, r.ID)
			}
		}
		return len(silent) == 0, nil
	})
	if err != nil {
		p.t.Errorf("%d of %d flows are silent: %.10q", len(silent), tr.count, first(silent, 10))
	}
	want := vip.V4
	if tr.v6 {
		want = vip.V6
	}
	moved := 0
	for _, r := range tr.reports() {
		if len(r.Sources) != 1 || r.Sources[0].Addr() != want || r.Broken() {
			if moved++; moved <= 10 {
				p.t.Errorf("%s: sources %v, want one on %v; errors %q", r.ID, r.Sources, want, r.Errors)
			}
		}
	}
	if moved > 10 {
		p.t.Errorf("%d flows in all have moved or broken", moved)
	}
	if err != nil {
		p.t.Fatal(p.Describe())
	}
}

// withConntrack works on a router's conntrack table.
func (p *pair) withConntrack(r *lab.Router, work func(conn *conntrack.Conn) error) {
	p.t.Helper()
	p.must(r.Do(func() error {
		conn, err := conntrack.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		return work(conn)
	}))
}

// forgetAll removes every connection of a router, as "conntrack -F" does.
func (p *pair) forgetAll(r *lab.Router) {
	p.t.Helper()
	p.withConntrack(r, func(conn *conntrack.Conn) error {
		var refs []conntrack.Ref
		err := conn.Dump(p.ctx, conntrack.Filter{}, func(flow *conntrack.Flow) error {
			refs = append(refs, flow.Ref())
			return nil
		})
		if err != nil {
			return err
		}
		_, err = conn.Delete(refs)
		return err
	})
}

// translated counts a router's translated entries.
func (p *pair) translated(r *lab.Router) (n int) {
	p.t.Helper()
	p.withConntrack(r, func(conn *conntrack.Conn) error {
		return conn.Dump(p.ctx, conntrack.Filter{}, func(flow *conntrack.Flow) error {
			if flow.Status&(conntrack.SrcNAT|conntrack.DstNAT) != 0 {
				n++
			}
			return nil
		})
	})
	return n
}
