// SPDX-License-Identifier: Apache-2.0

// Package policy holds the decisions of the control plane: what the
// configuration means, which interface a pin lives on, who is master, what the
// dataplane must look like. It does no I/O: facts and the time come in as
// arguments, decisions go out as values.
package policy
