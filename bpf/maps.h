/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map but that of the switches (switches.h), with who writes it. All are
 * pinned in bpffs, so that they and the flows in them outlive the daemon. Sizes
 * marked "loader" are set at load time.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define MAX_PINS 4096
#define MAX_GROUPS 4096
#define MAX_IFACES 4096
#define NEAR_IFACES 4096

/* Written by user space. */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_IFACES);
	__type(key, __u32); /* ifindex */
	__type(value, struct iface);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ifaces SEC(".maps");

/* An array is an eighth of a hash's time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_IFACES);
	__type(key, __u32); /* ifindex */
	__type(value, struct iface);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} near_ifaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PINS);
	__type(key, __u32);
	__type(value, struct pin);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pins SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PINS);
	__type(key, __u32);
	__type(value, struct role);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} roles SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_GROUPS);
	__type(key, __u32);
	__type(value, struct group);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} groups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MAX_PINS);
	__type(key, struct slot_addr);
	__type(value, struct vip);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MAX_PINS);
	__type(key, struct slot_addr);
	__type(value, enum unique_state);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} uniques SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16 * MAX_PINS);
	__type(key, struct source_key);
	__type(value, __u32); /* pin number */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MAX_PINS);
	__type(key, struct vrid_key);
	__type(value, __u32); /* group number */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} vrids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct hold);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} hold SEC(".maps");

/* The daemon's sign of life: CLOCK_MONOTONIC in ns. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} heartbeat SEC(".maps");

/* Written by the programs; entries are removed by user space. */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144); /* loader: dataplane.max_flows */
	__type(key, struct flow_key);
	__type(value, struct public_end);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} by_local SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144); /* loader: dataplane.max_flows */
	__type(key, struct flow_key);
	__type(value, struct local_end);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} by_public SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144); /* loader: dataplane.max_flows */
	__type(key, struct flow_key);
	__type(value, struct unpinned_flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} unpinned SEC(".maps");

/* Datagrams in pieces that are passing. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct remote_key);
	__type(value, struct remote);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} by_remote SEC(".maps");

/* Public ends that others than mapped flows were seen to use, for protocols
 * whose conntrack entries cannot be looked up (all but TCP and UDP): value is
 * when.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow_key);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} foreign SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_GROUPS);
	__type(key, __u32);
	__type(value, struct own_advert);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} own_adverts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PINS);
	__type(key, __u32);
	__type(value, struct passage);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} passages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PINS *PIN_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pin_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VRRP_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} vrrp_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} adverts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} claims SEC(".maps");

/* What bpf/shortcut.h remembers, and the number that makes it forget. */
#define SHORTCUTS 32768 /* a power of two */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SHORTCUTS);
	__type(key, __u32);
	__type(value, struct shortcut);
} shortcuts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} epoch SEC(".maps");

/* Room to work in, never read across packets: the stack is short. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct advert_scratch);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct binding);
} bench SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");
