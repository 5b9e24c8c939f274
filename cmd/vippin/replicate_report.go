// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"vippin/policy"
	"vippin/policy/natsync"
)

// rateSpan is how long the rates that are shown are measured over.
const rateSpan = 5 * time.Second

// rates counts flows at two times.
type rates struct {
	at             time.Duration
	sent, received uint64
}

// since is the flows a second from then to now.
func (was rates) since(now rates) (sent, received float64) {
	span := (now.at - was.at).Seconds()
	if span <= 0 || now.sent < was.sent || now.received < was.received {
		return 0, 0
	}
	return float64(now.sent-was.sent) / span, float64(now.received-was.received) / span
}

// measure notes the flow counts of every session, now and then.
func (r *replicator) measure() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.monotonic()
	for _, link := range r.links {
		if now-link.marks[1].at < rateSpan {
			continue
		}
		stats := link.session.Stats()
		link.marks[0] = link.marks[1]
		link.marks[1] = rates{at: now, sent: stats.Sent.Flows, received: stats.Received.Flows}
	}
}

// Report says how it stands with a peer, as far as the replicator knows.
func (r *replicator) Report(peer policy.PeerConfig, wire linkStatus) policy.PeerReport {
	report := policy.PeerReport{
		Name: peer.Name, Address: peer.Address, Key: wire.Key, State: wire.State, Since: wire.Since,
		Groups: []policy.PeerGroup{}, BytesSent: wire.BytesSent, BytesReceived: wire.BytesReceived,
		Refused: map[string]uint64{}, RefusedByPeer: map[string]uint64{},
		ConnectionsRefused: wire.Refused, ShownKey: wire.ShownKey, LastError: wire.LastError,
	}
	if !wire.LastErrorAt.IsZero() {
		report.LastErrorAt = &wire.LastErrorAt
	}
	switch wire.State {
	case "":
		report.State = "down"
	case "connected": // and has not said hello
		report.State = "connecting"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	history := r.history[peer.Name]
	if history != nil {
		report.LastBulk = history.bulk
		report.FlowsSent, report.FlowsReceived = history.sent, history.received
	}
	if link := r.links[peer.Name]; link != nil {
		link.report(&report)
	}
	return report
}

// report fills in what the session knows. Called with mu.
func (l *peerLink) report(report *policy.PeerReport) {
	stats := l.session.Stats()
	if !l.greeted {
		return
	}
	report.State = "up"
	if !l.bulkSent || stats.Sent.Bulk.Running || stats.Received.Bulk.Running {
		report.State = "bulk"
	}
	report.Since = l.began
	report.Node, report.Version, report.Protocol = l.hello.Node, l.hello.Build, stats.Version
	for _, group := range l.groups {
		report.Groups = append(report.Groups, policy.PeerGroup{Name: group.Name, Role: group.Role, Epoch: group.Epoch})
	}
	report.LagFlows, report.Lag = uint64(stats.Lag), float64(stats.Age.Microseconds())/1000
	report.FlowsSent += stats.Sent.Flows
	report.FlowsReceived += stats.Received.Flows
	report.Acked, report.GonesSent = stats.Acknowledged, stats.Sent.Gones
	report.GonesReceived = stats.Received.Gones
	now := rates{at: l.r.monotonic(), sent: stats.Sent.Flows, received: stats.Received.Flows}
	report.FlowsSentRate, report.FlowsReceivedRate = l.marks[0].since(now)
	report.BulkOut, report.BulkIn = progress(stats.Sent.Bulk), progress(stats.Received.Bulk)
	countReasons(report.Refused, stats.Received.Refused)
	countReasons(report.RefusedByPeer, stats.Sent.Refused)
}

func progress(bulk natsync.Bulk) *policy.BulkProgress {
	if !bulk.Running {
		return nil
	}
	return &policy.BulkProgress{Done: bulk.Flows, Total: bulk.Total}
}

func countReasons(into map[string]uint64, counts map[natsync.Reason]uint64) {
	for reason, n := range counts {
		into[reason.String()] += n
	}
}

// peerStatus is the short form of a report.
func peerStatus(report *policy.PeerReport) policy.PeerStatus {
	return policy.PeerStatus{
		Name: report.Name, State: report.State, LagFlows: report.LagFlows,
		FlowsSent: report.FlowsSent, FlowsReceived: report.FlowsReceived, LastBulk: report.LastBulk,
	}
}

// Standing tells where a flow came from, and whether every peer that is there has
// it.
func (r *replicator) Standing(key policy.FlowKey) (origin string, acked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	origin = originLocal
	if record, ok := r.told.Get(key); ok && record.Peer != "" {
		origin = record.Peer
		if !record.Taken {
			return origin, r.links[record.Peer] != nil
		}
	}
	acked = len(r.links) > 0
	for _, link := range r.links {
		acked = acked && link.has(key)
	}
	return origin, acked
}

// Status counts what became of the flows.
func (r *replicator) Status() *policy.ReplicationStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	status := r.counts
	status.Held, status.Skipped = r.told.Len(), r.table.Skipped()
	status.Strict = r.strict.Status()
	return &status
}

// Warnings is what an owner should look at.
func (r *replicator) Warnings(peers []policy.PeerConfig) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var warnings []string
	for _, peer := range peers {
		if link := r.links[peer.Name]; link == nil || !link.greeted {
			warnings = append(warnings, "peer "+peer.Name+" is not connected: a failover would break connections (vippin peers says why)")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.links)) {
		if n := len(r.links[name].refused); n > 0 {
			warnings = append(warnings, strconv.Itoa(n)+" flows that peer "+name+" could not take would break at a failover (vippin peers says why)")
		}
	}
	if warning := r.strict.Warning(); warning != "" {
		warnings = append(warnings, warning)
	}
	return warnings
}
