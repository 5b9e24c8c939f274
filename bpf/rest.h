/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* An interface whose pin is switched off and that has no mapping: nothing is
 * looked up, and no flow is noted. When the pin is switched on, user space notes
 * the flows that live then, before any is pinned.
 */
#pragma once

#include "account.h"
#include "flow.h"
#include "srcpin.h"

static __always_inline bool is_unique(__u32 slot, const struct addr *common, const struct addr *addr)
{
	return addr_equal(common, addr) || find_unique(slot, addr);
}

/* What is forwarded, leaves with a unique address and is no answer was translated
 * to it, and is counted as off.
 */
static __always_inline verdict count_resting(struct __sk_buff *skb, const struct iface *iface,
					     const struct addr *src, bool ipv6)
{
	__u32 pin = iface->pin;
	struct pin *p;

	if (!skb->ingress_ifindex || !is_original(skb))
		return untouched();
	p = bpf_map_lookup_elem(&pins, &pin);
	if (!p || !is_unique(iface->slot, ipv6 ? &p->unique6 : &p->unique4, src))
		return untouched();
	return judged(pin, PIN_OFF);
}

/* The way of TCP and UDP over an interface that rests; false: it is another
 * packet, which may be an advert, or tell of a VIP.
 */
static __always_inline bool pass_resting(struct __sk_buff *skb, const struct iface *iface, bool out,
					 verdict *v)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + (iface->has_l2 ? ETH_HLEN : 0);
	struct ipv6hdr *ip6 = (void *)ip;
	struct addr src;

	*v = untouched();
	if (!iface->resting || skb->vlan_present)
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip + 1) > end || (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP))
			return false;
		src = addr_from_v4(ip->saddr);
		if (out)
			*v = count_resting(skb, iface, &src, false);
		return true;
	}
	if (skb->protocol != bpf_htons(ETH_P_IPV6) || (void *)(ip6 + 1) > end ||
	    (ip6->nexthdr != IPPROTO_TCP && ip6->nexthdr != IPPROTO_UDP))
		return false;
	__builtin_memcpy(&src, &ip6->saddr, sizeof(src));
	if (out)
		*v = count_resting(skb, iface, &src, true);
	return true;
}
