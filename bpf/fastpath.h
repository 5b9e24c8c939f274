/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The fast path: packets of flows that tc egress has learnt are translated and
 * forwarded here. Whatever else comes takes the stack, VRRP first of all, and as
 * it came: nothing is written into a packet before it is sure to leave.
 */
#pragma once

#include "account.h"
#include "fast_frame.h"
#include "fast_key.h"

#define FAR (1U << 30) /* of acknowledgements */

/* Does the daemon live, who would tell of changes? Looked at once a tick. */
static __always_inline bool fast_open(const struct fast_state *state, __u64 tick)
{
	__u32 zero = 0;
	struct fast_watch *watch = bpf_map_lookup_elem(&fast_watch, &zero);
	__u64 *beat;

	if (!watch || !state->generation)
		return false;
	if (watch->tick != tick) {
		beat = bpf_map_lookup_elem(&heartbeat, &zero);
		watch->tick = tick;
		/* The coarse clock may lag behind the daemon's. */
		watch->open =
			beat && *beat && (__s64)(bpf_ktime_get_coarse_ns() - *beat) < (__s64)state->lease_ns;
	}
	return watch->open;
}

/* May this packet do as its flow's entry says? */
static __always_inline enum fast_exit judge_flow(const struct fast_frame *f, struct fast_fate *fate)
{
	/* Conntrack must see how a connection begins and ends, and nothing is to
	 * overtake that.
	 */
	if (f->tcp && (f->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK) {
		if (fate && f->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST))
			fate->generation = 0;
		return FAST_FLAGS;
	}
	if (!fate)
		return FAST_MISS;
	if (fate->generation != f->generation)
		return FAST_STALE;
	if ((__s32)(fate->until - f->tick) <= 0)
		return FAST_RECHECK;
	if (f->tcp && f->ack - fate->ack + FAR > 2 * FAR)
		return FAST_DRIFT;
	return FAST_FORWARDED;
}

static __always_inline struct fast_hop *fast_hop_of(const struct fast_fate *fate)
{
	__u32 number = fate->hop;

	return bpf_map_lookup_elem(&fast_hops, &number);
}

static __always_inline void account(struct fast_fate *fate, const struct fast_frame *f)
{
	fate->packets_seen = (fate->packets_seen & ~0xffffULL) + 0x10000 + (f->tick & 0xffff);
	fate->bytes += f->len;
	if (fate->pin)
		count_pin(fate->pin & FAST_PIN, fate->pin & FAST_RETURNED ? PIN_RETURNED : PIN_PINNED);
}

/* Judges, and makes the frame one of the hop's link; the packet in it is as it was. */
static __always_inline enum fast_exit take_hop(struct xdp_md *ctx, struct fast_frame *f,
					       struct fast_fate *fate)
{
	enum fast_exit exit = judge_flow(f, fate);
	struct fast_hop *hop;

	if (exit || !fate)
		return exit;
	hop = fast_hop_of(fate);
	if (!hop || !hop->alive)
		return FAST_HOP_GONE;
	if (f->len > hop->mtu)
		return FAST_TOO_BIG;
	exit = move_head(ctx, f, hop->tags);
	if (exit)
		return exit;
	write_link(f, hop);
	f->out = hop->device;
	account(fate, f);
	return FAST_FORWARDED;
}

static __always_inline enum fast_exit forward_ipv4(struct xdp_md *ctx, struct fast_frame *f)
{
	enum fast_exit exit = read_ipv4(ctx, f);
	struct fast4_bucket *bucket;
	struct iphdr *ip = f->l3;
	struct fast4 *e;
	__u64 addrs;

	if (exit)
		return exit;
	addrs = *(__u64 *)&ip->saddr;
	f->digest = fast4_digest(f->secret, addrs, f->ports, f->place);
	bucket = fast4_at(f->digest);
	e = bucket ? fast4_find(bucket, addrs, f->ports, f->place) : NULL;
	exit = take_hop(ctx, f, e ? &e->fate : NULL);
	if (!exit && e)
		write_ipv4(f, e);
	return exit;
}

static __always_inline enum fast_exit forward_ipv6(struct xdp_md *ctx, struct fast_frame *f)
{
	enum fast_exit exit = read_ipv6(ctx, f);
	const struct addr *src, *dst;
	struct fast6_bucket *bucket;
	struct ipv6hdr *ip = f->l3;
	struct fast6 *e;

	if (exit)
		return exit;
	src = (const void *)&ip->saddr;
	dst = (const void *)&ip->daddr;
	f->digest = fast6_digest(f->secret, src, dst, f->ports, f->place);
	bucket = fast6_at(f->digest);
	e = bucket ? fast6_find(bucket, src, dst, f->ports, f->place) : NULL;
	exit = take_hop(ctx, f, e ? &e->fate : NULL);
	if (!exit && e)
		write_ipv6(f, e);
	return exit;
}

/* Egress compares the packet with this. */
static __always_inline void write_note(const struct fast_frame *f)
{
	struct fast_note *note = fast_note_at(f->digest);

	if (note)
		*note = (struct fast_note){
			.digest = f->digest,
			.place = f->place,
			.generation = f->generation,
			.tick = f->tick,
			.ttl = f->ttl,
			.tos = f->tos,
		};
}

static __always_inline bool is_own(const struct fast_device *device, const struct ethhdr *eth)
{
	return *(const __u32 *)device->mac == *(const __u32 *)eth->h_dest &&
	       *(const __u16 *)(device->mac + 4) == *(const __u16 *)(eth->h_dest + 4);
}

/* FAST_FORWARDED: the frame is ready to go. Else it is as it came. */
static __always_inline enum fast_exit try_forward(struct xdp_md *ctx, struct fast_frame *f)
{
	struct fast_state *state = fast_state_now();
	struct fast_device *device;
	enum fast_exit exit;
	__u64 tick = bpf_jiffies64();

	if (!state || !fast_open(state, tick))
		return FAST_CLOSED;
	device = fast_device_of(ctx->ingress_ifindex);
	if (!device || !device->number)
		return FAST_DEVICE;
	if (f->data + ETH_HLEN > f->end)
		return FAST_NOT_IP;
	if (!is_own(device, f->data))
		return FAST_OTHER_HOST;
	f->device = device->number;
	f->place = device->number << 24;
	f->generation = state->generation;
	f->secret = state->secret;
	f->tick = tick;
	exit = read_tags(f);
	if (exit)
		return exit;
	if (f->proto == bpf_htons(ETH_P_IP))
		return forward_ipv4(ctx, f);
	if (f->proto == bpf_htons(ETH_P_IPV6))
		return forward_ipv6(ctx, f);
	return FAST_NOT_IP;
}

static __always_inline int forward_fast(struct xdp_md *ctx)
{
	struct fast_frame frame = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	enum fast_exit exit = try_forward(ctx, &frame);

	count_exit(exit);
	if (exit == FAST_FORWARDED && frame.out == frame.device)
		return XDP_TX;
	if (exit == FAST_FORWARDED) /* an out device that vanished has no way anyway */
		return bpf_redirect_map(&fast_out, frame.out, XDP_DROP);
	if (exit >= FAST_MISS && exit <= FAST_HOP_GONE)
		write_note(&frame);
	return XDP_PASS;
}
