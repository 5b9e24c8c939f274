/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The fast path: packets of flows that tc egress has learnt are translated and
 * forwarded here. Whatever else comes takes the stack, VRRP first of all, and as
 * it came: nothing is written into a packet before it is sure to leave.
 *
 * Under load a packet that is forwarded costs little more than its entry's cache
 * line. The processor fetches several packets' lines at a time as long as few
 * instructions stand between them, so all else is out of the way, in functions of
 * its own.
 */
#pragma once

#include "account.h"
#include "fast_frame.h"
#include "fast_key.h"
#include "role.h"

static __noinline int pass(enum fast_exit exit)
{
	count_exit(exit);
	return XDP_PASS;
}

/* Egress compares the packet with what is noted here. */
static __noinline int pass_noted(enum fast_exit exit, __u64 digest, __u32 place, __u8 ttl, __u8 tos)
{
	struct fast_note *note = fast_note_at(digest);
	struct fast_state *state = fast_state_now();

	if (note && state)
		*note = (struct fast_note){
			.digest = digest,
			.place = place,
			.generation = state->generation,
			.tick = bpf_jiffies64(),
			.ttl = ttl,
			.tos = tos,
		};
	return pass(exit);
}

/* Does the daemon live, who would tell of changes? Asked once a tick. */
static __noinline bool ask_daemon(struct fast_state *state)
{
	__u32 zero = 0;
	__u64 *beat = bpf_map_lookup_elem(&heartbeat, &zero);

	if (!state || !beat || !daemon_lives(state->lease_ns, *beat, bpf_ktime_get_coarse_ns()))
		return false;
	state->asked = bpf_jiffies64();
	return true;
}

/* FAST_FORWARDED: this packet may do as its flow's entry says. */
static __always_inline enum fast_exit judge_flow(const struct fast_frame *f, struct fast_fate *fate,
						 __u32 generation)
{
	/* Conntrack must see how a connection begins and ends, and nothing is to
	 * overtake that.
	 */
	if (f->tcp && unlikely((f->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK)) {
		if (fate && f->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST))
			fate->generation = 0;
		return FAST_FLAGS;
	}
	if (unlikely(!fate))
		return FAST_MISS;
	if (unlikely(fate->generation != generation))
		return FAST_STALE;
	if (unlikely((__s32)(fate->until - (__u32)bpf_jiffies64()) <= 0))
		return FAST_RECHECK;
	if (f->tcp && unlikely(out_of_sight(f->ack, fate->ack)))
		return FAST_DRIFT;
	return FAST_FORWARDED;
}

static __always_inline enum fast_exit judge_hop(const struct fast_frame *f, const struct fast_hop *hop)
{
	if (unlikely(!hop || !hop->alive))
		return FAST_HOP_GONE;
	return unlikely(f->len > hop->mtu) ? FAST_TOO_BIG : FAST_FORWARDED;
}

static __always_inline struct fast_hop *fast_hop_of(const struct fast_fate *fate)
{
	__u32 number = fate->hop;

	return bpf_map_lookup_elem(&fast_hops, &number);
}

static __always_inline void account(struct fast_fate *fate, const struct fast_frame *f)
{
	fate->packets_seen = (fate->packets_seen & ~0xffffULL) + 0x10000 + (__u16)bpf_jiffies64();
	fate->bytes += f->len;
	if (fate->pin)
		count_pin(fate->pin & FAST_PIN, fate->pin & FAST_RETURNED ? PIN_RETURNED : PIN_PINNED);
	count_exit(FAST_FORWARDED);
}

/* Makes the frame one of its hop's link, and counts it; the packet in it is as it was.
 * NULL: the frame stays as it came, with this verdict.
 */
static __always_inline struct fast_hop *take_hop(struct xdp_md *ctx, struct fast_frame *f,
						 struct fast_fate *fate, __u32 generation, __u64 digest,
						 int *verdict)
{
	enum fast_exit exit = judge_flow(f, fate, generation);
	struct fast_hop *hop = NULL;

	if (likely(!exit && fate)) {
		hop = fast_hop_of(fate);
		exit = judge_hop(f, hop);
	}
	if (unlikely(exit || !hop || !fate)) {
		*verdict = exit == FAST_FLAGS || exit == FAST_TOO_BIG
				   ? pass(exit)
				   : pass_noted(exit, digest, f->place, f->ttl, f->tos);
		return NULL;
	}
	if (unlikely(hop->tags != f->tags) && !move_head(ctx, f, hop->tags)) {
		*verdict = pass(FAST_NO_ROOM);
		return NULL;
	}
	account(fate, f);
	write_link(f, hop);
	return hop;
}

static __always_inline int send(const struct fast_frame *f, const struct fast_hop *hop)
{
	if (hop->device == f->turns)
		return XDP_TX;
	/* An out device that vanished has no way anyway. */
	return bpf_redirect_map(&fast_out, hop->device, XDP_DROP);
}

static __always_inline int forward_ipv4(struct xdp_md *ctx, struct fast_frame *f,
					const struct fast_state *state)
{
	enum fast_exit exit = read_ipv4(ctx, f);
	struct fast4_bucket *bucket;
	struct iphdr *ip = f->l3;
	struct fast_hop *hop;
	__u64 addrs, digest;
	int verdict = XDP_PASS;
	struct fast4 *e;

	if (unlikely(exit))
		return pass(exit);
	addrs = *(__u64 *)&ip->saddr;
	digest = fast4_digest(state->keys, addrs, f->ports, f->place);
	bucket = fast4_at(state, digest);
	e = likely(bucket) ? fast4_find(bucket, digest, addrs, f->ports, f->place) : NULL;
	hop = take_hop(ctx, f, e ? &e->fate : NULL, state->generation, digest, &verdict);
	if (unlikely(!hop || !e))
		return verdict;
	write_ipv4(f, e);
	return send(f, hop);
}

static __always_inline int forward_ipv6(struct xdp_md *ctx, struct fast_frame *f,
					const struct fast_state *state)
{
	enum fast_exit exit = read_ipv6(ctx, f);
	const struct addr *src, *dst;
	struct fast6_bucket *bucket;
	struct ipv6hdr *ip = f->l3;
	struct fast_hop *hop;
	int verdict = XDP_PASS;
	struct fast6 *e;
	__u64 digest;

	if (unlikely(exit))
		return pass(exit);
	src = (const void *)&ip->saddr;
	dst = (const void *)&ip->daddr;
	digest = fast6_digest(state->keys, src, dst, f->ports, f->place);
	bucket = fast6_at(state, digest);
	e = likely(bucket) ? fast6_find(bucket, digest, src, dst, f->ports, f->place) : NULL;
	hop = take_hop(ctx, f, e ? &e->fate : NULL, state->generation, digest, &verdict);
	if (unlikely(!hop || !e))
		return verdict;
	write_ipv6(f, e);
	return send(f, hop);
}

/* A frame to another MAC than the device's: is that a virtual one of the packet's family,
 * which this router holds where the frame comes in?
 */
static __noinline bool is_to_virtual(struct xdp_md *ctx, __u32 device)
{
	struct fast_frame frame =
				  {
					  .data = (void *)(long)ctx->data,
					  .end = (void *)(long)ctx->data_end,
				  },
			  *f = &frame;
	__be16 proto;
	__u8 *mac = f->data;

	if (f->data + FAST_SHORTEST > f->end)
		return false;
	f->place = device << 24;
	proto = *(__be16 *)(f->data + ETHERTYPE);
	if (proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD))
		proto = read_tags(f, proto);
	return proto == bpf_htons(mac[4] == 1 ? ETH_P_IP : ETH_P_IPV6) && virtual_at(f->place, mac);
}

static __always_inline int forward_fast(struct xdp_md *ctx)
{
	struct fast_frame frame =
				  {
					  .data = (void *)(long)ctx->data,
					  .end = (void *)(long)ctx->data_end,
				  },
			  *f = &frame;
	struct fast_state *state = fast_state_now();
	struct fast_device *device;
	__be16 proto;
	__u64 own;

	if (unlikely(!state || !state->generation))
		return pass(FAST_CLOSED);
	if (unlikely(state->asked != bpf_jiffies64()) && !ask_daemon(state))
		return pass(FAST_CLOSED);
	device = fast_device_of(ctx->ingress_ifindex);
	if (unlikely(!device))
		return pass(FAST_DEVICE);
	own = *(__u64 *)device;
	f->device = own & 0xff;
	f->turns = own >> 56;
	if (unlikely(!f->device))
		return pass(FAST_DEVICE);
	if (unlikely(f->data + FAST_SHORTEST > f->end))
		return pass(FAST_NOT_IP);
	f->place = f->device << 24;
	if (unlikely((own >> 8 ^ *(__u64 *)f->data) << 16)) {
		if (!is_to_virtual(ctx, f->device))
			return pass(FAST_OTHER_HOST);
		f->place |= FAST_VIRTUAL;
	}
	f->l3 = f->data + ETH_HLEN;
	proto = *(__be16 *)(f->data + ETHERTYPE);
	if (unlikely(proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD)))
		proto = read_tags(f, proto);
	if (proto == bpf_htons(ETH_P_IP))
		return forward_ipv4(ctx, f, state);
	if (proto == bpf_htons(ETH_P_IPV6))
		return forward_ipv6(ctx, f, state);
	return pass(FAST_NOT_IP);
}
