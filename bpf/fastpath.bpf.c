// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* The fast path, an object of its own: where it cannot be loaded, or is switched
 * off, the rest works as ever. For kernels with BTF.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "maps.h"

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
