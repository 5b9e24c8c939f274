/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sums of the Internet checksum, and what a change makes of them. */
#pragma once

#include <linux/types.h>

#include "types.h"

/* The Internet checksum of what check covers, one's complement diff later (RFC 1624). */
static __always_inline __be16 checksum_plus(__be16 check, __u32 diff)
{
	__u32 sum = (diff & 0xffff) + (diff >> 16);

	sum += (__u16)~check;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u32 fold64(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline __u32 addr_diff(const struct addr *from, const struct addr *to)
{
	__u64 sum = 0;

	for (int i = 0; i < 4; i++)
		sum += (__u64)(__u32)~from->word[i] + to->word[i];
	return fold64(sum);
}
