// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/natsync"
)

// replication is the daemon's part that peers see, while there are peers. The
// loop owns it.
type replication struct {
	flows     *replicator
	transport *transport
	cancel    context.CancelFunc
	ended     chan struct{}
}

// setReplication begins, changes or ends replication as a configuration says.
// That it cannot begin is a warning: the router goes on without.
func (d *daemon) setReplication(config *policy.Config) {
	s := &d.state
	d.setPeers(config)
	if s.replication != nil && len(config.Sync.Peers) == 0 {
		d.endReplication()
	}
	s.replicationFailed = ""
	if len(config.Sync.Peers) == 0 {
		return
	}
	if s.replication != nil {
		s.replication.flows.Set(config)
		s.replication.transport.Set(config.Sync)
		return
	}
	if err := d.beginReplication(config); err != nil {
		d.replicationFails(err)
	}
}

func (d *daemon) beginReplication(config *policy.Config) error {
	key, made, err := keyStore{dir: config.StateDir}.LoadOrMake()
	if err != nil {
		return err
	}
	public := publicOf(key).String()
	if made {
		d.log.Info("made this router's key: give it to its peers", "key", public)
	}
	table, err := d.plane.NewReplica(loader.ReplicaOptions{Sync: config.Sync, Log: d.log})
	if err != nil {
		return err
	}
	identity := natsync.Config{Node: config.Node, Build: version, Now: d.env.monotonic}
	if _, err := rand.Read(identity.Boot[:]); err != nil {
		return errors.Join(err, table.Close())
	}
	flows := newReplicator(d.env, d.log, replicaTable{table}, identity, public, config)
	flows.publish, flows.flight = d.hub.Publish, d.flight
	flows.ready, flows.words, flows.alike = d.ready, d.words, d.alike
	r := &replication{flows: flows, ended: make(chan struct{})}
	if r.transport, err = newTransport(key, trustStore{dir: config.StateDir}, r.serve, d.log); err != nil {
		return errors.Join(err, table.Close())
	}
	r.transport.Set(config.Sync)
	flows.SetPlan(d.state.plan, d.state.observed)
	for _, group := range d.state.tracker.Groups(d.env.monotonic(), d.env.now()) {
		flows.SetRole(group.Name, group.Role)
	}
	ctx, cancel := context.WithCancel(d.ctx)
	r.cancel = cancel
	d.state.replication = r
	d.tasks.Go(func() error {
		defer close(r.ended)
		defer cancel()
		err := errors.Join(r.run(ctx), table.Close())
		if err != nil && ctx.Err() == nil {
			d.log.Error("replication ended", "error", err)
			_ = d.ask(ctx, func() { d.replicationBroke(r, err) })
		}
		return nil
	})
	return nil
}

func (r *replication) run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return r.flows.Run(ctx) })
	tasks.Go(func() error { return r.transport.Run(ctx) })
	return tasks.Wait()
}

func (r *replication) serve(ctx context.Context, peer string, conn net.Conn) error {
	link, known := r.transport.Peer(peer)
	if !known || link.Key == "" {
		return nil // it has just left the configuration
	}
	return r.flows.Serve(ctx, peer, link.Key, conn)
}

func (d *daemon) endReplication() {
	r := d.state.replication
	d.state.replication = nil
	r.cancel()
	<-r.ended
}

// replicationBroke has it begin again after a pause.
func (d *daemon) replicationBroke(r *replication, err error) {
	if d.state.replication == r {
		d.state.replication = nil
		d.replicationFails(err)
	}
}

func (d *daemon) replicationFails(err error) {
	if d.state.replicationFailed != err.Error() {
		d.log.Error("cannot replicate, trying again", "error", err)
		d.hub.Publish(policy.Event{Kind: "warning", Detail: "cannot replicate: " + err.Error()})
	}
	d.state.replicationFailed = err.Error()
	d.state.replicateAt = d.env.monotonic() + replicaWait
}

// tryReplication begins again what failed. The loop calls it now and then.
func (d *daemon) tryReplication() {
	s := &d.state
	if s.replication == nil && s.replicationFailed != "" && d.env.monotonic() >= s.replicateAt {
		d.setReplication(s.config)
	}
}

// replicaWarnings is what an owner should look at.
func (d *daemon) replicaWarnings() []string {
	s := &d.state
	if s.replicationFailed != "" {
		return []string{fmt.Sprintf("flows are not replicated, a failover would break them: %s", s.replicationFailed)}
	}
	if s.replication == nil {
		return nil
	}
	return append(s.replication.transport.Warnings(), s.replication.flows.Warnings(s.config.Sync.Peers)...)
}

// peerReports is one report a peer, in the configuration's order.
func (d *daemon) peerReports() []policy.PeerReport {
	s := &d.state
	reports := []policy.PeerReport{}
	for _, peer := range s.config.Sync.Peers {
		if s.replication == nil {
			reports = append(reports, policy.PeerReport{
				Name: peer.Name, Address: peer.Address, State: "down", Since: d.began, LastError: s.replicationFailed,
			})
			continue
		}
		wire, _ := s.replication.transport.Peer(peer.Name)
		reports = append(reports, s.replication.flows.Report(peer, wire))
	}
	return reports
}

func (d *daemon) peerStatuses() []policy.PeerStatus {
	statuses := []policy.PeerStatus{}
	for _, report := range d.peerReports() {
		statuses = append(statuses, peerStatus(&report))
	}
	return statuses
}

func (d *daemon) replicationStatus() *policy.ReplicationStatus {
	if r := d.state.replication; r != nil {
		return r.flows.Status()
	}
	return nil
}

func (d *daemon) connectionsRefused() map[string]uint64 {
	if r := d.state.replication; r != nil {
		return r.transport.Refused()
	}
	return nil
}

// Peers tells how it stands with the peers.
func (d *daemon) Peers(ctx context.Context) (reports []policy.PeerReport, err error) {
	err = d.ask(ctx, func() { reports = d.peerReports() })
	return reports, err
}

// tellReplication lets the flows' side know of plan and addresses.
func (d *daemon) tellReplication() {
	d.alike.rouse()
	d.ready.SetPlan(d.state.plan)
	d.hush.SetVIPs(vipsByGroup(d.state.plan))
	if r := d.state.replication; r != nil {
		r.flows.SetPlan(d.state.plan, d.state.observed)
	}
}

// vipsByGroup lists every group's VIPs.
func vipsByGroup(plan policy.Plan) map[string][]netip.Addr {
	names := plan.GroupNames()
	vips := make(map[string][]netip.Addr, len(names))
	for _, pin := range plan.Pins {
		vips[names[pin.Group]] = append(vips[names[pin.Group]], pin.VIPs...)
	}
	return vips
}

// linkShaken tells of a link that changed, though it may look as before: set down
// and up again between two looks.
func (d *daemon) linkShaken(event loader.LinkEvent) {
	if r := d.state.replication; r != nil && event.Kind == loader.LinkChanged {
		r.flows.Shaken(event.Ifindex)
	}
}

// groundLost tells of the interfaces of the plan that lost an address since was.
func (d *daemon) groundLost(was policy.Observed) {
	r := d.state.replication
	if r == nil {
		return
	}
	for ifindex := range lostGround(was, d.state.observed) {
		r.flows.Shaken(ifindex)
	}
}

// lostGround is the interfaces that have gone, are down, or lack an address that
// they had.
func lostGround(was, is policy.Observed) map[int]bool {
	lost := make(map[int]bool)
	now := make(map[int]*policy.Link, len(is.Links))
	for i := range is.Links {
		now[is.Links[i].Index] = &is.Links[i]
	}
	for i := range was.Links {
		before := &was.Links[i]
		after := now[before.Index]
		if after == nil || before.Up && !after.Up || lostAddress(before, after) {
			lost[before.Index] = true
		}
	}
	return lost
}

func lostAddress(before, after *policy.Link) bool {
	return slices.ContainsFunc(before.Addrs, func(had policy.Addr) bool {
		return !slices.ContainsFunc(after.Addrs, func(has policy.Addr) bool { return has.Prefix.Addr() == had.Prefix.Addr() })
	})
}
