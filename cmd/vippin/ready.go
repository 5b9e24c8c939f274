// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"vippin/policy"
	"vippin/policy/natsync"
)

const (
	readyLook  = 500 * time.Millisecond // how often adverts are looked at while a group is held back
	readyPause = 5 * time.Second        // how often it is looked whether the files are still right
)

// readyKeeper knows whether this router may take its groups over, and tells
// keepalived by files. The loop and the peers' sessions tell it what happens,
// which takes no longer than a lock does; Run writes. A nil one takes nothing.
type readyKeeper struct {
	log       *slog.Logger
	monotonic func() time.Duration
	publish   func(policy.Event)
	behind    func(groups []string) // told of those that are held back
	wake      chan struct{}

	mu     sync.Mutex
	state  *natsync.Readiness
	groups []string // in the order of the plan
	limit  time.Duration
	file   string // sync.ready_file
	failed error  // of the last attempt to write, nil: the files are right
	misses uint64 // attempts that failed

	told  map[string]bool // Run's alone: of each group, what was told last
	files map[string]bool // Run's alone: those that it tends
}

func newReadyKeeper(e *env, log *slog.Logger, publish func(policy.Event), config *policy.Config) *readyKeeper {
	k := &readyKeeper{
		log: log, monotonic: e.monotonic, publish: publish, behind: func([]string) {}, wake: make(chan struct{}, 1),
		state: natsync.NewReadiness(config.Sync.ReadyTimeout), told: map[string]bool{}, files: map[string]bool{},
	}
	k.Set(config.Sync)
	return k
}

// tell hands the state something that happened.
func (k *readyKeeper) tell(what func(now time.Duration, state *natsync.Readiness)) {
	if k == nil {
		return
	}
	k.mu.Lock()
	what(k.monotonic(), k.state)
	k.mu.Unlock()
	poke(k.wake)
}

// Set takes a configuration.
func (k *readyKeeper) Set(config policy.SyncConfig) {
	k.tell(func(now time.Duration, state *natsync.Readiness) {
		k.limit, k.file = config.ReadyTimeout, config.ReadyFile
		state.SetLimit(k.limit)
		state.SetPeers(now, config.PeerNames())
	})
}

// SetPlan takes the groups that there are.
func (k *readyKeeper) SetPlan(plan policy.Plan) {
	k.tell(func(_ time.Duration, state *natsync.Readiness) {
		k.groups = nil
		for _, group := range plan.Groups {
			k.groups = append(k.groups, group.Name)
		}
		state.Keep(k.groups)
	})
}

// SetRole takes what this router is for a group.
func (k *readyKeeper) SetRole(group string, role policy.Role) {
	k.tell(func(now time.Duration, state *natsync.Readiness) { state.SetRole(now, group, role) })
}

// Joined, Left and Whole take what happens to a session.
func (k *readyKeeper) Joined(peer string) {
	k.tell(func(now time.Duration, state *natsync.Readiness) { state.Joined(now, peer) })
}

func (k *readyKeeper) Left(peer string) {
	k.tell(func(now time.Duration, state *natsync.Readiness) { state.Left(now, peer) })
}

func (k *readyKeeper) Whole(peer string, groups []string) {
	k.tell(func(now time.Duration, state *natsync.Readiness) {
		for _, group := range groups {
			state.Whole(now, peer, group)
		}
	})
}

// Believed takes, of each group, which peer is MASTER. Spoken is the peer whose
// word it is, "" = nobody's.
func (k *readyKeeper) Believed(spoken string, authority *natsync.Authority) {
	k.tell(func(now time.Duration, state *natsync.Readiness) {
		for _, group := range authority.States() {
			state.Believed(now, group.Name, authority.MasterOf(group.Name))
		}
		if spoken != "" {
			state.Spoken(now, spoken)
		}
	})
}

// hearing tells of which of some groups another MASTER's adverts are heard.
type hearing func(ctx context.Context, groups []string) (map[string]bool, error)

// Run keeps the files right until ctx ends. They stay as they are then.
func (k *readyKeeper) Run(ctx context.Context, heard hearing) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-timer.C:
		}
		k.write(k.decide()) // at once: the loop may be busy, and keepalived does not wait
		looked, err := k.lookAtAdverts(ctx, heard)
		if err != nil {
			return nil // ctx has ended
		}
		if looked {
			k.write(k.decide())
		}
		k.behind(k.heldBack())
		timer.Reset(k.pause())
	}
}

// lookAtAdverts asks the loop what is heard, while a group is held back.
func (k *readyKeeper) lookAtAdverts(ctx context.Context, heard hearing) (looked bool, err error) {
	behind := k.heldBack()
	if len(behind) == 0 {
		return false, nil
	}
	now, err := heard(ctx, behind)
	if err != nil {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, group := range behind {
		k.state.Heard(k.monotonic(), group, now[group])
	}
	return true, nil
}

// heldBack lists the groups that are.
func (k *readyKeeper) heldBack() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state.Behind()
}

// MayLack tells whether flows of a group that another router is or was MASTER of may
// be missing here.
func (k *readyKeeper) MayLack(group string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	standing, _, _ := k.state.Standing(group)
	return !standing.Ready() || standing == natsync.StandGivenUp
}

// decide lets time pass, tells of what has changed, and returns the statuses.
func (k *readyKeeper) decide() []policy.ReadyStatus {
	statuses := k.Statuses()
	before := k.told
	k.told = make(map[string]bool, len(statuses))
	for _, s := range statuses {
		k.told[s.Group] = s.Ready
		was, known := before[s.Group]
		if known && was == s.Ready || !known && s.Ready {
			continue
		}
		k.log.Info("ready to take over", "group", s.Group, "ready", s.Ready, "why", s.Why)
		k.publish(policy.Event{Kind: "ready", Group: s.Group, Over: !s.Ready, Detail: s.Why})
	}
	return statuses
}

// pause is how long Run may sleep when nothing happens.
func (k *readyKeeper) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	pause := readyPause
	if len(k.state.Behind()) > 0 {
		pause = readyLook
	}
	if next := k.state.Next(); next != 0 {
		pause = min(pause, max(0, next-k.monotonic()))
	}
	return pause
}

// Statuses is how every group stands, in the order of the plan.
func (k *readyKeeper) Statuses() []policy.ReadyStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.monotonic()
	k.state.Tick(now)
	statuses := make([]policy.ReadyStatus, 0, len(k.groups))
	for _, group := range k.groups {
		standing, peer, since := k.state.Standing(group)
		s := policy.ReadyStatus{Group: group, Ready: standing.Ready(), Why: k.why(standing, peer)}
		if !s.Ready {
			s.Waiting = (now - since).Seconds()
		}
		statuses = append(statuses, s)
	}
	return statuses
}

// why puts a standing into words. Called with mu.
func (k *readyKeeper) why(standing natsync.Standing, peer string) string {
	switch standing {
	case natsync.StandMaster:
		return "this router is MASTER"
	case natsync.StandAlone:
		return "no other MASTER is known that could have flows"
	case natsync.StandComplete:
		if peer == "" {
			return "all that the last MASTER told of is here"
		}
		return fmt.Sprintf("all that %s has told of is here", peer)
	case natsync.StandGivenUp:
		return fmt.Sprintf("flows of the MASTER may be missing, but %s (sync.ready_timeout) have passed", span(k.limit))
	case natsync.StandMissing:
		return fmt.Sprintf("%s is MASTER, and not all of its flows are here yet", peer)
	case natsync.StandApart:
		return "a MASTER is heard by its adverts, and no peer is connected that has its flows"
	}
	return "it is not known yet whether another router is MASTER"
}

// warnings is what an owner should look at.
func (k *readyKeeper) warnings() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed == nil {
		return nil
	}
	return []string{fmt.Sprintf("keepalived may preempt at the wrong time: %v (%d attempts)", k.failed, k.misses)}
}

// evidence adds to the groups that are held back that they are.
func (k *readyKeeper) evidence(groups []policy.GroupStatus) {
	for _, s := range k.Statuses() {
		for i := range groups {
			if g := &groups[i]; g.Name == s.Group && !s.Ready {
				g.Evidence = append(g.Evidence, fmt.Sprintf("not ready to take over for %s: %s", span(seconds(s.Waiting)), s.Why))
			}
		}
	}
}

// Ready tells of every group whether this router may take it over.
func (d *daemon) Ready(context.Context) ([]policy.ReadyStatus, error) { return d.ready.Statuses(), nil }

// heardMasters asks the loop (see hearing) of which groups another MASTER's adverts are heard.
func (d *daemon) heardMasters(ctx context.Context, groups []string) (map[string]bool, error) {
	heard := make(map[string]bool, len(groups))
	err := d.ask(ctx, func() {
		for _, group := range groups {
			heard[group] = d.state.tracker.HearsMaster(d.env.monotonic(), group)
		}
	})
	return heard, err
}
