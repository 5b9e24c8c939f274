// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vippin/loader/conntrack"
	"vippin/policy"
)

// Loosen has conntrack pass TCP segments outside the windows that it knows, of
// the connections of some groups: another router forwards them meanwhile, and
// when they come back their sequence numbers are far on. Without it a firewall
// that drops what is invalid ends them, and what no firewall drops leaves with the
// inside address.
func (r *Replica) Loosen(ctx context.Context, wanted func(group string) bool) (loosened int, err error) {
	var changes []conntrack.Change
	flush := func() error {
		loosened += len(changes)
		err := r.urgent.Update(changes, func(int, error) { loosened-- }) // it is gone
		changes = changes[:0]
		return err
	}
	err = r.dump(ctx, r.urgent, func(flow *policy.Flow) error {
		if flow.Proto != unix.IPPROTO_TCP || !wanted(flow.Group) {
			return nil
		}
		changes = append(changes, conntrack.Change{Tuple: origTuple(&flow.FlowKey), Liberal: true})
		if len(changes) < installBatch {
			return nil
		}
		return flush()
	})
	if err = errors.Join(err, flush()); err != nil && ctx.Err() == nil {
		return loosened, fmt.Errorf("loosen TCP windows: %w", err)
	}
	return loosened, nil
}
