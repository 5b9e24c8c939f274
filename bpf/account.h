/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counting: every packet that a pin concerns ends in exactly one verdict. */
#pragma once

#include "maps.h"

/* What became of a packet, and on whose account. A verdict never drops: the
 * kernel gets every packet back.
 */
struct verdict {
	__u32 pin; /* 0: no pin */
	__u32 counter; /* enum pin_counter; PIN_COUNTERS: nothing to count */
};

static __always_inline struct verdict untouched(void)
{
	return (struct verdict){0, PIN_COUNTERS};
}

static __always_inline void count_pin(__u32 pin, enum pin_counter counter)
{
	__u32 index = pin * PIN_COUNTERS + counter;
	__u64 *packets = bpf_map_lookup_elem(&pin_counters, &index);

	if (packets)
		(*packets)++;
}

static __noinline int count_vrrp(enum vrrp_counter counter)
{
	__u32 index = counter;
	__u64 *packets = bpf_map_lookup_elem(&vrrp_counters, &index);

	if (packets)
		(*packets)++;
	return 0;
}
