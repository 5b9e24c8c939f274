// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"vippin/loader"
	"vippin/policy"
)

// The bounds of a rehearsal. The command waits half a minute for its answer.
const (
	rehearseWithin = 25 * time.Second
	rehearseTable  = 10 * time.Second // for a peer's table to come
	rehearseMost   = 1 << 20          // flows of it
)

// Rehearse tries the peers' tables in a scratch namespace.
func (d *daemon) Rehearse(ctx context.Context) ([]policy.Rehearsal, error) {
	ctx, cancel := context.WithTimeout(ctx, rehearseWithin)
	defer cancel()
	var flows *replicator
	var failed string
	var peers []string
	var plan policy.Plan
	var seen policy.Observed
	err := d.ask(ctx, func() {
		s := &d.state
		if s.replication != nil {
			flows = s.replication.flows
		}
		failed, plan, seen = s.replicationFailed, s.plan, s.observed
		peers = s.config.Sync.PeerNames()
	})
	switch {
	case err != nil:
		return nil, err
	case len(peers) == 0:
		return []policy.Rehearsal{}, nil
	case flows == nil:
		return nil, fmt.Errorf("flows are not replicated: %s", failed)
	}
	return flows.rehearseAll(ctx, peers, plan, seen)
}

func (s *server) rehearse(w http.ResponseWriter, r *http.Request) {
	if err := s.access.mayChange(r.Context()); err != nil { // it takes time and memory
		s.fail(w, err)
		return
	}
	rehearsals, err := s.control.Rehearse(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, rehearsals)
}

// rehearseAll tries the tables of peers, one after the other.
func (r *replicator) rehearseAll(ctx context.Context, peers []string, plan policy.Plan, seen policy.Observed) ([]policy.Rehearsal, error) {
	if !r.rehearsing.TryLock() {
		return nil, errors.New("another rehearsal is under way: wait until it is done")
	}
	defer r.rehearsing.Unlock()
	rehearsals := make([]policy.Rehearsal, 0, len(peers))
	for _, peer := range peers {
		rehearsal, err := r.rehearse(ctx, peer, plan, seen)
		if err != nil {
			return nil, fmt.Errorf("rehearse with the table of %s: %w", peer, err)
		}
		rehearsals = append(rehearsals, rehearsal)
	}
	return rehearsals, nil
}

// rehearse tries the table of one peer, as far as it is MASTER.
func (r *replicator) rehearse(ctx context.Context, peer string, plan policy.Plan, seen policy.Observed) (policy.Rehearsal, error) {
	what := loader.Rehearsing{Plan: plan, Seen: seen}
	link, groups, notes := r.rehearsable(peer, &what)
	if link == nil || len(groups) == 0 {
		return policy.Rehearsal{Peer: peer, Complete: link != nil, Note: strings.Join(notes, "; ")}, nil
	}
	whole := link.table.take(ctx, groups, func() { link.session.RequestBulk(groups) })
	what.Flows = link.table.flows
	if !whole {
		notes = append(notes, "the peer's table did not come whole")
	}
	rehearsal, err := r.table.Rehearse(ctx, what)
	link.table.drop()
	rehearsal.Peer = peer
	rehearsal.Complete = rehearsal.Complete && whole
	if rehearsal.Note != "" {
		notes = append(notes, rehearsal.Note)
	}
	rehearsal.Note = strings.Join(notes, "; ")
	return rehearsal, err
}

// rehearsable finds the groups that a peer is MASTER of, and says what there is to
// say of the others. No link: there is no session.
func (r *replicator) rehearsable(peer string, what *loader.Rehearsing) (link *peerLink, groups, notes []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	link = r.links[peer]
	if link == nil || !link.greeted {
		return nil, nil, []string{"not connected"}
	}
	what.Believed = make(map[string]bool)
	for _, group := range r.authority.States() {
		switch {
		case group.Role == policy.RoleMaster:
			notes = append(notes, fmt.Sprintf("this router is MASTER of %s itself", group.Name))
		case r.authority.Believes(peer, group.Name):
			what.Believed[group.Name] = true
			groups = append(groups, group.Name)
		case r.authority.MasterOf(group.Name) == "":
			notes = append(notes, fmt.Sprintf("nobody is known to be MASTER of %s", group.Name))
		}
	}
	if len(groups) == 0 {
		return link, nil, append(notes, "there is nothing to take over")
	}
	for _, pin := range link.pins {
		if what.Believed[pin.Group] {
			what.Pins = append(what.Pins, pin.Pin)
		}
	}
	return link, append(groups, ""), notes
}

// namesOf is a set of groups.
func namesOf(groups []string) map[string]bool {
	names := make(map[string]bool, len(groups))
	for _, group := range groups {
		names[group] = true
	}
	return names
}
