/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Are we master for a pin, as far as a new flow is concerned? A role nobody
 * has confirmed lately does not hand out the VIP.
 */
#pragma once

#include <stdbool.h>

#include "maps.h"

#define ROLE_MASTER 2 /* policy.RoleMaster */
#define LEASE_ADVERTS 3 /* advert intervals that our own last advert speaks for */

#define TAKEOVER_NS 100000000ULL /* how long our first advert may be ahead of the daemon */

/* Has an advert of our own left lately? */
static __always_inline bool advertises(const struct own_advert *own)
{
	return own->last_ns && bpf_ktime_get_coarse_ns() - own->last_ns < LEASE_ADVERTS * own->interval_ns;
}

/* Has the daemon given a sign of life lately? The coarse clock may lag behind its
 * time.
 */
static __always_inline bool daemon_lives(__u64 lease_ns, __u64 beat, __u64 now)
{
	return beat && (__s64)(now - beat) < (__s64)lease_ns;
}

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
	/* The daemon lives: it knows. */
	if (daemon_lives(set->lease_ns, *beat, now)) {
		/* In a takeover keepalived advertises first, draws the traffic
		 * here next, and the daemon hears of it a moment later: the
		 * flows that begin in that moment are not to be lost for it.
		 */
		if (own->first_ns > role->since_ns && (__s64)(now - own->first_ns) < (__s64)TAKEOVER_NS)
			return PIN_CREATED;
		return master ? PIN_CREATED : PIN_BACKUP;
	}
	/* No daemon: only who advertises is master. */
	if (advertises(own))
		return PIN_CREATED;
	return master ? PIN_STALE_ROLE : PIN_BACKUP;
}
