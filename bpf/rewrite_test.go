// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
)

const (
	egress  = "egress"
	ingress = "ingress"
)

func (d *dataplane) program(direction string) *ebpf.Program {
	if direction == egress {
		return d.VippinEgress
	}
	return d.VippinIngress
}

// flow is one mapped flow.
type flow struct {
	proto                 layers.IPProtocol
	local, public, remote netip.AddrPort
	flags                 DataplaneMappingFlags
}

// someFlow is a mapped flow of a family and protocol; newPort: the public end
// has another port than the local one.
func someFlow(ipv6 bool, proto layers.IPProtocol, newPort bool) flow {
	local, vip, remote := unique4, vip4, remote4
	if ipv6 {
		local, vip, remote = unique6, vip6, remote6
	}
	f := flow{
		proto:  proto,
		local:  netip.AddrPortFrom(local, 40001),
		public: netip.AddrPortFrom(vip, 40001),
		remote: netip.AddrPortFrom(remote, 443),
	}
	if newPort {
		f.public = netip.AddrPortFrom(vip, 51234)
	}
	switch proto {
	case layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolSCTP:
	case icmp:
		f.remote = netip.AddrPortFrom(remote, 0)
	default: // no ports
		f.local, f.public, f.remote = netip.AddrPortFrom(local, 0), netip.AddrPortFrom(vip, 0), netip.AddrPortFrom(remote, 0)
	}
	return f
}

// frames are a packet of the flow before and after a program had it.
func (f flow) frames(direction string) (in, out frame) {
	if direction == egress {
		in = frame{src: f.local, dst: f.remote, proto: f.proto}
		out = in
		out.src = f.public
	} else {
		in = frame{src: f.remote, dst: f.public, proto: f.proto, reply: true}
		out = in
		out.dst = f.local
	}
	return in, out
}

func (f flow) ipProto() layers.IPProtocol {
	return frame{src: f.local, proto: f.proto}.ipProto()
}

func (f flow) key(self netip.AddrPort) (k DataplaneFlowKey) {
	k.Slot = slot
	k.Proto = uint8(f.ipProto())
	k.Self.Word = words(self.Addr())
	k.SelfPort = be16(self.Port())
	k.Remote.Word = words(f.remote.Addr())
	k.RemotePort = be16(f.remote.Port())
	return k
}

// mapFlow enters the flow as the programs themselves do, in both directions.
func (d *dataplane) mapFlow(t *testing.T, f flow) {
	t.Helper()
	public := DataplanePublicEnd{Port: be16(f.public.Port()), Flags: f.flags, Pin: pinNumber}
	public.Addr.Word = words(f.public.Addr())
	put(t, d.ByLocal, f.key(f.local), public)
	local := DataplaneLocalEnd{Port: be16(f.local.Port()), Flags: f.flags, Pin: pinNumber}
	local.Addr.Word = words(f.local.Addr())
	put(t, d.ByPublic, f.key(f.public), local)
}

func (d *dataplane) unmapFlows(t *testing.T) {
	t.Helper()
	clearMap[DataplaneFlowKey](t, d.ByLocal)
	clearMap[DataplaneFlowKey](t, d.ByPublic)
	clearMap[DataplaneFlowKey](t, d.Foreign)
	clearMap[DataplaneFragmentKey](t, d.Fragments)
	clearMap[DataplaneRemoteKey](t, d.ByRemote)
	d.newEpoch(t)
}

// expect runs a frame and compares everything that can have changed: the
// action, the octets, mark and priority, and every counter. It does so twice:
// the first packet of an epoch takes the long way, the next one may know a
// shortcut.
func (d *dataplane) expect(t *testing.T, direction string, in, want []byte, skb skBuff, flags uint32, pin counts) {
	t.Helper()
	d.newEpoch(t)
	for range 2 {
		d.expectOnce(t, direction, in, want, skb, flags, pin)
	}
}

func (d *dataplane) expectOnce(t *testing.T, direction string, in, want []byte, skb skBuff, flags uint32, pin counts) {
	t.Helper()
	d.forget(t)
	skb.Mark, skb.Priority = 0x1234, 3
	got := run(t, d.program(direction), in, skb, flags)
	if got.action != actUnspec {
		t.Errorf("action %d, want TC_ACT_UNSPEC", int32(got.action))
	}
	if got.skb.Mark != 0x1234 || got.skb.Priority != 3 {
		t.Errorf("mark %#x priority %d, want them as they were", got.skb.Mark, got.skb.Priority)
	}
	sameBytes(t, "frame", got.frame, want)
	d.expectCounts(t, pin, counts{})
}

// newEpoch makes the programs forget their shortcuts.
func (d *dataplane) newEpoch(t *testing.T) {
	t.Helper()
	d.epoch++
	put(t, d.Epoch, uint32(0), d.epoch)
}

// forget clears the counters.
func (d *dataplane) forget(t *testing.T) {
	t.Helper()
	d.pinCounts(t, pinNumber)
	d.pinCounts(t, 0)
	d.vrrpCounts(t)
}

// expectCounts compares the counters of the pin and of no pin (0) with what
// they should have grown by, and clears them.
func (d *dataplane) expectCounts(t *testing.T, pin, none counts) {
	t.Helper()
	sameCounts(t, "pin 1", d.pinCounts(t, pinNumber), pin)
	sameCounts(t, "no pin", d.pinCounts(t, 0), none)
	sameCounts(t, "vrrp", d.vrrpCounts(t), nil)
}

func sameCounts[K comparable](t *testing.T, what string, got, want map[K]uint64) {
	t.Helper()
	for c, n := range want {
		if got[c] != n {
			t.Errorf("counter %v of %s: %d, want %d", c, what, got[c], n)
		}
	}
	for c, n := range got {
		if want[c] == 0 {
			t.Errorf("counter %v of %s: %d, want 0", c, what, n)
		}
	}
}

// rewritten is how the programs count a packet they put through a mapping.
func rewritten(direction string) counts {
	if direction == egress {
		return counts{DataplanePinCounterPIN_PINNED: 1}
	}
	return counts{DataplanePinCounterPIN_RETURNED: 1}
}

// shape is a variation of a packet that a rewrite must cope with.
type shape struct {
	name   string
	family int // 4, 6 or 0: both
	udp    bool
	apply  func(*frame)
}

var shapes = []shape{
	{name: "plain", apply: func(*frame) {}},
	{name: "no payload", apply: func(f *frame) { f.payload = nil }},
	{name: "1400 octets", apply: func(f *frame) { f.payload = make([]byte, 1400) }},
	{name: "udp without checksum", udp: true, apply: func(f *frame) { f.noSum = true }},
	{name: "ip options", family: 4, apply: func(f *frame) {
		f.options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	}},
	{name: "forty octets of ip options", family: 4, apply: func(f *frame) {
		f.options = []layers.IPv4Option{{OptionType: 7, OptionLength: 40, OptionData: make([]byte, 38)}}
	}},
	{name: "do not fragment", family: 4, apply: func(f *frame) { f.fragment = 0x4000 }},
	{name: "hop-by-hop", family: 6, apply: func(f *frame) { f.ext = []extension{hopByHop} }},
	{name: "destination options", family: 6, apply: func(f *frame) { f.ext = []extension{destinationOpt} }},
	{name: "routing header", family: 6, apply: func(f *frame) { f.ext = []extension{routingHeader} }},
	{name: "atomic fragment", family: 6, apply: func(f *frame) { f.ext = []extension{atomicFragment} }},
	{name: "atomic fragment, reserved bits set", family: 6, apply: func(f *frame) {
		f.ext = []extension{{44, []byte{0xff, 0, 6, 1, 2, 3, 4}}}
	}},
	{name: "four extension headers", family: 6, apply: func(f *frame) {
		f.ext = []extension{hopByHop, destinationOpt, routingHeader, atomicFragment}
	}},
	{name: "eight extension headers", family: 6, apply: func(f *frame) {
		f.ext = []extension{hopByHop}
		for range 7 {
			f.ext = append(f.ext, destinationOpt)
		}
	}},
	{name: "priority tag", apply: func(f *frame) { f.tags = []tag{{0x8100, 0x6000}} }},
	{name: "two priority tags", apply: func(f *frame) { f.tags = []tag{{0x88a8, 0x6000}, {0x8100, 0}} }},
}

// eachFlow calls f for every family, protocol, direction and kind of port.
func eachFlow(t *testing.T, f func(t *testing.T, direction string, fl flow)) {
	for _, direction := range []string{egress, ingress} {
		for _, ipv6 := range []bool{false, true} {
			for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, icmp} {
				for _, newPort := range []bool{false, true} {
					fl := someFlow(ipv6, proto, newPort)
					name := fmt.Sprintf("%s/%v/%v/new port %v", direction, fl.local.Addr(), fl.ipProto(), newPort)
					t.Run(name, func(t *testing.T) { f(t, direction, fl) })
				}
			}
		}
	}
}

func TestRewrite(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		for _, s := range shapes {
			in, want := fl.frames(direction)
			if s.family == 4 && in.ipv6() || s.family == 6 && !in.ipv6() || s.udp && in.proto != layers.IPProtocolUDP {
				continue
			}
			for _, f := range []*frame{&in, &want} {
				f.payload = []byte("an odd number of octets")
				s.apply(f)
			}
			t.Run(s.name, func(t *testing.T) {
				d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumNone, rewritten(direction))
			})
			t.Run(s.name+", checksum complete", func(t *testing.T) {
				if !canCheckSums(t, d.program(direction)) {
					t.Skip("this kernel lacks BPF_F_TEST_SKB_CHECKSUM_COMPLETE (Linux 6.16)")
				}
				d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumComplete, rewritten(direction))
			})
		}
	})
}

// Segments that the network card will cut, or the kernel put together.
func TestRewriteGSO(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		if fl.proto == icmp {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.frames(direction)
		in.payload = make([]byte, 1200)
		want.payload = in.payload
		skb := skBuff{GsoSize: 400, GsoSegs: 3, IngressIfindex: loopback}
		d.expect(t, direction, in.bytes(t), want.bytes(t), skb, checksumComplete, rewritten(direction))
	})
}

// Checksum arithmetic on many addresses, ports and contents.
func TestRewriteAnyNumbers(t *testing.T) {
	d := newDataplane(t)
	random := rand.New(rand.NewPCG(1, 2))
	end := func(like netip.AddrPort, ipv6 bool) netip.AddrPort {
		b := like.Addr().AsSlice()
		for i := len(b) / 2; i < len(b); i++ {
			b[i] = byte(random.Uint32())
		}
		a, _ := netip.AddrFromSlice(b)
		return netip.AddrPortFrom(a, uint16(1+random.Uint32N(65535)))
	}
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		ipv6 := fl.local.Addr().Is6()
		for range 25 {
			port := fl.local.Port() == fl.public.Port()
			fl.local, fl.public = end(fl.local, ipv6), end(fl.public, ipv6)
			if port {
				fl.public = netip.AddrPortFrom(fl.public.Addr(), fl.local.Port())
			}
			if fl.remote = end(fl.remote, ipv6); fl.proto == icmp {
				fl.remote = netip.AddrPortFrom(fl.remote.Addr(), 0)
			}
			d.unmapFlows(t)
			d.mapFlow(t, fl)
			in, want := fl.frames(direction)
			in.payload = make([]byte, random.Uint32N(64))
			for i := range in.payload {
				in.payload[i] = byte(random.Uint32())
			}
			want.payload = in.payload
			d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumNone, rewritten(direction))
			d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumComplete, rewritten(direction))
		}
	})
}

// A UDP checksum that comes out as zero is sent as 0xffff (RFC 768): zero would
// mean that there is none, which IPv6 does not even allow.
func TestRewriteUDPChecksumZero(t *testing.T) {
	d := newDataplane(t)
	for _, direction := range []string{egress, ingress} {
		for _, ipv6 := range []bool{false, true} {
			for _, newPort := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/ipv6 %v/new port %v", direction, ipv6, newPort), func(t *testing.T) {
					fl := someFlow(ipv6, layers.IPProtocolUDP, newPort)
					d.unmapFlows(t)
					d.mapFlow(t, fl)
					in, want := fl.frames(direction)
					// The checksum over two zero octets, put in their place, makes the sum zero.
					want.payload = []byte{0, 0}
					b := want.bytes(t)
					want.payload = b[len(b)-4 : len(b)-2]
					in.payload = want.payload
					b = want.bytes(t)
					if sum := binary.BigEndian.Uint16(b[len(b)-4:]); sum != 0xffff {
						t.Fatalf("checksum of the wanted frame is %#x, want the case of 0xffff", sum)
					}
					d.expect(t, direction, in.bytes(t), b, forwarded, checksumNone, rewritten(direction))
					d.expect(t, direction, in.bytes(t), b, forwarded, checksumComplete, rewritten(direction))
				})
			}
		}
	}
}
