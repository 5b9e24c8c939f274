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

#include "checksum.h"
#include "flow.h"
#include "parse.h"

#define EINVAL 22
#define F_IPV6 (1ULL << 7) /* BPF_F_IPV6, from Linux 6.16 and in some stable kernels */
#define ICMP_CHECKSUM 2 /* offsets in an ICMP echo */
#define ICMP_ID 4

/* Where the checksum of this packet's transport header stands; 0: it has none
 * that covers addresses or ports. SCTP's covers neither address, and its ports
 * are never changed.
 */
static __always_inline __u32 checksum_offset(struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 off;
	__be16 check;

	if (pkt->fragment == LATER_FRAGMENT)
		return 0;
	switch (pkt->proto) {
	case IPPROTO_TCP:
		return pkt->l4_off + offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		off = pkt->l4_off + offsetof(struct udphdr, check);
		/* Zero means none (RFC 768, RFC 6935) and stays so. */
		return bpf_skb_load_bytes(skb, off, &check, sizeof(check)) || !check ? 0 : off;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return pkt->l4_off + ICMP_CHECKSUM;
	}
	return 0;
}

/* Can a flow of this protocol get another port (or identifier)? */
static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_ICMP ||
	       proto == IPPROTO_ICMPV6;
}

static __always_inline __u32 port_offset(const struct packet *pkt, enum end end)
{
	if (pkt->proto == IPPROTO_ICMP || pkt->proto == IPPROTO_ICMPV6)
		return pkt->l4_off + ICMP_ID;
	return pkt->l4_off + (end == SOURCE ? 0 : 2);
}

static __always_inline __u32 addr_offset(__u32 l3_off, bool ipv6, enum end end)
{
	if (ipv6)
		return l3_off +
		       (end == SOURCE ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr));
	return l3_off + (end == SOURCE ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));
}

/* What stands there now. */
static __always_inline long load_addr(struct __sk_buff *skb, __u32 l3_off, bool ipv6, enum end end,
				      struct addr *addr)
{
	__u32 off = addr_offset(l3_off, ipv6, end);

	if (ipv6)
		return bpf_skb_load_bytes(skb, off, addr, sizeof(*addr));
	*addr = addr_from_v4(0);
	return bpf_skb_load_bytes(skb, off, &addr->word[3], sizeof(addr->word[3]));
}

/* Checksum and addresses are neighbours in the header: one store for all. The
 * checksum cancels the address in skb->csum.
 */
static __always_inline int replace_ipv4(struct __sk_buff *skb, __u32 l3_off, __u32 l4_check, __u64 l4_flags,
					__be16 ip_check, __be32 src, __be32 dst, enum end end, __be32 to)
{
	__be32 from = end == SOURCE ? src : dst;
	struct {
		__be16 check;
		__be32 src;
		__be32 dst;
	} __attribute__((packed)) new = {checksum_plus(ip_check, fold64((__u64)(__u32)~from + to)), src, dst};
	__u32 off = l3_off + offsetof(struct iphdr, check);

	if (l4_check && bpf_l4_csum_replace(skb, l4_check, from, to, l4_flags | sizeof(to)))
		return -1;
	if (end == SOURCE) {
		new.src = to;
		return bpf_skb_store_bytes(skb, off, &new, sizeof(new) - sizeof(new.dst), 0);
	}
	new.dst = to;
	return bpf_skb_store_bytes(skb, off, &new, sizeof(new), 0);
}

/* IPv6 has no header checksum that would cancel the change of the address in
 * skb->csum (CHECKSUM_COMPLETE). Kernels that know BPF_F_IPV6 leave skb->csum
 * alone when told so; older ones adjust it for the transport checksum alone, so
 * the store has to adjust it back for the address. Without a transport checksum
 * the store has to do it in any case.
 */
static __always_inline int replace_ipv6(struct __sk_buff *skb, __u32 l3_off, __u32 l4_check, __u64 l4_flags,
					enum end end, const struct addr *from, const struct addr *to)
{
	__u32 off = addr_offset(l3_off, true, end);
	__u32 diff;
	int err;

	if (!l4_check)
		return bpf_skb_store_bytes(skb, off, to, sizeof(*to), BPF_F_RECOMPUTE_CSUM);
	diff = addr_diff(from, to);
	err = bpf_l4_csum_replace(skb, l4_check, 0, diff, l4_flags | F_IPV6);
	if (!err)
		return bpf_skb_store_bytes(skb, off, to, sizeof(*to), 0);
	if (err != -EINVAL || bpf_l4_csum_replace(skb, l4_check, 0, diff, l4_flags))
		return -1;
	return bpf_skb_store_bytes(skb, off, to, sizeof(*to), BPF_F_RECOMPUTE_CSUM);
}

/* Puts another address in place of one end. check: the transport checksum that
 * covers it, 0 = none.
 */
static __always_inline int replace_addr(struct __sk_buff *skb, const struct packet *pkt, enum end end,
					__u32 check, __u64 l4_flags, const struct addr *to)
{
	if (pkt->ipv6)
		return replace_ipv6(skb, pkt->l3_off, check, l4_flags | BPF_F_PSEUDO_HDR, end,
				    end == SOURCE ? &pkt->src : &pkt->dst, to);
	if (pkt->proto == IPPROTO_ICMP)
		check = 0; /* ICMP has no pseudo-header */
	return replace_ipv4(skb, pkt->l3_off, check, l4_flags | BPF_F_PSEUDO_HDR, pkt->ip_check,
			    pkt->src.word[3], pkt->dst.word[3], end, to->word[3]);
}

/* Puts addr:port in place of one end. 0, or -1 when the packet could not be
 * made writable; it then leaves unchanged.
 */
static __always_inline int rewrite_end(struct __sk_buff *skb, const struct packet *pkt, enum end end,
				       const struct addr *addr, __be16 port)
{
	/* A checksum that comes out as zero is sent as 0xffff. */
	__u64 l4_flags = pkt->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 check = checksum_offset(skb, pkt);
	__be16 old_port = end == SOURCE ? pkt->sport : pkt->dport;

	if (replace_addr(skb, pkt, end, check, l4_flags, addr))
		return -1;
	if (port == old_port)
		return 0;
	if (check && bpf_l4_csum_replace(skb, check, old_port, port, l4_flags | sizeof(port)))
		return -1;
	/* Without a checksum nothing cancels the change in skb->csum. */
	return bpf_skb_store_bytes(skb, port_offset(pkt, end), &port, sizeof(port),
				   check ? 0 : BPF_F_RECOMPUTE_CSUM);
}

/* The one's complement difference between two words of a packet. */
static __always_inline __u32 word_diff(__be16 from, __be16 to, __u32 seed)
{
	__be32 old = from, new = to;

	return bpf_csum_diff(&old, sizeof(old), &new, sizeof(new), seed);
}

/* The same for a packet that an ICMP error quotes, which may be cut short behind
 * the ports. *diff gets the change of the sum over all octets of the quotation,
 * for the error's own checksum.
 */
static __always_inline int rewrite_quoted(struct __sk_buff *skb, const struct packet *quoted, enum end end,
					  const struct addr *addr, __be16 port, __u32 *diff)
{
	const struct addr *old = end == SOURCE ? &quoted->src : &quoted->dst;
	__be16 old_port = end == SOURCE ? quoted->sport : quoted->dport;
	__u32 off = checksum_offset(skb, quoted);
	__u32 covered = word_diff(old_port, port, 0), address;
	__be16 check, new;

	address = addr_diff(old, addr);
	*diff = covered;
	if (quoted->ipv6) {
		*diff = word_diff(old_port, port, address);
		if (bpf_skb_store_bytes(skb, addr_offset(quoted->l3_off, true, end), addr, sizeof(*addr), 0))
			return -1;
	} else if (replace_addr(skb, quoted, end, 0, 0, addr)) {
		return -1; /* address and header checksum cancel out */
	}
	if (quoted->proto != IPPROTO_ICMP)
		covered = word_diff(old_port, port, address);
	if (port != old_port && bpf_skb_store_bytes(skb, port_offset(quoted, end), &port, sizeof(port), 0))
		return -1;
	if (!off || off + sizeof(check) > quoted->l4_off + quoted->l4_len ||
	    bpf_skb_load_bytes(skb, off, &check, sizeof(check)))
		return 0;
	new = checksum_plus(check, covered);
	if (!new && quoted->proto == IPPROTO_UDP)
		new = 0xffff;
	*diff = word_diff(check, new, *diff);
	return bpf_skb_store_bytes(skb, off, &new, sizeof(new), 0);
}
