/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet at tc egress of a device of the fast path: all that the stack has made
 * of it, link layer included.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "fast_types.h"
#include "parse.h"

#define TCP_FIN 0x01

struct ends {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
};

struct leaving {
	struct ends ends;
	struct fast_hop hop; /* all but the MTU */
	__u32 place; /* where answers come in that go the same way back; 0: cannot be told */
	__u32 seq; /* TCP, host order */
	__u32 ack;
	__u8 proto;
	__u8 ttl;
	__u8 tos;
	__u8 tcp_flags;
	_Bool ipv6;
	__u8 pad[3];
};

#define LEARNABLE REFUSALS /* nothing speaks against it */
#define NOT_OURS (REFUSALS + 1) /* neither TCP nor UDP: nothing to learn, nothing to count */

static __always_inline void leaving_tag(struct fast_hop *hop, __be16 proto, __be16 tci)
{
	if (!hop->tags) {
		hop->outer_proto = proto;
		hop->outer_tci = tci;
	} else {
		hop->inner_proto = proto;
		hop->inner_tci = tci;
	}
	hop->tags++;
}

/* The outermost tag may stand in the skb. Returns the ethertype behind the tags, or
 * 0: there are too many.
 */
static __always_inline __be16 leaving_tags(struct __sk_buff *skb, struct fast_hop *hop, __u32 *off)
{
	__be16 proto = skb->protocol;

	if (skb->vlan_present)
		leaving_tag(hop, skb->vlan_proto, bpf_htons(skb->vlan_tci));
	for (int i = 0; i < MAX_TAGS; i++) {
		struct {
			__be16 tci;
			__be16 proto;
		} tag;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if (hop->tags == MAX_TAGS || bpf_skb_load_bytes(skb, *off, &tag, sizeof(tag)))
			return 0;
		leaving_tag(hop, proto, tag.tci);
		proto = tag.proto;
		*off += sizeof(tag);
	}
	return proto;
}

/* A priority tag (VLAN 0) makes no place. */
static __always_inline __u32 place_of(const struct fast_hop *hop)
{
	__u32 outer = bpf_ntohs(hop->outer_tci) & 0xfff, inner = bpf_ntohs(hop->inner_tci) & 0xfff;

	if ((hop->tags > 0 && !outer) ||
	    (hop->tags > 1 && (!inner || hop->inner_proto != bpf_htons(ETH_P_8021Q))))
		return 0;
	return (hop->outer_proto == bpf_htons(ETH_P_8021AD) ? FAST_8021AD : 0) | (__u32)hop->device << 24 |
	       outer << 12 | inner;
}

static __always_inline enum fast_refusal leaving_ports(struct __sk_buff *skb, __u32 off, struct leaving *l)
{
	struct tcphdr tcp;

	if (l->proto != IPPROTO_TCP && l->proto != IPPROTO_UDP)
		return NOT_OURS;
	if (bpf_skb_load_bytes(skb, off, &tcp, l->proto == IPPROTO_TCP ? sizeof(tcp) : 8))
		return REFUSED_PACKET;
	l->ends.sport = tcp.source;
	l->ends.dport = tcp.dest;
	if (l->proto == IPPROTO_UDP)
		return LEARNABLE;
	l->seq = bpf_ntohl(tcp.seq);
	l->ack = bpf_ntohl(tcp.ack_seq);
	l->tcp_flags = ((__u8 *)&tcp)[13];
	return (l->tcp_flags & (TCP_ACK | TCP_SYN | TCP_FIN | TCP_RST)) == TCP_ACK ? LEARNABLE
										   : REFUSED_PACKET;
}

static __always_inline enum fast_refusal leaving_ipv4(struct __sk_buff *skb, __u32 off, struct leaving *l)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version != 4)
		return NOT_OURS;
	l->proto = ip.protocol;
	l->ttl = ip.ttl;
	l->tos = ip.tos;
	l->ends.src = addr_from_v4(ip.saddr);
	l->ends.dst = addr_from_v4(ip.daddr);
	if (ip.ihl != 5 || ip.frag_off & bpf_htons(IP_MORE | IP_OFFSET))
		return l->proto == IPPROTO_TCP || l->proto == IPPROTO_UDP ? REFUSED_PACKET : NOT_OURS;
	return leaving_ports(skb, off + sizeof(ip), l);
}

static __always_inline enum fast_refusal leaving_ipv6(struct __sk_buff *skb, __u32 off, struct leaving *l)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version != 6)
		return NOT_OURS;
	l->ipv6 = true;
	l->proto = ip.nexthdr;
	l->ttl = ip.hop_limit;
	l->tos = bpf_ntohl(*(__be32 *)&ip) >> 20;
	__builtin_memcpy(&l->ends.src, &ip.saddr, sizeof(l->ends.src));
	__builtin_memcpy(&l->ends.dst, &ip.daddr, sizeof(l->ends.dst));
	if (l->proto == IPPROTO_FRAGMENT || l->proto == IPPROTO_HOPOPTS || l->proto == IPPROTO_ROUTING ||
	    l->proto == IPPROTO_DSTOPTS)
		return REFUSED_PACKET;
	return leaving_ports(skb, off + sizeof(ip), l);
}

/* LEARNABLE, as far as the packet alone tells; REFUSED_PACKET; NOT_OURS. */
static __always_inline enum fast_refusal parse_leaving(struct __sk_buff *skb, __u8 device, struct leaving *l)
{
	__u32 off = ETH_HLEN;
	__be16 proto;

	__builtin_memset(l, 0, sizeof(*l));
	l->hop.device = device;
	l->hop.alive = 1;
	if (bpf_skb_load_bytes(skb, 0, l->hop.macs, sizeof(l->hop.macs)))
		return NOT_OURS;
	proto = leaving_tags(skb, &l->hop, &off);
	l->place = place_of(&l->hop);
	if (proto == bpf_htons(ETH_P_IP))
		return leaving_ipv4(skb, off, l);
	return proto == bpf_htons(ETH_P_IPV6) ? leaving_ipv6(skb, off, l) : NOT_OURS;
}
