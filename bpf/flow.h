/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which flow a packet belongs to. Needs conntrack.h or marks.h before it. */
#pragma once

#include "account.h"
#include "maps.h"
#include "parse.h"
#include "role.h"

enum end { SOURCE, DESTINATION };

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

/* A packet that this router made itself is of a mapped flow only when its
 * conntrack entry is (REJECT's RST). It may also be an answer to a packet that
 * conntrack did not take for the flow: let out with the VIP, such a RST would
 * end a connection that is alive.
 */
static __always_inline bool is_of_flow(const struct conntrack *ct, const struct addr *local)
{
	return (ct->status & IPS_SRC_NAT) && addr_equal(&ct->translated, local);
}

__noinline int carries_flow(struct __sk_buff *skb, const struct packet *pkt, const struct addr *local)
{
	struct conntrack ct;

	return pkt && local && read_conntrack(skb, pkt, &ct) && is_of_flow(&ct, local);
}

/* The VIP of the interface that this is; NULL: it is none. */
static __always_inline struct vip *find_vip(__u32 slot, const struct addr *addr)
{
	struct slot_addr key = {.slot = slot, .addr = *addr};

	return bpf_map_lookup_elem(&vips, &key);
}

/* What leaves with the VIP while another router is MASTER is worth counting. */
static __always_inline void count_role(__u32 pin)
{
	struct role *role = bpf_map_lookup_elem(&roles, &pin);

	if (role && role->role != ROLE_MASTER)
		count_pin(pin, PIN_VIP_WHILE_BACKUP);
}
