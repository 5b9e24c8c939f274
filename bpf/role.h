/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Are we master for a pin, as far as a new flow is concerned? A role nobody
 * has confirmed lately does not hand out the VIP.
 */
#pragma once

#include "maps.h"

#define ROLE_MASTER 2 /* policy.RoleMaster */
#define LEASE_ADVERTS 3 /* advert intervals that our own last advert speaks for */

/* PIN_CREATED: master. Else why not: PIN_BACKUP or PIN_STALE_ROLE. */
static __always_inline enum pin_counter judge_role(__u32 pin, __u32 group)
{
	__u32 zero = 0;
	struct role *role = bpf_map_lookup_elem(&roles, &pin);
	struct own_advert *own = bpf_map_lookup_elem(&own_adverts, &group);
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);
	__u64 *beat = bpf_map_lookup_elem(&heartbeat, &zero);
	__u64 now = bpf_ktime_get_coarse_ns();
	bool master;

	if (!role || !own || !set || !beat)
		return PIN_STALE_ROLE;
	master = role->role == ROLE_MASTER;
	if (role->fixed)
		return master ? PIN_CREATED : PIN_BACKUP;
	/* The daemon lives: it knows. The coarse clock may lag behind its time. */
	if (*beat && (__s64)(now - *beat) < (__s64)set->lease_ns)
		return master ? PIN_CREATED : PIN_BACKUP;
	/* No daemon: only who advertises is master. */
	if (own->last_ns && now - own->last_ns < LEASE_ADVERTS * own->interval_ns)
		return PIN_CREATED;
	return master ? PIN_STALE_ROLE : PIN_BACKUP;
}
