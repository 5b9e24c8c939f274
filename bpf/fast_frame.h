/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frames as XDP has them: what the fast path reads of one, and how one becomes
 * that of another link. Every function that reads says FAST_FORWARDED, or why the
 * packet is none for the fast path.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "fast_types.h"
#include "parse.h"

#define TCP_FIN 0x01
#define VLAN_ID 0xfff

/* The header of a tag, as it begins after the MAC addresses or the tag before. */
struct fast_tag {
	__be16 proto;
	__be16 tci;
};

/* A frame, and who asks. */
struct fast_frame {
	void *data; /* direct access: good until the head is moved */
	void *l3;
	void *end;
	__be16 proto; /* behind the tags */
	__u32 len; /* octets of the IP packet */
	__u32 headers; /* octets of its headers that may change */
	__u32 tags;
	__u32 device; /* number of the one it came by */
	__u32 out; /* and of the one it leaves by */
	__u32 place;
	__u32 ports;
	__u32 ack; /* TCP's, host order */
	__u8 tcp_flags;
	__u8 ttl;
	__u8 tos;
	bool tcp;
	__u32 generation; /* the one that it came in */
	__u32 tick;
	__u64 secret;
	__u64 digest;
};

/* 0: it has no VLAN ID, and is somebody's whom this kernel knows better. */
static __always_inline __u32 tag_id(const struct fast_tag *tag)
{
	return bpf_ntohs(tag->tci) & VLAN_ID;
}

/* The tags stand in the frame: a device that strips them is not on the fast path. */
static __always_inline enum fast_exit read_tags(struct fast_frame *f)
{
	struct ethhdr *eth = f->data;
	struct fast_tag *tag = (void *)&eth->h_proto;

	f->proto = eth->h_proto;
	f->l3 = eth + 1;
	if (f->proto != bpf_htons(ETH_P_8021Q) && f->proto != bpf_htons(ETH_P_8021AD))
		return FAST_FORWARDED;
	if (f->l3 + sizeof(*tag) > f->end || !tag_id(tag))
		return FAST_NOT_IP;
	f->tags = 1;
	f->place |= tag_id(tag) << 12 | (f->proto == bpf_htons(ETH_P_8021AD) ? FAST_8021AD : 0);
	f->proto = tag[1].proto;
	f->l3 += sizeof(*tag);
	if (f->proto != bpf_htons(ETH_P_8021Q))
		return FAST_FORWARDED;
	tag++;
	if (f->l3 + sizeof(*tag) > f->end || !tag_id(tag))
		return FAST_NOT_IP;
	f->tags = 2;
	f->place |= tag_id(tag);
	f->proto = tag[1].proto;
	f->l3 += sizeof(*tag);
	return FAST_FORWARDED;
}

/* Also of a frame in several buffers, of which the first one is seen. */
static __always_inline bool is_whole(struct xdp_md *ctx, const struct fast_frame *f)
{
	return f->len <= f->end - f->l3 || f->len <= bpf_xdp_get_buff_len(ctx) - (f->l3 - f->data);
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

	f->tcp = proto == IPPROTO_TCP;
	if (!is_whole(ctx, f))
		return FAST_NOT_IP;
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

static __always_inline enum fast_exit read_ipv4(struct xdp_md *ctx, struct fast_frame *f)
{
	struct iphdr *ip = f->l3;

	if ((void *)(ip + 1) > f->end || ip->version != 4)
		return FAST_NOT_IP;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return FAST_PROTOCOL;
	if (ip->ihl != 5)
		return FAST_OPTIONS;
	if (ip->frag_off & bpf_htons(IP_MORE | IP_OFFSET))
		return FAST_FRAGMENT;
	if (ip->ttl <= 1)
		return FAST_TTL;
	f->len = bpf_ntohs(ip->tot_len);
	f->ttl = ip->ttl;
	f->tos = ip->tos;
	return read_transport(ctx, f, ip->protocol, sizeof(*ip));
}

static __always_inline enum fast_exit read_ipv6(struct xdp_md *ctx, struct fast_frame *f)
{
	struct ipv6hdr *ip = f->l3;

	if ((void *)(ip + 1) > f->end || ip->version != 6)
		return FAST_NOT_IP;
	if (ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP)
		return FAST_PROTOCOL;
	if (ip->hop_limit <= 1)
		return FAST_TTL;
	f->len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	f->ttl = ip->hop_limit;
	f->tos = bpf_ntohs(*(__be16 *)ip) >> 4;
	return read_transport(ctx, f, ip->nexthdr, sizeof(*ip));
}

/* Makes room for as many tags as there will be, or takes it away. */
static __always_inline enum fast_exit move_head(struct xdp_md *ctx, struct fast_frame *f, __u32 tags)
{
	__be16 proto = f->proto;

	if (tags == f->tags)
		return FAST_FORWARDED;
	if (tags > MAX_TAGS ||
	    bpf_xdp_adjust_head(ctx, ((int)f->tags - (int)tags) * (int)sizeof(struct fast_tag)))
		return FAST_NO_ROOM;
	f->data = (void *)(long)ctx->data;
	f->end = (void *)(long)ctx->data_end;
	f->l3 = f->data + ETH_HLEN + tags * sizeof(struct fast_tag);
	f->tags = tags;
	if (f->data + ETH_HLEN + MAX_TAGS * sizeof(struct fast_tag) > f->end || f->l3 + f->headers > f->end)
		return FAST_NOT_IP; /* never, but the verifier asks */
	*(__be16 *)(f->l3 - sizeof(proto)) = proto;
	return FAST_FORWARDED;
}

/* All that the last interface adds; there is room for it. */
static __always_inline void write_link(const struct fast_frame *f, const struct fast_hop *hop)
{
	*(__u64 *)f->data = *(const __u64 *)hop->macs;
	*(__u32 *)(f->data + 8) = *(const __u32 *)(hop->macs + 8);
	if (f->tags)
		*(__u32 *)(f->data + 12) = *(const __u32 *)&hop->outer_proto;
	if (f->tags == 2)
		*(__u32 *)(f->data + 16) = *(const __u32 *)&hop->inner_proto;
}

/* The Internet checksum of what it covers, one's complement diff later (RFC 1624). */
static __always_inline __be16 changed_sum(__be16 check, __u16 diff)
{
	__u32 sum = (__u32)(__u16)~check + diff;

	return ~((sum & 0xffff) + (sum >> 16)); /* once is enough for two of 16 bits */
}

static __always_inline void write_transport(void *l4, const struct fast_fate *fate, bool tcp)
{
	struct tcphdr *t = l4;
	struct udphdr *u = l4;

	*(__u32 *)l4 = fate->new_ports;
	if (tcp) {
		t->check = changed_sum(t->check, fate->l4_diff);
	} else if (u->check) { /* zero means none (RFC 768) and stays so */
		u->check = changed_sum(u->check, fate->l4_diff);
		if (!u->check)
			u->check = 0xffff;
	}
}

static __always_inline void write_ipv4(const struct fast_frame *f, const struct fast4 *e)
{
	struct iphdr *ip = f->l3;

	ip->ttl--;
	ip->check = changed_sum(ip->check, e->fate.l3_diff);
	*(__u64 *)&ip->saddr = e->new_addrs;
	write_transport(ip + 1, &e->fate, f->tcp);
}

static __always_inline void write_ipv6(const struct fast_frame *f, const struct fast6 *e)
{
	struct ipv6hdr *ip = f->l3;
	const __u64 *from = (const void *)&e->new_src;
	__u64 *to = (void *)&ip->saddr;

	ip->hop_limit--;
	for (int i = 0; i < 4; i++)
		to[i] = from[i];
	write_transport(ip + 1, &e->fate, f->tcp);
}
