/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counting: every packet that a pin concerns ends in exactly one verdict. */
#pragma once

#include "maps.h"

/* What became of a packet (enum pin_counter; PIN_COUNTERS: nothing to count),
 * and on whose account (pin << 32; 0: no pin). A number, because functions of
 * the kernel's machine return no structures. A verdict never drops: the kernel
 * gets every packet back.
 */
typedef __u64 verdict;

static __always_inline verdict judged(__u32 pin, enum pin_counter counter)
{
	return (__u64)pin << 32 | counter;
}

static __always_inline verdict untouched(void)
{
	return judged(0, PIN_COUNTERS);
}

static __always_inline __u32 verdict_pin(verdict v)
{
	return v >> 32;
}

static __always_inline __u32 verdict_counter(verdict v)
{
	return v;
}

static __always_inline void count_pin(__u32 pin, enum pin_counter counter)
{
	__u32 index = pin * PIN_COUNTERS + counter;
	__u64 *packets = bpf_map_lookup_elem(&pin_counters, &index);

	if (packets)
		(*packets)++;
}

/* Unused in the fast path's object. */
static __noinline __attribute__((unused)) int count_vrrp(enum vrrp_counter counter)
{
	__u32 index = counter;
	__u64 *packets = bpf_map_lookup_elem(&vrrp_counters, &index);

	if (packets)
		(*packets)++;
	return 0;
}
