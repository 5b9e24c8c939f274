/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How the stack routed a packet, as far as its skb tells at tc egress. */
#pragma once

#include <linux/rtnetlink.h>
#include <bpf/bpf_core_read.h>

#include "conntrack.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ipv6_devconf {
	__s32 mtu6;
};

struct inet6_dev {
	struct ipv6_devconf cnf;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
	unsigned int mtu;
	struct inet6_dev *ip6_ptr;
};

struct dst_entry {
	struct net_device *dev;
	unsigned long _metrics;
};

struct rtable {
	struct dst_entry dst;
	__u32 rt_mtu_locked : 1, rt_pmtu : 31;
};

#pragma clang attribute pop

#define SKB_DST_PTRMASK (~1UL)
#define DST_METRICS_PTRMASK (~3UL)

/* NULL: it was not routed. */
static __always_inline struct dst_entry *route_of(struct __sk_buff *skb)
{
	return (struct dst_entry *)(READ_SKB(skb, _skb_refdst) & SKB_DST_PTRMASK);
}

/* The interface that it leaves by, above VLANs, bridges and the like; 0: none. */
static __always_inline __u32 route_interface(struct dst_entry *dst)
{
	return dst ? BPF_CORE_READ(dst, dev, ifindex) : 0;
}

/* What the interface and whoever has narrowed the way let through. */
static __always_inline __u32 route_mtu(struct dst_entry *dst, bool ipv6)
{
	__u32 *metrics = (__u32 *)(BPF_CORE_READ(dst, _metrics) & DST_METRICS_PTRMASK);
	__u32 mtu = BPF_CORE_READ(dst, dev, mtu), other = 0;

	if (metrics && !bpf_probe_read_kernel(&other, sizeof(other), &metrics[RTAX_MTU - 1]) && other &&
	    other < mtu)
		mtu = other;
	if (ipv6)
		other = BPF_CORE_READ(dst, dev, ip6_ptr, cnf.mtu6);
	else
		other = BPF_CORE_READ_BITFIELD_PROBED((struct rtable *)dst, rt_pmtu);
	return other && other < mtu ? other : mtu;
}

/* Did it come out of IPsec? Then somebody may have sent the same without. */
static __always_inline bool was_decrypted(struct __sk_buff *skb)
{
	return HAS_EXTENSION(skb, SKB_EXT_SEC_PATH);
}
