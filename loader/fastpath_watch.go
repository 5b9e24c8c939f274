// SPDX-License-Identifier: Apache-2.0

package loader

import "context"

// Run follows what changes in this network namespace (of the calling thread) and
// bumps, kills hops, sets the pace, and makes TCP flows liberal that are to be
// learnt, until ctx ends.
func (f *Fastpath) Run(ctx context.Context) error { return nil }
