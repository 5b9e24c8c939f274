/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The table of contents: every program of vippin, and nothing else. Who includes
 * it has chosen before how conntrack is read: conntrack.h or marks.h.
 */
#pragma once

#include <linux/pkt_cls.h>

#include "account.h"
#include "bridge.h"
#include "claims.h"
#include "iface.h"
#include "maps.h"
#include "parse.h"
#include "rest.h"
#include "shortcut.h"
#include "srcpin.h"
#include "vrrp.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* TC_ACT_UNSPEC: whatever else is attached goes on as if we were not there. A packet
 * that comes in again passes it then.
 */
static __always_inline int finish(struct __sk_buff *skb, bool out, verdict v)
{
	if (out)
		forget_conntrack(skb);
	if (verdict_counter(v) < PIN_COUNTERS)
		count_pin(verdict_pin(v), verdict_counter(v));
	return TC_ACT_UNSPEC;
}

static __always_inline int long_way(struct __sk_buff *skb, struct iface *iface, bool out, __u64 digest)
{
	__u32 zero = 0;
	struct packet *pkt = bpf_map_lookup_elem(&packets, &zero);
	enum parse_result parsed;
	verdict v;

	if (!pkt)
		return TC_ACT_UNSPEC;
	__builtin_memset(pkt, 0, sizeof(*pkt));
	parsed = parse_ip(skb, iface->has_l2, pkt);
	if (parsed == PARSED && maybe_vrrp(pkt)) {
		observe_advert(skb, pkt, iface, out);
		return finish(skb, out, untouched());
	}
	/* A tagged frame is dealt with on its VLAN's own interface. */
	if (!iface->slot || pkt->vlan_outer)
		return finish(skb, out, untouched());
	if (!out && iface->has_l2)
		observe_claim(skb, pkt, parsed, iface->slot);
	if (parsed != PARSED || iface->resting)
		return finish(skb, out, untouched());
	v = out ? pin_egress(skb, pkt, iface->slot) : pin_ingress(skb, pkt, iface->slot);
	if (pkt->fragment == FIRST_FRAGMENT)
		v = note_fragment(skb, pkt, iface->slot, out, v);
	if (digest && !pkt->no_shortcut && verdict_counter(v) == (out ? PIN_PINNED : PIN_RETURNED))
		remember_shortcut(skb, pkt, digest, out, verdict_pin(v));
	finish(skb, out, v);
	return !out && iface->bridged && was_sent_on(skb, pkt) ? come_in_again(skb) : TC_ACT_UNSPEC;
}

static __always_inline int handle(struct __sk_buff *skb, bool out)
{
	__u32 ifindex = skb->ifindex;
	struct iface *iface = find_iface(ifindex);
	__u64 digest;
	verdict v;

	if (!iface)
		return TC_ACT_UNSPEC;
	if (pass_resting(skb, iface, out, &v))
		return finish(skb, out, v);
	v = take_shortcut(skb, iface, out, &digest);
	if (verdict_counter(v) < PIN_COUNTERS) {
		finish(skb, out, v);
		return !out && iface->bridged && verdict_counter(v) == PIN_RETURNED ? come_in_again(skb)
										    : TC_ACT_UNSPEC;
	}
	return long_way(skb, iface, out, digest);
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

/* Called by user space, for mappings that the peer has, or that wait no more. A
 * mapping is changed where it is: another flow's may have taken its place. How
 * many of them it looked at.
 */
SEC("syscall")
int vippin_acknowledge(struct acknowledgement *ctx)
{
	struct acknowledgement told = *ctx;

	if (told.count > ACKNOWLEDGE_MAX)
		return -1;
	return bpf_loop(told.count, acknowledge_one, &told, 0);
}
