/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A device may refuse what XDP redirects to it: a driver that cannot send frames
 * (any more), a veth whose other end takes none. XDP is not told, and the frame is
 * lost. The kernel's tracepoints tell: then all packets take the stack at once,
 * until user space has taken the device off the fast path.
 */
#pragma once

#include <bpf/bpf_tracing.h>

#include "fast_key.h"
#include "route.h"

/* fast_losses (ring buffer): frames that a device refused. */
struct fast_loss {
	__u32 device; /* number */
	__u32 error; /* errno */
	__u32 frames;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} fast_losses SEC(".maps");

/* Not those of a ring that is full (ENOBUFS, ENOSPC, or no error at all). */
static __always_inline bool is_lasting(int err)
{
	return err == -6 /* ENXIO */ || err == -95 /* EOPNOTSUPP */ || err == -100 /* ENETDOWN */;
}

/* Frames of ours are those that came in by a device of the fast path: no other
 * XDP program is there. The tracepoints tell of all network namespaces.
 */
static __always_inline void refuse_frames(const struct net_device *from, __u8 number, int err, __u32 frames)
{
	struct fast_device *device = fast_device_of(from->ifindex);
	struct fast_loss loss = {.device = number, .error = -err, .frames = frames};
	struct fast_state *state = fast_state_now();

	if (!device || !device->number || !number || !state || !is_lasting(err))
		return;
	if (BPF_CORE_READ(from, nd_net.net, ns.inum) != state->netns)
		return;
	state->generation = 0;
	bpf_ringbuf_output(&fast_losses, &loss, sizeof(loss), 0);
}

/* The driver was asked to send. */
static __always_inline void look_at_sending(const struct net_device *from, const struct net_device *to,
					    int drops, int err)
{
	struct fast_device *device;

	if (!err)
		return;
	device = fast_device_of(to->ifindex);
	if (device)
		refuse_frames(from, device->number, err, drops);
}

/* It was not even asked. */
static __always_inline void look_at_redirect(const struct net_device *from, int err, __u32 map_type,
					     __u32 index)
{
	if (map_type == BPF_MAP_TYPE_DEVMAP && index < FAST_DEVICES)
		refuse_frames(from, index, err, 1);
}
