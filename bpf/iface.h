/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "maps.h"

/* What an interface is to us; NULL: nothing. */
static __always_inline struct iface *find_iface(__u32 ifindex)
{
	struct iface *near = bpf_map_lookup_elem(&near_ifaces, &ifindex);

	return near && near->known ? near : bpf_map_lookup_elem(&ifaces, &ifindex);
}
