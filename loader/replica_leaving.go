// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// InFlowtable lists the UDP flows of some groups that are in a flow table of
// nf_tables. Whatever timeout they are given, the kernel shortens it to the ordinary one
// when they leave the flow table, and tells nobody. (A TCP connection's is days.)
func (r *Replica) InFlowtable(ctx context.Context, wanted func(group string) bool) (keys []policy.FlowKey, err error) {
	x := r.newFlowReader()
	filter := conntrack.Filter{Status: conntrack.Offload, StatusMask: conntrack.Offload}
	err = r.urgent.Dump(ctx, filter, func(entry *conntrack.Flow) error {
		if entry.Orig.Proto != unix.IPPROTO_UDP || x.read(entry) != 0 {
			return nil
		}
		if err := x.place(entry); err != nil {
			return err
		}
		if wanted(x.flow.Group) {
			keys = append(keys, x.flow.FlowKey)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("look for flows in flow tables: %w", err)
	}
	return keys, nil
}
