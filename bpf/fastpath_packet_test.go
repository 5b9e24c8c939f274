// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// TestFastFlags: of all TCP flags SYN, FIN and RST, and an ACK that lacks, make a
// packet take the stack; the first three end the entry.
func TestFastFlags(t *testing.T) {
	f := newFastpath(t)
	for _, ipv6 := range []bool{false, true} {
		in := fastFrame(ipv6, layers.IPProtocolTCP)
		fl := f.snat(in, nil)
		for flags := range 256 {
			f.enter(t, fl, 3)
			b := in.bytes(t)
			b[in.headers()-20+13] = byte(flags)
			ends := flags&7 != 0
			if !ends && flags&16 != 0 {
				if action, _ := f.run(t, b, nil); action != xdpTX {
					t.Errorf("flags %#x: action %d, want %d", flags, action, xdpTX)
				}
				f.exits(t)
				f.pinCounts(t, pinNumber)
				continue
			}
			f.passes(t, b, FastpathFastExitFAST_FLAGS)
			want := fl.fate
			if ends {
				want.Generation = 0
			}
			if got := f.fateOf(t, fl, 3); got != want {
				t.Errorf("flags %#x: entry %+v, want %+v", flags, got, want)
			}
		}
		f.notes(t, fl, false)
	}
}

// TestFastFlagsUnknown: a SYN of a flow that nobody knows.
func TestFastFlagsUnknown(t *testing.T) {
	f := newFastpath(t)
	in := fastFrame(false, layers.IPProtocolTCP)
	b := in.bytes(t)
	b[in.headers()-20+13] = 2
	f.passes(t, b, FastpathFastExitFAST_FLAGS)
	f.notes(t, f.snat(in, nil), false)
}

// TestFastDrift: acknowledgements as far as 2^30 from what conntrack saw last are
// forwarded, also across zero.
func TestFastDrift(t *testing.T) {
	f := newFastpath(t)
	const ack = 0x55667788 // of every packet here
	for _, ipv6 := range []bool{false, true} {
		in := fastFrame(ipv6, layers.IPProtocolTCP)
		for distance, near := range map[uint32]bool{
			0: true, 1: true, 1<<32 - 1: true, 1 << 30: true, 1<<32 - 1<<30: true,
			1<<30 + 1: false, 1<<32 - 1<<30 - 1: false, 1 << 31: false, 0x70000000: false, 0x90000000: false,
		} {
			f.reset(t)
			fl := f.snat(in, nil)
			fl.fate.Ack = uint32(ack) - distance
			f.enter(t, fl, 0)
			if near {
				f.forwards(t, fl, 0, xdpTX)
				continue
			}
			f.passes(t, in.bytes(t), FastpathFastExitFAST_DRIFT)
			f.notes(t, fl, true)
		}
		in.proto = layers.IPProtocolUDP
		f.reset(t)
		fl := f.snat(in, nil)
		fl.fate.Ack = 1 << 31
		f.enter(t, fl, 0)
		f.forwards(t, fl, 0, xdpTX)
	}
}

// TestFastNoChecksum: UDP without a checksum stays without.
func TestFastNoChecksum(t *testing.T) {
	f := newFastpath(t)
	for _, ipv6 := range []bool{false, true} {
		in := fastFrame(ipv6, layers.IPProtocolUDP)
		in.noSum = true
		f.reset(t)
		fl := f.snat(in, nil)
		f.enter(t, fl, 0)
		f.forwards(t, fl, 0, xdpTX)
	}
}

// TestFastChecksumZero: where a UDP checksum comes out as zero it is 0xffff, and TCP's
// stays what it is.
func TestFastChecksumZero(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		in.payload = []byte{0, 0}
		fl := f.snat(in, nil)
		at := fl.out.headers() - 2 // UDP's
		if in.proto == layers.IPProtocolTCP {
			at -= 2
		}
		// The payload that makes the checksum of what leaves zero.
		copy(in.payload, fl.bytesOut(t)[at:at+2])
		if got := fl.bytesOut(t)[at : at+2]; binary.BigEndian.Uint16(got) != map[layers.IPProtocol]uint16{layers.IPProtocolUDP: 0xffff}[in.proto] {
			t.Fatalf("checksum %x is not the case to be tested", got)
		}
		f.enter(t, fl, 0)
		f.forwards(t, fl, 0, xdpTX)
	})
}

// TestFastChecksums: of random packets with random new ends, either of which may stay as
// it is, every checksum is what a full computation gives.
func TestFastChecksums(t *testing.T) {
	f := newFastpath(t)
	random := rand.New(rand.NewPCG(1, 2))
	end := func(like netip.AddrPort) netip.AddrPort {
		octets := like.Addr().AsSlice()
		for i := range octets {
			octets[i] = byte(random.Uint32())
		}
		addr, _ := netip.AddrFromSlice(octets)
		return netip.AddrPortFrom(addr, uint16(random.Uint32()))
	}
	eachFast(t, func(t *testing.T, in frame) {
		for i := range 1000 {
			in.src, in.dst = end(in.src), end(in.dst)
			in.payload = make([]byte, random.IntN(100))
			for i := range in.payload {
				in.payload[i] = byte(random.Uint32())
			}
			src, dst := in.src, in.dst
			if i%3 != 0 {
				src = end(src)
			}
			if i%3 != 1 {
				dst = end(dst)
			}
			fl := f.newFastFlow(in, src, dst, nil)
			f.enter(t, fl, i%4)
			action, out := f.run(t, in.bytes(t), nil)
			if action != xdpTX {
				t.Fatalf("packet %d: action %d, want %d", i, action, xdpTX)
			}
			sameBytes(t, fmt.Sprintf("packet %d", i), out, fl.bytesOut(t))
			if t.Failed() {
				return
			}
			fl.fate = FastpathFastFate{}
			f.enter(t, fl, i%4)
		}
		f.reset(t)
	})
}

// TestFastTTL: every TTL above 1 becomes one less.
func TestFastTTL(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		fl := f.snat(in, nil)
		f.enter(t, fl, 0)
		for ttl := 2; ttl < 256; ttl++ {
			b, want := in.bytes(t), fl.bytesOut(t)
			if in.ipv6() {
				b[etherHeader+7], want[etherHeader+7] = byte(ttl), byte(ttl-1)
			} else {
				b[etherHeader+8], want[etherHeader+8] = byte(ttl), byte(ttl-1)
				sumIPv4(b[etherHeader:])
				sumIPv4(want[etherHeader:])
			}
			_, out := f.run(t, b, nil)
			sameBytes(t, fmt.Sprintf("TTL %d", ttl), out, want)
		}
	})
}

// TestFastPadding: what Ethernet pads a short packet with stays behind it, and is no
// part of its length.
func TestFastPadding(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		in.payload = nil
		fl := f.snat(in, nil)
		f.enter(t, fl, 0)
		length := len(in.bytes(t)) - etherHeader
		f.setHop(t, nil, fastIn)
		hop := FastpathFastHop{Macs: fastMACs, Mtu: uint16(length), Device: fastIn, Alive: 1}
		put(t, f.FastHops, uint32(fastHop), hop)
		padding := bytes.Repeat([]byte{0xa5}, 18)
		action, out := f.run(t, append(in.bytes(t), padding...), nil)
		if action != xdpTX {
			t.Errorf("action %d, want %d", action, xdpTX)
		}
		sameBytes(t, "frame", out, append(fl.bytesOut(t), padding...))
		if got := f.fateOf(t, fl, 0).Bytes; got != uint64(length) {
			t.Errorf("%d octets counted, want %d", got, length)
		}
	})
}

// TestFastTruncated: a frame that ends early anywhere passes as it came.
func TestFastTruncated(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		for _, tags := range tagShapes {
			f.reset(t)
			in.tags = tags
			fl := f.snat(in, nil)
			f.enter(t, fl, 0)
			whole := in.bytes(t)
			for n := etherHeader; n < len(whole); n++ {
				f.passes(t, whole[:n], FastpathFastExitFAST_NOT_IP)
				if t.Failed() {
					t.Fatalf("cut to %d octets, tags %v", n, tags)
				}
			}
			f.forwards(t, fl, 0, xdpTX)
		}
	})
}

// TestFastNoRoom: there is no room before the frame for another tag.
func TestFastNoRoom(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		fl := f.snat(in, []tag{{0x8100, 2}})
		f.setHop(t, fl.out.tags, fastIn)
		f.enter(t, fl, 0)
		// Metadata take all the room that the kernel does not need for itself.
		b := append(make([]byte, 216), in.bytes(t)...)
		action, out, err := f.tryRun(b, &xdpMD{Data: 216, DataEnd: uint32(len(b))})
		if errors.Is(err, unix.EINVAL) {
			t.Skip("metadata are 32 octets at most before Linux 6.7")
		}
		mustDo(t, err)
		if action != xdpPass {
			t.Errorf("action %d, want %d", action, xdpPass)
		}
		sameBytes(t, "frame", out, b)
		sameCounts(t, "exits", f.exits(t), map[FastpathFastExit]uint64{FastpathFastExitFAST_NO_ROOM: 1})
		if got := f.fateOf(t, fl, 0); got != fl.fate {
			t.Errorf("entry %+v, want %+v", got, fl.fate)
		}
	})
}

// TestFastPins: whose packet it is, and which way it went.
func TestFastPins(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		for pin, want := range map[uint16]counts{
			pinNumber:               {DataplanePinCounterPIN_PINNED: 1},
			pinNumber | fastReturns: {DataplanePinCounterPIN_RETURNED: 1},
			0:                       {},
		} {
			f.reset(t)
			fl := f.snat(in, nil)
			fl.fate.Pin = pin
			f.enter(t, fl, 0)
			f.forwards(t, fl, 0, xdpTX)
			sameCounts(t, "pin's counters", f.pinCounts(t, pinNumber), want)
			sameCounts(t, "no pin's counters", f.pinCounts(t, 0), counts{})
		}
	})
}

// TestFastCounts: packets and octets add up.
func TestFastCounts(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		fl := f.snat(in, nil)
		fl.fate.PacketsSeen, fl.fate.Bytes = 1<<32-1<<16|0xffff, 1<<32-1 // about to carry
		f.enter(t, fl, 0)
		for range 3 {
			f.forwards(t, fl, 0, xdpTX)
		}
	})
}

// TestFastWayGone: a packet that cannot be sent is lost, not handed to the stack
// translated.
func TestFastWayGone(t *testing.T) {
	f := newFastpath(t)
	eachFast(t, func(t *testing.T, in frame) {
		f.reset(t)
		fl := f.snat(in, nil)
		f.enter(t, fl, 0)
		f.setHop(t, nil, fastElsewhere+1)
		f.forwards(t, fl, 0, xdpDrop)
	})
}

// TestFastDaemon: one look at the heartbeat does for a tick; then it has to be young.
func TestFastDaemon(t *testing.T) {
	f := newFastpath(t)
	fl := f.snat(fastFrame(false, layers.IPProtocolUDP), nil)
	f.enter(t, fl, 0)
	f.beat(t, coarseNow(t)+1e8) // the coarse clock lags behind
	f.forwards(t, fl, 0, xdpTX)
	f.beat(t, coarseNow(t)-fastLease/2)
	f.forwards(t, fl, 0, xdpTX)
	began := coarseNow(t)
	put(t, f.Heartbeat, uint32(0), began-fastLease)
	for { // until the tick is over
		action, _ := f.run(t, fl.in.bytes(t), nil)
		if action == xdpPass {
			break
		}
		if coarseNow(t)-began > 60e9 {
			t.Fatal("the fast path stays open")
		}
	}
	if n := f.exits(t)[FastpathFastExitFAST_CLOSED]; n != 1 {
		t.Errorf("%d packets counted as closed, want 1", n)
	}
	put(t, f.Heartbeat, uint32(0), coarseNow(t))
	f.forwards(t, fl, 0, xdpTX)
}

// TestFastOctets: whatever octet of a packet is another one, a packet that passes is as
// it came, and one that is forwarded has the checksums that it came with, right or wrong.
func TestFastOctets(t *testing.T) {
	f := newFastpath(t)
	random := rand.New(rand.NewPCG(3, 4))
	eachFast(t, func(t *testing.T, in frame) {
		in.tags = []tag{{0x8100, 2}}
		fl := f.snat(in, nil)
		f.setHop(t, nil, fastIn)
		for at := range in.headers() {
			for range 16 {
				f.enter(t, fl, 0)
				b := in.bytes(t)
				b[at] = byte(random.Uint32())
				action, out := f.run(t, b, nil)
				if action == xdpPass {
					sameBytes(t, fmt.Sprintf("octet %d is %#x", at, b[at]), out, b)
					continue
				}
				if action != xdpTX || len(out) != len(b)-4 {
					t.Fatalf("octet %d is %#x: action %d, %d octets", at, b[at], action, len(out))
				}
				before, after := b[etherHeader+4:], out[etherHeader:]
				if !in.ipv6() && sameSum(onesSum(before[:20]), onesSum(after[:20])) != nil {
					t.Errorf("octet %d is %#x: IPv4 header sum %v", at, b[at], sameSum(onesSum(before[:20]), onesSum(after[:20])))
				}
				if err := sameSum(segmentSum(before), segmentSum(after)); err != nil {
					t.Errorf("octet %d is %#x: %v", at, b[at], err)
				}
			}
		}
		for i := range f.FastNotes.MaxEntries() {
			put(t, f.FastNotes, i, FastpathFastNote{})
		}
		f.reset(t)
	})
}

// segmentSum is the sum of addresses and all behind the IP header: 0xffff when its
// checksum is right, but for what a change of addresses does not touch.
func segmentSum(ip []byte) uint16 {
	if ip[0]>>4 == 6 {
		return onesSum(ip[8:])
	}
	return onesSum(ip[12:])
}

func sameSum(a, b uint16) error {
	if a%0xffff != b%0xffff {
		return fmt.Errorf("sum %#x became %#x", a, b)
	}
	return nil
}
