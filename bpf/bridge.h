/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Answers that come in by a Linux bridge. With net.bridge.bridge-nf-call-iptables
 * the frame has passed netfilter's PRE_ROUTING on the port (br_nf_pre_routing), still
 * with the public end, which conntrack does not know; and behind tc ingress the IP
 * layer would not pass it through there again (ip_sabotage_in). Redirected to the
 * interface that it is on, it loses what it carries of that, conntrack's entry too
 * (skb_scrub_packet), comes in once more with the local end, and is not ours then.
 * Marks stay. Needs conntrack.h or marks.h before it.
 */
#pragma once

#include "rewrite.h"

/* Has the packet got another destination than the one that was parsed? */
static __always_inline bool was_sent_on(struct __sk_buff *skb, const struct packet *pkt)
{
	struct addr now;

	return !load_addr(skb, pkt->l3_off, pkt->ipv6, DESTINATION, &now) && !addr_equal(&now, &pkt->dst);
}

static __always_inline int come_in_again(struct __sk_buff *skb)
{
	return seen_on_port(skb) ? bpf_redirect(skb->ifindex, BPF_F_INGRESS) : TC_ACT_UNSPEC;
}
