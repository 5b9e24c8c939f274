/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* VRRP adverts: recognise, judge (RFC 9568 section 7.1, RFC 3768 for version
 * 2), tag, tell user space, renew the role's lease. Never drop: dropping one
 * can make two masters.
 */
#pragma once

#include "account.h"
#include "parse.h"
#include "role.h"

#define VRRP_HEADER 8
#define VRRP_TYPE_ADVERT 1
#define VRRP_GROUP 0xe0000012 /* 224.0.0.18 */
#define VRRP_AUTH_AH 2
#define VRRP_AUTH_DATA 8 /* octets behind the addresses, version 2 */
#define CSUM_CHUNK 512 /* the most that bpf_csum_diff takes at once */
#define LEASE_VIPS 16 /* addresses of an advert looked at to find its group */

/* The first eight octets, as both versions have them. */
struct vrrp_header {
	__u8 version_type;
	__u8 vrid;
	__u8 priority;
	__u8 count;
	__u8 auth_type; /* version 3: with interval, the 12 bit interval in 10 ms */
	__u8 interval; /* version 2: seconds */
	__be16 checksum;
};

static __always_inline __u16 csum_fold(__s64 sum)
{
	__u64 s = (__u32)sum;

	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return s;
}

/* True when the packet is VRRP; steps over an authentication header. */
static __always_inline bool find_vrrp(struct __sk_buff *skb, struct packet *pkt, bool *ah)
{
	__u8 head[2];
	__u32 size;

	*ah = false;
	if (pkt->proto == IPPROTO_VRRP)
		return true;
	if (pkt->proto != IPPROTO_AH || pkt->fragment ||
	    bpf_skb_load_bytes(skb, pkt->l4_off, head, sizeof(head)) || head[0] != IPPROTO_VRRP)
		return false;
	size = (head[1] + 2) * 4;
	pkt->l4_off += size;
	pkt->l4_len = pkt->l4_len > size ? pkt->l4_len - size : 0;
	*ah = true;
	return true;
}

static __always_inline bool is_multicast(const struct packet *pkt)
{
	if (pkt->ipv6)
		return (pkt->dst.word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
	return (pkt->dst.word[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
}

/* The payload's sum plus the pseudo-header's, with this destination. */
static __always_inline bool sums_up(const struct packet *pkt, __u32 len, __u16 payload,
				    const struct addr *dst)
{
	struct {
		struct addr src;
		struct addr dst;
		__be32 len;
		__be32 proto;
	} pseudo = {.len = bpf_htonl(len), .proto = bpf_htonl(IPPROTO_VRRP)};

	if (pkt->ipv6) {
		pseudo.src = pkt->src;
		pseudo.dst = *dst;
	} else {
		pseudo.src.word[0] = pkt->src.word[3];
		pseudo.dst.word[0] = dst->word[3];
	}
	return csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), payload)) == 0xffff;
}

/* Version 2 sums the message alone, version 3 over IPv6 the pseudo-header too.
 * Over IPv4 RFC 9568 leaves the pseudo-header out and keepalived by default
 * puts it in, in its old unicast way with the group's address as destination:
 * any of them will do. The payload is zero behind its end.
 */
static __always_inline bool checksum_good(const struct packet *pkt, struct advert_scratch *s, __u32 len,
					  bool version2)
{
	struct addr group = addr_from_v4(bpf_htonl(VRRP_GROUP));
	__s64 sum = 0;

	for (int i = 0; i < ADVERT_MAX / CSUM_CHUNK; i++)
		sum = bpf_csum_diff(NULL, 0, (__be32 *)(s->payload + i * CSUM_CHUNK), CSUM_CHUNK,
				    csum_fold(sum));
	if (!pkt->ipv6 && csum_fold(sum) == 0xffff)
		return true;
	if (version2)
		return false;
	return sums_up(pkt, len, csum_fold(sum), &pkt->dst) ||
	       (!pkt->ipv6 && sums_up(pkt, len, csum_fold(sum), &group));
}

/* Judges the advert whose first len octets lie in the scratch. */
static __always_inline enum advert_reason judge_advert(const struct packet *pkt, struct advert_scratch *s,
						       __u32 len, bool ah)
{
	struct vrrp_header *h = (struct vrrp_header *)s->payload;
	__u8 version = h->version_type >> 4;
	__u32 need = VRRP_HEADER + h->count * (pkt->ipv6 ? 16 : 4);

	if (pkt->fragment)
		return ADVERT_FRAGMENT;
	if (len < VRRP_HEADER)
		return ADVERT_SHORT;
	if (version != 3 && (version != 2 || pkt->ipv6))
		return ADVERT_VERSION;
	if ((h->version_type & 0xf) != VRRP_TYPE_ADVERT)
		return ADVERT_TYPE;
	if (pkt->ttl != 255 && is_multicast(pkt))
		return ADVERT_TTL;
	if (version == 2) {
		if (h->auth_type > VRRP_AUTH_AH || (h->auth_type == VRRP_AUTH_AH) != ah)
			return ADVERT_AUTH;
		need += VRRP_AUTH_DATA; /* also without a password (RFC 3768 section 5.1) */
	} else if (ah) {
		return ADVERT_AUTH;
	}
	if (!h->vrid || !h->count || len < need || len < pkt->l4_len)
		return ADVERT_SHORT;
	if (!checksum_good(pkt, s, len, version == 2))
		return ADVERT_CHECKSUM;
	return ADVERT_VALID;
}

/* Whose advert is it: by VRID where the configuration names one, else by the
 * addresses it announces. 0 when it is nobody's.
 */
static __always_inline __u32 advert_group(__u32 ifindex, __u32 slot, bool ipv6, struct advert_scratch *s)
{
	struct vrrp_header *h = (struct vrrp_header *)s->payload;
	struct vrid_key key = {ifindex, h->vrid};
	__u32 *group = bpf_map_lookup_elem(&vrids, &key);

	if (group)
		return *group;
	for (int i = 0; i < LEASE_VIPS; i++) {
		__u8 *announced = s->payload + VRRP_HEADER + i * (ipv6 ? 16 : 4);
		struct slot_addr who = {.slot = slot};
		struct vip *vip;
		struct pin *pin;

		if (i >= h->count)
			break;
		if (ipv6)
			__builtin_memcpy(&who.addr, announced, sizeof(who.addr));
		else
			who.addr = addr_from_v4(*(__be32 *)announced);
		vip = bpf_map_lookup_elem(&vips, &who);
		if (!vip)
			continue;
		pin = bpf_map_lookup_elem(&pins, &vip->pin);
		if (pin)
			return pin->group;
	}
	return 0;
}

/* An advert of our own leaves: the lease of its group is renewed, or ended
 * when it resigns (priority 0).
 */
static __always_inline void renew_lease(__u32 ifindex, __u32 slot, bool ipv6, struct advert_scratch *s)
{
	struct vrrp_header *h = (struct vrrp_header *)s->payload;
	__u32 group = advert_group(ifindex, slot, ipv6, s);
	struct own_advert *own = bpf_map_lookup_elem(&own_adverts, &group);

	if (!group || !own)
		return;
	if (!h->priority)
		own->first_ns = 0;
	else if (!advertises(own))
		own->first_ns = bpf_ktime_get_ns();
	if (h->version_type >> 4 == 2)
		own->interval_ns = h->interval * 1000000000ULL;
	else
		own->interval_ns = ((h->auth_type & 0xf) << 8 | h->interval) * 10000000ULL;
	own->last_ns = h->priority ? bpf_ktime_get_coarse_ns() : 0;
}

static __always_inline void tag_advert(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	if (!set)
		return;
	skb->mark = (skb->mark & ~set->tag_mask) | (set->tag_mark & set->tag_mask);
	if (set->tag_priority)
		skb->priority = set->tag_priority;
}

static __always_inline void report_advert(struct __sk_buff *skb, const struct packet *pkt,
					  struct advert_scratch *s, __u32 len, bool has_l2)
{
	struct advert *a = &s->head;

	a->time_ns = bpf_ktime_get_ns();
	a->ifindex = skb->ifindex;
	a->vlan_outer = pkt->vlan_outer;
	a->vlan_inner = pkt->vlan_inner;
	a->src = pkt->src;
	a->dst = pkt->dst;
	a->ttl = pkt->ttl;
	a->len = len;
	if (!has_l2 || bpf_skb_load_bytes(skb, ETH_ALEN, a->src_mac, ETH_ALEN))
		__builtin_memset(a->src_mac, 0, sizeof(a->src_mac));
	if (len > ADVERT_MAX)
		return;
	if (bpf_ringbuf_output(&adverts, s, sizeof(*a) + len, 0))
		count_vrrp(VRRP_RING_FULL); /* user space missed it; the lease is renewed all the same */
}

/* A VRRP packet on its way in or out. */
static __noinline int observe_advert(struct __sk_buff *skb, struct packet *pkt, struct iface *iface, bool out)
{
	__u32 zero = 0, len;
	struct advert_scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	enum advert_reason reason;
	bool ah;

	if (!s || !find_vrrp(skb, pkt, &ah))
		return 0;
	len = pkt->l4_len;
	if (len > ADVERT_MAX)
		len = ADVERT_MAX;
	for (__u32 i = 0; i < ADVERT_MAX / 8; i++)
		((volatile __u64 *)s->payload)[i] = 0; /* volatile: there is no memset here */
	/* The mask changes nothing; it shows the verifier that 0 < size <= ADVERT_MAX. */
	if (!len || bpf_skb_load_bytes(skb, pkt->l4_off, s->payload, ((len - 1) & (ADVERT_MAX - 1)) + 1))
		len = 0; /* shorter than its IP header says */
	reason = judge_advert(pkt, s, len, ah);
	count_vrrp(VRRP_INVALID + reason);
	s->head.out = out;
	s->head.ah = ah;
	s->head.reason = reason;
	report_advert(skb, pkt, s, len, iface->has_l2);
	if (reason != ADVERT_VALID)
		return 0; /* counted, told, not tagged, passed */
	tag_advert(skb);
	/* A tagged frame on the trunk was judged on its VLAN's own interface. */
	if (out && !pkt->vlan_outer)
		renew_lease(skb->ifindex, iface->slot, pkt->ipv6, s);
	return 0;
}

static __always_inline bool maybe_vrrp(const struct packet *pkt)
{
	return pkt->proto == IPPROTO_VRRP || pkt->proto == IPPROTO_AH;
}
