/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Learning: a packet that the stack has let through shows what becomes of its
 * flow. It is compared with what XDP noted when it came in and with what
 * conntrack says; what explains itself by these, by our mapping and by routing
 * alone is entered. Whatever does not, stays on the stack.
 */
#pragma once

#include "conntrack.h"
#include "fast_key.h"
#include "iface.h"
#include "learn_entry.h"
#include "leaving.h"
#include "maps.h"
#include "mix.h"
#include "route.h"

#define SECOND_NS 1000000000U
#define QUIET_NS 10000000 /* after a change of generation packets are under way that the old rules judged */
#define EAGER_PACKETS 16 /* a TCP flow through the stack before it is worth being made liberal */
#define PLACE_TAGS 0xffffff

/* include/uapi/linux/netfilter/nf_conntrack_tcp.h */
#define TCP_CONNTRACK_ESTABLISHED 3
#define TCP_BE_LIBERAL 0x08
#define TCP_MAXACK_SET 0x20

struct learning {
	struct leaving pkt;
	struct lesson lesson;
	struct ends original; /* as conntrack has it */
	struct ends answers; /* as they come in from the wire */
	struct flow_key key;
	struct fast_ask ask;
	__u32 generation;
	__u32 now; /* tick */
	_Bool reply;
	__u64 conntrack[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct learning);
} fast_learning SEC(".maps");

/* What VLAN a place is, as packets that came in have shown: when one leaves, its
 * VLAN may have dropped the route (IFF_XMIT_DST_RELEASE, which it takes over from
 * the device below).
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_IFACES);
	__type(key, __u32); /* place, without FAST_TCP */
	__type(value, __u32); /* ifindex */
} fast_interfaces SEC(".maps");

static __always_inline void count_refusal(enum fast_refusal refusal)
{
	__u64 *packets = bpf_map_lookup_elem(&fast_refusals, &refusal);

	if (packets)
		(*packets)++;
}

/* The key space of the interface that the flow's own direction leaves by, or of the one
 * below it; 0: no flow there has a mapping.
 */
static __always_inline __u32 slot_of(__u32 ifindex)
{
	struct iface *iface = find_iface(ifindex);
	struct fast_place *place;

	if (!iface) {
		place = fast_place_of(ifindex);
		iface = place ? find_iface(place->below) : NULL;
	}
	return iface ? iface->slot : 0;
}

/* Is conntrack done with the flow, but for translating it? */
static __always_inline enum fast_refusal judge_conntrack(const struct learning *l, const struct nf_conn *ct)
{
	const unsigned long special =
		IPS_EXPECTED | IPS_SEQ_ADJUST | IPS_HELPER | IPS_OFFLOAD | IPS_HW_OFFLOAD;
	const unsigned long alive = IPS_CONFIRMED | IPS_SEEN_REPLY;

	if (ct->tuplehash[TUPLE_ORIGINAL].tuple.dst.protonum != l->pkt.proto)
		return REFUSED_NO_CONNTRACK;
	if (ct->status & special)
		return REFUSED_HELPER;
	if (bpf_core_field_exists(ct->zone) && ct->zone.id)
		return REFUSED_HELPER; /* another zone may have the same tuple */
	if ((ct->status & (alive | IPS_DYING)) != alive)
		return REFUSED_NOT_ESTABLISHED;
	if (l->pkt.proto == IPPROTO_TCP && ct->proto.tcp.state != TCP_CONNTRACK_ESTABLISHED)
		return REFUSED_NOT_ESTABLISHED;
	return LEARNABLE;
}

static __always_inline void read_tuple(const struct nf_conntrack_tuple *tuple, bool ipv6, struct ends *ends)
{
	ends->src = addr_from_conntrack(&tuple->src.u3, ipv6);
	ends->dst = addr_from_conntrack(&tuple->dst.u3, ipv6);
	ends->sport = tuple->src.u.all;
	ends->dport = tuple->dst.u.all;
}

static __always_inline bool ends_equal(const struct ends *a, const struct ends *b)
{
	return addr_equal(&a->src, &b->src) && addr_equal(&a->dst, &b->dst) && a->sport == b->sport &&
	       a->dport == b->dport;
}

static __always_inline void turn(const struct ends *from, struct ends *to)
{
	to->src = from->dst;
	to->dst = from->src;
	to->sport = from->dport;
	to->dport = from->sport;
}

/* In strict mode only what the peer has survives this router. key is of by_local. */
static __always_inline bool is_acknowledged(struct flow_key *key, const struct public_end *end)
{
	__u32 zero = 0;
	struct hold *h = bpf_map_lookup_elem(&hold, &zero);
	struct local_end *local;

	if (!h || !h->since_ns || end->flags & MAPPING_ACKED)
		return true;
	key->self = end->addr;
	key->self_port = end->port;
	local = bpf_map_lookup_elem(&by_public, key);
	return local && local->born_ns < h->since_ns;
}

/* A mapping puts another end on the wire than conntrack knows. */
static __always_inline enum fast_refusal apply_mapping(struct learning *l, __u32 slot, bool all)
{
	struct ends *answers = &l->answers;
	struct flow_key *key = &l->key;
	struct public_end *end;

	__builtin_memset(key, 0, sizeof(*key));
	key->slot = slot;
	key->proto = l->pkt.proto;
	key->self = answers->dst;
	key->remote = answers->src;
	key->self_port = answers->dport;
	key->remote_port = answers->sport;
	end = slot ? bpf_map_lookup_elem(&by_local, key) : NULL;
	l->lesson.fate.pin = 0;
	if (!end)
		return all ? LEARNABLE : REFUSED_NOT_PINNED;
	l->lesson.fate.pin = (end->pin & FAST_PIN) | (l->reply ? FAST_RETURNED : 0);
	answers->dst = end->addr;
	answers->dport = end->port;
	return is_acknowledged(key, end) ? LEARNABLE : REFUSED_NOT_ACKED;
}

static __always_inline void note_interface(__u32 place, __u32 ifindex)
{
	__u32 *known = bpf_map_lookup_elem(&fast_interfaces, &place);

	if (!known || *known != ifindex)
		bpf_map_update_elem(&fast_interfaces, &place, &ifindex, BPF_ANY);
}

/* Do this interface's packets leave there, by whichever MAC? */
static __always_inline bool is_at(__u32 ifindex, __u32 there)
{
	struct fast_place *place = fast_place_of(ifindex);

	return place && there && (place->number & ~FAST_VIRTUAL) == there;
}

/* The interface that a packet leaves by, above its tags; 0: not known. Whether it is
 * the one that routing chose shows later.
 */
static __always_inline __u32 leaves_by(struct __sk_buff *skb, const struct leaving *pkt)
{
	__u32 *known, place = pkt->place;
	struct dst_entry *dst;

	if (!pkt->hop.tags)
		return skb->ifindex;
	dst = route_of(skb);
	if (dst)
		return route_interface(dst);
	known = bpf_map_lookup_elem(&fast_interfaces, &place);
	return known && is_at(*known, place) ? *known : 0;
}

/* What the packet looked like when it came in, and what it should look like now. */
static __always_inline enum fast_refusal explain(struct __sk_buff *skb, const struct fast_state *state,
						 struct learning *l)
{
	unsigned long nfct = read_nfct(skb), info = nfct & CTINFO_MASK;
	enum fast_refusal refusal;
	struct nf_conn *ct;
	__u32 slot;

	if (nfct <= CTINFO_MASK)
		return REFUSED_NO_CONNTRACK;
	l->reply = info == CTINFO_IS_REPLY;
	if (info && !l->reply)
		return REFUSED_NOT_ESTABLISHED;
	slot = slot_of(l->reply ? skb->ingress_ifindex : leaves_by(skb, &l->pkt));
	if (!slot && !state->all)
		return REFUSED_NOT_PINNED;
	ct = copy_conntrack(nfct, l->conntrack, sizeof(l->conntrack));
	if (!ct)
		return REFUSED_NO_CONNTRACK;
	refusal = judge_conntrack(l, ct);
	if (refusal != LEARNABLE)
		return refusal;
	read_tuple(&ct->tuplehash[TUPLE_ORIGINAL].tuple, l->pkt.ipv6, &l->original);
	read_tuple(&ct->tuplehash[TUPLE_REPLY].tuple, l->pkt.ipv6, &l->answers);
	refusal = apply_mapping(l, slot, state->all);
	if (refusal != LEARNABLE)
		return refusal;
	if (l->reply) {
		l->lesson.before = l->answers;
		turn(&l->original, &l->lesson.after);
	} else {
		l->lesson.before = l->original;
		turn(&l->answers, &l->lesson.after);
	}
	return ends_equal(&l->lesson.after, &l->pkt.ends) ? LEARNABLE : REFUSED_CHANGED;
}

/* Does XDP's note tell of this packet, and of nothing but routing since? */
static __always_inline enum fast_refusal judge_note(struct __sk_buff *skb, const struct fast_state *state,
						    struct learning *l)
{
	struct fast_place *place = fast_place_of(skb->ingress_ifindex);
	struct fast_note *note;

	if (!place)
		return REFUSED_NO_NOTE;
	l->lesson.place = place->number | (l->pkt.proto == IPPROTO_TCP ? FAST_TCP : 0);
	l->lesson.digest = digest_of(state->keys, &l->lesson.before, l->lesson.place, l->pkt.ipv6);
	note = fast_note_at(l->lesson.digest);
	if (!note || note->digest != l->lesson.digest || note->place != l->lesson.place ||
	    l->now - note->tick > SECOND_NS / tick_ns)
		return REFUSED_NO_NOTE;
	if (note->generation != l->generation ||
	    (__s64)(bpf_ktime_get_coarse_ns() - state->bumped_ns) < QUIET_NS)
		return REFUSED_GENERATION;
	if (place->number & PLACE_TAGS)
		note_interface(place->number & ~FAST_VIRTUAL, place->below);
	if (note->ttl != l->pkt.ttl + 1 || note->tos != l->pkt.tos || was_decrypted(skb))
		return REFUSED_CHANGED;
	return LEARNABLE;
}

/* Was it routed to this device, or to a VLAN or macvlan on it: not to a bridge, say? *mtu
 * gets what the way takes; without a route, what the VLAN does, or the macvlan.
 */
static __always_inline bool leaves_as_routed(struct __sk_buff *skb, struct learning *l, __u32 *mtu)
{
	struct dst_entry *dst = route_of(skb);
	__u32 ifindex, *above;

	if (dst) {
		*mtu = route_mtu(dst, l->pkt.ipv6);
		return is_at(route_interface(dst), l->pkt.place);
	}
	ifindex = l->pkt.hop.tags ? leaves_by(skb, &l->pkt) : 0;
	above = virtual_at(l->pkt.place, l->pkt.hop.macs + ETH_ALEN);
	if (ifindex && above)
		ifindex = *above;
	*mtu = 0; /* and this is not a length to be checked, but the packet's own */
	return ifindex && bpf_check_mtu(skb, ifindex, mtu, 0, 0) >= 0;
}

/* Is what one end acknowledged last, as conntrack remembers it, out of sight of the
 * packet's number?
 */
static __always_inline bool is_far(__u8 flags, __u32 last, __u32 number)
{
	return flags & TCP_MAXACK_SET && out_of_sight(number, last);
}

/* Conntrack must let FIN and RST in after any number of octets that it has not
 * seen: no windows are checked, and a RST is not older than the last
 * acknowledgement that it remembers.
 */
static __always_inline bool is_liberal(struct learning *l, const struct nf_conn *ct)
{
	const struct ip_ct_tcp *tcp = &ct->proto.tcp;
	__u32 client_ack = tcp->seen[TUPLE_ORIGINAL].td_maxack, server_ack = tcp->seen[TUPLE_REPLY].td_maxack;
	__u8 client = tcp->seen[TUPLE_ORIGINAL].flags, server = tcp->seen[TUPLE_REPLY].flags;

	l->lesson.fate.ack = l->pkt.ack;
	if ((l->reply ? server : client) & TCP_MAXACK_SET)
		l->lesson.fate.ack = l->reply ? server_ack : client_ack;
	return client & server & TCP_BE_LIBERAL &&
	       !is_far(client, client_ack, l->reply ? l->pkt.seq : l->pkt.ack) &&
	       !is_far(server, server_ack, l->reply ? l->pkt.ack : l->pkt.seq);
}

/* Has this flow sent enough for user space to be asked, and not been asked for
 * lately? Flows in one place are counted together: more or less is not the point.
 */
static __always_inline bool is_eager(const struct learning *l, __u64 digest)
{
	__u32 index = digest >> 32 & (FAST_EAGER - 1);
	struct fast_eager *eager = bpf_map_lookup_elem(&fast_eager, &index);

	if (!eager || ++eager->packets < EAGER_PACKETS || eager->asked == l->now)
		return false;
	if (eager->digest == digest && l->now - eager->asked < SECOND_NS / tick_ns)
		return false;
	eager->digest = digest;
	eager->packets = 0;
	eager->asked = l->now;
	return true;
}

static __always_inline void ask_for(struct __sk_buff *skb, const struct fast_state *state, struct learning *l)
{
	struct fast_ask *ask = &l->ask;

	if (!is_eager(l, mix(state->keys[0], read_nfct(skb) & ~CTINFO_MASK)))
		return;
	ask->src = l->original.src;
	ask->dst = l->original.dst;
	ask->sport = l->original.sport;
	ask->dport = l->original.dport;
	ask->pad = 0;
	bpf_ringbuf_output(&fast_asks, ask, sizeof(*ask), 0);
}

/* Packets take the stack again before conntrack could forget the flow. */
static __always_inline bool set_deadline(const struct fast_state *state, const struct nf_conn *ct,
					 struct learning *l)
{
	__s32 left = ct->timeout - l->now;
	__u64 ticks = state->pace_ns / tick_ns;

	if (left < 2)
		return false;
	l->lesson.fate.until = l->now + (ticks < (__u32)left / 2 ? ticks : (__u32)left / 2);
	return true;
}

/* Of XDP a device takes frames with one tag beyond its MTU, and drops larger ones,
 * which it may take of the stack. *mtu: octets of an IP packet.
 */
static __always_inline bool leave_room(struct __sk_buff *skb, __u32 tags, __u32 *mtu)
{
	__u32 device = 0;

	if (bpf_check_mtu(skb, 0, &device, 0, 0) < 0)
		return false;
	device -= tags > 1 ? (tags - 1) * TAG : 0;
	if (device < *mtu)
		*mtu = device;
	return true;
}

static __always_inline enum fast_refusal enter(struct __sk_buff *skb, struct learning *l, __u32 mtu)
{
	struct fast_fate *fate = &l->lesson.fate;
	struct fast_hop *hop = &l->pkt.hop;

	if (!leave_room(skb, hop->tags, &mtu))
		return REFUSED_PACKET;
	hop->mtu = mtu < 0xffff ? mtu : 0xffff;
	fate->hop = number_hop(hop);
	if (!fate->hop)
		return REFUSED_FULL;
	fate->new_ports = ports_of(&l->lesson.after);
	fate->generation = l->generation;
	note_diffs(&l->lesson);
	return (l->pkt.ipv6 ? enter6(&l->lesson, l->now) : enter4(&l->lesson, l->now)) ? LEARNABLE
										       : REFUSED_FULL;
}

static __always_inline enum fast_refusal judge(struct __sk_buff *skb, const struct fast_state *state,
					       struct learning *l)
{
	struct nf_conn *ct = (struct nf_conn *)l->conntrack;
	enum fast_refusal refusal = explain(skb, state, l);
	__u32 mtu;

	if (refusal == LEARNABLE)
		refusal = judge_note(skb, state, l);
	if (refusal != LEARNABLE)
		return refusal;
	if (!leaves_as_routed(skb, l, &mtu))
		return REFUSED_CHANGED;
	if (!set_deadline(state, ct, l))
		return REFUSED_NOT_ESTABLISHED;
	if (l->pkt.proto == IPPROTO_TCP && !is_liberal(l, ct)) {
		ask_for(skb, state, l);
		return REFUSED_NOT_LIBERAL;
	}
	return enter(skb, l, mtu);
}

static __noinline int void_at(struct learning *l, __u32 place)
{
	struct fast_state *state = fast_state_now();

	if (!l || !state)
		return 0;
	l->lesson.place = place;
	l->lesson.digest = digest_of(state->keys, &l->lesson.before, place, l->pkt.ipv6);
	void_entry(&l->lesson, l->pkt.ipv6);
	return 0;
}

/* A connection begins or ends: the other direction takes the stack, too, whichever MAC
 * its packets come to.
 */
static __always_inline void void_other_direction(struct learning *l)
{
	turn(&l->pkt.ends, &l->lesson.before);
	void_at(l, l->pkt.place | FAST_TCP);
	void_at(l, l->pkt.place | FAST_TCP | FAST_VIRTUAL);
}

static __always_inline void learn(struct __sk_buff *skb)
{
	struct fast_device *device = fast_device_of(skb->ifindex);
	struct fast_state *state = fast_state_now();
	enum fast_refusal refusal;
	struct learning *l;
	__u32 zero = 0;

	l = bpf_map_lookup_elem(&fast_learning, &zero);
	if (!l || !state || !device || !device->number)
		return;
	l->generation = state->generation;
	l->now = bpf_jiffies64();
	if (!l->generation)
		return;
	refusal = parse_leaving(skb, device->number, &l->pkt);
	if (refusal == NOT_OURS)
		return;
	if (l->pkt.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		void_other_direction(l);
	if (!skb->ingress_ifindex)
		return; /* this router's own */
	if (refusal == LEARNABLE)
		refusal = judge(skb, state, l);
	count_exit(refusal == LEARNABLE ? FAST_LEARNT : FAST_NOT_LEARNT);
	if (refusal != LEARNABLE)
		count_refusal(refusal);
}
