/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The fast path: packets of flows that tc egress has learnt are translated and
 * forwarded here. Whatever else comes takes the stack, VRRP first of all.
 */
#pragma once

#include "fast_key.h"

static __always_inline int forward_fast(struct xdp_md *ctx)
{
	count_exit(FAST_CLOSED);
	return XDP_PASS;
}
