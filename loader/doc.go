// SPDX-License-Identifier: Apache-2.0

// Package loader is everything that touches this kernel: it loads, attaches and
// pins the BPF programs of package bpf, fills their maps from policy's words
// and reads them back, observes links and addresses, and follows conntrack.
// What should be done is decided in package policy.
//
// Functions that touch the network act on the network namespace of the thread
// that calls them.
package loader
