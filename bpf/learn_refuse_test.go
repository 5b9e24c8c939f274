// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hindrance keeps a packet of a flow that could be learnt from teaching it.
type hindrance struct {
	name string
	by   FastpathFastRefusal
	set  func(t *testing.T, l *learnLab, k *talk)
	undo func(t *testing.T, l *learnLab, k *talk)
}

// rules adds a chain to the router's own, until it is undone.
func rules(name string, by FastpathFastRefusal, chain4, chain6 string) hindrance {
	return hindrance{name, by,
		func(t *testing.T, _ *learnLab, _ *talk) {
			nft(t, fmt.Sprintf("table ip odd { chain odd { %s; }; }\ntable ip6 odd { chain odd { %s; }; }", chain4, chain6))
		},
		func(t *testing.T, _ *learnLab, _ *talk) { nft(t, "delete table ip odd; delete table ip6 odd") },
	}
}

// unmapped has the flow lose its mapping as well: a mapped one's address would differ,
// too. It is to be learnt all the same.
func unmapped(h hindrance) hindrance {
	set := h.set
	h.set = func(t *testing.T, l *learnLab, k *talk) {
		l.unmapFlows(t)
		l.setState(t, func(s *FastpathFastState) { s.All = 1 })
		set(t, l, k)
	}
	return h
}

// state changes fast_state.
func state(name string, by FastpathFastRefusal, change func(t *testing.T, s *FastpathFastState)) hindrance {
	return hindrance{name, by,
		func(t *testing.T, l *learnLab, _ *talk) {
			l.setState(t, func(s *FastpathFastState) { change(t, s) })
		},
		func(t *testing.T, l *learnLab, _ *talk) { l.setState(t, func(*FastpathFastState) {}) },
	}
}

// place has packets seem to come in, or leave, elsewhere.
func place(name string, by FastpathFastRefusal, ifindex func(l *learnLab) int, number, other uint32) hindrance {
	put := func(to uint32) func(t *testing.T, l *learnLab, _ *talk) {
		return func(t *testing.T, l *learnLab, _ *talk) { l.place(t, ifindex(l), to, ifindex(l)) }
	}
	return hindrance{name, by, put(other), put(number << 24)}
}

// oldNote has XDP write no notes, and changes those that are there.
func oldNote(name string, by FastpathFastRefusal, change func(note *FastpathFastNote)) hindrance {
	var device FastpathFastDevice
	return hindrance{name, by,
		func(t *testing.T, l *learnLab, _ *talk) {
			mustDo(t, l.fast.FastDevices.Lookup(uint32(l.lan0), &device))
			other := device
			other.Mac[5] ^= 1
			put(t, l.fast.FastDevices, uint32(l.lan0), other)
			for i := range l.fast.FastNotes.MaxEntries() {
				var note FastpathFastNote
				mustDo(t, l.fast.FastNotes.Lookup(i, &note))
				if note.Digest != 0 {
					change(&note)
					put(t, l.fast.FastNotes, i, note)
				}
			}
		},
		func(t *testing.T, l *learnLab, _ *talk) { put(t, l.fast.FastDevices, uint32(l.lan0), device) },
	}
}

func lanOf(l *learnLab) int { return l.lan0 }
func wanOf(l *learnLab) int { return l.wan0 }

var hindrances = []hindrance{
	place("it came in elsewhere", FastpathFastRefusalREFUSED_NO_NOTE, lanOf, lanNumber, lanNumber<<24|7),
	oldNote("a note of a second ago", FastpathFastRefusalREFUSED_NO_NOTE, func(n *FastpathFastNote) { n.Tick -= 1001 }),
	oldNote("another flow's note", FastpathFastRefusalREFUSED_NO_NOTE, func(n *FastpathFastNote) { n.Digest++ }),
	state("a change a moment ago", FastpathFastRefusalREFUSED_GENERATION, func(t *testing.T, s *FastpathFastState) {
		s.BumpedNs = coarseNow(t) + 1e12 // whenever the packet comes, it is less than 10 ms later
	}),
	rules("not tracked", FastpathFastRefusalREFUSED_NO_CONNTRACK,
		"type filter hook prerouting priority raw; udp dport > 1000 notrack",
		"type filter hook prerouting priority raw; udp dport > 1000 notrack"),
	rules("TTL", FastpathFastRefusalREFUSED_CHANGED,
		"type filter hook forward priority filter; ip ttl set 40", "type filter hook forward priority filter; ip6 hoplimit set 40"),
	rules("traffic class", FastpathFastRefusalREFUSED_CHANGED,
		"type filter hook forward priority filter; ip dscp set ef", "type filter hook forward priority filter; ip6 dscp set ef"),
	rules("source", FastpathFastRefusalREFUSED_CHANGED,
		"type filter hook postrouting priority 300; udp dport > 1000 ip saddr set 198.51.100.77",
		"type filter hook postrouting priority 300; udp dport > 1000 ip6 saddr set 2001:db8:1::77"),
	unmapped(rules("source port", FastpathFastRefusalREFUSED_CHANGED,
		"type filter hook postrouting priority 300; udp dport > 1000 udp sport set 77",
		"type filter hook postrouting priority 300; udp dport > 1000 udp sport set 77")),
	place("it leaves elsewhere", FastpathFastRefusalREFUSED_CHANGED, wanOf, wanNumber, wanNumber<<24|7<<12),
	{"not acknowledged", FastpathFastRefusalREFUSED_NOT_ACKED,
		func(t *testing.T, l *learnLab, _ *talk) {
			put(t, l.Hold, uint32(0), DataplaneHold{SinceNs: 1})
			l.setMappings(t, DataplaneMappingFlagsMAPPING_RELEASED, 1)
		},
		func(t *testing.T, l *learnLab, _ *talk) { l.setMappings(t, DataplaneMappingFlagsMAPPING_ACKED, 1) },
	},
	{"IP options", FastpathFastRefusalREFUSED_PACKET,
		func(t *testing.T, _ *learnLab, k *talk) {
			k.setOption(t, "\x01\x01\x01\x01", "\x00\x00\x01\x04\x00\x00\x00\x00")
		},
		func(t *testing.T, _ *learnLab, k *talk) { k.setOption(t, "", "") },
	},
	{"no number for its hop", FastpathFastRefusalREFUSED_FULL,
		func(t *testing.T, l *learnLab, _ *talk) {
			clearMap[FastpathFastHop](t, l.fast.FastHopNumbers)
			put(t, l.fast.FastHopLast, uint32(0), uint64(65535))
		},
		func(t *testing.T, l *learnLab, _ *talk) { put(t, l.fast.FastHopLast, uint32(0), uint64(65534)) },
	},
}

// setMappings gives all mappings these flags and this time of birth.
func (l *learnLab) setMappings(t *testing.T, flags DataplaneMappingFlags, born uint64) {
	t.Helper()
	var key DataplaneFlowKey
	var public DataplanePublicEnd
	for entries := l.ByLocal.Iterate(); entries.Next(&key, &public); {
		public.Flags = flags
		put(t, l.ByLocal, key, public)
	}
	var local DataplaneLocalEnd
	for entries := l.ByPublic.Iterate(); entries.Next(&key, &local); {
		local.Flags, local.BornNs = flags, born
		put(t, l.ByPublic, key, local)
	}
}

// setOption gives the client's packets IPv4 options, or an IPv6 hop-by-hop header.
func (k *talk) setOption(t *testing.T, options4, header6 string) {
	t.Helper()
	raw, err := k.client.SyscallConn()
	mustDo(t, err)
	var set error
	mustDo(t, raw.Control(func(fd uintptr) {
		if k.from.Addr().Is4() {
			set = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, options4)
		} else {
			set = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, header6)
		}
	}), set)
}

// One thing is not as conntrack, our mapping and routing have it, and the packet
// passes but teaches nothing; without, the next one does.
func TestLearnRefuses(t *testing.T) {
	l := newLearnLab(t)
	for i, h := range hindrances {
		for j, ipv6 := range []bool{false, true} {
			name := fmt.Sprintf("%s, %v", h.name, host(ipv6))
			k := l.talk(t, ipv6, uint16(5000+100*i+10*j))
			l.unmapFlows(t)
			l.setState(t, func(*FastpathFastState) {})
			put(t, l.Hold, uint32(0), DataplaneHold{})
			k.out(t)
			k.back(t)
			h.set(t, l, k)
			l.expect(t, name, refused(h.by), func() { k.out(t) })
			h.undo(t, l, k)
			l.expect(t, name+", no more", learntOne, func() { k.out(t) })
			l.expect(t, name+", at last", forwardedOne, func() { k.out(t) })
		}
	}
}

// While a note of the generation before is young, it teaches nothing for that.
func TestLearnRefusesGeneration(t *testing.T) {
	l := newLearnLab(t)
	before := oldNote("", 0, func(n *FastpathFastNote) { n.Generation-- })
	for _, ipv6 := range []bool{false, true} {
		k := l.talk(t, ipv6, 5555)
		k.out(t)
		k.back(t)
		await(t, "a packet within a second of its note", func() bool {
			l.clearEntries(t)
			k.out(t)
			before.set(t, l, k)
			l.outcome(t)
			k.out(t)
			got := l.outcome(t)
			before.undo(t, l, k)
			if got.learnt+got.forwarded > 0 {
				t.Fatalf("%v: %+v", host(ipv6), got)
			}
			return got.refused[FastpathFastRefusalREFUSED_GENERATION] == 1
		})
		l.clearEntries(t)
		l.expect(t, "no more", learntOne, func() { k.out(t) })
	}
}

// A datagram in pieces teaches nothing; its pieces are counted as they leave.
func TestLearnRefusesFragments(t *testing.T) {
	l := newLearnLab(t)
	for _, ipv6 := range []bool{false, true} {
		k := l.talk(t, ipv6, 5555)
		k.out(t)
		k.back(t)
		want := outcome{refused: map[FastpathFastRefusal]uint64{FastpathFastRefusalREFUSED_PACKET: 2}}
		l.expect(t, "two fragments", want, func() { k.send(t, strings.Repeat("x", 2000)) })
		l.expect(t, "a whole one", learntOne, func() { k.out(t) })
	}
}

// A flow that begins with a helper or in a zone teaches nothing for as long as it lives.
func TestLearnRefusesHelpers(t *testing.T) {
	l := newLearnLab(t)
	for i, odd := range []struct{ name, rules4, rules6 string }{
		{"a helper", `ct helper tftp { type "tftp" protocol udp; l3proto ip; }
				chain odd { type filter hook prerouting priority filter; udp dport > 1000 ct helper set "tftp"; }`,
			`ct helper tftp { type "tftp" protocol udp; l3proto ip6; }
				chain odd { type filter hook prerouting priority filter; udp dport > 1000 ct helper set "tftp"; }`},
		{"a zone", "chain odd { type filter hook prerouting priority raw; ct zone set 5; }",
			"chain odd { type filter hook prerouting priority raw; ct zone set 5; }"},
	} {
		nft(t, fmt.Sprintf("table ip odd { %s; }\ntable ip6 odd { %s; }", odd.rules4, odd.rules6))
		for j, ipv6 := range []bool{false, true} {
			name := fmt.Sprintf("%s, %v", odd.name, host(ipv6))
			l.setState(t, func(s *FastpathFastState) { s.All = 1 })
			k := l.talk(t, ipv6, uint16(5000+100*i+10*j))
			k.out(t)
			l.expect(t, name+", back", refused(FastpathFastRefusalREFUSED_HELPER), func() { k.back(t) })
			l.expect(t, name+", out", refused(FastpathFastRefusalREFUSED_HELPER), func() { k.out(t) })
		}
		nft(t, "delete table ip odd; delete table ip6 odd")
	}
}

// Nothing is said of packets that are about no flow of others: this router's own, ICMP.
func TestLearnUntold(t *testing.T) {
	l := newLearnLab(t)
	k := l.talk(t, false, 5555)
	k.out(t)
	k.back(t)
	l.setState(t, func(s *FastpathFastState) { s.Generation = 0 })
	l.expect(t, "closed", untold, func() { k.out(t) })
	l.setState(t, func(*FastpathFastState) {})
	for _, ipv6 := range []bool{false, true} {
		to := netip.AddrPortFrom(server(ipv6), 6666)
		own := newTalk(t, l.router, l.wan, netip.AddrPortFrom(unique(ipv6), 6665), to, to)
		l.expect(t, "the router's own", untold, func() { own.out(t) })
		l.expect(t, "an answer to it", untold, func() { own.back(t) })
		l.expect(t, "an echo", untold, func() {
			mustDo(t, inside(l.lan, func() error {
				said, err := exec.Command("ping", "-n", "-c", "1", "-W", "10", server(ipv6).String()).CombinedOutput()
				if err != nil {
					return fmt.Errorf("ping: %w: %s", err, said)
				}
				return nil
			}))
		})
	}
	l.expect(t, "the flow", learntOne, func() { k.out(t) })
}
