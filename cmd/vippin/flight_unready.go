// SPDX-License-Identifier: Apache-2.0

package main

import "vippin/policy"

// unreadyMost bounds what is remembered flow by flow.
const unreadyMost = 16384

// unready is the flows of which peers told and that do not stand ready here: this
// router refused them, or lost them. It belongs to the replicator, and is used
// with its mutex.
type unready map[policy.FlowKey]string // the flow's group

func (u unready) note(key policy.FlowKey, group string) {
	if len(u) < unreadyMost {
		u[key] = group
	}
}

// take forgets a group's and says how many there were: its MASTER begins to tell of
// all flows again, or this router becomes it.
func (u unready) take(group string) (flows int) {
	for key, of := range u {
		if of == group {
			flows++
			delete(u, key)
		}
	}
	return flows
}
