// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// Dump hands every flow to yield that Follow would tell of and that has its
// mapping, until yield returns an error, which Dump returns, or ctx ends. Of
// flows that come and go meanwhile Follow tells. The Flow is valid during the
// call.
func (r *Replica) Dump(ctx context.Context, yield func(*policy.Flow) error) error {
	return r.dump(ctx, r.conn, yield)
}

func (r *Replica) dump(ctx context.Context, conn *conntrack.Conn, yield func(*policy.Flow) error) error {
	x := r.newFlowReader()
	var filter conntrack.Filter
	if x.options.scope == policy.ScopePinned {
		filter.Status, filter.StatusMask = conntrack.SrcNAT, conntrack.SrcNAT
	}
	return conn.Dump(ctx, filter, func(entry *conntrack.Flow) error {
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
