/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Source pinning. Egress puts the VIP in place of the address that masquerade
 * chose, ingress puts it back before conntrack looks. The mapping decides, not
 * the switch: pin and role only say whether a flow nobody has decided on yet
 * gets a mapping, and what was decided holds for as long as the flow lives.
 */
#pragma once

#include "account.h"
#include "conntrack.h"
#include "parse.h"
#include "rewrite.h"
#include "role.h"

#define PORT_TRIES 16 /* public ends tried for one flow */
#define EEXIST 17
#define FOREIGN_NS 60000000000ULL /* twice as long as conntrack keeps an ICMP echo */

/* The key of a packet that leaves (self = source) or arrives (self = destination). */
static __always_inline void key_of(const struct packet *pkt, __u32 slot, enum end self, struct flow_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->slot = slot;
	key->proto = pkt->proto;
	key->self = self == SOURCE ? pkt->src : pkt->dst;
	key->remote = self == SOURCE ? pkt->dst : pkt->src;
	key->self_port = self == SOURCE ? pkt->sport : pkt->dport;
	key->remote_port = self == SOURCE ? pkt->dport : pkt->sport;
}

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
static __always_inline struct verdict leave_unpinned(const struct flow_key *key, const struct conntrack *ct,
						     __u32 pin, enum pin_counter reason)
{
	struct unpinned_flow flow = {.conntrack = ct->id, .pin = pin, .reason = reason};

	if (bpf_map_update_elem(&unpinned, key, &flow, BPF_ANY))
		reason = PIN_FULL; /* the next packet is judged anew */
	return (struct verdict){pin, reason};
}

/* Did somebody else's ICMP echo leave from this public end lately? */
static __always_inline bool used_by_others(const struct flow_key *key)
{
	__u64 *seen = bpf_map_lookup_elem(&foreign, key);

	return seen && bpf_ktime_get_coarse_ns() - *seen < FOREIGN_NS;
}

/* Takes a public end for the flow; *end is what the flow got. PIN_CREATED, or
 * why it got none.
 */
static __noinline int take_public_end(struct __sk_buff *skb, bool ipv6, const struct flow_key *local_key,
				      struct public_end *end)
{
	__u32 zero = 0;
	struct binding *b = bpf_map_lookup_elem(&bench, &zero);
	struct public_end *winner;
	struct local_end *mine;
	struct flow_key *key;
	long err;

	if (!b)
		return PIN_ERROR; /* cannot be: it has one entry */
	key = &b->key;
	mine = &b->mine;
	__builtin_memset(mine, 0, sizeof(*mine));
	*key = *local_key;
	key->self = end->addr;
	mine->addr = local_key->self;
	mine->port = local_key->self_port;
	mine->pin = end->pin;
	mine->born_ns = bpf_ktime_get_coarse_ns();
	err = -EEXIST;
	for (int i = 0; i < PORT_TRIES; i++) {
		struct local_end *other;

		if (i)
			key->self_port = another_port(key->proto, key->self_port);
		if (!bpf_map_lookup_elem(&by_public, key) && !used_by_others(key) &&
		    !conntrack_holds(skb, ipv6, key, &b->question)) {
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

static __always_inline struct verdict send_pinned(struct __sk_buff *skb, const struct packet *pkt,
						  const struct public_end *end)
{
	struct role *role = bpf_map_lookup_elem(&roles, &end->pin);

	if (!(end->flags & MAPPING_NATIVE) && rewrite_end(skb, pkt, SOURCE, &end->addr, end->port))
		return (struct verdict){end->pin, PIN_ERROR};
	if (role && role->role != ROLE_MASTER)
		count_pin(end->pin, PIN_VIP_WHILE_BACKUP);
	return (struct verdict){end->pin, PIN_PINNED};
}

/* A masqueraded flow without a mapping: it gets one now or never. */
static __always_inline struct verdict decide(struct __sk_buff *skb, const struct packet *pkt,
					     const struct flow_key *key, const struct conntrack *ct,
					     enum unique_state unique)
{
	struct unpinned_flow *known = bpf_map_lookup_elem(&unpinned, key);
	struct public_end end = {};
	enum pin_counter reason;
	struct pin *pin;

	if (known && !known->conntrack)
		known->conntrack = ct->id;
	if (known && known->conntrack == ct->id)
		return (struct verdict){known->pin, known->reason};
	end.pin = pin_for(key->slot, &ct->client);
	pin = bpf_map_lookup_elem(&pins, &end.pin);
	if (!end.pin || !pin)
		return leave_unpinned(key, ct, 0, PIN_SOURCE);
	end.addr = pkt->ipv6 ? pin->vip6 : pin->vip4;
	end.last_out_ns = bpf_ktime_get_coarse_ns();
	if (unique == UNIQUE_NEW)
		reason = PIN_BORN_BEFORE;
	else if (!(pin->flags & PIN_ENABLED))
		reason = PIN_OFF;
	else if (addr_is_zero(&end.addr))
		reason = PIN_NO_VIP;
	else if (ct->status & (IPS_HELPER | IPS_EXPECTED))
		reason = PIN_HELPER;
	else if (ct->status & IPS_SEEN_REPLY)
		reason = PIN_BORN_BEFORE; /* under way: its decision could not be remembered */
	else
		reason = judge_role(end.pin, pin->group);
	if (reason == PIN_CREATED)
		reason = take_public_end(skb, pkt->ipv6, key, &end);
	if (reason != PIN_CREATED)
		return leave_unpinned(key, ct, end.pin, reason);
	if (known) /* it told of an earlier flow on this tuple */
		bpf_map_delete_elem(&unpinned, key);
	return send_pinned(skb, pkt, &end);
}

/* A packet of nobody's mapping leaves from an address that is not unique: is
 * it from a VIP, and does it step on a mapping?
 */
static __always_inline struct verdict watch_foreign(const struct packet *pkt, const struct flow_key *key)
{
	struct slot_addr from = {.slot = key->slot, .addr = pkt->src};
	struct vip *vip = bpf_map_lookup_elem(&vips, &from);
	struct local_end *mapped;
	struct role *role;

	if (!vip)
		return untouched();
	role = bpf_map_lookup_elem(&roles, &vip->pin);
	if (role && role->role != ROLE_MASTER)
		count_pin(vip->pin, PIN_VIP_WHILE_BACKUP);
	mapped = bpf_map_lookup_elem(&by_public, key);
	if (mapped && !(mapped->flags & MAPPING_NATIVE))
		return (struct verdict){vip->pin, PIN_FOREIGN};
	if (!mapped && is_echo_request(pkt)) {
		__u64 now = bpf_ktime_get_coarse_ns();

		bpf_map_update_elem(&foreign, key, &now, BPF_ANY);
	}
	return untouched();
}

/* A packet that this router made itself is of a mapped flow only when its
 * conntrack entry is (REJECT's RST). It may also be an answer to a packet that
 * conntrack did not take for the flow: let out with the VIP, such a RST would
 * end a connection that is alive.
 */
static __always_inline bool is_of_flow(const struct packet *pkt, const struct conntrack *ct)
{
	return (ct->status & IPS_SRC_NAT) && addr_equal(&ct->translated, &pkt->src);
}

/* Only a packet that was forwarded and masqueraded to a unique address of this
 * interface, in the flow's own direction, is a candidate: the router's own
 * traffic, replies of port forwards, explicit SNAT to such an address and
 * tunnels made of forwarded packets are none.
 */
static __always_inline bool is_masqueraded(const struct packet *pkt, const struct conntrack *ct)
{
	return !ct->reply && ct->masqueraded && is_of_flow(pkt, ct);
}

static __always_inline enum unique_state *find_unique(__u32 slot, const struct addr *addr)
{
	struct slot_addr key = {.slot = slot, .addr = *addr};

	return bpf_map_lookup_elem(&uniques, &key);
}

static __always_inline struct verdict pin_egress(struct __sk_buff *skb, struct packet *pkt, __u32 slot)
{
	enum unique_state *unique;
	struct public_end *end;
	struct conntrack ct;
	struct flow_key key;
	bool known;

	known = !pkt->fragment && parse_ports(skb, pkt) && !is_echo_reply(pkt);
	if (known) {
		key_of(pkt, slot, SOURCE, &key);
		end = bpf_map_lookup_elem(&by_local, &key);
		if (end && !skb->ingress_ifindex &&
		    (!read_conntrack(skb, pkt->ipv6, &ct) || !is_of_flow(pkt, &ct)))
			return untouched();
		if (end) {
			__u64 now = bpf_ktime_get_coarse_ns();

			if (end->last_out_ns != now)
				end->last_out_ns = now;
			return send_pinned(skb, pkt, end);
		}
	}
	unique = find_unique(slot, &pkt->src);
	if (!unique)
		return known ? watch_foreign(pkt, &key) : untouched();
	if (!skb->ingress_ifindex)
		return untouched();
	if (!read_conntrack(skb, pkt->ipv6, &ct))
		return (struct verdict){0, PIN_NO_CONNTRACK};
	if (!is_masqueraded(pkt, &ct))
		return untouched();
	if (pkt->fragment)
		return (struct verdict){pin_for(slot, &ct.client), PIN_FRAGMENT};
	if (!known)
		return untouched();
	return decide(skb, pkt, &key, &ct, *unique);
}

static __always_inline struct verdict pin_ingress(struct __sk_buff *skb, struct packet *pkt, __u32 slot)
{
	struct local_end *end;
	struct flow_key key;
	__u64 now;

	if (pkt->fragment || !parse_ports(skb, pkt) || is_echo_request(pkt))
		return untouched();
	key_of(pkt, slot, DESTINATION, &key);
	end = bpf_map_lookup_elem(&by_public, &key);
	if (!end)
		return untouched();
	now = bpf_ktime_get_coarse_ns();
	if (end->last_in_ns != now)
		end->last_in_ns = now;
	if (!(end->flags & MAPPING_NATIVE) && rewrite_end(skb, pkt, DESTINATION, &end->addr, end->port))
		return (struct verdict){end->pin, PIN_ERROR};
	return (struct verdict){end->pin, PIN_RETURNED};
}
