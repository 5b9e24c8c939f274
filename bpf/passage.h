/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* When, after this router became MASTER, the first packet left with the VIP and
 * the first answer came to it: what a failover is told by.
 */
#pragma once

#include <linux/if_packet.h>

#include "maps.h"
#include "parse.h"

/* A switch that has lost a port sends what was for that one's router everywhere, and
 * the IP layer throws it away. To a virtual MAC it is for the macvlan that has it.
 */
static __always_inline bool is_for_another(struct __sk_buff *skb)
{
	__u8 *to = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (skb->pkt_type != PACKET_OTHERHOST)
		return false;
	return to + ETH_ALEN > end || !is_virtual_mac(to);
}

/* When this router began to advertise; without adverts, when the daemon made it
 * what it is.
 */
static __always_inline __u64 reign_began(__u32 pin)
{
	struct pin *p = bpf_map_lookup_elem(&pins, &pin);
	struct role *role = bpf_map_lookup_elem(&roles, &pin);
	struct own_advert *own;

	if (!p || !role)
		return 0;
	own = bpf_map_lookup_elem(&own_adverts, &p->group);
	return own && own->first_ns ? own->first_ns : role->since_ns;
}

static __always_inline void note_passage(__u32 pin, bool out)
{
	struct passage *p = bpf_map_lookup_elem(&passages, &pin);
	__u64 began = reign_began(pin);

	if (!p)
		return;
	if (out && p->out_ns < began)
		p->out_ns = bpf_ktime_get_ns();
	if (!out && p->in_ns < began)
		p->in_ns = bpf_ktime_get_ns();
}
