/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What conntrack knows of a packet: read from the entry that the skb carries,
 * for every protocol and without a look-up. Structures name only what is read;
 * CO-RE finds the offsets of the running kernel.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"
#include "tuple.h"

#define CTINFO_MASK 7UL
#define CTINFO_IS_REPLY 3 /* from here on the packet goes against the flow's first one */
#define TUPLE_ORIGINAL 0
#define TUPLE_REPLY 1

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff {
	unsigned long _nfct;
	unsigned long _skb_refdst;
	__u8 active_extensions;
	__u8 ip_summed : 2;
};

union nf_inet_addr {
	__u32 all[4];
	__be32 ip;
};

union nf_conntrack_man_proto {
	__be16 all;
};

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
};

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__be16 all;
		} u;
		__u8 protonum;
	} dst;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct nf_ct_ext {
	__u8 offset[1];
};

struct nf_conn_nat {
	int masq_index;
};

struct nf_conntrack_zone {
	__u16 id;
};

struct ip_ct_tcp_state {
	__u32 td_maxack;
	__u8 flags;
};

struct ip_ct_tcp {
	struct ip_ct_tcp_state seen[2];
	__u8 state;
};

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
};

struct nf_conn {
	__u32 timeout;
	struct nf_conntrack_zone zone;
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	struct nf_ct_ext *ext;
	union nf_conntrack_proto proto;
};

#pragma clang attribute pop

enum nf_ct_ext_id {
	NF_CT_EXT_NAT = 1,
};

enum skb_ext_id {
	SKB_EXT_BRIDGE_NF,
	SKB_EXT_SEC_PATH,
};

struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
				  struct bpf_ct_opts *opts, __u32 opts_size) __ksym __weak;
void bpf_ct_release(struct nf_conn *ct) __ksym __weak;
void *bpf_cast_to_kern_ctx(void *obj) __ksym __weak; /* from Linux 6.2, and costs nothing */

static __always_inline struct addr addr_from_conntrack(const union nf_inet_addr *a, bool ipv6)
{
	if (ipv6)
		return (struct addr){{a->all[0], a->all[1], a->all[2], a->all[3]}};
	return addr_from_v4(a->all[0]);
}

/* The interface that masquerade took the address from; 0: it was another kind
 * of source NAT. -1: this kernel does not tell.
 */
static __always_inline int masqueraded_on(struct nf_conn *entry)
{
	struct nf_ct_ext *ext;
	__u8 offset = 0;
	int ifindex = 0;

	if (!bpf_core_field_exists(((struct nf_conn_nat *)0)->masq_index) ||
	    !bpf_core_enum_value_exists(enum nf_ct_ext_id, NF_CT_EXT_NAT))
		return -1;
	ext = BPF_CORE_READ(entry, ext);
	if (!ext)
		return 0;
	bpf_probe_read_kernel(&offset, sizeof(offset),
			      (void *)ext + bpf_core_field_offset(struct nf_ct_ext, offset) +
				      bpf_core_enum_value(enum nf_ct_ext_id, NF_CT_EXT_NAT));
	if (!offset)
		return 0;
	bpf_probe_read_kernel(&ifindex, sizeof(ifindex),
			      (void *)ext + offset + bpf_core_field_offset(struct nf_conn_nat, masq_index));
	return ifindex;
}

/* The context of a tc program is the sk_buff itself. */
#define READ_SKB(skb, field)                                                                                 \
	({                                                                                                   \
		typeof(((struct sk_buff *)0)->field) value = 0;                                              \
                                                                                                             \
		if (bpf_cast_to_kern_ctx)                                                                    \
			value = ((struct sk_buff *)bpf_cast_to_kern_ctx(skb))->field;                        \
		else                                                                                         \
			bpf_probe_read_kernel(&value, sizeof(value),                                         \
					      (void *)(skb) + bpf_core_field_offset(struct sk_buff, field)); \
		value;                                                                                       \
	})

#define HAS_EXTENSION(skb, id)                                                                               \
	(bpf_core_enum_value_exists(enum skb_ext_id, id) &&                                                  \
	 bpf_core_field_exists(struct sk_buff, active_extensions) &&                                         \
	 READ_SKB(skb, active_extensions) >> bpf_core_enum_value(enum skb_ext_id, id) & 1)

/* Has netfilter seen the frame on a port of a bridge (br_netfilter)? */
static __always_inline bool seen_on_port(struct __sk_buff *skb)
{
	return HAS_EXTENSION(skb, SKB_EXT_BRIDGE_NF);
}

static __always_inline unsigned long read_nfct(struct __sk_buff *skb)
{
	return READ_SKB(skb, _nfct);
}

/* Copies a whole entry: one call for all that is read of it. NULL: there is no room. */
static __always_inline struct nf_conn *copy_conntrack(unsigned long nfct, void *room, __u32 size)
{
	__u32 need = bpf_core_type_size(struct nf_conn);

	if (need > size || bpf_probe_read_kernel(room, need, (void *)(nfct & ~CTINFO_MASK)))
		return NULL;
	return room;
}

/* False: the packet carries no conntrack entry (untracked, or none at all). */
static __always_inline bool read_conntrack(struct __sk_buff *skb, const struct packet *pkt,
					   struct conntrack *ct)
{
	unsigned long nfct = read_nfct(skb);
	union nf_inet_addr a = {};
	struct nf_conn *entry;

	entry = (struct nf_conn *)(nfct & ~CTINFO_MASK);
	if (!entry)
		return false;
	ct->id = (__u64)entry;
	ct->fresh = false; /* the id tells one entry from the next */
	ct->reply = (nfct & CTINFO_MASK) >= CTINFO_IS_REPLY;
	ct->status = BPF_CORE_READ(entry, status);
	ct->masqueraded = masqueraded_on(entry);
	if (BPF_CORE_READ_INTO(&a, entry, tuplehash[TUPLE_ORIGINAL].tuple.src.u3))
		return false;
	ct->client = addr_from_conntrack(&a, pkt->ipv6);
	if (BPF_CORE_READ_INTO(&a, entry, tuplehash[TUPLE_REPLY].tuple.dst.u3))
		return false;
	ct->translated = addr_from_conntrack(&a, pkt->ipv6);
	return true;
}

/* Does the packet go the way of its flow's first one? */
static __always_inline bool is_original(struct __sk_buff *skb)
{
	unsigned long nfct = read_nfct(skb);

	return nfct & ~CTINFO_MASK && (nfct & CTINFO_MASK) < CTINFO_IS_REPLY;
}

/* skb->ip_summed; -1: this kernel does not show it. */
static __always_inline int checksum_state(struct __sk_buff *skb)
{
	struct sk_buff *kernel;

	if (!bpf_cast_to_kern_ctx)
		return -1;
	kernel = bpf_cast_to_kern_ctx(skb);
	return BPF_CORE_READ_BITFIELD(kernel, ip_summed);
}

static __always_inline void forget_conntrack(struct __sk_buff *skb)
{
}

/* Protocols that conntrack_holds has an answer for. */
static __always_inline bool conntrack_can_tell(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

/* Does conntrack already hold a flow that a packet from remote to this public
 * end would belong to: a service of the router, the user's own SNAT to the VIP?
 * The kernel answers for TCP and UDP only.
 */
static __always_inline bool conntrack_holds(struct __sk_buff *skb, bool ipv6, const struct flow_key *key,
					    struct conntrack_question *q)
{
	struct bpf_sock_tuple *tuple = &q->tuple;
	struct nf_conn *found;

	if (!conntrack_can_tell(key->proto))
		return false;
	q->opts = (struct bpf_ct_opts){.netns_id = CURRENT_NETNS, .l4proto = key->proto};
	fill_tuple(key, ipv6, tuple);
	found = bpf_skb_ct_lookup(skb, tuple, ipv6 ? sizeof(tuple->ipv6) : sizeof(tuple->ipv4), &q->opts,
				  sizeof(q->opts));
	if (!found)
		return false;
	bpf_ct_release(found);
	return true;
}
