// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* What measures: a generator, a sink, and the ways past the kernel's stack that
 * others are compared with. No part of the dataplane; package loader/bench loads it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10
#define MAX_TAGS 2
#define GAPS 1024 /* a power of two */
#define STAMPS 65536 /* packets under way at most; 16 bits */
#define BUCKET_BITS 5 /* of latency: each bucket is 1/32 wide of its lower bound */
#define BUCKETS 1024

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
	__u8 paced; /* packets come when they are due, and are timed */
	__u8 tags; /* in each frame, 0 to MAX_TAGS */
	__be32 tag[MAX_TAGS]; /* as on the wire: protocol, tag control information */
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
	__s32 tags; /* that frames have outside */
	__u32 pad;
};

/* How far the generator is. */
struct bench_progress {
	__u64 packets;
	__u64 due; /* paced: when the next packet comes, core_clock in 1/16 ns */
	__u64 last_ns; /* core_clock was read last, CLOCK_MONOTONIC */
	__u64 lost_ns; /* of CLOCK_MONOTONIC to others */
	__u32 flow; /* whose turn it is */
	__u32 random;
};

/* What forward_by_fib puts in front of packets that leave by a VLAN. */
struct bench_vlan {
	__u32 ifindex; /* of the VLAN's device; 0: no tags anywhere */
	__s32 tags;
	__be32 tag[MAX_TAGS];
};

struct bench_stream stream;
struct bench_progress progress;
struct bench_ends ends;
struct bench_vlan vlan;

/* Paced: times between packets, in 1/16 ns, and when the packets under way came. */
__u32 gaps[GAPS];
__u64 stamps[STAMPS];

/* Packets by how long they were under way: see bucket_of. */
__u64 latencies[BUCKETS];

/* Packets by enum seen; the sink outside looks at sources, and the one inside
 * at destinations.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SEEN_KINDS);
	__type(key, enum seen);
	__type(value, __u64);
} seen_outside SEC(".maps"), seen_inside SEC(".maps");

/* The router's devices, inside and outside. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} sides SEC(".maps");

/* The router's devices by the ifindex that a route leads to; a VLAN's is that of
 * the device below.
 */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u32);
} by_route SEC(".maps");

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

/* The pseudo-header's addresses, and an upper layer of zeros but for ports,
 * length and mark (RFC 768, RFC 8200 section 8.1).
 */
static __always_inline void write_udp(struct udphdr *udp, const struct flow *flow, int words, __u16 len)
{
	__be16 *mark = (void *)(udp + 1);
	__u64 sum = 0;

	udp->source = flow->sport;
	udp->dest = flow->dport;
	udp->len = bpf_htons(len);
	udp->check = 0;
	if (stream.paced) {
		*mark = (__u16)progress.packets;
		sum = *mark;
	}
	if (stream.no_checksum)
		return;
	sum = add_words(sum, &flow->src.word[4 - words], words);
	sum = add_words(sum, &flow->dst.word[4 - words], words);
	sum += bpf_htons(IPPROTO_UDP) + 2 * (__u64)bpf_htons(len) + flow->sport + flow->dport;
	udp->check = fold(sum);
	if (!udp->check)
		udp->check = 0xffff;
}

static __always_inline int write_ipv4(void *l3, void *end, const struct flow *flow)
{
	struct iphdr *ip = l3;
	struct udphdr *udp = (void *)(ip + 1);
	__be32 *word = l3;

	if ((void *)(udp + 1) + sizeof(__be16) > end)
		return XDP_ABORTED;
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

static __always_inline int write_ipv6(void *l3, void *end, const struct flow *flow)
{
	struct ipv6hdr *ip = l3;
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) + sizeof(__be16) > end)
		return XDP_ABORTED;
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

/* Generator and sink ask what time it is at least once in a batch. When neither
 * did for as long as this, somebody else had the core.
 */
#define PAUSE_NS 100000

/* In 1/16 ns; it stands still while somebody else has the core. */
static __always_inline __u64 core_clock(void)
{
	__u64 now = bpf_ktime_get_ns(), gap = now - progress.last_ns;

	progress.last_ns = now;
	if (gap > PAUSE_NS)
		progress.lost_ns += gap;
	return (now - progress.lost_ns) << 4;
}

/* Packets come at random, as if nobody knew of the others: when they do is decided
 * beforehand, and does not wait for those that are under way. One that nobody had
 * time for was under way all the same.
 */
static __always_inline bool is_due(void)
{
	if (core_clock() < progress.due)
		return false;
	stamps[progress.packets & (STAMPS - 1)] = progress.due;
	progress.random = progress.random * 1664525 + 1013904223;
	progress.due += gaps[progress.random >> 16 & (GAPS - 1)];
	return true;
}

/* Between the addresses and the IP header; returns where that is, NULL if the frame
 * ends before. There must be room for all tags.
 */
static __always_inline void *write_tags(struct ethhdr *eth, void *end, __u32 tags, const __be32 tag[MAX_TAGS],
					__be16 proto)
{
	__be32 *at = (void *)&eth->h_proto;
	__be16 *last;

	for (__u32 i = 0; i < MAX_TAGS; i++)
		if (i < tags)
			at[i] = tag[i];
	last = (void *)(at + (tags < MAX_TAGS ? tags : MAX_TAGS));
	if ((void *)(last + 1) > end)
		return NULL;
	*last = proto;
	return last + 1;
}

/* Run by BPF_PROG_TEST_RUN with live frames. The pages come back with whatever
 * the receivers wrote into them, so the whole header is written each time. The
 * payload is zero, and nobody writes there.
 */
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *l3;
	struct ethhdr *eth = data;
	struct flow flow;

	if ((void *)(eth + 1) + MAX_TAGS * sizeof(__be32) > end)
		return XDP_ABORTED;
	if (stream.paced && !is_due())
		return XDP_DROP; /* asks again */
	next_flow(&flow);
	__builtin_memcpy(eth->h_dest, stream.to_mac, sizeof(eth->h_dest));
	__builtin_memcpy(eth->h_source, stream.from_mac, sizeof(eth->h_source));
	l3 = write_tags(eth, end, stream.tags, stream.tag, bpf_htons(stream.ipv6 ? ETH_P_IPV6 : ETH_P_IP));
	if (!l3)
		return XDP_ABORTED;
	if ((stream.ipv6 ? write_ipv6(l3, end, &flow) : write_ipv4(l3, end, &flow)) != XDP_TX)
		return XDP_ABORTED;
	progress.packets++;
	return XDP_TX;
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

static __always_inline bool is_tag(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

/* The number of tags, -1: the frame is cut short. */
static __always_inline int skip_tags(void *data, void *end, void **l3, __be16 *proto)
{
	struct ethhdr *eth = data;
	__be16 *at = (void *)(eth + 1), type;

	*l3 = at;
	if ((void *)(eth + 1) > end)
		return -1;
	type = eth->h_proto;
	*proto = type;
	if (!is_tag(type))
		return 0;
	if ((void *)(at + 2) > end)
		return -1;
	type = at[1];
	*proto = type;
	*l3 = at + 2;
	if (!is_tag(type))
		return 1;
	if ((void *)(at + 4) > end)
		return -1;
	*proto = at[3];
	*l3 = at + 4;
	return 2;
}

static __always_inline void time_packet(const struct udphdr *udp, void *end);

static __always_inline enum seen look(struct xdp_md *ctx, bool outside)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *l3;
	struct bench_addr addr;
	struct udphdr *udp;
	__be16 proto = 0;

	if (skip_tags(data, end, &l3, &proto) != (outside ? ends.tags : 0))
		return SEEN_OTHER;
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->ihl != 5 || ip->protocol != IPPROTO_UDP)
			return SEEN_OTHER;
		addr = mapped(outside ? ip->saddr : ip->daddr);
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = l3;

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->nexthdr != IPPROTO_UDP)
			return SEEN_OTHER;
		__builtin_memcpy(&addr, outside ? &ip->saddr : &ip->daddr, sizeof(addr));
	} else {
		return SEEN_OTHER;
	}
	if ((outside ? udp->dest : udp->source) != bpf_htons(stream.remote_port))
		return SEEN_OTHER;
	if (stream.paced)
		time_packet(udp, end);
	return whose(&addr);
}

/* Nanoseconds below 2^(BUCKET_BITS+1) have a bucket each; above, each power of two
 * has 2^BUCKET_BITS.
 */
static __always_inline __u32 bucket_of(__u64 ns)
{
	__u32 shift = 0;

	for (int i = 0; i < 31; i++) {
		if (ns < 2 << BUCKET_BITS)
			break;
		ns >>= 1;
		shift++;
	}
	return (shift << BUCKET_BITS) + ns;
}

static __always_inline void time_packet(const struct udphdr *udp, void *end)
{
	const __be16 *mark = (void *)(udp + 1);
	__u64 now = core_clock();
	__u32 bucket;

	if ((void *)(mark + 1) > end)
		return;
	bucket = bucket_of((now - stamps[*mark]) >> 4);
	latencies[bucket & (BUCKETS - 1)]++;
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

/* The bare redirects: to the other side, whatever it is. */

SEC("xdp")
int redirect_inside(struct xdp_md *ctx)
{
	return bpf_redirect_map(&sides, 0, XDP_DROP);
}

SEC("xdp")
int redirect_outside(struct xdp_md *ctx)
{
	return bpf_redirect_map(&sides, 1, XDP_DROP);
}

/* Asks the routing table, as samples/bpf/xdp_fwd_kern.c does, and no rules, since
 * there are none: that is faster. What is no packet to forward takes the stack.
 */
static __always_inline long ask_fib(struct xdp_md *ctx, void *l3, void *end, __be16 proto,
				    struct bpf_fib_lookup *fib)
{
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->ttl <= 1)
			return -1;
		fib->family = AF_INET;
		fib->tos = ip->tos;
		fib->l4_protocol = ip->protocol;
		fib->tot_len = bpf_ntohs(ip->tot_len);
		fib->ipv4_src = ip->saddr;
		fib->ipv4_dst = ip->daddr;
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->hop_limit <= 1)
			return -1;
		fib->family = AF_INET6;
		fib->flowinfo = *(__be32 *)ip & bpf_htonl(0x0fffffff);
		fib->l4_protocol = ip->nexthdr;
		fib->tot_len = bpf_ntohs(ip->payload_len);
		__builtin_memcpy(fib->ipv6_src, &ip->saddr, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, &ip->daddr, sizeof(fib->ipv6_dst));
	} else {
		return -1;
	}
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), BPF_FIB_LOOKUP_DIRECT);
}

static __always_inline void age(void *l3, __be16 proto)
{
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;
		__u32 check = ip->check;

		check += bpf_htons(0x0100);
		ip->check = check + (check >= 0xffff);
		ip->ttl--;
	} else {
		((struct ipv6hdr *)l3)->hop_limit--;
	}
}

/* XDP with bpf_fib_lookup, TTL and MACs alone: forwarding without conntrack. */
SEC("xdp")
int forward_by_fib(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *l3;
	struct bpf_fib_lookup fib = {.ifindex = ctx->ingress_ifindex};
	struct ethhdr *eth = data;
	int tags = 0;
	__be16 proto = 0;
	int had;

	had = skip_tags(data, end, &l3, &proto);
	if (had < 0 || (void *)(eth + 1) > end)
		return XDP_PASS;
	if (had)
		fib.ifindex = vlan.ifindex;
	if (ask_fib(ctx, l3, end, proto, &fib) != BPF_FIB_LKUP_RET_SUCCESS)
		return XDP_PASS;
	age(l3, proto);
	if (fib.ifindex == vlan.ifindex)
		tags = vlan.tags;
	if (tags != had || tags) {
		if (bpf_xdp_adjust_head(ctx, (had - tags) * (int)sizeof(__be32)))
			return XDP_DROP;
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		eth = data;
		if ((void *)(eth + 1) + MAX_TAGS * sizeof(__be32) > end)
			return XDP_DROP;
		if (!write_tags(eth, end, tags, vlan.tag, proto))
			return XDP_DROP;
	}
	__builtin_memcpy(eth->h_dest, fib.dmac, sizeof(eth->h_dest));
	__builtin_memcpy(eth->h_source, fib.smac, sizeof(eth->h_source));
	return bpf_redirect_map(&by_route, fib.ifindex, XDP_DROP);
}

/* Nothing, as what others are compared with. */

SEC("tc")
int nothing(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

SEC("xdp")
int nothing_xdp(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
