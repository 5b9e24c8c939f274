/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a frame to struct packet: tags, addresses, protocol, ports. Nothing here
 * decides what becomes of the packet.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define IPPROTO_VRRP 112
#define IP_MORE 0x2000
#define IP_OFFSET 0x1fff
#define IP6_MORE 0x0001
#define IP6_OFFSET 0xfff8
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define MAX_TAGS 2
#define MAX_EXTENSIONS 8 /* IPv6 extension headers followed; a longer chain is left alone */

#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

enum parse_result {
	PARSED, /* an IP packet */
	IS_ARP, /* l3_off says where */
	NOT_IP, /* something else, or cut short: none of our business */
};

static __always_inline struct addr addr_from_v4(__be32 ip)
{
	return (struct addr){{0, 0, bpf_htonl(0xffff), ip}};
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline bool addr_is_zero(const struct addr *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

/* Is it a virtual router's (RFC 9568 section 7.3)? */
static __always_inline bool is_virtual_mac(const __u8 *mac)
{
	return !(mac[0] | mac[1] | (mac[2] ^ 0x5e) | mac[3]);
}

/* A priority tag (VLAN 0) counts as none. */
static __always_inline void note_tag(struct packet *pkt, __u16 tci)
{
	if (!pkt->vlan_outer)
		pkt->vlan_outer = tci & 0xfff;
	else if (!pkt->vlan_inner)
		pkt->vlan_inner = tci & 0xfff;
}

/* Steps over the tags in the frame; the outermost may stand in the skb instead.
 * Returns the ethertype behind them, or 0 when the frame is cut short.
 */
static __always_inline __be16 parse_tags(struct __sk_buff *skb, bool has_l2, struct packet *pkt)
{
	__be16 proto = skb->protocol;

	pkt->l3_off = has_l2 ? ETH_HLEN : 0;
	if (skb->vlan_present)
		note_tag(pkt, skb->vlan_tci);
	for (int i = 0; i < MAX_TAGS; i++) {
		struct {
			__be16 tci;
			__be16 proto;
		} tag;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if (bpf_skb_load_bytes(skb, pkt->l3_off, &tag, sizeof(tag)))
			return 0;
		note_tag(pkt, bpf_ntohs(tag.tci));
		proto = tag.proto;
		pkt->l3_off += sizeof(tag);
	}
	return proto;
}

static __always_inline enum fragmentation fragmentation(bool offset, bool more)
{
	return offset ? LATER_FRAGMENT : more ? FIRST_FRAGMENT : WHOLE;
}

static __always_inline enum parse_result parse_ipv4(struct __sk_buff *skb, struct packet *pkt)
{
	struct iphdr ip;
	__u32 header, total;

	if (bpf_skb_load_bytes(skb, pkt->l3_off, &ip, sizeof(ip)))
		return NOT_IP;
	header = ip.ihl * 4;
	total = bpf_ntohs(ip.tot_len);
	if (ip.version != 4 || header < sizeof(ip))
		return NOT_IP;
	/* A GSO packet of more than 64 KiB has total length 0. */
	pkt->l4_len = total > header ? total - header : 0;
	pkt->l4_off = pkt->l3_off + header;
	pkt->ipv6 = false;
	pkt->fragment = fragmentation(ip.frag_off & bpf_htons(IP_OFFSET), ip.frag_off & bpf_htons(IP_MORE));
	pkt->ident = ip.id;
	pkt->ip_check = ip.check;
	pkt->proto = ip.protocol;
	pkt->ttl = ip.ttl;
	pkt->src = addr_from_v4(ip.saddr);
	pkt->dst = addr_from_v4(ip.daddr);
	return PARSED;
}

static __always_inline enum parse_result parse_ipv6(struct __sk_buff *skb, struct packet *pkt)
{
	struct ipv6hdr ip;
	__u32 skipped = 0;

	if (bpf_skb_load_bytes(skb, pkt->l3_off, &ip, sizeof(ip)) || ip.version != 6)
		return NOT_IP;
	pkt->ipv6 = true;
	pkt->fragment = WHOLE;
	pkt->proto = ip.nexthdr;
	pkt->ttl = ip.hop_limit;
	__builtin_memcpy(&pkt->src, &ip.saddr, sizeof(pkt->src));
	__builtin_memcpy(&pkt->dst, &ip.daddr, sizeof(pkt->dst));
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct {
			__u8 next;
			__u8 len;
			__be16 offset; /* of a fragment header, and ident */
			__u32 ident;
		} ext;
		__u32 size;

		if (pkt->proto != IPPROTO_HOPOPTS && pkt->proto != IPPROTO_ROUTING &&
		    pkt->proto != IPPROTO_DSTOPTS && pkt->proto != IPPROTO_FRAGMENT)
			break;
		if (bpf_skb_load_bytes(skb, pkt->l3_off + sizeof(ip) + skipped, &ext, sizeof(ext)))
			return NOT_IP;
		size = (ext.len + 1) * 8;
		if (pkt->proto == IPPROTO_FRAGMENT) {
			size = 8;
			/* An atomic fragment (RFC 6946) is whole. */
			pkt->fragment = fragmentation(ext.offset & bpf_htons(IP6_OFFSET),
						      ext.offset & bpf_htons(IP6_MORE));
			pkt->ident = ext.ident;
		}
		pkt->proto = ext.next;
		skipped += size;
		if (pkt->fragment == LATER_FRAGMENT)
			break; /* data follow */
	}
	pkt->l4_off = pkt->l3_off + sizeof(ip) + skipped;
	pkt->l4_len = bpf_ntohs(ip.payload_len);
	pkt->l4_len = pkt->l4_len > skipped ? pkt->l4_len - skipped : 0;
	return PARSED;
}

static __always_inline enum parse_result parse_ip(struct __sk_buff *skb, bool has_l2, struct packet *pkt)
{
	__be16 proto = parse_tags(skb, has_l2, pkt);

	if (proto == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, pkt);
	if (proto == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, pkt);
	return proto == bpf_htons(ETH_P_ARP) ? IS_ARP : NOT_IP;
}

static __always_inline bool is_echo_request(const struct packet *pkt)
{
	return pkt->ipv6 ? pkt->proto == IPPROTO_ICMPV6 && pkt->icmp_type == ICMPV6_ECHO_REQUEST
			 : pkt->proto == IPPROTO_ICMP && pkt->icmp_type == ICMP_ECHO;
}

static __always_inline bool is_echo_reply(const struct packet *pkt)
{
	return pkt->ipv6 ? pkt->proto == IPPROTO_ICMPV6 && pkt->icmp_type == ICMPV6_ECHO_REPLY
			 : pkt->proto == IPPROTO_ICMP && pkt->icmp_type == ICMP_ECHOREPLY;
}

/* What a packet is known by. */
enum transport {
	UNKNOWN, /* nothing: cut short, or a chain of extension headers without end */
	FLOW, /* addresses and ports; the ports are 0 where the protocol has none */
	NOT_TRANSLATED, /* a protocol that conntrack may know but we do not */
	ICMP_ERROR, /* the packet it quotes */
	IN_PIECES, /* a later fragment: what the first one is known by */
};

static __always_inline bool is_icmp_error(const struct packet *pkt)
{
	if (pkt->ipv6)
		return pkt->icmp_type < 128;
	return pkt->icmp_type == 3 || pkt->icmp_type == 4 || pkt->icmp_type == 5 || pkt->icmp_type == 11 ||
	       pkt->icmp_type == 12;
}

static __always_inline enum transport parse_icmp(struct __sk_buff *skb, struct packet *pkt)
{
	__be16 head[4];

	if ((pkt->proto == IPPROTO_ICMPV6) != pkt->ipv6 ||
	    bpf_skb_load_bytes(skb, pkt->l4_off, head, sizeof(head)))
		return UNKNOWN;
	pkt->icmp_type = bpf_ntohs(head[0]) >> 8;
	if (is_echo_request(pkt))
		pkt->sport = head[2];
	else if (is_echo_reply(pkt))
		pkt->dport = head[2];
	else
		return is_icmp_error(pkt) ? ICMP_ERROR : NOT_TRANSLATED;
	return FLOW;
}

/* Reads the ports, or the identifier of an ICMP echo. Of a quoted packet (in an
 * ICMP error) only 8 octets are sure to be there, else the whole header must be.
 */
static __always_inline enum transport parse_transport(struct __sk_buff *skb, struct packet *pkt, bool quoted)
{
	__be16 ports[10]; /* as much as a TCP header has; the others have the first four */
	long err;

	if (pkt->fragment == LATER_FRAGMENT)
		return IN_PIECES;
	switch (pkt->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		/* Behind a first fragment that is too short for it stands Ethernet's padding. */
		if (pkt->proto == IPPROTO_TCP && !quoted && pkt->fragment && pkt->l4_len < 20)
			return UNKNOWN;
		if (pkt->proto == IPPROTO_TCP && !quoted)
			err = bpf_skb_load_bytes(skb, pkt->l4_off, ports, 20);
		else
			err = bpf_skb_load_bytes(skb, pkt->l4_off, ports, 8);
		if (err)
			return UNKNOWN;
		pkt->sport = ports[0];
		pkt->dport = ports[1];
		if (pkt->proto == IPPROTO_TCP && !quoted)
			pkt->tcp_flags = bpf_ntohs(ports[6]); /* RFC 9293 section 3.1: the lower octet */
		return FLOW;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return parse_icmp(skb, pkt);
	case IPPROTO_UDPLITE:
	case IPPROTO_DCCP:
		return NOT_TRANSLATED;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_DSTOPTS:
		return UNKNOWN;
	}
	return FLOW;
}
