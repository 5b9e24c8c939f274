/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a flow stands in the tables: what XDP and tc egress must agree on, and
 * loader/fastpath_table.go with them.
 */
#pragma once

#include "fast_maps.h"
#include "parse.h"

const volatile __u32 tick_ns = 10000000; /* loader: of jiffies64, clock_getres(CLOCK_MONOTONIC_COARSE) */

/* Digests begin as the multilinear family of Lemire and Kaser ("Strongly universal string
 * hashing is fast", Computer Journal 57, 2014), with half as many multiplications, none of
 * which waits for another. Whatever 32 bits two flows differ in, the upper halves of these
 * sums are as two numbers at random, as long as nobody knows the keys.
 */
static __always_inline __u64 fast_ends_sum(const __u64 *keys, __u32 ports, __u32 place)
{
	return keys[0] + (keys[1] + ports) * (keys[2] + place);
}

/* Two are, not many: those of ports or addresses in a row lie at equal distances, which with
 * one set of keys in a hundred leads to few of the buckets. Hence this end.
 */
static __always_inline __u64 fast_scatter(__u64 sum)
{
	return (sum ^ sum >> 32) * 0x9e3779b97f4a7c15; /* of the golden ratio, and odd: none is lost */
}

static __always_inline __u64 fast4_digest(const __u64 *keys, __u64 addrs, __u32 ports, __u32 place)
{
	return fast_scatter(fast_ends_sum(keys, ports, place) +
			    (keys[3] + (__u32)addrs) * (keys[4] + (addrs >> 32)));
}

static __always_inline __u64 fast6_digest(const __u64 *keys, const struct addr *src, const struct addr *dst,
					  __u32 ports, __u32 place)
{
	return fast_scatter(fast_ends_sum(keys, ports, place) +
			    (keys[3] + src->word[0]) * (keys[4] + src->word[1]) +
			    (keys[5] + src->word[2]) * (keys[6] + src->word[3]) +
			    (keys[7] + dst->word[0]) * (keys[8] + dst->word[1]) +
			    (keys[9] + dst->word[2]) * (keys[10] + dst->word[3]));
}

/* The bucket's number is the lower bits of the digest's upper half. */
static __always_inline __u32 fast_index(__u64 digest, __u32 mask)
{
	return digest >> 32 & mask;
}

/* Are two acknowledgements of TCP out of sight of each other? */
static __always_inline bool out_of_sight(__u32 number, __u32 from)
{
	const __u32 far = 1U << 30;

	return number - from + far > 2 * far;
}

/* Its bucket; NULL never, but the verifier asks. */
static __always_inline struct fast4_bucket *fast4_at(const struct fast_state *state, __u64 digest)
{
	__u32 index;

	if (!state)
		return NULL;
	index = fast_index(digest, state->mask4);
	return bpf_map_lookup_elem(&fast4, &index);
}

static __always_inline struct fast6_bucket *fast6_at(const struct fast_state *state, __u64 digest)
{
	__u32 index;

	if (!state)
		return NULL;
	index = fast_index(digest, state->mask6);
	return bpf_map_lookup_elem(&fast6, &index);
}

/* The i-th place to look at, in another order for each flow, so that the first one is
 * its own as a rule; the second is in the other half of the same 128 octets.
 */
static __always_inline __u32 fast_way(__u64 digest, __u32 i)
{
	return digest >> 61 ^ i;
}

/* The entry with this key, valid or not. NULL: there is none. */
static __always_inline struct fast4 *fast4_find(struct fast4_bucket *bucket, __u64 digest, __u64 addrs,
						__u32 ports, __u32 place)
{
	for (int i = 0; i < FAST_WAYS; i++) {
		struct fast4 *e = &bucket->way[fast_way(digest, i)];

		if (e->addrs == addrs && *(__u64 *)&e->ports == ((__u64)place << 32 | ports))
			return e;
	}
	return NULL;
}

static __always_inline struct fast6 *fast6_find(struct fast6_bucket *bucket, __u64 digest,
						const struct addr *src, const struct addr *dst, __u32 ports,
						__u32 place)
{
	const __u64 *s = (const void *)src, *d = (const void *)dst;

	for (int i = 0; i < FAST_WAYS; i++) {
		struct fast6 *e = &bucket->way[fast_way(digest, i)];
		const __u64 *key = (const void *)e; /* source, destination, ports and place */

		if (!((key[0] ^ s[0]) | (key[1] ^ s[1]) | (key[2] ^ d[0]) | (key[3] ^ d[1]) |
		      (key[4] ^ ((__u64)place << 32 | ports))))
			return e;
	}
	return NULL;
}

static __always_inline struct fast_note *fast_note_at(__u64 digest)
{
	__u32 index = digest >> 40 & (FAST_NOTES - 1);

	return bpf_map_lookup_elem(&fast_notes, &index);
}

static __always_inline struct fast_state *fast_state_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&fast_state, &zero);
}

static __always_inline struct fast_device *fast_device_of(__u32 ifindex)
{
	struct fast_device *near = bpf_map_lookup_elem(&fast_devices, &ifindex);

	return near ? near : bpf_map_lookup_elem(&fast_far_devices, &ifindex);
}

static __always_inline struct fast_place *fast_place_of(__u32 ifindex)
{
	return bpf_map_lookup_elem(&fast_places, &ifindex);
}

/* The macvlan whose virtual MAC this is, while it is held there; NULL: nobody's. */
static __always_inline __u32 *virtual_at(__u32 place, const __u8 *mac)
{
	struct fast_virtual key = {.place = place, .family = mac[4], .vrid = mac[5]};

	if (!is_virtual_mac(mac))
		return NULL;
	return bpf_map_lookup_elem(&fast_virtual, &key);
}

static __always_inline void count_exit(enum fast_exit exit)
{
	__u64 *packets = bpf_map_lookup_elem(&fast_counters, &exit);

	if (packets)
		(*packets)++;
}
