/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The switches of the pins, asked when a flow begins. All of them are one map that
 * never changes. User space makes another one and puts it into the first one's place,
 * which is one store: of a list of pins that is switched, every packet finds all as
 * they were, or all as they are to be.
 */
#pragma once

#include <stdbool.h>

#include "maps.h"

/* Written by user space: PIN_ENABLED and PIN_TOGGLED by pin number. No map in it: all
 * pins are off.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(max_entries, 1);
			__type(key, __u32);
			__type(value, __u8[MAX_PINS]);
		});
} switches SEC(".maps");

static __always_inline bool is_on(__u32 pin)
{
	__u32 zero = 0;
	void *all = bpf_map_lookup_elem(&switches, &zero);
	__u8 *flags = all ? bpf_map_lookup_elem(all, &zero) : NULL;

	return flags && pin < MAX_PINS && flags[pin] & PIN_ENABLED;
}
