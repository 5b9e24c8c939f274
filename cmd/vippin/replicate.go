// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"vippin/loader"
	"vippin/policy"
	"vippin/policy/natsync"
)

// The rhythm of replication.
const (
	holdTick     = 50 * time.Millisecond  // how often ends that are due are told, at most
	tendTick     = 500 * time.Millisecond // how often what else there is to tend is looked at
	bulkPause    = 500 * time.Millisecond // what asks for a bulk within it gets one together; a takeover has the CPU to itself
	replicaWait  = 2 * time.Second        // before what failed is tried again
	missingEvery = 5 * time.Second        // between two requests for what went missing
	refreshChunk = 1024                   // flows refreshed in one go
)

// flowTable is what the replicator needs of a loader.Replica.
type flowTable interface {
	SetOptions(policy.SyncConfig)
	SetPlan(policy.Plan, policy.Observed)
	SetActive(on bool)
	Follow(ctx context.Context, handle func(*loader.FlowEvent) error) error
	Dump(ctx context.Context, yield func(*policy.Flow) error) error
	Expectations(ctx context.Context, yield func(*policy.Expectation) error) error
	Install([]loader.Installation) ([]loader.Outcome, error)
	Restore([]policy.Flow) ([]loader.Outcome, error)
	Remove([]loader.Removal) ([]bool, error)
	Refresh(keys []policy.FlowKey, missing func(i int)) error
	Normalise(ctx context.Context, wanted func(*policy.FlowKey) bool) (changed int, err error)
	Loosen(ctx context.Context, wanted func(group string) bool) (loosened int, err error)
	InFlowtable(ctx context.Context, wanted func(group string) bool) ([]policy.FlowKey, error)
	InstallExpectation(*policy.Expectation) error
	Rehearse(context.Context, loader.Rehearsing) (policy.Rehearsal, error)
	Skipped() map[string]uint64
	SetPrompt(on bool)
	NewGate(policy.SyncConfig) (gate, error)
	Close() error
}

// replicaTable is *loader.Replica as the replicator takes it.
type replicaTable struct{ *loader.Replica }

func (t replicaTable) NewGate(config policy.SyncConfig) (gate, error) {
	g, err := t.Replica.NewGate(loader.GateOptions{
		Queue: config.StrictQueue, Mark: config.StrictMark, Timeout: config.StrictTimeout,
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// replicator tells peers of this router's flows and holds theirs ready here.
// What is decided is decided by package natsync; what is known of a flow is in
// the kernel.
//
// installing is held while the kernel is made what a peer says; mu guards what is
// known, never while conntrack works, so that the daemon's loop and the flow events
// do not wait for peers.
type replicator struct {
	log       *slog.Logger
	monotonic func() time.Duration
	now       func() time.Time
	table     flowTable
	identity  natsync.Config     // of sessions, without handler
	publish   func(policy.Event) // for who watches
	alike     *alike             // what peers should have alike; nil: they are not told
	ready     *readyKeeper
	words     *peerWords
	flight    *flightLog

	strict *strictness

	installing sync.Mutex
	rehearsing sync.Mutex // one at a time

	mu        sync.Mutex
	sync      policy.SyncConfig
	authority *natsync.Authority
	told      *natsync.Table // installed for peers
	hold      natsync.Hold
	uppers    map[int]int // of pinned interfaces' macvlans, the interface below
	pins      []natsync.PinState
	bornHere  map[string]bool          // groups of which flows may be here that no peer told of
	unheard   map[string]bool          // groups that this router was MASTER of while a peer did not hear it
	flushed   []policy.Flow            // to be put back
	taken     int                      // flows taken over whose timeouts are to be normalised
	links     map[string]*peerLink     // by peer, those with a session
	history   map[string]*peerHistory  // by peer
	unready   unready                  // of which peers told, and that do not stand ready
	counts    policy.ReplicationStatus // but for what is asked for

	leaving leaving

	loose map[string]bool // groups whose connections another router may forward, or have forwarded

	wake chan struct{} // flushed, taken or loose has something
}

// peerHistory outlives sessions.
type peerHistory struct {
	bulk     *time.Time // when the last one was finished
	received uint64     // flows, in sessions that ended
	sent     uint64
}

func newReplicator(e *env, log *slog.Logger, table flowTable, identity natsync.Config, key string, config *policy.Config) *replicator {
	return &replicator{
		log: log, publish: func(policy.Event) {}, monotonic: e.monotonic, now: e.now, table: table, identity: identity,
		sync: config.Sync, authority: natsync.NewAuthority(key), told: natsync.NewTable(),
		hold:     natsync.Hold{For: config.Sync.DeleteHold, Limit: int(config.Dataplane.MaxFlows)},
		bornHere: make(map[string]bool), unheard: make(map[string]bool), loose: make(map[string]bool),
		links: make(map[string]*peerLink), history: make(map[string]*peerHistory), unready: make(unready),
		wake:   make(chan struct{}, 1),
		strict: newStrictness(log, table.NewGate, config.Sync),
	}
}

// Run replicates until ctx ends.
func (r *replicator) Run(ctx context.Context) error {
	r.mu.Lock()
	for _, group := range r.authority.States() { // of before this daemon
		if group.Role != policy.RoleMaster {
			r.bornHere[group.Name] = true
			r.loosen(group.Name)
			r.leaving.leave(group.Name, r.monotonic())
		}
	}
	r.mu.Unlock()
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return r.table.Follow(ctx, r.flowEvent) })
	tasks.Go(func() error { return r.tend(ctx) })
	tasks.Go(func() error { return r.mend(ctx) })
	tasks.Go(func() error { return r.strict.Run(ctx) })
	if err := tasks.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("replicate flows: %w", err)
	}
	return nil
}

// SetPlan says what the maps and addresses are now.
func (r *replicator) SetPlan(plan policy.Plan, seen policy.Observed) {
	r.table.SetPlan(plan, seen)
	groups := plan.GroupNames()
	var pins []natsync.PinState
	for _, pin := range plan.Pins {
		for _, name := range pin.Names() {
			pins = append(pins, natsync.PinState{Pin: name, Group: groups[pin.Group]})
		}
	}
	uppers := make(map[int]int)
	for _, face := range plan.Interfaces {
		for _, upper := range face.Uppers {
			uppers[upper] = face.Index
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := !slices.Equal(r.pins, pins)
	r.pins, r.uppers = pins, uppers
	if r.authority.Keep(slices.Collect(maps.Values(groups))) || changed { // addresses change more often, and peers do not hear of those
		r.tellState()
	}
}

// SetRole says what this router is for a group. A takeover changes nothing per
// flow: all are in the kernel already.
func (r *replicator) SetRole(group string, role policy.Role) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.authority.SetRole(group, role)
	if was == role {
		return
	}
	r.ready.Believed("", r.authority)
	switch policy.RoleMaster {
	case role:
		taken, held := r.told.Take(group)
		r.flight.taken(r.monotonic(), group, held, r.unready.take(group))
		if taken > 0 {
			r.taken += taken
			r.rouse()
		}
		r.bornHere[group] = true
		if len(r.links) < len(r.sync.Peers) {
			r.unheard[group] = true
		}
		r.bulkToAll()
	case was:
		// Ends that are held are not told: the group's new MASTER knows better, and
		// would not listen. It tells what it has.
		r.hold.Drop(group)
		r.loosen(group)
		r.leaving.leave(group, r.monotonic())
		for _, link := range r.links {
			link.session.RequestBulk([]string{group})
		}
	}
	r.table.SetActive(r.authority.IsMaster())
	r.tellState()
}

// Contested says that another router seems to be MASTER of a group, too.
func (r *replicator) Contested(group string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loosen(group)
}

// loosen lets a group's connections come back to this router with whatever
// sequence numbers they have then. Called with mu.
func (r *replicator) loosen(group string) {
	r.loose[group] = true
	r.rouse()
}

// Shaken says that an interface was set down, went, or lost an address.
func (r *replicator) Shaken(ifindex int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if below, ok := r.uppers[ifindex]; ok {
		ifindex = below
	}
	if flushed := r.hold.Shaken(r.monotonic(), ifindex); len(flushed) > 0 {
		r.flushed = append(r.flushed, flushed...)
		r.rouse()
	}
}

// Set puts a changed configuration into force.
func (r *replicator) Set(config *policy.Config) {
	r.table.SetOptions(config.Sync)
	r.strict.Set(config.Sync)
	r.mu.Lock()
	defer r.mu.Unlock()
	wider := scopeChanged(r.sync, config.Sync)
	r.sync = config.Sync
	r.hold.For = config.Sync.DeleteHold
	if wider {
		r.bulkToAll()
	}
	for _, link := range r.links {
		link.session.SetPrompt(r.strict.Strict())
	}
	r.holdAnswers()
}

// state is what peers hear of this router's groups and pins. Called with mu.
func (r *replicator) state() natsync.State {
	return natsync.State{Groups: r.authority.States(), Pins: r.pins}
}

func (r *replicator) tellState() {
	for _, link := range r.links {
		link.session.SetState(r.state())
	}
}

// holdAnswers has first answers wait while there is a peer that has everything
// else: what begins then is told at once. Called with mu.
func (r *replicator) holdAnswers() {
	up := false
	for _, link := range r.links {
		up = up || link.isUp()
	}
	r.strict.Hold(up)
	r.table.SetPrompt(up && r.strict.Strict())
}

// rouse lets mend look. Called with mu.
func (r *replicator) rouse() {
	poke(r.wake)
}

// bulkToAll gives every peer a bulk soon. Called with mu.
func (r *replicator) bulkToAll() {
	for _, link := range r.links {
		link.askBulk()
	}
}

// speaksFor tells whether peers hear of a group's flows from this router. Flows
// of no group are told by every router that is MASTER of something. Called with
// mu.
func (r *replicator) speaksFor(group string) bool {
	if group == "" {
		return r.authority.IsMaster()
	}
	return r.authority.Role(group) == policy.RoleMaster
}
