/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Netfilter's words, for both ways of learning what it knows. */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>

#include "types.h"

/* Of a conntrack entry's status, include/uapi/linux/netfilter/nf_conntrack_common.h. */
#define IPS_EXPECTED (1 << 0)
#define IPS_SEEN_REPLY (1 << 1)
#define IPS_CONFIRMED (1 << 3)
#define IPS_SRC_NAT (1 << 4)
#define IPS_SEQ_ADJUST (1 << 6)
#define IPS_DYING (1 << 9)
#define IPS_HELPER (1 << 13)
#define IPS_OFFLOAD (1 << 14)
#define IPS_HW_OFFLOAD (1 << 15)
#define CURRENT_NETNS (-1)

/* A packet that the remote end sends to a public end. */
static __always_inline void fill_tuple(const struct flow_key *key, bool ipv6, struct bpf_sock_tuple *tuple)
{
	if (ipv6) {
		__builtin_memcpy(tuple->ipv6.saddr, &key->remote, 16);
		__builtin_memcpy(tuple->ipv6.daddr, &key->self, 16);
		tuple->ipv6.sport = key->remote_port;
		tuple->ipv6.dport = key->self_port;
	} else {
		tuple->ipv4.saddr = key->remote.word[3];
		tuple->ipv4.daddr = key->self.word[3];
		tuple->ipv4.sport = key->remote_port;
		tuple->ipv4.dport = key->self_port;
	}
}
