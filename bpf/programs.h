/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The table of contents: every program of vippin, and nothing else. Who includes
 * it has chosen before how conntrack is read: conntrack.h or marks.h.
 */
#pragma once

#include <linux/pkt_cls.h>

#include "account.h"
#include "claims.h"
#include "maps.h"
#include "parse.h"
#include "srcpin.h"
#include "vrrp.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Always TC_ACT_UNSPEC: whatever else is attached goes on as if we were not
 * there.
 */
static __always_inline int handle(struct __sk_buff *skb, bool out)
{
	__u32 ifindex = skb->ifindex;
	struct iface *iface = bpf_map_lookup_elem(&ifaces, &ifindex);
	struct packet pkt = {};
	enum parse_result parsed;
	verdict v;

	if (!iface)
		return TC_ACT_UNSPEC;
	parsed = parse_ip(skb, iface->has_l2, &pkt);
	if (parsed == PARSED && maybe_vrrp(&pkt)) {
		observe_advert(skb, &pkt, iface, out);
		return TC_ACT_UNSPEC;
	}
	/* A tagged frame is dealt with on its VLAN's own interface. */
	if (!iface->slot || pkt.vlan_outer)
		return TC_ACT_UNSPEC;
	if (!out && iface->has_l2)
		observe_claim(skb, &pkt, parsed, iface->slot);
	if (parsed != PARSED)
		return TC_ACT_UNSPEC;
	v = out ? pin_egress(skb, &pkt, iface->slot) : pin_ingress(skb, &pkt, iface->slot);
	if (out)
		forget_conntrack(skb);
	if (pkt.fragment == FIRST_FRAGMENT)
		v = note_fragment(skb, &pkt, iface->slot, out, v);
	if (verdict_counter(v) < PIN_COUNTERS)
		count_pin(verdict_pin(v), verdict_counter(v));
	return TC_ACT_UNSPEC;
}

/* tc egress: the last thing before the wire. */
SEC("tc")
int vippin_egress(struct __sk_buff *skb)
{
	return handle(skb, true);
}

/* tc ingress: the first thing after the wire, before conntrack. */
SEC("tc")
int vippin_ingress(struct __sk_buff *skb)
{
	return handle(skb, false);
}
