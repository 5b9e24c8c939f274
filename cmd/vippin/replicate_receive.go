// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/natsync"
)

// installWork is what one batch after the other is worked on in.
type installWork struct {
	list     []loader.Installation
	removals []loader.Removal
	refusals []natsync.Refusal
}

// Hello begins the session: everything is told once.
func (l *peerLink) Hello(hello natsync.Hello) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.hello, l.greeted = hello, true
	l.askBulk()
	l.r.flight.peerSession(l.r.monotonic(), l.peer, true)
	l.r.publish(policy.Event{Kind: "peer", Detail: fmt.Sprintf("%s is connected (node %s, %s)", l.peer, hello.Node, hello.Build)})
}

// State is what the peer says of its groups.
func (l *peerLink) State(state natsync.State) {
	r := l.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links[l.peer] != l {
		return
	}
	for _, group := range state.Groups {
		r.flight.peerRole(l.peer, group.Name, group.Role)
		if group.Role == policy.RoleMaster && r.authority.Role(group.Name) == policy.RoleMaster && !l.contests(group.Name) {
			r.loosen(group.Name)
		}
		if group.Role == policy.RoleMaster && r.unheard[group.Name] && r.authority.Role(group.Name) != policy.RoleMaster {
			l.askBulk()
		}
	}
	before := l.groups
	l.groups, l.pins = state.Groups, state.Pins
	if r.authority.Heard(l.peer, l.key, state.Groups) {
		r.tellState()
	}
	l.spoke(before)
}

// contests tells whether the peer has said already that it is MASTER of a group.
func (l *peerLink) contests(group string) bool {
	return slices.ContainsFunc(l.groups, func(g natsync.GroupState) bool {
		return g.Name == group && g.Role == policy.RoleMaster
	})
}

// Batch makes the kernel what the peer says. Flows that take nobody's place are
// welcome always, even from a router that is not believed to be MASTER: after a
// split brain both sides' flows live on.
func (l *peerLink) Batch(batch *natsync.Batch) []natsync.Refusal {
	r := l.r
	r.installing.Lock()
	defer r.installing.Unlock()
	l.removeGone(batch.Gones)
	l.work.refusals = l.work.refusals[:0]
	l.install(batch.Flows)
	l.table.note(batch)
	for i := range batch.Expectations {
		if err := r.table.InstallExpectation(&batch.Expectations[i]); err != nil {
			r.log.Debug("install an expectation of a peer", "peer", l.peer, "error", err)
		}
	}
	return l.work.refusals
}

// install installs flows. Called with installing.
func (l *peerLink) install(flows []policy.Flow) {
	r, w := l.r, &l.work
	w.list = w.list[:0]
	r.mu.Lock()
	group, believed := "", false // most flows of a batch are of one group
	for i := range flows {
		flow := &flows[i]
		if i == 0 || flow.Group != group {
			group, believed = flow.Group, r.authority.Believes(l.peer, flow.Group)
		}
		w.list = append(w.list, loader.Installation{Flow: flow, Known: r.told.Has(flow), Replace: believed})
	}
	r.mu.Unlock()
	if len(w.list) == 0 {
		return
	}
	outcomes, err := r.table.Install(w.list)
	if err != nil {
		r.log.Error("install flows of a peer", "peer", l.peer, "error", err)
		r.askAgain(l)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range flows {
		flow := &flows[i]
		if err == nil && outcomes[i].There() {
			delete(r.unready, flow.FlowKey)
			r.installed(l.peer, flow, outcomes[i])
			continue
		}
		reason := natsync.ReasonFailed
		if err == nil {
			reason = refusalFor(outcomes[i])
		}
		r.unready.note(flow.FlowKey, flow.Group)
		w.refusals = append(w.refusals, natsync.Refusal{Index: i, Reason: reason})
	}
}

// installed notes a flow that a peer told of. If this router is its group's MASTER,
// it is this router's own, and has the timeout of one that stands by. Called with
// mu.
func (r *replicator) installed(peer string, flow *policy.Flow, outcome loader.Outcome) {
	r.told.Put(peer, flow)
	if flow.Group == "" || !r.speaksFor(flow.Group) {
		return
	}
	r.told.Own(flow.FlowKey)
	if outcome == loader.Installed {
		r.taken++
		r.rouse()
	}
}

// askAgain has the peer asked again for what could not be installed.
func (r *replicator) askAgain(l *peerLink) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.missing = true
}

func refusalFor(outcome loader.Outcome) natsync.Reason {
	switch outcome {
	case loader.RefusedClash:
		return natsync.ReasonClash
	case loader.RefusedFull:
		return natsync.ReasonFull
	case loader.RefusedNoPin:
		return natsync.ReasonNoPin
	}
	return natsync.ReasonFailed
}

// removeGone removes flows that have ended, if it is the peer's to say. Called
// with installing.
func (l *peerLink) removeGone(gones []natsync.Gone) {
	r, w := l.r, &l.work
	w.removals = w.removals[:0]
	r.mu.Lock()
	for i := range gones {
		gone := &gones[i]
		delete(r.unready, gone.Key)
		record, ok := r.told.Get(gone.Key)
		if !ok || !r.mayRemove(l.peer, &record) || gone.To != (policy.End{}) && gone.To != record.To {
			continue
		}
		r.told.Drop(gone.Key)
		w.removals = append(w.removals, removal(&record))
	}
	r.mu.Unlock()
	r.remove(l.peer, w.removals)
}

func removal(record *natsync.Record) loader.Removal {
	return loader.Removal{Key: record.Key, To: record.To, Pin: record.Pin}
}

// mayRemove tells whether a peer's word removes a flow. Called with mu.
func (r *replicator) mayRemove(peer string, record *natsync.Record) bool {
	if record.Group == "" {
		return record.Peer == peer && !record.Taken
	}
	return r.authority.Believes(peer, record.Group)
}

func (r *replicator) remove(peer string, list []loader.Removal) {
	if len(list) == 0 {
		return
	}
	if _, err := r.table.Remove(list); err != nil {
		r.log.Error("remove flows that have ended at a peer", "peer", peer, "error", err)
	}
}

// BulkBegin begins a round: what is not told of in it has ended.
func (l *peerLink) BulkBegin(groups []string) {
	l.table.begin(groups)
	r := l.r
	r.mu.Lock()
	defer r.mu.Unlock()
	round := r.told.Begin()
	told := l.session.Stats().Sent.Bulk
	for _, group := range groups {
		r.unready.take(group)
		l.rounds[group] = round
		// The peer may have read its table before it took what it is being told.
		l.early[group] = r.unheard[group] || l.offered[group] || told.Running
		if l.offered[group] && told.Done { // once
			delete(l.offered, group)
		}
	}
}

// BulkEnd removes what the round did not tell of, as far as it is the peer's to
// say.
func (l *peerLink) BulkEnd(groups []string, count uint64) {
	l.table.end()
	r := l.r
	r.installing.Lock()
	defer r.installing.Unlock()
	r.mu.Lock()
	var removals []loader.Removal
	var again, whole []string
	born := make(map[string]uint32)
	for _, group := range groups {
		round, began := l.rounds[group]
		delete(l.rounds, group)
		if !began || group != "" && !r.authority.Believes(l.peer, group) {
			continue
		}
		whole = append(whole, group)
		for _, record := range r.told.Stale(l.peer, group, round) {
			r.told.Drop(record.Key)
			removals = append(removals, removal(&record))
		}
		if group == "" || !r.bornHere[group] {
			continue
		}
		if l.early[group] {
			again = append(again, group)
			continue
		}
		born[group] = round
	}
	now := r.now()
	r.history[l.peer].bulk = &now
	if len(again) > 0 {
		l.session.RequestBulk(again)
	}
	r.mu.Unlock()
	removals = append(removals, l.strangers(born)...)
	r.remove(l.peer, removals)
	r.ready.Whole(l.peer, whole)
	if len(removals) > 0 {
		r.log.Info("removed flows that the MASTER does not have", "peer", l.peer, "flows", len(removals))
		r.askAgain(l) // it may have got them since it read its table
	}
}

// strangers finds the flows of groups that this router still has from when it was
// their MASTER, and that a bulk did not tell of.
func (l *peerLink) strangers(born map[string]uint32) (removals []loader.Removal) {
	r := l.r
	if len(born) == 0 {
		return nil
	}
	err := r.table.Dump(context.Background(), func(flow *policy.Flow) error {
		round, ok := born[flow.Group]
		if !ok {
			return nil
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.told.Told(flow.FlowKey, round) {
			removals = append(removals, loader.Removal{Key: flow.FlowKey, To: flow.To, Pin: flow.Pin})
		}
		return nil
	})
	if err != nil {
		r.log.Error("compare this router's flows with the MASTER's", "peer", l.peer, "error", err)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for group := range born {
		if r.authority.Role(group) != policy.RoleMaster {
			delete(r.bornHere, group)
		}
	}
	return removals
}

// BulkWanted is the peer's wish to be told of everything.
func (l *peerLink) BulkWanted([]string) { l.askBulk() }

// Refused notes which flows the peer could not take. Nothing waits for those.
func (l *peerLink) Refused(flows []policy.Flow, reasons []natsync.Reason) {
	l.r.strict.Release(flows)
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	for i := range flows {
		if len(l.refused) < refusedMost {
			l.refused[flows[i].FlowKey] = reasons[i]
		}
	}
}

// Acked lets the first answers of flows pass that every peer has now.
func (l *peerLink) Acked(flows []policy.Flow) {
	l.r.strict.Acked(l.r.haveAll(l, flows))
}

// haveAll drops flows from a list that a peer which is up has not acknowledged yet.
func (r *replicator) haveAll(by *peerLink, flows []policy.Flow) []policy.Flow {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, link := range r.links {
		if link == by || !link.isUp() {
			continue
		}
		flows = slices.DeleteFunc(flows, func(flow policy.Flow) bool { return link.session.Pending(flow.FlowKey) })
	}
	return flows
}

// Digest is what the peer says that routers should have alike.
func (l *peerLink) Digest(digest []byte) { l.r.alike.heard(l.peer, digest) }

// Lost has the peer told of everything, since it missed something.
func (l *peerLink) Lost() { l.askBulk() }

// has tells whether the peer has acknowledged a flow. Called with mu.
func (l *peerLink) has(key policy.FlowKey) bool {
	_, refused := l.refused[key]
	return l.greeted && l.bulkSent && !refused && !l.session.Pending(key)
}
