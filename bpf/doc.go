// SPDX-License-Identifier: Apache-2.0

// Package bpf holds what runs inside the kernel: the tc programs and maps in C,
// the Go types generated from them, and the packet tests that run them with
// BPF_PROG_TEST_RUN. Only package loader imports it.
package bpf
