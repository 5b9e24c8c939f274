// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// ReplicaOptions says what a Replica is about.
type ReplicaOptions struct {
	Sync policy.SyncConfig // Scope, Protocols, Ignore, Expect and StandbyTimeout count
	Log  *slog.Logger      // nil: nothing is logged
}

// Replica is this router's side of flows that routers tell each other of: it
// reads them from conntrack and the mappings in policy's words, and installs
// those that a peer told. Its methods may be called from several goroutines.
type Replica struct {
	d        *Dataplane
	log      *slog.Logger
	conn     *conntrack.Conn
	listener *conntrack.Listener

	options atomic.Pointer[replicaOptions]
	index   atomic.Pointer[replicaIndex]
	skipped skipCounters

	installer installer // of what changes entries

	activeMu sync.Mutex
	active   atomic.Bool
	turned   chan struct{} // active changed
}

// NewReplica opens a Replica for the conntrack table of the calling thread's
// network namespace. Until SetPlan no flow is told or installed.
func (d *Dataplane) NewReplica(opts ReplicaOptions) (*Replica, error) {
	conn, err := conntrack.Dial()
	if err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	listener, err := conntrack.Listen(conntrack.Destroys)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open replica: %w", err), conn.Close())
	}
	r := &Replica{d: d, log: opts.Log, conn: conn, listener: listener, turned: make(chan struct{}, 1)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.SetOptions(opts.Sync)
	r.SetPlan(policy.Plan{}, policy.Observed{})
	return r, nil
}

// Close ends Follow, which returns os.ErrClosed, and whatever else is under way.
func (r *Replica) Close() error {
	return errors.Join(r.listener.Close(), r.conn.Close())
}

// SetOptions changes what is replicated, from the next flow on.
func (r *Replica) SetOptions(sync policy.SyncConfig) { r.options.Store(newReplicaOptions(sync)) }

// SetPlan says what the numbers in the mappings stand for, and which addresses
// are this router's own. It follows every Apply and every change of addresses.
func (r *Replica) SetPlan(plan policy.Plan, seen policy.Observed) {
	r.index.Store(newReplicaIndex(plan, seen))
}
