// SPDX-License-Identifier: Apache-2.0

// Package vrrp reads VRRP adverts and decides from what the router sees who is
// master. Here belong the codec for VRRPv2 (RFC 3768) and VRRPv3 (RFC 9568) and
// the Tracker, a state machine that weighs addresses, adverts and keepalived's
// word. There is no I/O and no clock: events and CLOCK_MONOTONIC come in as
// arguments, changes go out as values. It elects nobody; keepalived does.
package vrrp
