/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Digests of flows, with a secret as the first word. */
#pragma once

#include <linux/types.h>

/* A multiplication carries upwards only, the shift brings it down again. So the
 * last word in has to be mixed once more before its upper octets tell in the
 * lower ones.
 */
static __always_inline __u64 mix(__u64 h, __u64 word)
{
	h = (h ^ word) * 0x9e3779b97f4a7c15ULL;
	return h ^ h >> 32;
}
