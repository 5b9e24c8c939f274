// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* The fast path, an object of its own: where it cannot be loaded, or is switched
 * off, the rest works as ever. For kernels with BTF.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "maps.h"

#include "fast_refused.h"
#include "fastpath.h"
#include "learn.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The first thing on a device, before the stack has the packet. */
SEC("xdp.frags")
int vippin_fastpath(struct xdp_md *ctx)
{
	return forward_fast(ctx);
}

/* tc egress of the same devices, after vippin_egress. */
SEC("tc")
int vippin_learn(struct __sk_buff *skb)
{
	learn(skb);
	return TC_ACT_UNSPEC;
}

/* Loaded apart, for kernels that can: frames that a device refused. */
SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(vippin_sending, const struct net_device *from, const struct net_device *to, int sent, int drops,
	     int err)
{
	look_at_sending(from, to, drops, err);
	return 0;
}

SEC("tp_btf/xdp_redirect_err")
int BPF_PROG(vippin_redirect, const struct net_device *from, const void *program, const void *to, int err,
	     enum bpf_map_type map_type, __u32 map_id, __u32 index)
{
	look_at_redirect(from, err, map_type, index);
	return 0;
}
