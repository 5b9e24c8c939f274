/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors: they belong to the flow of the packet that they quote, and the
 * quotation must say what its receiver knows (RFC 5508). One that leaves quotes
 * a packet to us, one that arrives quotes a packet from us.
 */
#pragma once

#include "account.h"
#include "flow.h"
#include "rewrite.h"

#define ICMP_HEADER 8

/* Reads the quoted packet. False: nothing that a flow could be known by. Its
 * length becomes that of the quotation: a frame may be longer than the packet in
 * it.
 */
static __always_inline bool parse_quoted(struct __sk_buff *skb, const struct packet *pkt,
					 struct packet *quoted)
{
	__u32 end = pkt->l4_off + pkt->l4_len;
	enum parse_result parsed;

	quoted->l3_off = pkt->l4_off + ICMP_HEADER;
	parsed = pkt->ipv6 ? parse_ipv6(skb, quoted) : parse_ipv4(skb, quoted);
	if (parsed != PARSED || parse_transport(skb, quoted, true) != FLOW || quoted->l4_off > end)
		return false;
	quoted->l4_len = end - quoted->l4_off;
	return quoted->l4_len >= (has_ports(quoted->proto) || quoted->proto == IPPROTO_SCTP ? 8 : 0);
}

/* Puts what the quotation's receiver knows in both headers. */
static __always_inline int rewrite_error(struct __sk_buff *skb, const struct packet *pkt,
					 const struct packet *quoted, bool out, const struct addr *addr,
					 __be16 port)
{
	const struct addr *ours = out ? &quoted->dst : &quoted->src;
	__u32 diff;

	if (rewrite_quoted(skb, quoted, out ? DESTINATION : SOURCE, addr, port, &diff) ||
	    bpf_l4_csum_replace(skb, pkt->l4_off + ICMP_CHECKSUM, 0, diff, 0))
		return -1;
	/* A router on the way may speak in its own name. */
	if (!addr_equal(out ? &pkt->src : &pkt->dst, ours))
		return 0;
	return rewrite_end(skb, pkt, out ? SOURCE : DESTINATION, addr, 0);
}

__noinline verdict error_leaves(struct __sk_buff *skb, const struct packet *pkt, __u32 slot)
{
	struct packet quoted = {};
	struct public_end *end;
	struct flow_key key;

	if (!pkt || !parse_quoted(skb, pkt, &quoted) || is_echo_request(&quoted))
		return untouched();
	key_of(&quoted, slot, DESTINATION, &key);
	end = bpf_map_lookup_elem(&by_local, &key);
	if (!end)
		return untouched();
	/* The router's own word on a packet that conntrack did not take for the flow. */
	if (!skb->ingress_ifindex && !carries_flow(skb, pkt, &key.self))
		return untouched();
	if (!(end->flags & MAPPING_NATIVE) && rewrite_error(skb, pkt, &quoted, true, &end->addr, end->port))
		return judged(end->pin, PIN_ERROR);
	count_role(end->pin);
	return judged(end->pin, PIN_PINNED);
}

__noinline verdict error_arrives(struct __sk_buff *skb, const struct packet *pkt, __u32 slot)
{
	struct packet quoted = {};
	struct local_end *end;
	struct flow_key key;

	if (!pkt || !parse_quoted(skb, pkt, &quoted) || is_echo_reply(&quoted) ||
	    !addr_equal(&pkt->dst, &quoted.src))
		return untouched();
	key_of(&quoted, slot, SOURCE, &key);
	end = bpf_map_lookup_elem(&by_public, &key);
	if (!end)
		return untouched();
	if (!(end->flags & MAPPING_NATIVE) && rewrite_error(skb, pkt, &quoted, false, &end->addr, end->port))
		return judged(end->pin, PIN_ERROR);
	return judged(end->pin, PIN_RETURNED);
}
