/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Keys, values and numbers shared with user space. bpf2go turns them into Go
 * types; package loader is their only reader there. Padding is explicit and
 * always zero: the kernel hashes every byte of a key.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

/* An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d. */
struct addr {
	__be32 word[4];
};

/* One end-to-end flow as one side of the rewrite sees it. "self" is this
 * router's end: local (what conntrack knows) or public (what the wire sees).
 * ICMP echo has its identifier in self_port and 0 in remote_port.
 */
struct flow_key {
	__u32 slot; /* the interface's key space, see struct iface */
	__u8 proto;
	__u8 pad[3];
	struct addr self;
	struct addr remote;
	__be16 self_port;
	__be16 remote_port;
};

/* pin_counters: packets, by pin number * PIN_COUNTERS + enum. */
enum pin_counter {
	PIN_PINNED, /* left with the VIP in place of the unique address */
	PIN_RETURNED, /* came to the VIP and was sent on to the local end */
	PIN_CREATED, /* mappings made */
	PIN_VIP_WHILE_BACKUP, /* left with the VIP although we are not MASTER */
	PIN_FOREIGN, /* left from the public end of a mapping without being its flow */
	PIN_CLASH, /* mappings whose port could not be kept */
	PIN_EARLY_FRAGMENT, /* came to the VIP before the first fragment and was sent on on suspicion */
	/* Left with the unique address because: */
	PIN_OFF, /* the pin is switched off */
	PIN_BACKUP, /* we are not MASTER */
	PIN_STALE_ROLE, /* we were MASTER, but nobody has confirmed it lately */
	PIN_BORN_BEFORE, /* the flow is older than the pin, or was answered before it was decided on */
	PIN_NO_VIP, /* the pin has no VIP of this family */
	PIN_SOURCE, /* no pin takes this inside host (counted on pin 0) */
	PIN_HELPER, /* a conntrack helper, or a child it expected */
	PIN_FULL, /* a map is full */
	PIN_NO_PORT, /* no free port on the VIP within the tries */
	PIN_NO_CONNTRACK, /* the packet carries no conntrack entry */
	PIN_FRAGMENT, /* a later fragment whose first one was not seen */
	PIN_PROTOCOL, /* a protocol that is not translated: UDP-Lite, DCCP, ICMP queries other than echo */
	PIN_ERROR, /* the packet could not be rewritten and left as it was */
	/* What came later stands here: living flows carry the reasons above as numbers. */
	PIN_HELD, /* answers that were to wait for the peer, PIN_RETURNED too */
	PIN_RESET, /* TCP RSTs of the router's own, from a VIP */
	PIN_BRIDGE, /* left with the unique address: netfilter sees the answers on a bridge's port */
	PIN_COUNTERS,
};

/* Set in both directions' values of a mapping. */
enum mapping_flags {
	MAPPING_NATIVE = 1 << 0, /* conntrack itself knows the flow by the public end: nothing is rewritten */
	MAPPING_ACKED = 1 << 1, /* the peer has it */
	MAPPING_RELEASED = 1 << 2, /* whether it has or not: no answer waits for that any more */
} __attribute__((packed));

/* by_local: local end -> public end. Egress looks here. */
struct public_end {
	struct addr addr;
	__be16 port;
	enum mapping_flags flags;
	__u8 pad;
	__u32 pin;
	__u64 last_out_ns; /* bpf_ktime_get_coarse_ns of the last packet out: it revives a dying mapping */
};

/* by_public: public end -> local end. Ingress looks here. It is the flow's
 * identity: whoever inserts it owns the public end.
 */
struct local_end {
	struct addr addr;
	__be16 port;
	enum mapping_flags flags;
	__u8 pad;
	__u32 pin;
	__u64 born_ns;
	__u64 last_in_ns;
};

/* fragments: only the first one has ports, the others go its way. */
struct fragment_key {
	__u32 slot;
	__u32 ident; /* as it stands in the packet */
	struct addr src; /* as it arrives here */
	struct addr dst;
	__u8 proto; /* 0 for IPv6, whose identification is the same for every protocol */
	__u8 out; /* 1: seen at egress */
	__u8 pad[2];
};

/* What became of the first one. */
struct fragment {
	struct addr addr; /* our end after it */
	__u32 pin;
	__u32 counter; /* enum pin_counter */
};

/* by_remote: a witness that a remote host talks to some mapping by this
 * protocol, for fragments that come before their first one.
 */
struct remote_key {
	__u32 slot;
	__u8 proto;
	__u8 pad[3];
	struct addr self; /* the public end's address */
	struct addr remote;
};

struct remote {
	__be16 self_port; /* with the key: a mapping in by_public; it counts while it is there */
	__be16 remote_port;
};

/* unpinned: the masqueraded flows that keep the router's own address for as
 * long as they live, keyed by their local end.
 */
struct unpinned_flow {
	__u64 conntrack; /* which entry; 0 = from a dump, the first packet fills it in */
	__u32 pin;
	enum pin_counter reason;
};

/* ifaces, by ifindex, and near_ifaces, a copy of those with a small one. */
struct iface {
	__u32 slot; /* 0: only VRRP is watched */
	__u32 pin; /* the only one here; 0: there are several */
	__u8 has_l2; /* frames begin with an Ethernet header */
	__u8 known; /* 1, since an array has a value for everything */
	__u8 resting; /* its pin is off and takes everybody, and no mapping is left: nothing is noted */
	__u8 bridged; /* a Linux bridge, or on one: netfilter may have seen its frames */
};

/* shortcuts: each way is the upper 48 bits of a packet's digest and the number
 * of a pin.
 */
#define SHORTCUT_WAYS 2
struct shortcut {
	__u64 way[SHORTCUT_WAYS];
};

/* vips and uniques. */
struct slot_addr {
	__u32 slot;
	struct addr addr;
};

/* uniques. */
enum unique_state {
	UNIQUE_KNOWN = 1,
	UNIQUE_NEW = 2, /* flows that live on it may not have been noted yet: none is pinned */
} __attribute__((packed));

/* vips: whose it is, and its place in the configuration's list. */
struct vip {
	__u32 pin;
	__u32 order;
};

/* sources: which pin an inside host belongs to (longest prefix). */
struct source_key {
	__u32 prefix_len; /* of slot and addr together: 32 + 0..128 */
	__u32 slot;
	struct addr addr;
};

/* vrids: adverts of a VRID on an interface renew a group's lease. */
struct vrid_key {
	__u32 ifindex;
	__u32 vrid;
};

enum pin_flags {
	PIN_USED = 1 << 0,
	/* In switches alone (switches.h); here earlier versions had them. */
	PIN_ENABLED = 1 << 1,
	PIN_TOGGLED = 1 << 2, /* enabled or disabled by a toggle, not by the configuration */
	PIN_RETIRED = 1 << 3, /* left the configuration while mappings lived */
	/* Netfilter sees answers on the port of a bridge, by family. */
	PIN_BRIDGE4 = 1 << 4,
	PIN_BRIDGE6 = 1 << 5,
};

/* pins, by number from 1. With switches.h everything that "pin ls" shows without a
 * daemon.
 */
struct pin {
	__u32 slot;
	__u32 group;
	__u32 ifindex; /* 0: the interface is absent */
	enum pin_flags flags;
	__u16 vlan_outer;
	__u16 vlan_inner;
	__u32 pad;
	struct addr vip4; /* all zero: none */
	struct addr vip6;
	struct addr unique4; /* what masquerade chooses as a rule; all zero: not known */
	struct addr unique6;
	__u8 name[32];
	__u8 interface[16];
};

/* roles, by pin number. */
struct role {
	__u32 role; /* policy.Role */
	__u32 fixed; /* "load --master": needs no lease */
	__u64 since_ns; /* CLOCK_MONOTONIC: when the daemon decided so */
};

/* groups, by number from 1. */
struct group {
	__u8 name[64];
};

/* own_adverts, by group number; written by the egress program alone. */
struct own_advert {
	__u64 last_ns; /* 0: none, or the last one resigned (priority 0) */
	__u64 interval_ns; /* as advertised */
	__u64 first_ns; /* when this router began to advertise; 0: it does not */
};

/* settings[0] */
struct settings {
	__u64 lease_ns; /* how old the daemon's heartbeat may be */
	__u32 tag_mark; /* put on adverts: mark = (mark & ~mask) | tag_mark */
	__u32 tag_mask;
	__u32 tag_priority;
	__u32 marks; /* 1: a chain of ours tells by marks what conntrack knows */
};

/* hold[0]: answers of mappings that the peer does not have yet are marked. */
struct hold {
	__u64 since_ns; /* of mappings not born before; 0: nothing is held */
	__u32 mark; /* mark = (mark & ~mask) | mark */
	__u32 mask;
};

/* passages, by pin number; CLOCK_MONOTONIC. */
struct passage {
	__u64 out_ns; /* the first packet that left with the VIP since reign_began */
	__u64 in_ns; /* the first answer that came to it */
};

/* What vippin_acknowledge is called with. */
#define ACKNOWLEDGE_MAX 512
struct acknowledgement {
	__u64 keys; /* address, in the caller's memory, of as many struct flow_key of by_public */
	__u32 count; /* ACKNOWLEDGE_MAX at most */
	__u32 flags; /* enum mapping_flags to set */
};

/* Why an advert is not to be believed; policy.AdvertReason. */
enum advert_reason {
	ADVERT_VALID,
	ADVERT_SHORT,
	ADVERT_VERSION,
	ADVERT_TYPE,
	ADVERT_TTL,
	ADVERT_AUTH,
	ADVERT_CHECKSUM,
	ADVERT_FRAGMENT,
	ADVERT_REASONS,
} __attribute__((packed));

/* vrrp_counters: packets, by enum. */
enum vrrp_counter {
	VRRP_INVALID, /* + enum advert_reason; [0] counts the valid ones */
	VRRP_RING_FULL = ADVERT_REASONS, /* user space did not read fast enough */
	VRRP_CLAIMS, /* ARP and neighbour advertisements of others for a VIP */
	VRRP_COUNTERS,
};

#define ADVERT_MAX                                                                                           \
	2048 /* octets of a VRRP packet looked at (a power of two): more than an Ethernet frame holds */

/* adverts (ring buffer): this header, then len octets of the VRRP packet. */
struct advert {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 ifindex;
	__u16 vlan_outer; /* tags still in the frame */
	__u16 vlan_inner;
	struct addr src;
	struct addr dst;
	__u8 src_mac[6];
	__u8 out; /* 0: heard, 1: sent */
	__u8 ttl;
	__u8 ah;
	enum advert_reason reason;
	__u16 len;
};

struct advert_scratch {
	struct advert head;
	__u8 payload[ADVERT_MAX];
};

/* The flow that conntrack takes a packet for. */
struct conntrack {
	__u64 id; /* tells one entry from the next on the same tuple */
	__u64 status;
	struct addr client; /* source of the original direction: the inside host (marks.h: ::n) */
	struct addr translated; /* destination of the reply direction: what masquerade chose */
	__s32 masqueraded; /* see masqueraded_on */
	__u8 reply; /* this packet's direction */
	__u8 fresh; /* this packet made the entry; 0: it did not, or nobody tells */
	__u8 pad[2];
};

/* bpf_skb_ct_lookup's arguments; struct bpf_ct_opts is the kernel's of Linux
 * 6.1, which later ones take, too.
 */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

struct conntrack_question {
	struct bpf_sock_tuple tuple;
	struct bpf_ct_opts opts;
};

/* A mapping in the making. */
struct binding {
	struct conntrack ct;
	struct flow_key local;
	struct flow_key key;
	struct local_end mine;
	struct public_end end;
	struct conntrack_question question;
};

enum fragmentation { WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT };

/* What parse.h reads of a packet. */
struct packet {
	__u32 l3_off; /* from skb->data */
	__u32 l4_off;
	__u32 l4_len; /* octets from l4_off on, by the IP header's word */
	_Bool ipv6;
	__u8 fragment; /* enum fragmentation */
	__u8 proto; /* what stands at l4_off */
	__u8 ttl;
	__u8 icmp_type;
	__u8 tcp_flags; /* 0 in a quotation */
	_Bool no_shortcut; /* the flow's packets go on taking the long way */
	__be16 ip_check; /* IPv4's header checksum */
	__u16 vlan_outer; /* tags still in the frame, 0 = none */
	__u16 vlan_inner;
	struct addr src;
	struct addr dst;
	__be16 sport; /* ICMP echo: the identifier stands in the port of whoever asks */
	__be16 dport;
	__u32 ident; /* of a fragment */
};

/* What somebody says of a VIP. */
enum claim_kind {
	CLAIM_OWNS, /* he has it, unasked */
	CLAIM_ANSWERS, /* he has it: the answer to a question */
	CLAIM_PROBE, /* he asks whether anybody has it (ARP probe, RFC 5227) */
} __attribute__((packed));

/* claims (ring buffer). */
struct claim {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 ifindex;
	struct addr vip;
	__u8 mac[6]; /* as claimed: in the ARP or the option, not of the frame */
	enum claim_kind kind;
	__u8 pad[5];
};
