// SPDX-License-Identifier: Apache-2.0

// Package test holds what needs more than one host: router scenarios on real
// packets, in labs of network namespaces with real keepalived (package lab)
// and traffic that is watched at both ends (package traffic). Older kernels and
// real VLANs are in package vm, the demo in demo.
package test
