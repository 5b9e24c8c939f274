// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// Dump hands every flow to yield that Follow would tell of and that has its
// mapping, until yield returns an error, which Dump returns, or ctx ends. Of
// flows that come and go meanwhile Follow tells. The Flow is valid during the
// call.
func (r *Replica) Dump(ctx context.Context, yield func(*policy.Flow) error) error {
	x := r.newFlowReader()
	var filter conntrack.Filter
	if x.options.scope == policy.ScopePinned {
		filter.Status, filter.StatusMask = conntrack.SrcNAT, conntrack.SrcNAT
	}
	return r.conn.Dump(ctx, filter, func(entry *conntrack.Flow) error {
		if x.read(entry) != 0 {
			return nil
		}
		if err := x.place(entry); err != nil {
			return err
		}
		if x.whyNot() != 0 {
			return nil
		}
		return yield(&x.flow)
	})
}

// Expectations hands every expectation to yield whose master Dump would hand
// out, as Dump does. With sync.expect off there are none.
func (r *Replica) Expectations(ctx context.Context, yield func(*policy.Expectation) error) error {
	x := r.newFlowReader()
	if !x.options.expect {
		return nil
	}
	return r.conn.Expectations(ctx, func(e *conntrack.Expectation) error {
		told, err := r.expectation(x, e)
		if err != nil || told == nil {
			return err
		}
		return yield(told)
	})
}

// expectation is what a peer is told of an expectation; nil: nothing, since its
// master is none of the flows that are told, or it comes to an address that no
// other router gets.
func (r *Replica) expectation(x *flowReader, e *conntrack.Expectation) (*policy.Expectation, error) {
	if !x.options.expect || x.index.own[e.Tuple.Dst] == ownUnique {
		return nil, nil
	}
	master, err := r.conn.Get(e.Master)
	if errors.Is(err, conntrack.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if x.read(master) != 0 {
		return nil, nil
	}
	if err := x.place(master); err != nil || x.whyNot() != 0 {
		return nil, err
	}
	told := x.expectation(e)
	return &told, nil
}
