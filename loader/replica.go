// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

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
	slow     *conntrack.Conn // for what takes its time
	urgent   *conntrack.Conn // for dumps that no peer holds up
	listener *conntrack.Listener

	options atomic.Pointer[replicaOptions]
	index   atomic.Pointer[replicaIndex]
	skipped skipCounters
	prompt  atomic.Bool // SetPrompt

	installer installer // of what changes entries

	activeMu sync.Mutex
	active   atomic.Bool
	turned   chan struct{} // active changed
}

// NewReplica opens a Replica for the conntrack table of the calling thread's
// network namespace. Until SetPlan no flow is told or installed.
func (d *Dataplane) NewReplica(opts ReplicaOptions) (*Replica, error) {
	r := &Replica{d: d, log: opts.Log, turned: make(chan struct{}, 1)}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("open replica: %w", errors.Join(err, r.Close()))
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.SetOptions(opts.Sync)
	r.SetPlan(policy.Plan{}, policy.Observed{})
	return r, nil
}

// open opens the sockets. What this router does for its peers, or to its own
// flows, is no news.
func (r *Replica) open() (err error) {
	for _, conn := range []**conntrack.Conn{&r.conn, &r.slow, &r.urgent} {
		if *conn, err = conntrack.Dial(); err != nil {
			return err
		}
	}
	if r.listener, err = conntrack.Listen(conntrack.Destroys); err != nil {
		return err
	}
	return r.listener.Ignore(r.conn, r.slow, r.urgent)
}

// Close ends Follow, which returns os.ErrClosed, and whatever else is under way.
func (r *Replica) Close() error {
	var errs []error
	if r.listener != nil {
		errs = append(errs, r.listener.Close())
	}
	for _, conn := range []*conntrack.Conn{r.conn, r.slow, r.urgent} {
		if conn != nil {
			errs = append(errs, conn.Close())
		}
	}
	return errors.Join(errs...)
}

// SetOptions changes what is replicated, from the next flow on.
func (r *Replica) SetOptions(sync policy.SyncConfig) { r.options.Store(newReplicaOptions(sync)) }

// SetPrompt says whether somebody waits for flows to be told: then Follow lets no
// events gather.
func (r *Replica) SetPrompt(on bool) {
	r.prompt.Store(on)
	gather := time.Duration(-1)
	if on {
		gather = 0
	}
	r.listener.SetGather(gather)
}

// SetPlan says what the numbers in the mappings stand for, and which addresses
// are this router's own. It follows every Apply and every change of addresses.
func (r *Replica) SetPlan(plan policy.Plan, seen policy.Observed) {
	r.index.Store(newReplicaIndex(plan, seen))
}
