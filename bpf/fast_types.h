/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The fast path's tables, shared with user space (package loader alone). An
 * entry is one direction of one flow: what its packets look like as they come
 * in (the key) and as they leave, as a packet showed that took the stack.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include "types.h"

#define FAST_WAYS 8 /* entries of a bucket; half full, it has none for one flow of 120 */
#define FAST_KEYS 11 /* of digests: one for each word of an IPv6 entry's key, and one more */
#define FAST_DEVICES 32 /* device numbers, from 1 */
#define FAST_HOPS 65536
#define FAST_NOTES 4096 /* a power of two */
#define FAST_TCP 0x80000000 /* in a place; without it: UDP */
#define FAST_8021AD 0x40000000 /* in a place: the outer tag is 802.1ad; else it is 802.1Q, as the inner one */
#define FAST_VIRTUAL 0x20000000 /* in a place: to the MAC of a macvlan above it, not to the device's own */

/* A place is where a packet came in, and its protocol: FAST_TCP, FAST_8021AD,
 * FAST_VIRTUAL, the device's number << 24, the outer VLAN ID << 12, the inner one. Exact,
 * not a digest.
 */

/* What becomes of a flow's packets, and what became of them. Not in use:
 * generation 0.
 */
struct fast_fate {
	__u32 new_ports;
	__u32 ack; /* TCP, host order: packets whose acknowledgement is 2^30 away take the stack */
	__u16 l3_diff; /* IPv4: one's complement sum of what changes, TTL included */
	__u16 l4_diff;
	__u16 hop; /* number in hops */
	__u16 pin; /* counted on it; 0: none; FAST_RETURNED */
	__u32 generation; /* valid in this one */
	__u32 until; /* and before this tick (lower half of jiffies64) */
	__u64 packets_seen; /* packets << 16 | lower 16 bits of the last one's tick */
	__u64 bytes; /* IP packets' lengths */
};

/* The key is as it stands in the packet: addresses and ports in network order, the
 * source in the lower half. The new ones are as they leave.
 */
struct fast4 {
	__u64 addrs;
	__u32 ports;
	__u32 place;
	__u64 new_addrs;
	struct fast_fate fate;
};

struct fast6 {
	struct addr src;
	struct addr dst;
	__u32 ports;
	__u32 place;
	struct addr new_src;
	struct addr new_dst;
	struct fast_fate fate;
	__u64 pad[2]; /* a power of two */
};

/* What Go is to call them: a map has the other name. */
typedef struct fast4 fast4_entry;
typedef struct fast6 fast6_entry;

#define FAST_PIN 0x0fff
#define FAST_WRITING 0xffffffff /* in generation: a CPU is writing the entry */
#define FAST_RETURNED 0x8000 /* in pin: counted as PIN_RETURNED, else as PIN_PINNED */

/* Aligned to cache lines, since an array that can be mapped begins on a page. */
struct fast4_bucket {
	fast4_entry way[FAST_WAYS];
};

struct fast6_bucket {
	fast6_entry way[FAST_WAYS];
};

/* fast_state[0], written by user space, but for one word. Of the tables as many buckets
 * are in use as the flows need: few lie closer together, and the processor finds them
 * with less work.
 */
struct fast_state {
	__u32 generation; /* 0: the fast path is closed */
	__u32 mask4; /* buckets of fast4 in use - 1 */
	__u32 mask6;
	__u32 all; /* 1: flows that are not pinned, too */
	__u64 asked; /* jiffies64 of when the heartbeat was young enough; written by the programs */
	__u64 keys[FAST_KEYS]; /* of the digests, at random */
	__u64 bumped_ns; /* CLOCK_MONOTONIC of the last change of generation */
	__u64 pace_ns; /* how long an entry is valid at most */
	__u64 lease_ns; /* how old the daemon's heartbeat may be */
	__u32 netns; /* the daemon's: inode number */
	__u32 pad;
};

/* A device whose packets take the fast path: fast_devices by ifindex. */
struct fast_device {
	__u8 number; /* 1 to FAST_DEVICES - 1; 0: none */
	__u8 mac[6]; /* its own: frames to another one are not for us */
	__u8 turns; /* its number, if frames that leave by it again may do so by XDP_TX; else 0 */
};

/* fast_places, by ifindex: an interface above a device, or the device. */
struct fast_place {
	__u32 number; /* where its packets come in, without FAST_TCP */
	__u32 below; /* ifindex: the interface that a macvlan is on, which pins name; else its own */
};

/* Whose virtual MAC it is (RFC 9568 section 7.3); a virtual router's in one VLAN. */
struct fast_virtual {
	__u32 place; /* neither FAST_TCP nor FAST_VIRTUAL */
	__u8 family; /* fifth octet of the MAC: 1: IPv4, 2: IPv6 */
	__u8 vrid; /* sixth octet */
	__u8 pad[2];
};

/* Where packets go: all that the last interface adds. */
struct fast_hop {
	__u8 macs[12]; /* destination, source */
	__be16 outer_proto; /* 0: no tag */
	__be16 outer_tci;
	__be16 inner_proto; /* 0: no second tag */
	__be16 inner_tci;
	__u16 mtu; /* octets of an IP packet */
	__u8 device; /* number */
	__u8 alive; /* 0: the neighbour changed or is gone */
	__u8 tags; /* 0 to 2 */
	__u8 pad[7];
};

/* fast_notes: a packet that could take the fast path if its flow were known, on
 * its way through the stack.
 */
struct fast_note {
	__u64 digest; /* of its key */
	__u32 place;
	__u32 generation; /* in which it came in */
	__u32 tick;
	__u8 ttl;
	__u8 tos; /* traffic class */
	__u8 pad[2];
	__u64 pad2;
};

/* Why a packet took the way it took; fast_counters, packets per CPU. */
enum fast_exit {
	FAST_FORWARDED,
	FAST_CLOSED, /* switched off, or the daemon gives no sign of life */
	FAST_DEVICE, /* the device is not in fast_devices */
	FAST_NOT_IP, /* something else, cut short, with a priority tag or a third one */
	FAST_OTHER_HOST, /* neither to this device's address nor to a virtual one that is ours now */
	FAST_PROTOCOL, /* neither TCP nor UDP, which VRRP is first of all; extension headers */
	FAST_OPTIONS, /* IPv4 options */
	FAST_FRAGMENT,
	FAST_TTL, /* 1 or less */
	FAST_FLAGS, /* TCP: SYN, FIN or RST, or no ACK */
	FAST_MISS, /* the flow is not known */
	FAST_STALE, /* learnt in an earlier generation */
	FAST_RECHECK, /* not learnt anew for so long that it takes the stack again */
	FAST_DRIFT, /* TCP: too far from what conntrack saw last */
	FAST_HOP_GONE, /* the neighbour changed or is gone */
	FAST_TOO_BIG, /* larger than the MTU there */
	FAST_NO_ROOM, /* no room for another tag */
	/* At egress: */
	FAST_LEARNT,
	FAST_NOT_LEARNT, /* a packet of a flow that could be learnt and was not: see enum fast_refusal */
	FAST_EXITS,
};

/* Why tc egress did not learn a flow from a packet that XDP had noted;
 * fast_refusals, packets per CPU.
 */
enum fast_refusal {
	REFUSED_NO_NOTE, /* no note of this packet: it came in elsewhere, or tags were stripped */
	REFUSED_GENERATION, /* something changed while it was under way, or a moment ago */
	REFUSED_NO_CONNTRACK,
	REFUSED_NOT_ESTABLISHED,
	REFUSED_HELPER, /* conntrack helper, expected, sequence numbers adjusted, offloaded, in a zone */
	REFUSED_NOT_LIBERAL, /* TCP: user space has been asked */
	REFUSED_NOT_PINNED, /* no mapping, and not all flows are wanted */
	REFUSED_NOT_ACKED, /* strict: the peer does not have it */
	REFUSED_CHANGED, /* addresses, TTL, traffic class or way are not what conntrack and routing alone make */
	REFUSED_PACKET, /* fragment, options, TCP flags */
	REFUSED_FULL, /* no hop number left; or no entry, until the next tick */
	REFUSALS,
};

/* fast_asks (ring buffer): a TCP flow that should become liberal. */
struct fast_ask {
	struct addr src; /* conntrack's original direction */
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u32 pad;
};

/* fast_eager: TCP flows that have not been asked for yet. */
struct fast_eager {
	__u64 digest;
	__u32 packets;
	__u32 asked; /* tick */
};
