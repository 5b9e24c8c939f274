// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// Refresh gives flows that wait for a takeover the standby timeout again, all but
// TCP connections that are over, which the caller leaves out. missing is told of
// those that conntrack does not have (any more). GRE flows need it also on the
// router that forwards them: no packet prolongs those that were installed.
func (r *Replica) Refresh(keys []policy.FlowKey, missing func(i int)) error {
	x := &r.installer
	x.mu.Lock()
	defer x.mu.Unlock()
	standby := r.options.Load().standbyTimeout
	for start := 0; start < len(keys); start += installBatch {
		batch := keys[start:min(start+installBatch, len(keys))]
		x.changes = slices.Grow(x.changes[:0], len(batch))[:len(batch)]
		for i := range batch {
			x.changes[i] = conntrack.Change{Tuple: origTuple(&batch[i]), Timeout: standby}
		}
		var fixed []int
		err := r.conn.Update(x.changes, func(i int, err error) {
			switch {
			case errors.Is(err, conntrack.ErrNotExist):
				missing(start + i)
			case errors.Is(err, unix.EPERM):
				fixed = append(fixed, i)
			default:
				r.log.Warn("cannot refresh a flow", "flow", batch[i], "error", err)
			}
		})
		if err == nil && len(fixed) > 0 {
			err = r.remake(fixed, standby)
		}
		if err != nil {
			return fmt.Errorf("refresh %d flows: %w", len(keys), err)
		}
	}
	return nil
}

// remake replaces entries of x.changes whose timeout is fixed by others like
// them.
func (r *Replica) remake(which []int, standby time.Duration) error {
	tuples := make([]conntrack.Tuple, len(which))
	for i, at := range which {
		tuples[i] = r.installer.changes[at].Tuple
	}
	var replacements []conntrack.Replacement
	err := r.conn.LookUp(tuples, func(i int, flow *conntrack.Flow) {
		if flow.Orig != tuples[i] || flow.TCP != nil || flow.SCTP != nil {
			return
		}
		entry := conntrack.Entry{Orig: flow.Orig, Timeout: standby, Status: flow.Status, Mark: flow.Mark}
		if flow.Status&conntrack.SrcNAT != 0 {
			entry.NATSrc = flow.Reply.Destination()
		}
		if flow.Status&conntrack.DstNAT != 0 {
			entry.NATDst = flow.Reply.Source()
		}
		replacements = append(replacements, conntrack.Replacement{Old: flow.Ref(), New: entry})
	}, func(int, error) {})
	if err != nil {
		return err
	}
	results, err := r.conn.Replace(replacements)
	return errors.Join(err, errors.Join(results...))
}

// normaliseShare of the time at most goes into Normalise.
const normaliseShare = 8

// Normalise gives the entries of flows that wanted names, and that have the
// standby timeout still, the one that their protocol and state would have: this
// router forwards them now. Entries that saw a packet have it already. It takes
// its time, and returns how many it changed. It reads the timeouts of the calling
// thread's network namespace.
func (r *Replica) Normalise(ctx context.Context, wanted func(*policy.FlowKey) bool) (changed int, err error) {
	n := &normaliser{conn: r.slow, ordinary: readTimeouts(), standby: r.options.Load().standbyTimeout, begun: time.Now()}
	err = r.slow.Dump(ctx, conntrack.Filter{}, func(flow *conntrack.Flow) error {
		if n.seen++; n.seen%installBatch == 0 {
			if err := n.rest(ctx); err != nil {
				return err
			}
		}
		timeout := n.due(flow)
		if timeout == 0 {
			return nil
		}
		if key := flowKeyOf(&flow.Orig); !wanted(&key) {
			return nil
		}
		n.changes = append(n.changes, conntrack.Change{Tuple: flow.Orig, Timeout: timeout})
		if len(n.changes) < installBatch {
			return nil
		}
		return n.flush()
	})
	if err = errors.Join(err, n.flush()); err != nil && ctx.Err() == nil {
		return n.changed, fmt.Errorf("normalise timeouts: %w", err)
	}
	return n.changed, nil
}

type normaliser struct {
	conn     *conntrack.Conn
	ordinary *timeouts
	standby  time.Duration
	changes  []conntrack.Change
	changed  int
	seen     int
	begun    time.Time // since the last rest
}

// due is the timeout that an entry is to get; 0: the one it has. A flow table sees to
// its flows itself, and does not tell.
func (n *normaliser) due(flow *conntrack.Flow) time.Duration {
	if flow.Status&(conntrack.FixedTimeout|conntrack.Offload) != 0 {
		return 0
	}
	ordinary := n.ordinary.of(flow.Orig.Proto, flow.Status, flow.TCP, flow.SCTP)
	longer, waiting := flow.Timeout > ordinary, flow.Timeout <= n.standby
	if ordinary < n.standby && longer || ordinary > n.standby && waiting {
		return ordinary
	}
	return 0
}

func (n *normaliser) flush() error {
	n.changed += len(n.changes)
	err := n.conn.Update(n.changes, func(int, error) { n.changed-- }) // it is gone
	n.changes = n.changes[:0]
	return err
}

// rest waits several times as long as was worked.
func (n *normaliser) rest(ctx context.Context) error {
	timer := time.NewTimer(time.Since(n.begun) * (normaliseShare - 1))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		n.begun = time.Now()
		return nil
	}
}
