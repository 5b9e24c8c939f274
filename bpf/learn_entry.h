/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Writing entries of the fast path. XDP reads them on other CPUs meanwhile, and
 * other CPUs learn: an entry belongs to whoever put FAST_WRITING into it, and it
 * is valid again only with its last word.
 */
#pragma once

#include "checksum.h"
#include "fast_key.h"
#include "leaving.h"

/* One direction of a flow, as it is to be entered. */
struct lesson {
	struct ends before;
	struct ends after;
	__u64 digest; /* of before */
	__u32 place; /* where its packets come in */
	struct fast_fate fate;
};

static __always_inline __u64 addrs_of(const struct ends *ends)
{
	return (__u64)ends->dst.word[3] << 32 | ends->src.word[3];
}

static __always_inline __u32 ports_of(const struct ends *ends)
{
	return (__u32)ends->dport << 16 | ends->sport;
}

static __always_inline __u64 digest_of(const __u64 *keys, const struct ends *ends, __u32 place, bool ipv6)
{
	return ipv6 ? fast6_digest(keys, &ends->src, &ends->dst, ports_of(ends), place)
		    : fast4_digest(keys, addrs_of(ends), ports_of(ends), place);
}

static __always_inline __u16 fold16(__u64 sum)
{
	sum = fold64(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff ? 0 : sum; /* both say: no difference */
}

/* What checksum_plus is to be called with. */
static __always_inline void note_diffs(struct lesson *l)
{
	__u64 addrs =
		(__u64)addr_diff(&l->before.src, &l->after.src) + addr_diff(&l->before.dst, &l->after.dst);
	__u32 old = ports_of(&l->before), new = ports_of(&l->after);

	l->fate.l3_diff = fold16(addrs + (__u16)~bpf_htons(0x0100)); /* the TTL is one less */
	l->fate.l4_diff = fold16(addrs + (__u32)~old + new);
}

/* How well an entry can be done without. 0: not at all; it is valid, or was until so
 * lately that XDP may be at work with it.
 */
static __always_inline __u32 spare(const struct fast_fate *fate, __u32 place, __u32 now)
{
	__s32 idle = now - fate->until;

	if (!place)
		return ~0U; /* never used */
	if (idle <= 0)
		return 0;
	return fate->generation ? idle : (1U << 31 | idle);
}

/* One in so many packets of a flow without an entry ends another's: it is the one
 * with many packets that gets in, and those of the others seldom take the stack.
 */
#define END_ANOTHER 16

/* The entry that a new flow gets, of a bucket that does not know it. NULL: none just
 * now. A void one ends with this tick, or now and then one at random.
 */
#define TAKE_OVER(bucket, digest, now)                                                                       \
	({                                                                                                   \
		__u32 most = 0, chosen = 0, loser = bpf_get_prandom_u32() % (END_ANOTHER * FAST_WAYS);       \
                                                                                                             \
		for (int i = 0; i < FAST_WAYS; i++) {                                                        \
			__u32 way = fast_way(digest, i), spares;                                             \
                                                                                                             \
			barrier_var(way); /* Linux 6.1 knows no bounds of an XOR of two variables */         \
			way &= FAST_WAYS - 1;                                                                \
			spares = spare(&(bucket)->way[way].fate, (bucket)->way[way].place, now);             \
			if (spares > most)                                                                   \
				most = spares, chosen = way;                                                 \
			if (!(bucket)->way[way].fate.generation)                                             \
				loser = way;                                                                 \
		}                                                                                            \
		if (!most && loser < FAST_WAYS)                                                              \
			(bucket)->way[loser].fate.until = now;                                               \
		most ? &(bucket)->way[chosen] : NULL;                                                        \
	})

/* False: another CPU is writing there. */
static __always_inline bool begin_writing(struct fast_fate *fate, __u32 *was)
{
	*was = fate->generation;
	return *was != FAST_WRITING &&
	       __sync_val_compare_and_swap(&fate->generation, *was, FAST_WRITING) == *was;
}

/* Counters go on unless another flow had the entry, or one that has ended. */
static __always_inline void end_writing(struct fast_fate *fate, const struct fast_fate *new, bool goes_on,
					__u32 now)
{
	__u64 packets = goes_on ? fate->packets_seen & ~0xffffULL : 0;

	fate->new_ports = new->new_ports;
	fate->ack = new->ack;
	fate->l3_diff = new->l3_diff;
	fate->l4_diff = new->l4_diff;
	fate->hop = new->hop;
	fate->pin = new->pin;
	fate->until = new->until;
	fate->packets_seen = packets | (now & 0xffff);
	if (!goes_on)
		fate->bytes = 0;
	/* It stays void if somebody has voided it meanwhile. */
	__sync_val_compare_and_swap(&fate->generation, FAST_WRITING, new->generation);
}

static __always_inline bool enter4(const struct lesson *l, __u32 now)
{
	struct fast4_bucket *bucket = fast4_at(fast_state_now(), l->digest);
	struct fast4 *known, *e;
	__u32 was;

	if (!bucket)
		return false;
	e = known = fast4_find(bucket, l->digest, addrs_of(&l->before), ports_of(&l->before), l->place);
	if (!known)
		e = TAKE_OVER(bucket, l->digest, now);
	if (!e || !begin_writing(&e->fate, &was))
		return false;
	e->addrs = addrs_of(&l->before);
	e->ports = ports_of(&l->before);
	e->place = l->place;
	e->new_addrs = addrs_of(&l->after);
	end_writing(&e->fate, &l->fate, known && was, now);
	return true;
}

static __always_inline bool enter6(const struct lesson *l, __u32 now)
{
	struct fast6_bucket *bucket = fast6_at(fast_state_now(), l->digest);
	struct fast6 *known, *e;
	__u32 was;

	if (!bucket)
		return false;
	e = known =
		fast6_find(bucket, l->digest, &l->before.src, &l->before.dst, ports_of(&l->before), l->place);
	if (!known)
		e = TAKE_OVER(bucket, l->digest, now);
	if (!e || !begin_writing(&e->fate, &was))
		return false;
	e->src = l->before.src;
	e->dst = l->before.dst;
	e->ports = ports_of(&l->before);
	e->place = l->place;
	e->new_src = l->after.src;
	e->new_dst = l->after.dst;
	end_writing(&e->fate, &l->fate, known && was, now);
	return true;
}

/* Its packets take the stack from now on. */
static __always_inline void void_entry(const struct lesson *l, bool ipv6)
{
	if (ipv6) {
		struct fast6_bucket *bucket = fast6_at(fast_state_now(), l->digest);
		struct fast6 *e = bucket ? fast6_find(bucket, l->digest, &l->before.src, &l->before.dst,
						      ports_of(&l->before), l->place)
					 : NULL;

		if (e)
			e->fate.generation = 0;
	} else {
		struct fast4_bucket *bucket = fast4_at(fast_state_now(), l->digest);
		struct fast4 *e = bucket ? fast4_find(bucket, l->digest, addrs_of(&l->before),
						      ports_of(&l->before), l->place)
					 : NULL;

		if (e)
			e->fate.generation = 0;
	}
}

/* The number of a hop; 0: none is left. */
static __always_inline __u32 number_hop(const struct fast_hop *hop)
{
	__u32 zero = 0, number, *known = bpf_map_lookup_elem(&fast_hop_numbers, hop);
	__u64 *last;

	if (known)
		return *known;
	last = bpf_map_lookup_elem(&fast_hop_last, &zero);
	if (!last || *last >= FAST_HOPS - 1)
		return 0;
	number = __sync_fetch_and_add(last, 1) + 1;
	if (number >= FAST_HOPS)
		return 0;
	bpf_map_update_elem(&fast_hops, &number, hop, BPF_ANY);
	if (!bpf_map_update_elem(&fast_hop_numbers, hop, &number, BPF_NOEXIST))
		return number;
	/* Another CPU was faster. */
	known = bpf_map_lookup_elem(&fast_hop_numbers, hop);
	return known ? *known : 0;
}
