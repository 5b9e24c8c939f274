// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net"
	"runtime"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
)

const (
	markBefore = 0x1234
	holdMark   = 0x100
	holdMask   = 0x300
	markHeld   = 0x1134 // markBefore with the mask's bits replaced
	bornLate   = 1000   // the mappings' birth: later than holdSince
	holdSince  = 900
)

// holding has the answers of mappings marked that are born at holdSince or later,
// by a daemon whose sign of life is good for as long as a test.
func (d *dataplane) holding(t *testing.T) {
	t.Helper()
	put(t, d.Hold, uint32(0), DataplaneHold{SinceNs: holdSince, Mark: holdMark, Mask: holdMask})
	put(t, d.Settings, uint32(0), DataplaneSettings{LeaseNs: 3600e9})
	put(t, d.Heartbeat, uint32(0), coarseNow(t))
}

// born gives a flow's mapping its time of birth.
func (d *dataplane) born(t *testing.T, fl flow, at uint64) {
	t.Helper()
	local := d.localEnd(t, fl)
	local.BornNs = at
	put(t, d.ByPublic, fl.key(fl.public), local)
}

func (d *dataplane) localEnd(t *testing.T, fl flow) (local DataplaneLocalEnd) {
	t.Helper()
	if err := d.ByPublic.Lookup(fl.key(fl.public), &local); err != nil {
		t.Fatal(err)
	}
	return local
}

// expectMark runs a frame twice, as expect does, and wants the mark.
func (d *dataplane) expectMark(t *testing.T, direction string, in, want []byte, mark uint32, pin counts) {
	t.Helper()
	d.newEpoch(t)
	for range 2 {
		d.forget(t)
		got := run(t, d.program(direction), in, skBuff{Mark: markBefore, IngressIfindex: loopback}, checksumNone)
		if got.action != actUnspec {
			t.Errorf("action %d, want TC_ACT_UNSPEC", int32(got.action))
		}
		if got.skb.Mark != mark {
			t.Errorf("mark %#x, want %#x", got.skb.Mark, mark)
		}
		sameBytes(t, "frame", got.frame, want)
		d.expectCounts(t, pin, counts{})
	}
}

// An answer of a mapping that the peer does not have is marked, each time it
// comes, and counted; what leaves is not.
func TestHeld(t *testing.T) {
	d := newDataplane(t)
	for name, object := range map[string]*dataplane{
		"conntrack": d, "marks": loadObject(t, LoadMarks, func(*ebpf.CollectionSpec) {}),
	} {
		object.reset(t)
		object.holding(t)
		if object != d {
			t.Cleanup(func() { object.close(t) })
		}
		eachFlow(t, func(t *testing.T, direction string, fl flow) {
			object.heldOrNot(t, name, direction, fl)
			fl.local, fl.flags = fl.public, DataplaneMappingFlagsMAPPING_NATIVE
			object.heldOrNot(t, name+", native", direction, fl)
		})
	}
}

func (d *dataplane) heldOrNot(t *testing.T, name, direction string, fl flow) {
	t.Run(name, func(t *testing.T) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		d.born(t, fl, bornLate)
		in, want := fl.frames(direction)
		counted, mark := rewritten(direction), uint32(markBefore)
		if direction == ingress {
			counted[DataplanePinCounterPIN_HELD], mark = 1, markHeld
		}
		d.expectMark(t, direction, in.bytes(t), want.bytes(t), mark, counted)
	})
}

// One change, and the answer does not wait.
func TestNotHeld(t *testing.T) {
	d := newDataplane(t)
	since := func(at uint64) func(*testing.T, *flow) {
		return func(t *testing.T, _ *flow) {
			put(t, d.Hold, uint32(0), DataplaneHold{SinceNs: at, Mark: holdMark, Mask: holdMask})
		}
	}
	flags := func(flags DataplaneMappingFlags) func(*testing.T, *flow) {
		return func(_ *testing.T, fl *flow) { fl.flags = flags }
	}
	beat := func(at uint64) func(*testing.T, *flow) {
		return func(t *testing.T, _ *flow) { put(t, d.Heartbeat, uint32(0), at) }
	}
	for name, change := range map[string]func(*testing.T, *flow){
		"acknowledged": flags(DataplaneMappingFlagsMAPPING_ACKED),
		"released":     flags(DataplaneMappingFlagsMAPPING_RELEASED),
		"both":         flags(DataplaneMappingFlagsMAPPING_ACKED | DataplaneMappingFlagsMAPPING_RELEASED),
		"off":          since(0),
		"born before":  since(bornLate + 1),
		"no heartbeat": beat(0),
		"an old heartbeat": func(t *testing.T, _ *flow) {
			put(t, d.Settings, uint32(0), DataplaneSettings{LeaseNs: 1e8})
			put(t, d.Heartbeat, uint32(0), coarseNow(t)-1e8)
		},
		"a daemon that is on": nil, // the good one
		"born at that moment": since(bornLate),
	} {
		held := change == nil || name == "born at that moment"
		for _, ipv6 := range []bool{false, true} {
			for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, icmp} {
				fl := someFlow(ipv6, proto, false)
				t.Run(name+"/"+fl.public.String()+"/"+fl.ipProto().String(), func(t *testing.T) {
					d.reset(t)
					d.holding(t)
					if change != nil {
						change(t, &fl)
					}
					d.mapFlow(t, fl)
					d.born(t, fl, bornLate)
					in, want := fl.frames(ingress)
					counted, mark := rewritten(ingress), uint32(markBefore)
					if held {
						counted[DataplanePinCounterPIN_HELD], mark = 1, markHeld
					}
					d.expectMark(t, ingress, in.bytes(t), want.bytes(t), mark, counted)
				})
			}
		}
	}
}

// While a flow's answers wait no shortcut leads past; once they do not, one does.
func TestHeldHasNoShortcut(t *testing.T) {
	d := newDataplane(t)
	d.holding(t)
	for _, ipv6 := range []bool{false, true} {
		fl := someFlow(ipv6, layers.IPProtocolUDP, false)
		in, _ := fl.frames(ingress)
		learns := func() bool {
			d.unmapFlows(t)
			d.mapFlow(t, fl)
			d.born(t, fl, bornLate)
			run(t, d.VippinIngress, in.bytes(t), skBuff{}, checksumNone)
			return d.knows(t, ingress, in.bytes(t), skBuff{})
		}
		if learns() {
			t.Error("an answer that waits left a shortcut")
		}
		fl.flags = DataplaneMappingFlagsMAPPING_ACKED
		learnt := learns()
		if !learnt { // the kernel's clock may have begun an epoch between the two packets
			learnt = learns()
		}
		if !learnt {
			t.Error("an answer that does not wait left none")
		}
	}
}

// The first fragment is marked; the kernel gives its mark to the whole.
func TestHeldFragment(t *testing.T) {
	d := newDataplane(t)
	d.holding(t)
	for _, ipv6 := range []bool{false, true} {
		fl := someFlow(ipv6, layers.IPProtocolUDP, true)
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		d.born(t, fl, bornLate)
		in, want := fl.inPieces(t, ingress, someIdent)
		for i := range in {
			d.forget(t)
			got := run(t, d.VippinIngress, in[i].bytes(t), skBuff{Mark: markBefore}, checksumNone)
			sameBytes(t, "fragment", got.frame, want[i].bytes(t))
			counted, mark := rewritten(ingress), uint32(markBefore)
			if i == 0 {
				counted[DataplanePinCounterPIN_HELD], mark = 1, markHeld
			}
			d.expectCounts(t, counted, counts{})
			if got.skb.Mark != mark {
				t.Errorf("fragment %d has mark %#x, want %#x", i, got.skb.Mark, mark)
			}
		}
	}
}

// acknowledge calls the program.
func (d *dataplane) acknowledge(t *testing.T, flags DataplaneMappingFlags, count uint32, keys ...DataplaneFlowKey) int32 {
	t.Helper()
	room := append(make([]DataplaneFlowKey, 0, 1024), keys...)
	ret, err := d.VippinAcknowledge.Run(&ebpf.RunOptions{Context: DataplaneAcknowledgement{
		Keys: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(room)))), Count: count, Flags: uint32(flags),
	}})
	runtime.KeepAlive(room)
	if err != nil {
		t.Fatal(err)
	}
	return int32(ret)
}

// The flags are set in both directions' values, beside those that are there, and
// nothing else of them changes. Mappings that are gone are passed over.
func TestAcknowledge(t *testing.T) {
	d := newDataplane(t)
	const acked, released = DataplaneMappingFlagsMAPPING_ACKED, DataplaneMappingFlagsMAPPING_RELEASED
	for _, ipv6 := range []bool{false, true} {
		told, gone, other := someFlow(ipv6, layers.IPProtocolTCP, true), someFlow(ipv6, layers.IPProtocolUDP, true), someFlow(ipv6, icmp, true)
		d.unmapFlows(t)
		for _, fl := range []flow{told, other} {
			d.mapFlow(t, fl)
			d.born(t, fl, bornLate)
		}
		expect := func(what string, fl flow, flags DataplaneMappingFlags) {
			t.Helper()
			var public DataplanePublicEnd
			if err := d.ByLocal.Lookup(fl.key(fl.local), &public); err != nil {
				t.Fatal(err)
			}
			local := d.localEnd(t, fl)
			if local.Flags != flags || public.Flags != flags {
				t.Errorf("%s: flags %d and %d, want %d", what, local.Flags, public.Flags, flags)
			}
			if local.BornNs != bornLate || local.Pin != pinNumber || local.Port != be16(fl.local.Port()) ||
				public.Pin != pinNumber || public.Port != be16(fl.public.Port()) {
				t.Errorf("%s: the mapping changed: %+v %+v", what, local, public)
			}
		}
		if n := d.acknowledge(t, acked, 2, gone.key(gone.public), told.key(told.public)); n != 2 {
			t.Errorf("looked at %d, want 2", n)
		}
		expect("acknowledged", told, acked)
		expect("another one", other, 0)
		if n := d.acknowledge(t, released, 1, told.key(told.public), other.key(other.public)); n != 1 {
			t.Errorf("looked at %d, want 1", n)
		}
		expect("released, too", told, acked|released)
		expect("beyond the count", other, 0)
		if n := d.acknowledge(t, acked, 0, other.key(other.public)); n != 0 {
			t.Errorf("looked at %d, want 0", n)
		}
		expect("none", other, 0)
	}
}

// As many as there may be, and one more.
func TestAcknowledgeMany(t *testing.T) {
	d := loadDataplane(t, func(spec *ebpf.CollectionSpec) {
		spec.Maps[DataplaneMapByLocal].MaxEntries = 1024
		spec.Maps[DataplaneMapByPublic].MaxEntries = 1024
	})
	defer d.close(t)
	var keys []DataplaneFlowKey
	for i := range 513 {
		fl := someFlow(true, layers.IPProtocolTCP, false)
		fl.local, fl.public = withPort(fl.local, i), withPort(fl.public, i)
		d.mapFlow(t, fl)
		keys = append(keys, fl.key(fl.public))
	}
	flagged := func() (n int) {
		for _, end := range entries[DataplaneFlowKey, DataplaneLocalEnd](t, d.ByPublic) {
			n += int(end.Flags >> 1)
		}
		return n
	}
	if n := d.acknowledge(t, DataplaneMappingFlagsMAPPING_ACKED, 513, keys...); n != -1 || flagged() != 0 {
		t.Errorf("513 at once: %d, want -1; %d are flagged", n, flagged())
	}
	if n := d.acknowledge(t, DataplaneMappingFlagsMAPPING_ACKED, 512, keys...); n != 512 || flagged() != 512 {
		t.Errorf("512 at once: %d; %d are flagged", n, flagged())
	}
}

// A TCP RST that the router itself sends from a VIP, of no mapping, is counted.
func TestOwnReset(t *testing.T) {
	d := newDataplane(t)
	for _, ipv6 := range []bool{false, true} {
		fl := someFlow(ipv6, layers.IPProtocolTCP, false)
		fromVIP := frame{src: fl.public, dst: fl.remote, proto: layers.IPProtocolTCP}
		for name, c := range map[string]struct {
			change func(*frame)
			flags  uint8
			skb    skBuff
			want   uint64
		}{
			"RST":             {flags: 0x04, want: 1},
			"RST, ACK":        {flags: 0x14, want: 1},
			"FIN, ACK":        {flags: 0x11},
			"forwarded":       {flags: 0x04, skb: forwarded},
			"another address": {flags: 0x04, change: func(f *frame) { f.src = fl.local }},
			"UDP":             {flags: 0x04, change: func(f *frame) { f.proto = layers.IPProtocolUDP; f.payload = []byte("as long as a TCP header") }},
		} {
			t.Run(fl.public.String()+"/"+name, func(t *testing.T) {
				f := fromVIP
				if c.change != nil {
					c.change(&f)
				}
				b := f.bytes(t)
				b[etherHeader+f.ipHeaders()+13] = c.flags
				d.forget(t)
				got := run(t, d.VippinEgress, b, c.skb, checksumNone)
				sameBytes(t, "frame", got.frame, b)
				if n := d.pinCounts(t, pinNumber)[DataplanePinCounterPIN_RESET]; n != c.want {
					t.Errorf("counted %d, want %d", n, c.want)
				}
			})
		}
	}
	fl := someFlow(false, layers.IPProtocolTCP, false)
	d.mapFlow(t, fl)
	in := frame{src: fl.public, dst: fl.remote, proto: layers.IPProtocolTCP}.bytes(t)
	in[etherHeader+20+13] = 0x04
	d.expect(t, egress, in, in, skBuff{}, checksumNone, counts{DataplanePinCounterPIN_FOREIGN: 1})
}

func (d *dataplane) passage(t *testing.T) (p DataplanePassage) {
	t.Helper()
	if err := d.Passages.Lookup(uint32(pinNumber), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// The first packet out and the first answer since this router began to advertise,
// or, without adverts, since the daemon gave it its role, leave their time.
func TestPassages(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		in, _ := fl.frames(direction)
		b := in.bytes(t)
		send := func() (at, other uint64) {
			d.newEpoch(t)
			run(t, d.program(direction), b, forwarded, checksumNone)
			p := d.passage(t)
			if direction == ingress {
				return p.InNs, p.OutNs
			}
			return p.OutNs, p.InNs
		}
		role := func(since uint64) {
			put(t, d.Roles, uint32(pinNumber), DataplaneRole{Role: roleMaster, SinceNs: since})
		}
		d.reset(t)
		d.mapFlow(t, fl)
		if at, other := send(); at != 0 || other != 0 {
			t.Errorf("before anybody began: %d, %d", at, other)
		}
		before := coarseNow(t)
		role(before)
		first, other := send()
		if first < before || other != 0 {
			t.Errorf("since the role: %d, want after %d; the other way %d", first, before, other)
		}
		if again, _ := send(); again != first {
			t.Errorf("the second one at %d, want %d as before", again, first)
		}
		put(t, d.OwnAdverts, uint32(groupNumber), DataplaneOwnAdvert{FirstNs: first})
		role(first + 1e12)
		if again, _ := send(); again != first {
			t.Errorf("advertising since then: at %d, want %d", again, first)
		}
		put(t, d.OwnAdverts, uint32(groupNumber), DataplaneOwnAdvert{FirstNs: first + 1})
		if again, _ := send(); again <= first {
			t.Errorf("in the next reign at %d, want after %d", again, first)
		}
	})
}

// An answer that a switch sent everywhere is another router's: the first one that
// comes to this router is told of, and would not be by the short way.
func TestPassageOfAnother(t *testing.T) {
	d := newDataplane(t)
	for _, c := range []struct {
		name string
		to   net.HardwareAddr
		want bool
	}{
		{"this router", routerMAC, true},
		{"another one", otherMAC, false},
		{"a virtual router", net.HardwareAddr{0, 0, 0x5e, 0, 1, 20}, true},
		{"a virtual router of IPv6", net.HardwareAddr{0, 0, 0x5e, 0, 2, 20}, true},
		{"multicast", net.HardwareAddr{1, 0, 0x5e, 0, 1, 20}, true},
		{"almost a virtual router", net.HardwareAddr{0, 0, 0x5e, 1, 1, 20}, false},
	} {
		eachFlow(t, func(t *testing.T, direction string, fl flow) {
			if direction == egress {
				return
			}
			d.reset(t)
			d.newEpoch(t)
			d.mapFlow(t, fl)
			put(t, d.Roles, uint32(pinNumber), DataplaneRole{Role: roleMaster, SinceNs: 1})
			in, want := fl.frames(direction)
			in.to, want.to = c.to, c.to
			d.expect(t, direction, in.bytes(t), want.bytes(t), skBuff{}, checksumNone, rewritten(direction))
			if noted := d.passage(t).InNs != 0; noted != c.want {
				t.Errorf("to %s: noted %v, want %v", c.name, noted, c.want)
			}
			if !c.want && d.knows(t, direction, in.bytes(t), skBuff{}) {
				t.Errorf("to %s: the next one takes the short way", c.name)
			}
		})
	}
}

// What leaves without the VIP is no first packet.
func TestNoPassage(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Roles, uint32(pinNumber), DataplaneRole{Role: roleMaster, SinceNs: 1})
	fl := someFlow(false, layers.IPProtocolTCP, false)
	for _, direction := range []string{egress, ingress} {
		in, _ := fl.frames(direction)
		run(t, d.program(direction), in.bytes(t), forwarded, checksumNone)
	}
	if p := d.passage(t); p != (DataplanePassage{}) {
		t.Errorf("noted %+v", p)
	}
}

// A key is laid out in the caller's memory as in the map.
func TestFlowKeyLayout(t *testing.T) {
	if got, want := int(unsafe.Sizeof(DataplaneFlowKey{})), binary.Size(DataplaneFlowKey{}); got != want {
		t.Errorf("%d octets in memory, %d in the map", got, want)
	}
}

const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpACK = 0x10
)

// segment is a TCP frame with other flags, and a checksum as wrong as it was right.
func segment(t *testing.T, f frame, flags uint8) []byte {
	t.Helper()
	b := f.bytes(t)
	b[etherHeader+f.ipHeaders()+13] = flags
	return b
}

// A connection that begins on the tuple of one that had its answers is held anew,
// although the packets before took shortcuts.
func TestHeldAnew(t *testing.T) {
	d := newDataplane(t)
	for _, ipv6 := range []bool{false, true} {
		for name, c := range map[string]struct {
			flags uint8 // of the segment that leaves
			since uint64
			last  uint64 // answer of the earlier one
			anew  bool
		}{
			"SYN":                   {flags: tcpSYN, since: holdSince, last: bornLate, anew: true},
			"SYN with ECN's bits":   {flags: tcpSYN | 0xc0, since: holdSince, last: bornLate + 5, anew: true},
			"SYN, no answer before": {flags: tcpSYN, since: holdSince, last: bornLate - 1},
			"SYN, ACK":              {flags: tcpSYN | tcpACK, since: holdSince, last: bornLate},
			"ACK":                   {flags: tcpACK, since: holdSince, last: bornLate},
			"FIN, ACK":              {flags: tcpFIN | tcpACK, since: holdSince, last: bornLate},
			"SYN, nothing is held":  {flags: tcpSYN, last: bornLate},
		} {
			t.Run(name, func(t *testing.T) {
				d.reset(t)
				d.holding(t)
				fl := someFlow(ipv6, layers.IPProtocolTCP, false)
				fl.flags = DataplaneMappingFlagsMAPPING_ACKED | DataplaneMappingFlagsMAPPING_RELEASED
				d.mapFlow(t, fl)
				out, outWant := fl.frames(egress)
				in, inWant := fl.frames(ingress)
				for range 2 { // the second one by a shortcut
					run(t, d.VippinEgress, out.bytes(t), forwarded, checksumNone)
					run(t, d.VippinIngress, in.bytes(t), forwarded, checksumNone)
				}
				local := d.localEnd(t, fl)
				local.BornNs, local.LastInNs = bornLate, c.last
				put(t, d.ByPublic, fl.key(fl.public), local)
				put(t, d.Hold, uint32(0), DataplaneHold{SinceNs: c.since, Mark: holdMark, Mask: holdMask})

				before := coarseNow(t)
				d.forget(t)
				got := run(t, d.VippinEgress, segment(t, out, c.flags), skBuff{Mark: markBefore, IngressIfindex: loopback}, checksumNone)
				sameBytes(t, "segment", got.frame, segment(t, outWant, c.flags))
				d.expectCounts(t, rewritten(egress), counts{})
				var public DataplanePublicEnd
				if err := d.ByLocal.Lookup(fl.key(fl.local), &public); err != nil {
					t.Fatal(err)
				}
				local = d.localEnd(t, fl)
				want, born := fl.flags, uint64(bornLate)
				if c.anew {
					want, born = 0, local.BornNs
					if born < before || born > coarseNow(t) {
						t.Errorf("born at %d, want after %d", born, before)
					}
				}
				if local.Flags != want || public.Flags != want || local.BornNs != born {
					t.Errorf("flags %d and %d, born at %d; want %d, %d", local.Flags, public.Flags, local.BornNs, want, born)
				}
				counted, mark := rewritten(ingress), uint32(markBefore)
				if c.anew {
					counted[DataplanePinCounterPIN_HELD], mark = 1, markHeld
				}
				d.forget(t)
				got = run(t, d.VippinIngress, segment(t, in, tcpSYN|tcpACK), skBuff{Mark: markBefore}, checksumNone)
				sameBytes(t, "answer", got.frame, segment(t, inWant, tcpSYN|tcpACK))
				d.expectCounts(t, counted, counts{})
				if got.skb.Mark != mark {
					t.Errorf("mark %#x, want %#x", got.skb.Mark, mark)
				}
			})
		}
	}
}

// What begins a connection takes no shortcut, and leaves none.
func TestNoShortcutForSYN(t *testing.T) {
	d := newDataplane(t)
	for _, direction := range []string{egress, ingress} {
		for flags, want := range map[uint8]bool{tcpSYN: false, tcpSYN | tcpACK: false, tcpACK: true, tcpFIN | tcpACK: true} {
			fl := someFlow(false, layers.IPProtocolTCP, false)
			in, _ := fl.frames(direction)
			learns := func(first uint8) bool {
				d.unmapFlows(t)
				d.mapFlow(t, fl)
				run(t, d.program(direction), segment(t, in, first), forwarded, checksumNone)
				return d.knows(t, direction, segment(t, in, flags), forwarded)
			}
			got := learns(tcpACK)
			if got != want {
				got = learns(tcpACK) // the kernel's clock may have begun an epoch
			}
			if got != want {
				t.Errorf("%s: flags %#x take a shortcut %v, want %v", direction, flags, got, want)
			}
			if flags == tcpACK && learns(tcpSYN) {
				t.Errorf("%s: a SYN left a shortcut", direction)
			}
		}
	}
}
