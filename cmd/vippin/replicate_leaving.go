// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"vippin/policy"
)

// leaveEvery is how often flows are looked for in flow tables that another router
// forwards: less than what the kernel leaves one that left a flow table (90 s where no
// sysctl says otherwise).
const leaveEvery = 5 * time.Second

// leaving are flows in this router's flow tables since it forwarded them. Without
// packets they leave after half a minute, and have the standby timeout no more.
type leaving struct {
	groups map[string]bool  // that this router was MASTER of
	keys   []policy.FlowKey // in a flow table at the last look
	looked time.Duration
}

// leave notes that flows of a group may be in flow tables from now on, without packets.
func (l *leaving) leave(group string, now time.Duration) {
	if l.groups == nil {
		l.groups = make(map[string]bool)
	}
	l.groups[group], l.looked = true, now-leaveEvery
}

// stay gives flows that left a flow table since the last look the standby timeout
// again, while there are any in one.
func (r *replicator) stay(ctx context.Context) {
	groups, before := r.leavers()
	if len(groups) == 0 {
		return
	}
	keys, err := r.table.InFlowtable(ctx, func(group string) bool { return groups[group] })
	if err == nil {
		err = r.refreshKeys(ctx, r.haveLeft(before, keys))
	}
	if err != nil {
		r.log.Warn("flows that left a flow table may end too soon", "error", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving.keys = keys
	if len(keys) == 0 {
		maps.DeleteFunc(r.leaving.groups, func(group string, _ bool) bool { return groups[group] })
	}
}

// leavers are the groups whose flows are to be looked for, and what was found the last
// time; none before it is time.
func (r *replicator) leavers() (groups map[string]bool, keys []policy.FlowKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, now := &r.leaving, r.monotonic()
	if now-l.looked < leaveEvery {
		return nil, nil
	}
	l.looked = now
	maps.DeleteFunc(l.groups, func(group string, _ bool) bool { return r.authority.Role(group) == policy.RoleMaster })
	return maps.Clone(l.groups), slices.Clone(l.keys)
}

// haveLeft are the flows that were in a flow table before and are not now, as far as a
// peer forwards them.
func (r *replicator) haveLeft(before, now []policy.FlowKey) []policy.FlowKey {
	still := make(map[policy.FlowKey]bool, len(now))
	for _, key := range now {
		still[key] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(before, func(key policy.FlowKey) bool {
		record, ok := r.told.Get(key)
		return still[key] || !ok || record.Taken
	})
}
