// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* What measures rates: a generator, a sink, and the bare XDP redirect that is
 * their own share. No part of the dataplane; package loader/bench loads it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d. */
struct bench_addr {
	__be32 word[4];
};

/* The flows, and which way they are played. Flow i has the client's address
 * clients + i % hosts, the client's port first_port + i % ports, and the
 * remote's address remotes + i / ports; only the last 32 bits are added to.
 */
struct bench_stream {
	struct bench_addr clients;
	struct bench_addr remotes;
	struct bench_addr self; /* back: whom the remotes answer */
	__u32 hosts; /* 1 or more */
	__u32 ports; /* 1 or more */
	__u32 flows; /* 1 or more */
	__u32 stride; /* from one packet's flow to the next one's */
	__u16 first_port;
	__u16 remote_port;
	__u8 to_mac[6];
	__u8 from_mac[6];
	__u8 ipv6;
	__u8 back; /* 0: from the clients to the remotes */
	__u8 no_checksum; /* UDP's is left out (IPv4 only) */
	__u8 to_clients; /* back: not to self, but to each flow's client */
};

/* Whose end of a flow a sink saw. */
enum seen {
	SEEN_OTHER, /* not of the stream */
	SEEN_CLIENT,
	SEEN_UNIQUE,
	SEEN_VIP,
	SEEN_KINDS,
};

struct bench_ends {
	struct bench_addr unique;
	struct bench_addr vip;
};

/* How far the generator is. */
struct bench_progress {
	__u64 packets;
	__u32 flow; /* whose turn it is */
	__u32 pad;
};

struct bench_stream stream;
struct bench_progress progress;
struct bench_ends ends;

/* Packets by enum seen; the sink outside looks at sources, and the one inside
 * at destinations.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SEEN_KINDS);
	__type(key, enum seen);
	__type(value, __u64);
} seen_outside SEC(".maps"), seen_inside SEC(".maps");

/* Where the bare redirect sends what comes in, by ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} other_side SEC(".maps");

struct flow {
	struct bench_addr src, dst;
	__be16 sport, dport;
};

static __always_inline void add_to(struct bench_addr *addr, __u32 n)
{
	addr->word[3] = bpf_htonl(bpf_ntohl(addr->word[3]) + n);
}

static __always_inline __u64 add_words(__u64 sum, const __be32 *word, int words)
{
	for (int i = 0; i < words; i++)
		sum += word[i];
	return sum;
}

static __always_inline __sum16 fold(__u64 sum)
{
	sum = (sum >> 32) + (__u32)sum;
	sum = (sum >> 32) + (__u32)sum;
	sum = (sum >> 16) + (__u16)sum;
	sum = (sum >> 16) + (__u16)sum;
	return ~sum;
}

/* The pseudo-header's addresses, and an upper layer of zeros but for ports and
 * length (RFC 768, RFC 8200 section 8.1).
 */
static __always_inline void write_udp(struct udphdr *udp, const struct flow *flow, int words, __u16 len)
{
	__u64 sum = 0;

	udp->source = flow->sport;
	udp->dest = flow->dport;
	udp->len = bpf_htons(len);
	udp->check = 0;
	if (stream.no_checksum)
		return;
	sum = add_words(sum, &flow->src.word[4 - words], words);
	sum = add_words(sum, &flow->dst.word[4 - words], words);
	sum += bpf_htons(IPPROTO_UDP) + 2 * (__u64)bpf_htons(len) + flow->sport + flow->dport;
	udp->check = fold(sum);
	if (!udp->check)
		udp->check = 0xffff;
}

static __always_inline int write_ipv4(struct ethhdr *eth, void *end, const struct flow *flow)
{
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__be32 *word = (void *)ip;

	if ((void *)(udp + 1) > end)
		return XDP_ABORTED;
	eth->h_proto = bpf_htons(ETH_P_IP);
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(end - (void *)ip);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000); /* don't fragment */
	ip->ttl = 64;
	ip->protocol = IPPROTO_UDP;
	ip->check = 0;
	ip->saddr = flow->src.word[3];
	ip->daddr = flow->dst.word[3];
	ip->check = fold(add_words(0, word, 5));
	write_udp(udp, flow, 1, end - (void *)udp);
	return XDP_TX;
}

static __always_inline int write_ipv6(struct ethhdr *eth, void *end, const struct flow *flow)
{
	struct ipv6hdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > end)
		return XDP_ABORTED;
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	*(__be32 *)ip = bpf_htonl(6 << 28);
	ip->payload_len = bpf_htons(end - (void *)udp);
	ip->nexthdr = IPPROTO_UDP;
	ip->hop_limit = 64;
	__builtin_memcpy(&ip->saddr, &flow->src, sizeof(flow->src));
	__builtin_memcpy(&ip->daddr, &flow->dst, sizeof(flow->dst));
	write_udp(udp, flow, 4, end - (void *)udp);
	return XDP_TX;
}

/* Whose turn it is: every flow once in so many packets, and not in the order
 * in which they began, which would be that of the tables' memory.
 */
static __always_inline void next_flow(struct flow *flow)
{
	__u32 i = progress.flow, next = i + stream.stride;
	struct bench_addr client = stream.clients, remote = stream.remotes;
	__be16 port, remote_port = bpf_htons(stream.remote_port);

	progress.flow = next >= stream.flows ? next - stream.flows : next;
	port = bpf_htons(stream.first_port + i % stream.ports);
	add_to(&client, i % stream.hosts);
	add_to(&remote, i / stream.ports);
	if (stream.back)
		*flow = (struct flow){remote, stream.to_clients ? client : stream.self, remote_port, port};
	else
		*flow = (struct flow){client, remote, port, remote_port};
}

/* Run by BPF_PROG_TEST_RUN with live frames. The pages come back with whatever
 * the receivers wrote into them, so the whole header is written each time. The
 * payload is zero, and nobody writes there.
 */
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct flow flow;

	if ((void *)(eth + 1) > end)
		return XDP_ABORTED;
	progress.packets++;
	next_flow(&flow);
	__builtin_memcpy(eth->h_dest, stream.to_mac, sizeof(eth->h_dest));
	__builtin_memcpy(eth->h_source, stream.from_mac, sizeof(eth->h_source));
	return stream.ipv6 ? write_ipv6(eth, end, &flow) : write_ipv4(eth, end, &flow);
}

static __always_inline bool same(const struct bench_addr *a, const struct bench_addr *b)
{
	return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] &&
	       a->word[0] == b->word[0];
}

static __always_inline enum seen whose(const struct bench_addr *addr)
{
	__u32 host = bpf_ntohl(addr->word[3]) - bpf_ntohl(stream.clients.word[3]);
	struct bench_addr client = stream.clients;

	if (same(addr, &ends.unique))
		return SEEN_UNIQUE;
	if (same(addr, &ends.vip))
		return SEEN_VIP;
	client.word[3] = addr->word[3];
	return host < stream.hosts && same(addr, &client) ? SEEN_CLIENT : SEEN_OTHER;
}

static __always_inline struct bench_addr mapped(__be32 addr)
{
	return (struct bench_addr){{0, 0, bpf_htonl(0xffff), addr}};
}

static __always_inline enum seen look(struct xdp_md *ctx, bool outside)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct bench_addr addr;
	struct udphdr *udp;

	if ((void *)(eth + 1) > end)
		return SEEN_OTHER;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->ihl != 5 || ip->protocol != IPPROTO_UDP)
			return SEEN_OTHER;
		addr = mapped(outside ? ip->saddr : ip->daddr);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->nexthdr != IPPROTO_UDP)
			return SEEN_OTHER;
		__builtin_memcpy(&addr, outside ? &ip->saddr : &ip->daddr, sizeof(addr));
	} else {
		return SEEN_OTHER;
	}
	if ((outside ? udp->dest : udp->source) != bpf_htons(stream.remote_port))
		return SEEN_OTHER;
	return whose(&addr);
}

static __always_inline int count(void *map, enum seen seen)
{
	__u64 *packets = bpf_map_lookup_elem(map, &seen);

	if (packets)
		(*packets)++;
	return XDP_DROP; /* nothing answers, not even with an ICMP error */
}

SEC("xdp")
int sink_outside(struct xdp_md *ctx)
{
	return count(&seen_outside, look(ctx, true));
}

SEC("xdp")
int sink_inside(struct xdp_md *ctx)
{
	return count(&seen_inside, look(ctx, false));
}

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	return bpf_redirect_map(&other_side, ctx->ingress_ifindex, 0);
}

SEC("tc")
int nothing(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
