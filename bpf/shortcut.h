/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The short way of most packets. Under load a look-up in by_local or by_public
 * is a walk over three or four cache lines that are not in the cache; here it is
 * one, of eight flows. What is remembered is that a TCP or UDP packet with just
 * these addresses and ports belongs to a mapping that keeps its port and has the
 * address that its pin hands out: then the pin's number says the rest.
 *
 * A digest of 64 bits with a secret in it stands for addresses, ports, direction
 * and the epoch. 15 bits choose the place, 48 must be equal: that a packet is
 * taken for another one's is as likely as 1 in 2^47 for each flow and second.
 * What user space changes in mappings or pins takes effect with the next epoch,
 * and every flow takes the long way at least once in 1024 ticks of the kernel's
 * clock (1 to 10 s), which keeps last_out_ns and last_in_ns near the truth.
 */
#pragma once

#include "account.h"
#include "flow.h"
#include "mix.h"
#include "rewrite.h"

#define PIN_BITS 16
#define PIN_MASK ((1ULL << PIN_BITS) - 1)
#define CHECKSUM_COMPLETE 2 /* include/linux/skbuff.h */
#define CHECKSUM_PARTIAL 3
#define EPOCH_TICKS 10 /* as a power of two */

const volatile __u64 secret; /* loader: at random */

/* A packet that may take the short way, as it stands in the frame. */
struct brief {
	__u64 digest;
	__u64 epoch;
	__u32 l3_off;
	bool ipv6;
	bool udp;
	void *l3; /* direct access to the packet: good until a helper changes it */
	__be16 *check;
};

static __always_inline __u64 read_epoch(void)
{
	__u32 zero = 0;
	__u64 *now = bpf_map_lookup_elem(&epoch, &zero);

	return now ? *now : 0;
}

/* Mixes the ports in. False: the transport header is not whole in the part of the
 * packet that is at hand, has no checksum, or begins a connection.
 */
static __always_inline bool brief_transport(void *l4, void *end, __u8 proto, struct brief *b)
{
	struct udphdr *udp = l4;
	struct tcphdr *tcp = l4;

	b->udp = proto == IPPROTO_UDP;
	if (b->udp) {
		if ((void *)(udp + 1) > end || !udp->check)
			return false;
		b->check = (__be16 *)&udp->check;
	} else {
		if (proto != IPPROTO_TCP || (void *)(tcp + 1) > end || tcp->syn)
			return false;
		b->check = (__be16 *)&tcp->check;
	}
	b->digest = mix(mix(b->digest, (__u64) * (__be32 *)l4 << 32 | b->udp), 0);
	return true;
}

static __always_inline bool brief_of(struct __sk_buff *skb, const struct iface *iface, bool out,
				     struct brief *b)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	/* What the router makes itself needs a look at conntrack. */
	if (skb->vlan_present || (out && !skb->ingress_ifindex))
		return false;
	b->epoch = read_epoch();
	b->digest = mix(secret, b->epoch + (bpf_jiffies64() >> EPOCH_TICKS));
	b->digest = mix(b->digest, (__u64)iface->slot << 1 | out);
	b->l3_off = iface->has_l2 ? ETH_HLEN : 0;
	b->l3 = data + b->l3_off;
	ip = b->l3;
	ip6 = b->l3;
	b->ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	if (b->ipv6) {
		if ((void *)(ip6 + 1) > end)
			return false;
		b->digest = mix(b->digest, *(__u64 *)&ip6->saddr.in6_u.u6_addr32[0]);
		b->digest = mix(b->digest, *(__u64 *)&ip6->saddr.in6_u.u6_addr32[2]);
		b->digest = mix(b->digest, *(__u64 *)&ip6->daddr.in6_u.u6_addr32[0]);
		b->digest = mix(b->digest, *(__u64 *)&ip6->daddr.in6_u.u6_addr32[2]);
		return brief_transport(ip6 + 1, end, ip6->nexthdr, b);
	}
	if (skb->protocol != bpf_htons(ETH_P_IP) || (void *)(ip + 1) > end || *(__u8 *)ip != 0x45 ||
	    ip->frag_off & bpf_htons(IP_MORE | IP_OFFSET))
		return false;
	b->digest = mix(b->digest, (__u64)ip->saddr << 32 | ip->daddr);
	return brief_transport(ip + 1, end, ip->protocol, b);
}

static __always_inline struct shortcut *shortcut_at(__u64 digest)
{
	__u32 index = digest & (SHORTCUTS - 1);

	return bpf_map_lookup_elem(&shortcuts, &index);
}

/* The transport checksum after a change of addresses: of what is to be sent
 * partly summed (CHECKSUM_PARTIAL) it is the sum of the pseudo-header.
 */
static __always_inline __be16 brief_checksum(__be16 check, __u32 diff, int state, bool udp)
{
	if (state == CHECKSUM_PARTIAL)
		return ~checksum_plus(~check, diff);
	check = checksum_plus(check, diff);
	return check || !udp ? check : 0xffff;
}

/* Without a helper: a call of one costs as much as all of this. */
static __always_inline void write_brief(const struct brief *b, bool out, const struct addr *to, int state)
{
	struct ipv6hdr *ip6 = b->l3;
	struct iphdr *ip = b->l3;
	__be32 *ours;
	__u32 diff;

	if (b->ipv6) {
		ours = out ? ip6->saddr.in6_u.u6_addr32 : ip6->daddr.in6_u.u6_addr32;
		diff = addr_diff((const struct addr *)ours, to);
		for (int i = 0; i < 4; i++)
			ours[i] = to->word[i];
	} else {
		ours = out ? &ip->saddr : &ip->daddr;
		diff = fold64((__u64)(__u32) ~*ours + to->word[3]);
		*ours = to->word[3];
		ip->check = checksum_plus(ip->check, diff);
	}
	*b->check = brief_checksum(*b->check, diff, state, b->udp);
}

/* With helpers, which know what this kernel does not show. */
static __always_inline int rewrite_brief(struct __sk_buff *skb, const struct brief *b, bool out,
					 const struct addr *to)
{
	__u64 flags = BPF_F_PSEUDO_HDR | (b->udp ? BPF_F_MARK_MANGLED_0 : 0);
	__u32 check = b->udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check);
	struct ipv6hdr *ip6 = b->l3;
	struct iphdr *ip = b->l3;
	struct addr from;

	if (!b->ipv6)
		return replace_ipv4(skb, b->l3_off, b->l3_off + sizeof(*ip) + check, flags, ip->check,
				    ip->saddr, ip->daddr, out ? SOURCE : DESTINATION, to->word[3]);
	__builtin_memcpy(&from, out ? &ip6->saddr : &ip6->daddr, sizeof(from));
	return replace_ipv6(skb, b->l3_off, b->l3_off + sizeof(*ip6) + check, flags,
			    out ? SOURCE : DESTINATION, &from, to);
}

static __always_inline const struct addr *pin_address(const struct pin *pin, bool ipv6, bool out)
{
	if (out)
		return ipv6 ? &pin->vip6 : &pin->vip4;
	return ipv6 ? &pin->unique6 : &pin->unique4;
}

/* untouched(): the packet has to take the long way. If its flow may take the
 * short one the next time, *digest is not 0.
 */
static __always_inline verdict take_shortcut(struct __sk_buff *skb, const struct iface *iface, bool out,
					     __u64 *digest)
{
	const struct addr *to;
	struct shortcut *s;
	struct brief brief, *b = &brief;
	struct pin *p;
	int state;
	__u64 way;
	__u32 pin;

	*digest = 0;
	if (!iface->slot || !brief_of(skb, iface, out, b))
		return untouched();
	*digest = b->digest;
	s = shortcut_at(b->digest);
	if (!s)
		return untouched();
	way = s->way[0];
	if ((way ^ b->digest) > PIN_MASK)
		way = s->way[1];
	if ((way ^ b->digest) > PIN_MASK)
		return untouched();
	pin = way & PIN_MASK;
	p = bpf_map_lookup_elem(&pins, &pin);
	if (!p)
		return untouched();
	to = pin_address(p, b->ipv6, out);
	if (addr_is_zero(to) || read_epoch() != b->epoch)
		return untouched();
	state = checksum_state(skb);
	if (state >= 0 && state != CHECKSUM_COMPLETE)
		write_brief(b, out, to, state);
	else if (rewrite_brief(skb, b, out, to))
		return judged(pin, PIN_ERROR);
	if (out)
		count_role(pin);
	return judged(pin, out ? PIN_PINNED : PIN_RETURNED);
}

/* The packet has taken the long way: may its flow take the short one? */
static __always_inline void remember_shortcut(struct __sk_buff *skb, const struct packet *pkt, __u64 digest,
					      bool out, __u32 pin)
{
	struct pin *p = bpf_map_lookup_elem(&pins, &pin);
	struct shortcut *s = shortcut_at(digest);
	struct addr now = {};
	__be16 ports[2];
	__u32 way;

	if (!p || !s || bpf_skb_load_bytes(skb, pkt->l4_off, ports, sizeof(ports)) ||
	    ports[0] != pkt->sport || ports[1] != pkt->dport)
		return;
	if (load_addr(skb, pkt->l3_off, pkt->ipv6, out ? SOURCE : DESTINATION, &now) ||
	    !addr_equal(&now, pin_address(p, pkt->ipv6, out)))
		return;
	way = !s->way[0] ? 0 : !s->way[1] ? 1 : bpf_get_prandom_u32();
	s->way[way % SHORTCUT_WAYS] = (digest & ~PIN_MASK) | pin;
}
