/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What conntrack knows of a packet, on kernels without BTF, where nothing says
 * at which offsets to read: a chain of our own after source NAT (loader/marks.go)
 * writes it into the upper octet of the mark of every packet that leaves
 * masqueraded, in the flow's own direction. tc egress clears it.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"
#include "tuple.h"

#define MARK_MASK 0xff000000U
#define MARK_VALID 0x80000000U /* source NAT, original direction */
#define MARK_FRESH 0x40000000U /* this packet made the entry */
#define MARK_REPLIED 0x20000000U
#define MARK_HELPER 0x10000000U /* has a helper, or was expected by one */
#define MARK_SOURCE 0x0f000000U /* which of the interface's lists of sources has the inside host; 0: none */
#define MARK_SOURCE_SHIFT 24

#define ENTRY 1 /* entries have no identity here: a fresh one is told by its first packet */

/* True, always: without a mark nothing is known, which is not masqueraded. The
 * inside host is told by number; the map sources has the number n as ::n.
 */
static __always_inline bool read_conntrack(struct __sk_buff *skb, const struct packet *pkt,
					   struct conntrack *ct)
{
	__u32 mark = skb->mark;

	__builtin_memset(ct, 0, sizeof(*ct));
	if (!(mark & MARK_VALID))
		return true;
	ct->id = ENTRY;
	ct->status = IPS_SRC_NAT;
	if (mark & MARK_REPLIED)
		ct->status |= IPS_SEEN_REPLY;
	if (mark & MARK_HELPER)
		ct->status |= IPS_HELPER;
	ct->fresh = !!(mark & MARK_FRESH);
	ct->client.word[3] = bpf_htonl((mark & MARK_SOURCE) >> MARK_SOURCE_SHIFT);
	ct->masqueraded = -1; /* or another kind of source NAT: nobody tells */
	ct->translated = pkt->src;
	return true;
}

static __always_inline bool is_original(struct __sk_buff *skb)
{
	return skb->mark & MARK_VALID;
}

/* Nobody tells: it may have. */
static __always_inline bool seen_on_port(struct __sk_buff *skb)
{
	return true;
}

static __always_inline int checksum_state(struct __sk_buff *skb)
{
	return -1;
}

static __always_inline void forget_conntrack(struct __sk_buff *skb)
{
	if (skb->mark & MARK_VALID)
		skb->mark &= ~MARK_MASK;
}

static __always_inline bool conntrack_can_tell(__u8 proto)
{
	return false;
}

/* Without conntrack's own answer: has the router a socket there? Whatever else
 * leaves from a VIP is remembered in foreign.
 */
static __always_inline bool conntrack_holds(struct __sk_buff *skb, bool ipv6, const struct flow_key *key,
					    struct conntrack_question *q)
{
	__u32 size = ipv6 ? sizeof(q->tuple.ipv6) : sizeof(q->tuple.ipv4);
	struct bpf_sock *found = NULL;

	fill_tuple(key, ipv6, &q->tuple);
	if (key->proto == IPPROTO_TCP)
		found = bpf_skc_lookup_tcp(skb, &q->tuple, size, CURRENT_NETNS, 0);
	else if (key->proto == IPPROTO_UDP)
		found = bpf_sk_lookup_udp(skb, &q->tuple, size, CURRENT_NETNS, 0);
	if (!found)
		return false;
	bpf_sk_release(found);
	return true;
}
