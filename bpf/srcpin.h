/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Source pinning. Egress puts the VIP in place of the address that masquerade
 * chose, ingress puts it back before conntrack looks. The mapping decides, not
 * the switch: pin and role only say whether a flow nobody has decided on yet
 * gets a mapping, and what was decided holds for as long as the flow lives.
 */
#pragma once

#include "account.h"
#include "error.h"
#include "fragment.h"
#include "hold.h"
#include "parse.h"
#include "passage.h"
#include "rewrite.h"
#include "role.h"
#include "switches.h"

#define PORT_TRIES 16 /* public ends tried for one flow */
#define EEXIST 17
#define FOREIGN_NS 60000000000ULL /* twice as long as conntrack keeps an ICMP echo */

/* Another port for the same address, from the range netfilter would take it
 * from, so that a privileged port stays privileged.
 */
static __always_inline __be16 another_port(__u8 proto, __be16 port)
{
	__u32 old = bpf_ntohs(port), low, range;

	if (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6)
		low = 0, range = 65536;
	else if (old < 512)
		low = 1, range = 511;
	else if (old < 1024)
		low = 600, range = 424;
	else
		low = 1024, range = 64512;
	return bpf_htons(low + bpf_get_prandom_u32() % range);
}

/* Remembers that a flow keeps the router's own address until it ends. */
static __always_inline verdict leave_unpinned(const struct flow_key *key, const struct conntrack *ct,
					      __u32 pin, enum pin_counter reason)
{
	struct unpinned_flow flow = {.conntrack = ct->id, .pin = pin, .reason = reason};

	if (bpf_map_update_elem(&unpinned, key, &flow, BPF_ANY))
		reason = PIN_FULL; /* the next packet is judged anew */
	return judged(pin, reason);
}

/* Did somebody else use this public end lately, as far as conntrack cannot be asked? */
static __always_inline bool used_by_others(const struct flow_key *key)
{
	__u64 *seen = bpf_map_lookup_elem(&foreign, key);

	return seen && bpf_ktime_get_coarse_ns() - *seen < FOREIGN_NS;
}

/* Takes a public end for the flow; b->end is what it wants and then what it got.
 * PIN_CREATED, or why it got none.
 */
static __noinline int take_public_end(struct __sk_buff *skb, bool ipv6, const struct flow_key *local_key,
				      struct binding *b)
{
	struct local_end *mine = &b->mine;
	struct public_end *end = &b->end;
	struct flow_key *key = &b->key;
	struct public_end *winner;
	/* What conntrack holds on the public end is the flow itself. */
	bool native = end->flags & MAPPING_NATIVE;
	bool may_change = has_ports(local_key->proto) && !native;
	long err;

	__builtin_memset(mine, 0, sizeof(*mine));
	*key = *local_key;
	key->self = end->addr;
	mine->addr = local_key->self;
	mine->port = local_key->self_port;
	mine->pin = end->pin;
	mine->flags = end->flags;
	mine->born_ns = bpf_ktime_get_coarse_ns();
	err = -EEXIST;
	for (int i = 0; i < PORT_TRIES; i++) {
		struct local_end *other;

		if (i && !may_change)
			break;
		if (i)
			key->self_port = another_port(key->proto, key->self_port);
		if (!bpf_map_lookup_elem(&by_public, key) &&
		    (native || (!used_by_others(key) && !conntrack_holds(skb, ipv6, key, &b->question)))) {
			err = bpf_map_update_elem(&by_public, key, mine, BPF_NOEXIST);
			if (err != -EEXIST)
				break;
		}
		/* Another CPU may just have made it for this very flow. */
		other = bpf_map_lookup_elem(&by_public, key);
		if (other && other->port == mine->port && addr_equal(&other->addr, &mine->addr)) {
			end->port = key->self_port;
			return PIN_CREATED;
		}
	}
	if (err)
		return err == -EEXIST ? PIN_NO_PORT : PIN_FULL;
	end->port = key->self_port;
	err = bpf_map_update_elem(&by_local, local_key, end, BPF_NOEXIST);
	if (!err) {
		note_remote(key);
		count_pin(end->pin, PIN_CREATED);
		if (end->port != local_key->self_port)
			count_pin(end->pin, PIN_CLASH);
		return PIN_CREATED;
	}
	/* Two CPUs took two ends for one flow: the first one counts. */
	bpf_map_delete_elem(&by_public, key);
	winner = bpf_map_lookup_elem(&by_local, local_key);
	if (!winner)
		return PIN_FULL;
	*end = *winner;
	return PIN_CREATED;
}

static __always_inline __u32 pin_for(__u32 slot, const struct addr *client)
{
	struct source_key key = {.prefix_len = 160, .slot = slot, .addr = *client};
	__u32 *pin = bpf_map_lookup_elem(&sources, &key);

	return pin ? *pin : 0;
}

/* What a flow gets if nothing stands against it; NULL: no pin takes it. */
static __always_inline struct pin *want(const struct flow_key *key, const struct packet *pkt,
					struct binding *b)
{
	struct pin *pin;

	__builtin_memset(&b->end, 0, sizeof(b->end));
	b->end.pin = pin_for(key->slot, &b->ct.client);
	b->end.addr = pkt->src;
	b->end.port = key->self_port;
	b->end.last_out_ns = bpf_ktime_get_coarse_ns();
	pin = bpf_map_lookup_elem(&pins, &b->end.pin);
	return b->end.pin ? pin : NULL;
}

static __always_inline verdict send_pinned(struct __sk_buff *skb, const struct packet *pkt,
					   const struct public_end *end)
{
	if (!(end->flags & MAPPING_NATIVE) && rewrite_end(skb, pkt, SOURCE, &end->addr, end->port))
		return judged(end->pin, PIN_ERROR);
	count_role(end->pin);
	note_passage(end->pin, true);
	return judged(end->pin, PIN_PINNED);
}

/* A masqueraded flow without a mapping: it gets one now or never. */
static __always_inline verdict decide(struct __sk_buff *skb, const struct packet *pkt,
				      const struct flow_key *key, struct binding *b, enum unique_state unique)
{
	struct unpinned_flow *known = bpf_map_lookup_elem(&unpinned, key);
	struct conntrack *ct = &b->ct;
	struct public_end *end = &b->end;
	enum pin_counter reason;
	struct pin *pin;

	if (known && !known->conntrack)
		known->conntrack = ct->id;
	if (known && known->conntrack == ct->id && !ct->fresh)
		return judged(known->pin, known->reason);
	pin = want(key, pkt, b);
	if (!pin)
		return leave_unpinned(key, ct, 0, PIN_SOURCE);
	end->addr = pkt->ipv6 ? pin->vip6 : pin->vip4;
	if (unique == UNIQUE_NEW)
		reason = PIN_BORN_BEFORE;
	else if (!is_on(end->pin))
		reason = PIN_OFF;
	else if (addr_is_zero(&end->addr))
		reason = PIN_NO_VIP;
	else if (pin->flags & (pkt->ipv6 ? PIN_BRIDGE6 : PIN_BRIDGE4))
		reason = PIN_BRIDGE;
	else if (ct->status & (IPS_HELPER | IPS_EXPECTED))
		reason = PIN_HELPER;
	else if (ct->status & IPS_SEEN_REPLY)
		reason = PIN_BORN_BEFORE; /* under way: its decision could not be remembered */
	else
		reason = judge_role(end->pin, pin->group);
	if (reason == PIN_CREATED)
		reason = take_public_end(skb, pkt->ipv6, key, b);
	if (reason != PIN_CREATED)
		return leave_unpinned(key, ct, end->pin, reason);
	if (known) /* it told of an earlier flow on this tuple */
		bpf_map_delete_elem(&unpinned, key);
	return send_pinned(skb, pkt, end);
}

/* Only a packet that was forwarded and masqueraded to a unique address of this
 * interface, in the flow's own direction, is a candidate: the router's own
 * traffic, replies of port forwards, explicit SNAT to such an address and
 * tunnels made of forwarded packets are none.
 */
static __always_inline bool is_masqueraded(const struct packet *pkt, const struct conntrack *ct)
{
	return !ct->reply && ct->masqueraded && is_of_flow(ct, &pkt->src);
}

static __always_inline enum unique_state *find_unique(__u32 slot, const struct addr *addr)
{
	struct slot_addr key = {.slot = slot, .addr = *addr};

	return bpf_map_lookup_elem(&uniques, &key);
}

/* Masquerade itself chose the VIP (the flow leaves by the virtual MAC's
 * interface, or the VIP is alone in the next hop's subnet): nothing is to be
 * rewritten, but the flow gets a mapping, since the peer must learn of it. Is
 * the public end another flow's, a young flow gets another port, and is rewritten
 * like any. Whatever else stands against a mapping changes nothing for the flow.
 */
static __always_inline verdict note_native(struct __sk_buff *skb, const struct packet *pkt,
					   const struct flow_key *key, struct binding *b)
{
	struct public_end *end = &b->end;
	struct pin *pin = want(key, pkt, b);
	int reason;

	if (!pin || !is_on(end->pin) || b->ct.status & (IPS_HELPER | IPS_EXPECTED) ||
	    judge_role(end->pin, pin->group) != PIN_CREATED)
		return untouched();
	end->flags = MAPPING_NATIVE;
	reason = take_public_end(skb, pkt->ipv6, key, b);
	if (reason == PIN_NO_PORT && has_ports(key->proto) && !(b->ct.status & IPS_SEEN_REPLY)) {
		end->flags = 0;
		reason = take_public_end(skb, pkt->ipv6, key, b);
	}
	return reason == PIN_CREATED ? send_pinned(skb, pkt, end) : untouched();
}

/* A packet of nobody's mapping leaves from an address that is not unique: is
 * it from a VIP, and does it step on a mapping?
 */
static __always_inline verdict watch_vip(struct __sk_buff *skb, const struct packet *pkt,
					 const struct flow_key *key, struct binding *b)
{
	struct vip *vip = find_vip(key->slot, &pkt->src);
	struct local_end *mapped;
	verdict v = untouched();
	bool masqueraded;

	if (!vip)
		return v;
	masqueraded = skb->ingress_ifindex && read_conntrack(skb, pkt, &b->ct) && is_masqueraded(pkt, &b->ct);
	if (masqueraded)
		v = note_native(skb, pkt, key, b);
	if (verdict_counter(v) < PIN_COUNTERS)
		return v;
	count_role(vip->pin);
	mapped = bpf_map_lookup_elem(&by_public, key);
	if (mapped)
		return mapped->flags & MAPPING_NATIVE ? v : judged(vip->pin, PIN_FOREIGN);
	if (!masqueraded && !conntrack_can_tell(pkt->proto)) {
		__u64 now = bpf_ktime_get_coarse_ns();

		bpf_map_update_elem(&foreign, key, &now, BPF_ANY);
	}
	/* The router ends a connection that it knows nothing of. */
	return !skb->ingress_ifindex && pkt->tcp_flags & TCP_RST ? judged(vip->pin, PIN_RESET) : untouched();
}

/* A packet that no mapping knows. */
__noinline verdict leave_unmapped(struct __sk_buff *skb, const struct packet *pkt, const struct flow_key *of,
				  enum transport transport)
{
	bool known = transport == FLOW;
	enum unique_state *unique;
	struct flow_key *key;
	struct binding *b;
	__u32 zero = 0;

	b = bpf_map_lookup_elem(&bench, &zero);
	/* Of a later fragment the type of message is unknown. */
	if (!pkt || !of || !b || (known && is_echo_reply(pkt)))
		return untouched();
	/* Linux 6.1 takes no key from behind a function's argument. */
	key = &b->local;
	*key = *of;
	unique = find_unique(key->slot, &pkt->src);
	if (!unique)
		return known ? watch_vip(skb, pkt, key, b) : untouched();
	if (!skb->ingress_ifindex)
		return untouched();
	if (!read_conntrack(skb, pkt, &b->ct))
		return judged(0, PIN_NO_CONNTRACK);
	if (!is_masqueraded(pkt, &b->ct))
		return untouched();
	if (known)
		return decide(skb, pkt, key, b, *unique);
	if (transport == NOT_TRANSLATED || transport == IN_PIECES)
		return judged(pin_for(key->slot, &b->ct.client),
			      transport == IN_PIECES ? PIN_FRAGMENT : PIN_PROTOCOL);
	return untouched();
}

static __always_inline verdict pin_egress(struct __sk_buff *skb, struct packet *pkt, __u32 slot)
{
	enum transport transport = parse_transport(skb, pkt, false);
	struct public_end *end;
	struct flow_key key;
	verdict v;

	key_of(pkt, slot, SOURCE, &key);
	if (transport == FLOW && !is_echo_reply(pkt)) {
		end = bpf_map_lookup_elem(&by_local, &key);
		if (end && !skb->ingress_ifindex && !carries_flow(skb, pkt, &key.self))
			return untouched();
		if (end) {
			__u64 now = bpf_ktime_get_coarse_ns();

			if (end->last_out_ns != now)
				end->last_out_ns = now;
			if (begins_connection(pkt))
				hold_anew(end, &key, now);
			return send_pinned(skb, pkt, end);
		}
	}
	if (transport == ICMP_ERROR)
		return error_leaves(skb, pkt, slot);
	if (transport == IN_PIECES) {
		v = pin_fragment(skb, pkt, slot, true);
		if (verdict_counter(v) < PIN_COUNTERS)
			return v;
	}
	return leave_unmapped(skb, pkt, &key, transport);
}

static __always_inline verdict pin_ingress(struct __sk_buff *skb, struct packet *pkt, __u32 slot)
{
	enum transport transport = parse_transport(skb, pkt, false);
	struct local_end *end;
	struct flow_key key;
	__u64 now;

	if (transport == ICMP_ERROR)
		return error_arrives(skb, pkt, slot);
	if (transport == IN_PIECES)
		return pin_fragment(skb, pkt, slot, false);
	if (transport != FLOW || is_echo_request(pkt))
		return untouched();
	key_of(pkt, slot, DESTINATION, &key);
	end = bpf_map_lookup_elem(&by_public, &key);
	if (!end)
		return untouched();
	now = bpf_ktime_get_coarse_ns();
	if (end->last_in_ns != now)
		end->last_in_ns = now;
	if (!(end->flags & MAPPING_NATIVE) && rewrite_end(skb, pkt, DESTINATION, &end->addr, end->port))
		return judged(end->pin, PIN_ERROR);
	if (pkt->fragment)
		note_remote(&key);
	if (is_for_another(skb))
		pkt->no_shortcut = true; /* the first one that is for this router is noted */
	else
		note_passage(end->pin, false);
	hold_answer(skb, pkt, end);
	return judged(end->pin, PIN_RETURNED);
}
