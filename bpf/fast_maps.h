/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The fast path's maps, pinned in bpffs like those of maps.h. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "fast_types.h"

/* Mappable: only then an array begins on a page, and an entry of 64 octets is one
 * cache line. User space reads counters there, and voids entries.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* loader: buckets, a power of two */
	__type(key, __u32);
	__type(value, struct fast4_bucket);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* loader: buckets, a power of two */
	__type(key, __u32);
	__type(value, struct fast6_bucket);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast6 SEC(".maps");

/* Written by user space. */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fast_state);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_IFACES);
	__type(key, __u32); /* ifindex */
	__type(value, struct fast_device);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_devices SEC(".maps");

/* Those with a large ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FAST_DEVICES);
	__type(key, __u32); /* ifindex */
	__type(value, struct fast_device);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_far_devices SEC(".maps");

/* Where a packet that the stack took for an interface's own came in. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_IFACES);
	__type(key, __u32); /* ifindex of a device, or of a VLAN or macvlan on it */
	__type(value, struct fast_place);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_places SEC(".maps");

/* The virtual MACs that this router holds now: the MASTER's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_IFACES);
	__type(key, struct fast_virtual);
	__type(value, __u32); /* ifindex of the macvlan */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_virtual SEC(".maps");

/* Devices by number. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, FAST_DEVICES);
	__type(key, __u32);
	__type(value, __u32); /* ifindex */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_out SEC(".maps");

/* Hops: numbered by the programs, from 1; user space takes them out of
 * fast_hop_numbers and then marks them dead.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FAST_HOPS);
	__type(key, __u32);
	__type(value, struct fast_hop);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FAST_HOPS);
	__type(key, struct fast_hop); /* alive = 1 */
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_hop_numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64); /* the last number given */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_hop_last SEC(".maps");

/* Written by the programs. */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FAST_NOTES);
	__type(key, __u32);
	__type(value, struct fast_note);
} fast_notes SEC(".maps");

#define FAST_EAGER 8192 /* a power of two */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FAST_EAGER);
	__type(key, __u32);
	__type(value, struct fast_eager);
} fast_eager SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FAST_EXITS);
	__type(key, enum fast_exit);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REFUSALS);
	__type(key, enum fast_refusal);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_refusals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fast_asks SEC(".maps");
