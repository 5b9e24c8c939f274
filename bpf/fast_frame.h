/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frames as XDP has them: what the fast path reads of one, and how one becomes
 * that of another link. Here every instruction counts: headers are read and
 * written by words as wide as there are (those of linux/if_ether.h are packed, and
 * would be read by octets).
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "fast_types.h"
#include "parse.h"

#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)
#define TCP_FIN 0x01
#define VLAN_ID 0xfff
#define ETHERTYPE 12 /* where it stands */
#define TAG 4 /* octets */

/* The shortest packet of all that can be forwarded: IPv4, UDP, no data. */
#define FAST_SHORTEST (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr))

/* A frame, and what is known of it. */
struct fast_frame {
	void *data; /* direct access: good until the head is moved */
	void *l3;
	void *end;
	__u32 tags;
	__u32 device; /* number of the one it came by */
	__u32 turns; /* that one's */
	__u32 place;
	__u32 len; /* octets of the IP packet */
	__u32 headers; /* octets of its headers that may change */
	__u32 ports;
	__u32 ack; /* TCP's, host order */
	__u8 tcp_flags;
	__u8 ttl;
	__u8 tos;
	bool tcp;
};

/* Steps over the tags. Returns the ethertype behind them, 0: there is a VLAN ID of
 * 0, or the frame is cut short.
 */
static __always_inline __be16 read_tags(struct fast_frame *f, __be16 outer)
{
	__be16 *tag = f->data + ETH_HLEN; /* identifier, next ethertype, and so on */
	__u32 id;

	if ((void *)(tag + 4) > f->end)
		return 0;
	id = bpf_ntohs(tag[0]) & VLAN_ID;
	if (!id)
		return 0;
	f->tags = 1;
	f->l3 += TAG;
	f->place |= id << 12 | (outer == bpf_htons(ETH_P_8021AD) ? FAST_8021AD : 0);
	if (tag[1] != bpf_htons(ETH_P_8021Q))
		return tag[1];
	id = bpf_ntohs(tag[2]) & VLAN_ID;
	if (!id)
		return 0;
	f->tags = 2;
	f->l3 += TAG;
	f->place |= id;
	return tag[3];
}

/* Is all of the packet there? Only the first buffer of a jumbo frame can be seen. */
static __always_inline bool is_whole(struct xdp_md *ctx, const struct fast_frame *f)
{
	return likely(f->len <= f->end - f->l3) || f->len <= bpf_xdp_get_buff_len(ctx) - (f->l3 - f->data);
}

/* l3_len: octets of the IP header. The packet is whole, what Ethernet pads it with
 * stands behind it, and no length contradicts another one: conntrack would not
 * take such a packet for the flow's.
 */
static __always_inline enum fast_exit read_transport(struct xdp_md *ctx, struct fast_frame *f, __u8 proto,
						     __u32 l3_len)
{
	void *l4 = f->l3 + l3_len;
	struct udphdr *udp = l4;
	struct tcphdr *tcp = l4;
	__u32 tcp_len;

	if (!is_whole(ctx, f))
		return FAST_NOT_IP;
	f->tcp = proto == IPPROTO_TCP;
	if (f->tcp) {
		if ((void *)(tcp + 1) > f->end)
			return FAST_NOT_IP;
		tcp_len = ((__u8 *)l4)[12] >> 4 << 2;
		if (tcp_len < sizeof(*tcp) || f->len < l3_len + tcp_len)
			return FAST_NOT_IP;
		f->tcp_flags = ((__u8 *)l4)[13];
		f->ack = bpf_ntohl(tcp->ack_seq);
		f->place |= FAST_TCP;
		f->headers = l3_len + sizeof(*tcp);
	} else {
		if ((void *)(udp + 1) > f->end || f->len < l3_len + sizeof(*udp) ||
		    bpf_ntohs(udp->len) != f->len - l3_len)
			return FAST_NOT_IP;
		f->headers = l3_len + sizeof(*udp);
	}
	f->ports = *(__u32 *)l4;
	return FAST_FORWARDED;
}

/* FAST_FORWARDED, or why the packet is none for the fast path. */
static __always_inline enum fast_exit read_ipv4(struct xdp_md *ctx, struct fast_frame *f)
{
	struct iphdr *ip = f->l3;
	__u8 first;

	if ((void *)(ip + 1) > f->end)
		return FAST_NOT_IP;
	if (ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_TCP)
		return FAST_PROTOCOL;
	first = *(__u8 *)f->l3;
	if (first != 0x45)
		return first >> 4 == 4 ? FAST_OPTIONS : FAST_NOT_IP;
	if (ip->frag_off & bpf_htons(IP_MORE | IP_OFFSET))
		return FAST_FRAGMENT;
	f->ttl = ip->ttl;
	if (f->ttl <= 1)
		return FAST_TTL;
	f->tos = ip->tos;
	f->len = bpf_ntohs(ip->tot_len);
	return read_transport(ctx, f, ip->protocol, sizeof(*ip));
}

static __always_inline enum fast_exit read_ipv6(struct xdp_md *ctx, struct fast_frame *f)
{
	struct ipv6hdr *ip = f->l3;

	if ((void *)(ip + 1) > f->end)
		return FAST_NOT_IP;
	if (ip->nexthdr != IPPROTO_UDP && ip->nexthdr != IPPROTO_TCP)
		return FAST_PROTOCOL;
	if (*(__u8 *)f->l3 >> 4 != 6)
		return FAST_NOT_IP;
	f->ttl = ip->hop_limit;
	if (f->ttl <= 1)
		return FAST_TTL;
	f->tos = bpf_ntohs(*(__be16 *)f->l3) >> 4;
	f->len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	return read_transport(ctx, f, ip->nexthdr, sizeof(*ip));
}

/* Makes room for as many tags as there will be, or takes it away; the ethertype stays
 * where it is, before the IP header. False: there is no room, and nothing has changed.
 */
static __always_inline bool move_head(struct xdp_md *ctx, struct fast_frame *f, __u32 tags)
{
	if (tags > MAX_TAGS || bpf_xdp_adjust_head(ctx, ((int)f->tags - (int)tags) * TAG))
		return false;
	f->data = (void *)(long)ctx->data;
	f->end = (void *)(long)ctx->data_end;
	f->l3 = f->data + ETH_HLEN + tags * TAG;
	f->tags = tags;
	/* It was longer before, but the verifier asks. */
	return f->data + ETH_HLEN + MAX_TAGS * TAG <= f->end && f->l3 + f->headers <= f->end;
}

/* All that the last interface adds; there is room for it. */
static __always_inline void write_link(const struct fast_frame *f, const struct fast_hop *hop)
{
	*(__u64 *)f->data = *(const __u64 *)hop->macs;
	*(__u32 *)(f->data + 8) = *(const __u32 *)(hop->macs + 8);
	if (f->tags) {
		*(__u32 *)(f->data + ETHERTYPE) = *(const __u32 *)&hop->outer_proto;
		if (f->tags == 2)
			*(__u32 *)(f->data + ETHERTYPE + TAG) = *(const __u32 *)&hop->inner_proto;
	}
}

/* The Internet checksum of what it covers, one's complement diff later (RFC 1624). */
static __always_inline __be16 changed_sum(__be16 check, __u16 diff)
{
	__u32 sum = (__u16)~check + diff;

	return ~(sum + (sum >> 16)); /* one carry is all that two summands make */
}

static __always_inline void write_transport(const struct fast_frame *f, void *l4,
					    const struct fast_fate *fate)
{
	struct tcphdr *t = l4;
	struct udphdr *u = l4;

	*(__u32 *)l4 = fate->new_ports;
	if (f->tcp) {
		if ((void *)(t + 1) > f->end)
			return; /* never, but Linux 6.1's verifier asks */
		t->check = changed_sum(t->check, fate->l4_diff);
	} else if (u->check) { /* zero means none (RFC 768) and stays so */
		__be16 check = changed_sum(u->check, fate->l4_diff);

		u->check = check ? check : 0xffff;
	}
}

static __always_inline void write_ipv4(const struct fast_frame *f, const struct fast4 *e)
{
	struct iphdr *ip = f->l3;

	ip->ttl = f->ttl - 1;
	ip->check = changed_sum(ip->check, e->fate.l3_diff);
	*(__u64 *)&ip->saddr = e->new_addrs;
	write_transport(f, ip + 1, &e->fate);
}

static __always_inline void write_ipv6(const struct fast_frame *f, const struct fast6 *e)
{
	struct ipv6hdr *ip = f->l3;
	const __u64 *from = (const void *)&e->new_src;
	__u64 *to = (void *)&ip->saddr;

	ip->hop_limit = f->ttl - 1;
	for (int i = 0; i < 4; i++)
		to[i] = from[i];
	write_transport(f, ip + 1, &e->fate);
}
