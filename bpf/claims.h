/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Claims: somebody out there says that a VIP is his, by ARP or by a neighbour
 * advertisement. They get through where adverts do not, and are the only
 * witness of a second master then. Told to user space; nothing is dropped or
 * changed.
 */
#pragma once

#include "account.h"
#include "parse.h"

#define ARP_ETHERNET 1 /* hardware type; linux/if_arp.h wants a libc */
#define ARP_REQUEST 1
#define ARP_REPLY 2
#define ICMPV6_NEIGHBOUR_ADVERT 136
#define ND_HOP_LIMIT 255 /* RFC 4861 section 7.1.2: it was not forwarded */
#define ND_SOLICITED 0x40000000
#define ND_TARGET_MAC 2 /* the option of that name, one unit of 8 octets long */

/* ARP for IPv4 over Ethernet (RFC 826). */
struct arp_packet {
	__be16 hw_type;
	__be16 proto_type;
	__u8 hw_len;
	__u8 proto_len;
	__be16 op;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

/* A neighbour advertisement (RFC 4861 section 4.4) and its usual only option. */
struct neighbour_advert {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	struct addr target;
	__u8 option;
	__u8 option_len;
	__u8 target_mac[6];
};

#define ND_WITHOUT_OPTION 24

/* Tells user space, if the address is a VIP of this interface. */
static __noinline int report_claim(struct __sk_buff *skb, __u32 slot, struct claim *c)
{
	struct slot_addr who = {.slot = slot, .addr = c->vip};

	if (!bpf_map_lookup_elem(&vips, &who))
		return 0;
	c->time_ns = bpf_ktime_get_ns();
	c->ifindex = skb->ifindex;
	count_vrrp(VRRP_CLAIMS);
	if (bpf_ringbuf_output(&claims, c, sizeof(*c), 0))
		count_vrrp(VRRP_RING_FULL); /* user space missed it: the next claim tells as much */
	return 0;
}

static __always_inline void observe_arp(struct __sk_buff *skb, const struct packet *pkt, __u32 slot)
{
	struct arp_packet arp;
	struct claim c = {};

	if (bpf_skb_load_bytes(skb, pkt->l3_off, &arp, sizeof(arp)) ||
	    arp.hw_type != bpf_htons(ARP_ETHERNET) || arp.proto_type != bpf_htons(ETH_P_IP) ||
	    arp.hw_len != ETH_ALEN || arp.proto_len != sizeof(arp.sender))
		return;
	c.vip = addr_from_v4(arp.sender);
	if (!arp.sender && arp.op == bpf_htons(ARP_REQUEST)) {
		c.vip = addr_from_v4(arp.target);
		c.kind = CLAIM_PROBE;
	} else if (!arp.target && arp.op == bpf_htons(ARP_REPLY)) {
		c.kind = CLAIM_ANSWERS; /* to a probe, which names no sender */
	}
	__builtin_memcpy(c.mac, arp.sender_mac, sizeof(c.mac));
	report_claim(skb, slot, &c);
}

static __always_inline bool maybe_neighbour_advert(const struct packet *pkt)
{
	return pkt->proto == IPPROTO_ICMPV6 && pkt->ipv6 && pkt->ttl == ND_HOP_LIMIT && !pkt->fragment;
}

static __always_inline void observe_neighbour(struct __sk_buff *skb, const struct packet *pkt, __u32 slot)
{
	struct neighbour_advert na;
	struct claim c = {};

	if (bpf_skb_load_bytes(skb, pkt->l4_off, &na, ND_WITHOUT_OPTION) ||
	    na.type != ICMPV6_NEIGHBOUR_ADVERT || na.code)
		return;
	c.vip = na.target;
	if (na.flags & bpf_htonl(ND_SOLICITED))
		c.kind = CLAIM_ANSWERS;
	/* Who answers for another (a switch, a proxy) names that one's MAC here. */
	if (pkt->l4_len >= sizeof(na) && !bpf_skb_load_bytes(skb, pkt->l4_off, &na, sizeof(na)) &&
	    na.option == ND_TARGET_MAC && na.option_len == 1)
		__builtin_memcpy(c.mac, na.target_mac, sizeof(c.mac));
	else if (bpf_skb_load_bytes(skb, ETH_ALEN, c.mac, sizeof(c.mac)))
		return;
	report_claim(skb, slot, &c);
}

/* A packet comes in, untagged, on an interface with VIPs. */
static __always_inline void observe_claim(struct __sk_buff *skb, const struct packet *pkt,
					  enum parse_result parsed, __u32 slot)
{
	if (parsed == IS_ARP)
		observe_arp(skb, pkt, slot);
	else if (parsed == PARSED && maybe_neighbour_advert(pkt))
		observe_neighbour(skb, pkt, slot);
}
