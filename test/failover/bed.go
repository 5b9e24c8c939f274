// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"vippin/test/lab"
	"vippin/test/traffic/swarm"
)

// The inside hosts: one for the decoys, some for the crowd, one for the probes.
const (
	decoyHost  = 0
	firstCrowd = 1
	crowdHosts = 4
	probeHost  = firstCrowd + crowdHosts
	allHosts   = probeHost + 1
)

// bed is a lab with one arm's daemons and this case's traffic.
type bed struct {
	*lab.Lab
	c       Case
	arm     arm
	daemons map[string]*lab.Proc // vippin or conntrackd, by router
	workers []*worker
	notes   []string

	server, probeServer, probes *worker
	crowd                       []*worker
}

// worker is a swarm worker and its process.
type worker struct {
	*swarm.Client
	proc *lab.Proc
}

// newBed builds the lab, and starts keepalived and the arm: ra is MASTER.
func newBed(ctx context.Context, name string, c Case) (_ *bed, err error) {
	b := &bed{c: c, arm: armNamed(c.Arm), daemons: make(map[string]*lab.Proc)}
	opts := lab.Options{Hosts: allHosts, Masquerade: b.arm.masquerade, Firewall: c.Firewall == stateful}
	if b.Lab, err = lab.New(ctx, name, opts); err != nil {
		return nil, err
	}
	if err := b.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w\n%s", c.Key(), err, b.Describe()), b.close())
	}
	return b, nil
}

// measure has something measured on routers of its own.
func measure(ctx context.Context, name string, c Case, how func(*bed, context.Context, *Result) error) (result Result, err error) {
	result.Case = c
	b, err := newBed(ctx, name, c)
	if err != nil {
		return result, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("measure %s: %w\n%s", c.Key(), err, b.Describe())
		}
		err = errors.Join(err, b.close())
	}()
	err = how(b, ctx, &result)
	result.Notes = b.notes
	return result, err
}

func (b *bed) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := b.AddSyncLink(); err != nil {
		return err
	}
	if err := b.arm.start(ctx, b); err != nil {
		return err
	}
	if err := b.startKeepalived(ctx, b.RA); err != nil {
		return err
	}
	if err := b.RA.AwaitMaster(ctx); err != nil {
		return err
	}
	if err := b.startKeepalived(ctx, b.RB); err != nil {
		return err
	}
	if err := b.RB.Keepalived().AwaitLog(ctx, "Entering BACKUP STATE"); err != nil {
		return err
	}
	if err := b.RB.AwaitBackup(ctx); err != nil {
		return err
	}
	return b.warmNeighbour()
}

// warmNeighbour has rb talk to its gateway, as routers do: else what is
// measured is how soon after MASTER it resolves the gateway. (IPv6: seen to be
// a second, half of the times: rb asks from the VIP it has just got, and its
// kernel does not know yet that the answer is for itself.)
func (b *bed) warmNeighbour() error {
	return b.RB.Do(func() error {
		conn, err := net.Dial("udp", lab.Port(b.of(lab.ServerWAN), swarm.ProbePort).String())
		if err != nil {
			return fmt.Errorf("talk to the gateway of rb: %w", err)
		}
		defer conn.Close()
		_, err = conn.Write([]byte("good morning"))
		return err
	})
}

func (b *bed) startKeepalived(ctx context.Context, r *lab.Router) error {
	_, err := b.StartKeepalived(r, lab.Keepalived{
		Interval: time.Duration(b.c.Adverts) * time.Millisecond, // 0 = 100 ms
		IPv4Only: b.c.Family == "ipv4",
		// keepalived must not miss its turn beside the crowd: else there are
		// takeovers without a fault.
		Global: "\tscript_user root\n\tvrrp_rt_priority 50\n",
		Group:  b.arm.group(r),
	})
	return err
}

// close ends the workers and removes the lab.
func (b *bed) close() error {
	for _, w := range b.workers {
		w.Close()
	}
	return b.Lab.Close()
}

func (b *bed) peerOf(r *lab.Router) *lab.Router {
	if r == b.RA {
		return b.RB
	}
	return b.RA
}

// of picks the address of the case's family.
func (b *bed) of(e lab.Ends) netip.Addr {
	if b.c.Family == "ipv6" {
		return e.V6
	}
	return e.V4
}

// startWorker starts a worker inside a node.
func (b *bed) startWorker(n *lab.Node, name string) (*worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	socket := filepath.Join(b.Dir, name)
	p, err := n.Start(b.Dir, name, swarm.Environment(socket), self)
	if err != nil {
		return nil, err
	}
	client, err := swarm.Dial(socket, 10*time.Second)
	if err != nil {
		return nil, fmt.Errorf("%w; it wrote: %s", err, p.Log())
	}
	w := &worker{client, p}
	b.workers = append(b.workers, w)
	return w, nil
}

// openCrowd opens the flows, each on a port that a decoy has taken, and starts
// the probes.
func (b *bed) openCrowd(ctx context.Context) error {
	crowd := b.plan(4000)
	if b.c.Age == old {
		crowd.Sparse = 25 * time.Second // ICMP's entry lives for 30 s
	}
	decoys, err := b.openDecoys(ctx, crowd)
	if err != nil {
		return err
	}
	if err := errors.Join(b.startCrowd(crowd), b.openFlows(crowd)); err != nil {
		return err
	}
	if err := b.awaitOpen(ctx, b.crowd...); err != nil {
		return err
	}
	if err := errors.Join(b.settle(swarm.Living), b.startProbes(ctx, decoys)); err != nil {
		return err
	}
	return decoys.proc.Kill9()
}

// plan is what the crowd's workers share: so many flows a second of all together.
func (b *bed) plan(rate int) swarm.Crowd {
	return swarm.Crowd{
		Layout: swarm.NewLayout(crowdHosts, b.c.counts()), Server: b.of(lab.ServerWAN),
		Interval: b.c.interval(), Rate: rate / crowdHosts,
	}
}

// openDecoys starts the server, and has a host take every port.
func (b *bed) openDecoys(ctx context.Context, crowd swarm.Crowd) (w *worker, err error) {
	if b.server, err = b.startWorker(b.Server, "server"); err != nil {
		return nil, err
	}
	plan := swarm.ServerPlan{Local: crowd.Server, TCP: true, ICMP: true, Flows: crowd.Flows}
	for i := range crowd.UDPPorts {
		plan.UDP = append(plan.UDP, uint16(swarm.UDPPort+i))
	}
	if err := b.server.Tell("Serve", plan); err != nil {
		return nil, err
	}
	decoys := crowd
	decoys.Layout, decoys.Decoys, decoys.Local = crowd.Layout.Decoys(), true, b.of(lab.HostEnds(decoyHost))
	decoys.Rate, decoys.Sparse = 4000, 0
	if w, err = b.startWorker(b.Hosts[decoyHost], "decoys"); err != nil {
		return nil, err
	}
	return w, errors.Join(w.Tell("Open", decoys), b.awaitOpen(ctx, w))
}

// startCrowd starts the crowd's workers; openFlows has them begin.
func (b *bed) startCrowd(crowd swarm.Crowd) error {
	for i := range crowdHosts {
		w, err := b.startWorker(b.Hosts[firstCrowd+i], fmt.Sprintf("crowd%d", i))
		if err != nil {
			return err
		}
		b.crowd = append(b.crowd, w)
	}
	return nil
}

func (b *bed) openFlows(crowd swarm.Crowd) error {
	for i, w := range b.crowd {
		crowd.Host, crowd.Local = i, b.of(lab.HostEnds(firstCrowd+i))
		if err := w.Tell("Open", crowd); err != nil {
			return err
		}
	}
	return nil
}

func (b *bed) settle(phase swarm.Phase) error {
	var errs []error
	for _, w := range b.crowd {
		errs = append(errs, w.Tell("Settle", phase))
	}
	return errors.Join(errs...)
}

// awaitOpen waits until every flow was answered once.
func (b *bed) awaitOpen(ctx context.Context, workers ...*worker) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		p, err := progress(workers)
		if err != nil {
			return err
		}
		if p.Failed != "" || p.Broken > 0 {
			return fmt.Errorf("open %d flows: %d broken: %s", p.Flows, p.Broken, p.Failed)
		}
		if p.Opened == p.Flows {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("open %d flows: only %d were answered; waiting (tcp, udp, icmp): %d", p.Flows, p.Opened, p.Waiting)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// progress adds up several workers.
func progress(workers []*worker) (sum swarm.Progress, err error) {
	for _, w := range workers {
		var p swarm.Progress
		if err := w.Ask("Progress", &p); err != nil {
			return sum, err
		}
		sum.Flows += p.Flows
		sum.Opened += p.Opened
		sum.Broken += p.Broken
		sum.Answered += p.Answered
		for i, n := range p.Waiting {
			sum.Waiting[i] += n
		}
		if p.Failed != "" {
			sum.Failed = p.Failed
		}
	}
	return sum, nil
}

// startProbes starts what times the outage, with a server of its own; the
// probes' ports are taken by the decoys, too.
func (b *bed) startProbes(ctx context.Context, decoys *worker) (err error) {
	server := b.of(lab.ServerWAN)
	if b.probeServer, err = b.startWorker(b.Server, "probe-server"); err != nil {
		return err
	}
	if err := b.probeServer.Tell("Serve", swarm.ServerPlan{Local: server, UDP: []uint16{swarm.ProbePort}}); err != nil {
		return err
	}
	if b.probes, err = b.startWorker(b.Hosts[probeHost], "probes"); err != nil {
		return err
	}
	plan := swarm.ProbePlan{Server: server, Count: 10, Interval: 2 * time.Millisecond}
	plan.Local = b.of(lab.HostEnds(decoyHost))
	if err := b.probe(ctx, decoys, plan); err != nil {
		return err
	}
	plan.Local = b.of(lab.HostEnds(probeHost))
	return b.probe(ctx, b.probes, plan)
}

// probe starts probes and waits until each was answered.
func (b *bed) probe(ctx context.Context, w *worker, plan swarm.ProbePlan) error {
	if err := w.Tell("Probe", plan); err != nil {
		return err
	}
	return lab.Await(ctx, "answers to every probe", func() (bool, error) {
		log, err := w.Replies(time.Time{})
		return !slices.ContainsFunc(log, func(at []time.Time) bool { return len(at) == 0 }), err
	})
}
