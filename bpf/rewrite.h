/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Changing one end of a packet in place, with every checksum that covers it.
 * The helpers un-clone and linearise what they touch and know CHECKSUM_PARTIAL
 * and GSO packets.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

#define EINVAL 22
#define F_IPV6 (1ULL << 7) /* BPF_F_IPV6, from Linux 6.16 and in some stable kernels */
#define ICMP_CHECKSUM 2 /* offsets in an ICMP echo */
#define ICMP_ID 4

enum end { SOURCE, DESTINATION };

static __always_inline __u32 checksum_offset(const struct packet *pkt)
{
	switch (pkt->proto) {
	case IPPROTO_TCP:
		return pkt->l4_off + offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return pkt->l4_off + offsetof(struct udphdr, check);
	}
	return pkt->l4_off + ICMP_CHECKSUM;
}

static __always_inline __u32 port_offset(const struct packet *pkt, enum end end)
{
	if (pkt->proto == IPPROTO_ICMP || pkt->proto == IPPROTO_ICMPV6)
		return pkt->l4_off + ICMP_ID;
	return pkt->l4_off + (end == SOURCE ? 0 : 2);
}

static __always_inline int rewrite_ipv4_addr(struct __sk_buff *skb, const struct packet *pkt, enum end end,
					     __u64 l4_flags, __be32 from, __be32 to)
{
	__u32 off =
		pkt->l3_off + (end == SOURCE ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));

	/* ICMP has no pseudo-header. */
	if (pkt->proto != IPPROTO_ICMP && bpf_l4_csum_replace(skb, checksum_offset(pkt), from, to,
							      BPF_F_PSEUDO_HDR | l4_flags | sizeof(to)))
		return -1;
	if (bpf_l3_csum_replace(skb, pkt->l3_off + offsetof(struct iphdr, check), from, to, sizeof(to)))
		return -1;
	return bpf_skb_store_bytes(skb, off, &to, sizeof(to), 0);
}

/* IPv6 has no header checksum that would cancel the change of the address in
 * skb->csum (CHECKSUM_COMPLETE). Kernels that know BPF_F_IPV6 leave skb->csum
 * alone when told so; older ones adjust it for the transport checksum alone, so
 * the store has to adjust it back for the address.
 */
static __always_inline int rewrite_ipv6_addr(struct __sk_buff *skb, const struct packet *pkt, enum end end,
					     __u64 l4_flags, __u64 store, const struct addr *from,
					     const struct addr *to)
{
	__u32 off = pkt->l3_off +
		    (end == SOURCE ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr));
	__s64 diff = bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
	int err;

	err = bpf_l4_csum_replace(skb, checksum_offset(pkt), 0, diff, BPF_F_PSEUDO_HDR | F_IPV6 | l4_flags);
	if (err == -EINVAL) {
		err = bpf_l4_csum_replace(skb, checksum_offset(pkt), 0, diff, BPF_F_PSEUDO_HDR | l4_flags);
		store = BPF_F_RECOMPUTE_CSUM;
	}
	if (err)
		return -1;
	return bpf_skb_store_bytes(skb, off, to, sizeof(*to), store);
}

/* A UDP checksum of zero means none (RFC 768, RFC 6935) and stays so. */
static __always_inline bool has_no_checksum(struct __sk_buff *skb, const struct packet *pkt)
{
	__be16 check;

	return pkt->proto == IPPROTO_UDP &&
	       !bpf_skb_load_bytes(skb, checksum_offset(pkt), &check, sizeof(check)) && !check;
}

/* Puts addr:port in place of one end. 0, or -1 when the packet could not be
 * made writable; it then leaves unchanged.
 */
static __always_inline int rewrite_end(struct __sk_buff *skb, const struct packet *pkt, enum end end,
				       const struct addr *addr, __be16 port)
{
	/* A checksum that comes out as zero is sent as 0xffff. */
	__u64 l4_flags = pkt->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	/* Without a checksum nothing cancels the change in skb->csum. */
	__u64 store = has_no_checksum(skb, pkt) ? BPF_F_RECOMPUTE_CSUM : 0;
	const struct addr *old = end == SOURCE ? &pkt->src : &pkt->dst;
	__be16 old_port = end == SOURCE ? pkt->sport : pkt->dport;
	int err;

	if (pkt->ipv6)
		err = rewrite_ipv6_addr(skb, pkt, end, l4_flags, store, old, addr);
	else
		err = rewrite_ipv4_addr(skb, pkt, end, l4_flags, old->word[3], addr->word[3]);
	if (err)
		return -1;
	if (port == old_port)
		return 0;
	if (bpf_l4_csum_replace(skb, checksum_offset(pkt), old_port, port, l4_flags | sizeof(port)))
		return -1;
	return bpf_skb_store_bytes(skb, port_offset(pkt, end), &port, sizeof(port), store);
}
