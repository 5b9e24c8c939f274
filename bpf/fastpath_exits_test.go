// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// passes wants a frame to take the stack as it came, for one reason.
func (f *fastpath) passes(t *testing.T, in []byte, exit FastpathFastExit) {
	t.Helper()
	action, out := f.run(t, in, nil)
	if action != xdpPass {
		t.Errorf("action %d, want %d", action, xdpPass)
	}
	sameBytes(t, "frame", out, in)
	sameCounts(t, "exits", f.exits(t), map[FastpathFastExit]uint64{exit: 1})
	sameCounts(t, "pin's counters", f.pinCounts(t, pinNumber), counts{})
}

// notes wants the packet to have been noted for the egress program, or not at all.
func (f *fastpath) notes(t *testing.T, fl *fastFlow, noted bool) {
	t.Helper()
	got := f.note(t)
	want := FastpathFastNote{}
	if noted {
		want = FastpathFastNote{
			Digest: fl.digest(), Place: fl.place, Generation: fastGeneration, Tick: got.Tick, Ttl: 63, Tos: 8,
		}
		if lag := int32(f.tick - got.Tick); lag > 0 {
			t.Errorf("noted at tick %d, before %d", got.Tick, f.tick)
		}
	}
	if got != want {
		t.Errorf("note %+v, want %+v", got, want)
	}
}

// TestFastExits: a packet of a valid flow but for one thing takes the stack.
func TestFastExits(t *testing.T) {
	f := newFastpath(t)
	octet := func(at int, value byte) func(*fastFlow, []byte) []byte {
		return func(_ *fastFlow, b []byte) []byte {
			b[at] = value
			return b
		}
	}
	l3 := func(v4, v6 int, value byte) func(*fastFlow, []byte) []byte {
		return func(fl *fastFlow, b []byte) []byte {
			if fl.in.ipv6() {
				b[etherHeader+v6] = value
			} else {
				b[etherHeader+v4] = value
			}
			return b
		}
	}
	fragment := func(flags uint16) func(*fastFlow, []byte) []byte {
		return func(_ *fastFlow, b []byte) []byte {
			binary.BigEndian.PutUint16(b[etherHeader+6:], flags)
			return b
		}
	}
	longer := func(by int) func(*fastFlow, []byte) []byte { // by the IP header's word
		return func(fl *fastFlow, b []byte) []byte {
			at := etherHeader + 2
			if fl.in.ipv6() {
				at += 2
			}
			binary.BigEndian.PutUint16(b[at:], uint16(int(binary.BigEndian.Uint16(b[at:]))+by))
			return b
		}
	}
	for _, c := range []struct {
		name   string
		exit   FastpathFastExit
		family int
		proto  layers.IPProtocol // 0: either
		change func(*fastFlow, []byte) []byte
	}{
		{"closed", FastpathFastExitFAST_CLOSED, 0, 0, func(_ *fastFlow, b []byte) []byte {
			put(t, f.FastState, uint32(0), FastpathFastState{Keys: fastKeys, LeaseNs: fastLease})
			return b
		}},
		{"daemon never lived", FastpathFastExitFAST_CLOSED, 0, 0, func(_ *fastFlow, b []byte) []byte { f.beat(t, 0); return b }},
		{"daemon dead", FastpathFastExitFAST_CLOSED, 0, 0, func(_ *fastFlow, b []byte) []byte {
			f.beat(t, coarseNow(t)-fastLease)
			return b
		}},
		{"no device", FastpathFastExitFAST_DEVICE, 0, 0, func(_ *fastFlow, b []byte) []byte {
			put(t, f.FastDevices, uint32(loopback), FastpathFastDevice{})
			return b
		}},
		{"another ethertype", FastpathFastExitFAST_NOT_IP, 0, 0, octet(12, 0x06)},
		{"another version", FastpathFastExitFAST_NOT_IP, 0, 0, l3(0, 0, 0x55)},
		{"not to us, first octet", FastpathFastExitFAST_OTHER_HOST, 0, 0, octet(0, 2)},
		{"not to us, fourth octet", FastpathFastExitFAST_OTHER_HOST, 0, 0, octet(3, 1)},
		{"not to us, last octet", FastpathFastExitFAST_OTHER_HOST, 0, 0, octet(5, 3)},
		{"broadcast", FastpathFastExitFAST_OTHER_HOST, 0, 0, func(_ *fastFlow, b []byte) []byte {
			copy(b, []byte{255, 255, 255, 255, 255, 255})
			return b
		}},
		{"VRRP", FastpathFastExitFAST_PROTOCOL, 0, 0, l3(9, 6, 112)},
		{"authentication header", FastpathFastExitFAST_PROTOCOL, 0, 0, l3(9, 6, 51)},
		{"ICMP", FastpathFastExitFAST_PROTOCOL, 0, 0, l3(9, 6, 1)},
		{"ICMPv6", FastpathFastExitFAST_PROTOCOL, 0, 0, l3(9, 6, 58)},
		{"SCTP", FastpathFastExitFAST_PROTOCOL, 0, 0, l3(9, 6, 132)},
		{"UDP-Lite", FastpathFastExitFAST_PROTOCOL, 0, 0, l3(9, 6, 136)},
		{"IPv6 fragment", FastpathFastExitFAST_PROTOCOL, 6, 0, l3(0, 6, 44)},
		{"IPv4 options", FastpathFastExitFAST_OPTIONS, 4, 0, l3(0, 0, 0x46)},
		{"header too short", FastpathFastExitFAST_OPTIONS, 4, 0, l3(0, 0, 0x44)},
		{"first fragment", FastpathFastExitFAST_FRAGMENT, 4, 0, fragment(0x2000)},
		{"later fragment", FastpathFastExitFAST_FRAGMENT, 4, 0, fragment(0x2001)},
		{"last fragment", FastpathFastExitFAST_FRAGMENT, 4, 0, fragment(0x1000)},
		{"TTL 1", FastpathFastExitFAST_TTL, 0, 0, l3(8, 7, 1)},
		{"TTL 0", FastpathFastExitFAST_TTL, 0, 0, l3(8, 7, 0)},
		{"longer than the frame", FastpathFastExitFAST_NOT_IP, 0, 0, longer(1)},
		{"shorter than UDP says", FastpathFastExitFAST_NOT_IP, 0, layers.IPProtocolUDP, longer(-1)},
		{"shorter than a UDP header", FastpathFastExitFAST_NOT_IP, 0, layers.IPProtocolUDP, longer(-13)},
		{"shorter than a TCP header", FastpathFastExitFAST_NOT_IP, 0, layers.IPProtocolTCP, longer(-13)},
		{"no length at all", FastpathFastExitFAST_NOT_IP, 4, 0, func(_ *fastFlow, b []byte) []byte {
			b[etherHeader+2], b[etherHeader+3] = 0, 0
			return b
		}},
		{"TCP header too short", FastpathFastExitFAST_NOT_IP, 0, layers.IPProtocolTCP, func(fl *fastFlow, b []byte) []byte {
			b[fl.in.headers()-20+12] = 0x40
			return b
		}},
		{"TCP header too long", FastpathFastExitFAST_NOT_IP, 0, layers.IPProtocolTCP, func(fl *fastFlow, b []byte) []byte {
			b[fl.in.headers()-20+12] = 0x90
			return b
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachFast(t, func(t *testing.T, in frame) {
				if c.family == 4 && in.ipv6() || c.family == 6 && !in.ipv6() || c.proto != 0 && c.proto != in.proto {
					return
				}
				f.reset(t)
				fl := f.snat(in, nil)
				f.enter(t, fl, 0)
				f.passes(t, c.change(fl, in.bytes(t)), c.exit)
				f.notes(t, fl, false)
				if got := f.fateOf(t, fl, 0); got != fl.fate {
					t.Errorf("entry %+v, want %+v", got, fl.fate)
				}
			})
		})
	}
}

// TestFastEntryExits: why a packet that could be forwarded is not, and whether the
// egress program is to learn its flow anew.
func TestFastEntryExits(t *testing.T) {
	f := newFastpath(t)
	for _, c := range []struct {
		name   string
		exit   FastpathFastExit
		noted  bool
		change func(*fastFlow)
	}{
		{"void", FastpathFastExitFAST_STALE, true, func(fl *fastFlow) { fl.fate.Generation = 0 }},
		{"earlier generation", FastpathFastExitFAST_STALE, true, func(fl *fastFlow) { fl.fate.Generation-- }},
		{"later generation", FastpathFastExitFAST_STALE, true, func(fl *fastFlow) { fl.fate.Generation++ }},
		{"ends now", FastpathFastExitFAST_RECHECK, true, func(fl *fastFlow) { fl.fate.Until = f.tick }},
		{"ended long ago", FastpathFastExitFAST_RECHECK, true, func(fl *fastFlow) { fl.fate.Until = f.tick - 1<<30 }},
		{"hop never made", FastpathFastExitFAST_HOP_GONE, true, func(fl *fastFlow) { fl.fate.Hop++ }},
		{"hop dead", FastpathFastExitFAST_HOP_GONE, true, func(*fastFlow) {
			put(t, f.FastHops, uint32(fastHop), FastpathFastHop{Macs: fastMACs, Mtu: fastMTU, Device: fastIn})
		}},
		{"too big", FastpathFastExitFAST_TOO_BIG, false, func(fl *fastFlow) {
			put(t, f.FastHops, uint32(fastHop), FastpathFastHop{
				Macs: fastMACs, Mtu: uint16(len(fl.in.bytes(t)) - etherHeader - 1), Device: fastIn, Alive: 1,
			})
		}},
		{"three tags", FastpathFastExitFAST_NO_ROOM, false, func(*fastFlow) {
			put(t, f.FastHops, uint32(fastHop), FastpathFastHop{Macs: fastMACs, Mtu: fastMTU, Device: fastIn, Alive: 1, Tags: 3})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachFast(t, func(t *testing.T, in frame) {
				f.reset(t)
				fl := f.snat(in, nil)
				c.change(fl)
				f.enter(t, fl, 1)
				f.passes(t, in.bytes(t), c.exit)
				f.notes(t, fl, c.noted)
				if got := f.fateOf(t, fl, 1); got != fl.fate {
					t.Errorf("entry %+v, want %+v", got, fl.fate)
				}
			})
		})
	}
}

// TestFastMiss: a packet that differs from a flow's in one part of the key is none
// of its, and is noted under its own.
func TestFastMiss(t *testing.T) {
	f := newFastpath(t)
	next := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Next(), a.Port()) }
	up := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), a.Port()+1) }
	first := func(a netip.AddrPort) netip.AddrPort { // the upper half of an IPv6 address
		octets := a.Addr().AsSlice()
		octets[1] ^= 1
		addr, _ := netip.AddrFromSlice(octets)
		return netip.AddrPortFrom(addr, a.Port())
	}
	for name, change := range map[string]func(*frame){
		"source":           func(in *frame) { in.src = next(in.src) },
		"source, upper":    func(in *frame) { in.src = first(in.src) },
		"destination":      func(in *frame) { in.dst = next(in.dst) },
		"destination, up":  func(in *frame) { in.dst = first(in.dst) },
		"source port":      func(in *frame) { in.src = up(in.src) },
		"destination port": func(in *frame) { in.dst = up(in.dst) },
		"direction":        func(in *frame) { in.src, in.dst = in.dst, in.src },
		"protocol": func(in *frame) {
			in.proto = map[layers.IPProtocol]layers.IPProtocol{
				layers.IPProtocolTCP: layers.IPProtocolUDP, layers.IPProtocolUDP: layers.IPProtocolTCP,
			}[in.proto]
		},
		"untagged":        func(in *frame) { in.tags = nil },
		"outer tag":       func(in *frame) { in.tags = []tag{{0x88a8, 101}, {0x8100, 20}} },
		"inner tag":       func(in *frame) { in.tags = []tag{{0x88a8, 100}, {0x8100, 21}} },
		"outer tag alone": func(in *frame) { in.tags = []tag{{0x88a8, 100}} },
		"802.1Q outside":  func(in *frame) { in.tags = []tag{{0x8100, 100}, {0x8100, 20}} },
	} {
		t.Run(name, func(t *testing.T) {
			eachFast(t, func(t *testing.T, in frame) {
				f.reset(t)
				in.tags = []tag{{0x88a8, 100}, {0x8100, 20}}
				known := f.snat(in, nil)
				change(&in)
				other := f.snat(in, nil)
				// In the bucket where the other one would be looked for.
				known.bucket = other.digest()
				f.enter(t, known, 2)
				f.passes(t, in.bytes(t), FastpathFastExitFAST_MISS)
				f.notes(t, other, true)
			})
		})
	}
	t.Run("device", func(t *testing.T) {
		f.reset(t)
		fl := f.snat(fastFrame(false, layers.IPProtocolUDP), nil)
		f.enter(t, fl, 0)
		put(t, f.FastDevices, uint32(loopback), FastpathFastDevice{Number: fastElsewhere, Mac: [6]uint8(routerMAC)})
		f.passes(t, fl.in.bytes(t), FastpathFastExitFAST_MISS)
		f.note(t)
	})
}

// TestFastTags: tags that are not looked behind.
func TestFastTags(t *testing.T) {
	f := newFastpath(t)
	for name, tags := range map[string][]tag{
		"priority":         {{0x8100, 0xe000}},
		"802.1ad priority": {{0x88a8, 0xe000}},
		"inner priority":   {{0x88a8, 100}, {0x8100, 0xe000}},
		"inner 802.1ad":    {{0x8100, 100}, {0x88a8, 20}},
		"three":            {{0x88a8, 100}, {0x8100, 20}, {0x8100, 30}},
		"another kind":     {{0x9100, 100}},
	} {
		t.Run(name, func(t *testing.T) {
			eachFast(t, func(t *testing.T, in frame) {
				f.reset(t)
				fl := f.snat(in, nil)
				f.enter(t, fl, 0)
				in.tags = tags
				f.passes(t, in.bytes(t), FastpathFastExitFAST_NOT_IP)
				f.notes(t, fl, false)
			})
		})
	}
}

// TestFastVRRP: adverts of every kind pass, whatever the tables know.
func TestFastVRRP(t *testing.T) {
	f := newFastpath(t)
	for name, a := range goodAdverts() {
		b := a.bytes(t)
		f.passes(t, b, FastpathFastExitFAST_OTHER_HOST) // multicast
		copy(b, routerMAC)
		t.Run(name, func(t *testing.T) { f.passes(t, b, FastpathFastExitFAST_PROTOCOL) })
	}
}
