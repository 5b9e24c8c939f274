/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Strict replication: a flow's answers wait until the peer has its mapping, so
 * that what an inside host takes for established outlives this router. Here they
 * are marked; a queue of user space's takes what is marked (loader/gate.go).
 */
#pragma once

#include "account.h"
#include "role.h"

/* Only a daemon that lives lets them go again. */
static __always_inline bool must_wait(const struct local_end *end, const struct hold *h)
{
	__u32 zero = 0;
	struct settings *set;
	__u64 *beat;

	if (!h->since_ns || end->flags & (MAPPING_ACKED | MAPPING_RELEASED) || end->born_ns < h->since_ns)
		return false;
	set = bpf_map_lookup_elem(&settings, &zero);
	beat = bpf_map_lookup_elem(&heartbeat, &zero);
	return set && beat && daemon_lives(set->lease_ns, *beat, bpf_ktime_get_coarse_ns());
}

static __always_inline void hold_answer(struct __sk_buff *skb, struct packet *pkt,
					const struct local_end *end)
{
	__u32 zero = 0;
	struct hold *h = bpf_map_lookup_elem(&hold, &zero);

	if (!h || !must_wait(end, h))
		return;
	skb->mark = (skb->mark & ~h->mask) | (h->mark & h->mask);
	pkt->no_shortcut = true;
	count_pin(end->pin, PIN_HELD);
}

static __always_inline bool begins_connection(const struct packet *pkt)
{
	return (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* A connection begins on a tuple whose mapping is an earlier one's, which had its
 * answers: that the peer has that one says nothing. (A SYN that is repeated finds
 * no answer since the mapping's new birth.) key is the local end's and becomes the
 * public one's: the stack is short.
 */
static __always_inline void hold_anew(struct public_end *mapped, struct flow_key *key, __u64 now)
{
	__u32 zero = 0;
	struct hold *h = bpf_map_lookup_elem(&hold, &zero);
	struct local_end *end;

	if (!h || !h->since_ns || !(mapped->flags & (MAPPING_ACKED | MAPPING_RELEASED)))
		return;
	key->self = mapped->addr;
	key->self_port = mapped->port;
	end = bpf_map_lookup_elem(&by_public, key);
	if (!end || end->last_in_ns < end->born_ns)
		return;
	mapped->flags &= ~(MAPPING_ACKED | MAPPING_RELEASED);
	end->born_ns = now;
	end->flags &= ~(MAPPING_ACKED | MAPPING_RELEASED);
}

/* Sets flags of the index-th mapping; the next one follows. */
static long acknowledge_one(__u32 index, struct acknowledgement *told)
{
	struct public_end *mapped;
	struct local_end *local;
	struct flow_key key;

	if (bpf_copy_from_user(&key, sizeof(key), (void *)(told->keys + index * sizeof(key))))
		return 1;
	local = bpf_map_lookup_elem(&by_public, &key);
	if (!local)
		return 0;
	local->flags |= told->flags;
	key.self = local->addr;
	key.self_port = local->port;
	mapped = bpf_map_lookup_elem(&by_local, &key);
	if (mapped)
		mapped->flags |= told->flags;
	return 0;
}
