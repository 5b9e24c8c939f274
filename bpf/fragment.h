/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Datagrams in pieces. The first fragment has the ports and is dealt with as a
 * whole packet would be; what became of it is noted, and the later ones go the
 * same way. The router itself always sends the first one first. From outside it
 * may come last, and tc cannot hold the others back: they are sent on if that
 * remote host has a mapping for the protocol.
 */
#pragma once

#include "account.h"
#include "flow.h"
#include "rewrite.h"

static __always_inline void fragment_key_of(const struct packet *pkt, __u32 slot, bool out,
					    struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->slot = slot;
	key->ident = pkt->ident;
	key->src = pkt->src;
	key->dst = pkt->dst;
	key->proto = pkt->ipv6 ? 0 : pkt->proto;
	key->out = out;
}

/* A mapping in use: the remote host's next fragments may come out of order. */
static __always_inline void note_remote(const struct flow_key *public)
{
	struct remote_key key = {
		.slot = public->slot, .proto = public->proto, .self = public->self, .remote = public->remote};
	struct remote witness = {public->self_port, public->remote_port};

	bpf_map_update_elem(&by_remote, &key, &witness, BPF_ANY);
}

/* Notes what became of a first fragment; pkt is as it came. That it is for the
 * router's own service on the VIP is worth noting, too: the sender may also have
 * a mapping.
 */
__noinline verdict note_fragment(struct __sk_buff *skb, const struct packet *pkt, __u32 slot, bool out,
				 verdict v)
{
	struct fragment f = {.pin = verdict_pin(v), .counter = verdict_counter(v)};
	struct fragment_key key;

	if (!pkt)
		return v;
	fragment_key_of(pkt, slot, out, &key);
	if (f.counter == PIN_COUNTERS && (out || !find_vip(slot, &pkt->dst))) {
		/* An earlier datagram may have had this identification. */
		bpf_map_delete_elem(&fragments, &key);
		return v;
	}
	f.addr = out ? pkt->src : pkt->dst;
	if (f.counter == PIN_PINNED || f.counter == PIN_RETURNED)
		load_addr(skb, pkt->l3_off, pkt->ipv6, out ? SOURCE : DESTINATION, &f.addr);
	bpf_map_update_elem(&fragments, &key, &f, BPF_ANY);
	return v;
}

/* The local end's address of any mapping that the sender of a fragment has. */
static __always_inline struct local_end *suspect(const struct packet *pkt, __u32 slot)
{
	struct remote_key remote = {.slot = slot, .proto = pkt->proto, .self = pkt->dst, .remote = pkt->src};
	struct remote *witness = bpf_map_lookup_elem(&by_remote, &remote);
	struct flow_key key;

	if (!witness)
		return NULL;
	key_of(pkt, slot, DESTINATION, &key);
	key.self_port = witness->self_port;
	key.remote_port = witness->remote_port;
	return bpf_map_lookup_elem(&by_public, &key);
}

__noinline verdict pin_fragment(struct __sk_buff *skb, const struct packet *pkt, __u32 slot, bool out)
{
	enum end end = out ? SOURCE : DESTINATION;
	const struct addr *ours;
	struct fragment_key key;
	struct local_end *local;
	struct fragment *first;

	if (!pkt)
		return untouched();
	ours = out ? &pkt->src : &pkt->dst;
	fragment_key_of(pkt, slot, out, &key);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (first && (addr_equal(ours, &first->addr) || !rewrite_end(skb, pkt, end, &first->addr, 0))) {
		if (out && (first->counter == PIN_PINNED || first->counter == PIN_FOREIGN))
			count_role(first->pin);
		return judged(first->pin, first->counter);
	}
	if (first)
		return judged(first->pin, PIN_ERROR);
	local = out ? NULL : suspect(pkt, slot);
	if (!local || local->flags & MAPPING_NATIVE)
		return untouched();
	if (rewrite_end(skb, pkt, end, &local->addr, 0))
		return judged(local->pin, PIN_ERROR);
	return judged(local->pin, PIN_EARLY_FRAGMENT);
}
