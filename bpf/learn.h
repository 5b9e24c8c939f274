/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Learning: a packet that the stack has let through shows what becomes of its
 * flow. It is compared with what XDP noted when it came in and with what
 * conntrack says; what explains itself by these alone is entered.
 */
#pragma once

#include "conntrack.h"
#include "fast_key.h"
#include "maps.h"
#include "parse.h"

static __always_inline void count_refusal(enum fast_refusal refusal)
{
	__u64 *packets = bpf_map_lookup_elem(&fast_refusals, &refusal);

	if (packets)
		(*packets)++;
}

static __always_inline void ask_for(struct fast_ask *ask)
{
	bpf_ringbuf_output(&fast_asks, ask, sizeof(*ask), 0);
}

static __always_inline void learn(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct fast_ask *ask = bpf_map_lookup_elem(&fast_asking, &zero);

	if (ask)
		ask_for(ask);
	count_refusal(REFUSED_NO_NOTE);
}
