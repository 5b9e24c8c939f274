// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
)

// What becomes of a flow that nobody has decided on. Test runs have no conntrack
// entries, but they have marks, by which the programs for kernels without BTF
// are told of one (marks.h). What they do with it is the same.
const (
	markValid   = 0x80000000
	markFresh   = 0x40000000
	markReplied = 0x20000000
	markHelper  = 0x10000000
	markSource  = 0x01000000 // the first of the interface's sources
	someMark    = 0x1234     // somebody else's bits
)

// masqueraded is what the first packet of a masqueraded flow carries.
var masqueraded = skBuff{IngressIfindex: loopback, Mark: markValid | markFresh | markSource}

// under is what the later packets of the flow carry.
var under = skBuff{IngressIfindex: loopback, Mark: markValid | markSource}

// markReader is loaded by the first test.
var markReader *dataplane

// newMarked returns the programs that read marks, with the pin of newDataplane,
// which takes the inside hosts of the first source.
func newMarked(t *testing.T) *dataplane {
	t.Helper()
	if markReader == nil {
		markReader = loadObject(t, LoadMarks, func(*ebpf.CollectionSpec) {})
	}
	markReader.resetMarked(t)
	return markReader
}

func (d *dataplane) resetMarked(t *testing.T) {
	t.Helper()
	d.reset(t)
	key := DataplaneSourceKey{PrefixLen: 160, Slot: slot}
	key.Addr.Word = words(netip.MustParseAddr("::1"))
	put(t, d.Sources, key, uint32(pinNumber))
}

// expectMarked is expect for a packet that leaves, with the counters of no pin:
// besides, vippin's bits of the mark must be gone and others' be there.
func (d *dataplane) expectMarked(t *testing.T, in, want []byte, skb skBuff, pin, none counts) {
	t.Helper()
	d.forget(t)
	skb.Mark |= someMark
	got := run(t, d.VippinEgress, in, skb, checksumComplete)
	if got.action != actUnspec || got.skb.Mark != someMark {
		t.Errorf("action %d mark %#x, want TC_ACT_UNSPEC %#x", int32(got.action), got.skb.Mark, someMark)
	}
	sameBytes(t, "frame", got.frame, want)
	d.expectCounts(t, pin, none)
}

// eachNewFlow calls f for every family and protocol.
func eachNewFlow(t *testing.T, f func(t *testing.T, fl flow)) {
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction == egress && fl.public.Port() == fl.local.Port() {
			f(t, fl)
		}
	})
}

// packet is a packet of the flow before and after a program had it.
func (f flow) packet(t *testing.T, direction string) (in, want []byte) {
	t.Helper()
	i, w := f.frames(direction)
	i.payload, w.payload = []byte("some payload"), []byte("some payload")
	return i.bytes(t), w.bytes(t)
}

var created = counts{DataplanePinCounterPIN_CREATED: 1, DataplanePinCounterPIN_PINNED: 1}

func TestDecidePinned(t *testing.T) {
	d := newMarked(t)
	eachNewFlow(t, func(t *testing.T, fl flow) {
		d.resetMarked(t)
		in, want := fl.packet(t, egress)
		before := coarseNow(t)
		d.expectMarked(t, in, want, masqueraded, created, counts{})
		d.expectMapping(t, fl, before)
		// From now on the mapping decides, whatever conntrack says.
		for _, skb := range []skBuff{masqueraded, under, forwarded} {
			d.expectMarked(t, in, want, skb, rewritten(egress), counts{})
		}
		in, want = fl.packet(t, ingress)
		d.expect(t, ingress, in, want, skBuff{}, checksumComplete, rewritten(ingress))
	})
}

// expectMapping compares both directions of the only mapping.
func (d *dataplane) expectMapping(t *testing.T, fl flow, born uint64) {
	t.Helper()
	var public DataplanePublicEnd
	if err := d.ByLocal.Lookup(fl.key(fl.local), &public); err != nil {
		t.Fatal(err)
	}
	var local DataplaneLocalEnd
	if err := d.ByPublic.Lookup(fl.key(fl.public), &local); err != nil {
		t.Fatal(err)
	}
	if public.Addr.Word != words(fl.public.Addr()) || public.Port != be16(fl.public.Port()) ||
		public.Pin != pinNumber || public.Flags != fl.flags || public.LastOutNs < born {
		t.Errorf("public end %+v", public)
	}
	if local.Addr.Word != words(fl.local.Addr()) || local.Port != be16(fl.local.Port()) ||
		local.Pin != pinNumber || local.Flags != fl.flags || local.BornNs < born || local.LastInNs != 0 {
		t.Errorf("local end %+v", local)
	}
	n := len(entries[DataplaneFlowKey, DataplanePublicEnd](t, d.ByLocal))
	m := len(entries[DataplaneFlowKey, DataplaneLocalEnd](t, d.ByPublic))
	if n != 1 || m != 1 {
		t.Errorf("%d local ends, %d public ends, want one of each", n, m)
	}
}

// Any objection, and the flow keeps the router's own address for life, also when
// the objection is gone.
func TestDecideUnpinned(t *testing.T) {
	d := newMarked(t)
	pin := func(vips bool) DataplanePin {
		p := DataplanePin{Slot: slot, Group: groupNumber, Ifindex: loopback, Flags: DataplanePinFlagsPIN_USED}
		if vips {
			p.Vip4.Word, p.Vip6.Word = words(vip4), words(vip6)
		}
		return p
	}
	cases := []struct {
		name    string
		reason  DataplanePinCounter
		marks   uint32
		prepare func(t *testing.T)
	}{
		{"switched off", DataplanePinCounterPIN_OFF, 0, func(t *testing.T) { d.setSwitch(t, false) }},
		{"backup", DataplanePinCounterPIN_BACKUP, 0, func(t *testing.T) { d.setRole(t, roleBackup) }},
		{"nobody confirms the role", DataplanePinCounterPIN_STALE_ROLE, 0, func(t *testing.T) {
			put(t, d.Roles, uint32(pinNumber), DataplaneRole{Role: roleMaster})
			put(t, d.Heartbeat, uint32(0), uint64(0))
		}},
		{"no vip", DataplanePinCounterPIN_NO_VIP, 0, func(t *testing.T) {
			put(t, d.Pins, uint32(pinNumber), pin(false))
		}},
		{"new unique address", DataplanePinCounterPIN_BORN_BEFORE, 0, func(t *testing.T) {
			put(t, d.Uniques, slotAddr(unique4), DataplaneUniqueStateUNIQUE_NEW)
			put(t, d.Uniques, slotAddr(unique6), DataplaneUniqueStateUNIQUE_NEW)
		}},
		{"netfilter on a bridge's port", DataplanePinCounterPIN_BRIDGE, 0, func(t *testing.T) {
			p := pin(true)
			p.Flags |= DataplanePinFlagsPIN_BRIDGE4 | DataplanePinFlagsPIN_BRIDGE6
			put(t, d.Pins, uint32(pinNumber), p)
		}},
		{"helper", DataplanePinCounterPIN_HELPER, markHelper, func(*testing.T) {}},
		{"answered", DataplanePinCounterPIN_BORN_BEFORE, markReplied, func(*testing.T) {}},
	}
	eachNewFlow(t, func(t *testing.T, fl flow) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				d.resetMarked(t)
				c.prepare(t)
				skb := masqueraded
				skb.Mark |= c.marks
				b, want := fl.packet(t, egress)
				reason := counts{c.reason: 1}
				d.expectMarked(t, b, b, skb, reason, counts{})
				d.expectUnpinned(t, fl, c.reason)
				put(t, d.Pins, uint32(pinNumber), pin(true))
				d.setSwitch(t, true)
				d.setRole(t, roleMaster)
				put(t, d.Uniques, slotAddr(fl.local.Addr()), DataplaneUniqueStateUNIQUE_KNOWN)
				d.expectMarked(t, b, b, under, reason, counts{})
				// Another flow on the same tuple.
				d.expectMarked(t, b, want, masqueraded, created, counts{})
				if left := entries[DataplaneFlowKey, DataplaneUnpinnedFlow](t, d.Unpinned); len(left) > 0 {
					t.Errorf("still unpinned: %+v", left)
				}
			})
		}
	})
}

// expectUnpinned: the flow is remembered with the reason, and has no mapping.
func (d *dataplane) expectUnpinned(t *testing.T, fl flow, reason DataplanePinCounter) {
	t.Helper()
	var noted DataplaneUnpinnedFlow
	if err := d.Unpinned.Lookup(fl.key(fl.local), &noted); err != nil {
		t.Fatal(err)
	}
	if noted.Pin != pinNumber || noted.Reason != reason {
		t.Errorf("noted %+v, want pin %d reason %v", noted, pinNumber, reason)
	}
	if got := entries[DataplaneFlowKey, DataplanePublicEnd](t, d.ByLocal); len(got) > 0 {
		t.Errorf("mapped: %+v", got)
	}
}

// An inside host that no pin takes is on nobody's account.
func TestDecideSource(t *testing.T) {
	d := newMarked(t)
	eachNewFlow(t, func(t *testing.T, fl flow) {
		d.resetMarked(t)
		b, _ := fl.packet(t, egress)
		for _, number := range []uint32{0, 2, 15} {
			skb := skBuff{IngressIfindex: loopback, Mark: markValid | markFresh | number<<24}
			d.expectMarked(t, b, b, skb, counts{}, counts{DataplanePinCounterPIN_SOURCE: 1})
		}
	})
}

// What is not masqueraded, or not forwarded, gets no mapping.
func TestDecideNothing(t *testing.T) {
	d := newMarked(t)
	eachNewFlow(t, func(t *testing.T, fl flow) {
		d.resetMarked(t)
		b, _ := fl.packet(t, egress)
		for name, skb := range map[string]skBuff{
			"no mark":      forwarded,
			"router's own": {Mark: masqueraded.Mark},
		} {
			t.Run(name, func(t *testing.T) {
				d.expectMarked(t, b, b, skb, counts{}, counts{})
				d.expectEmpty(t)
			})
		}
	})
}

// The public end is another mapping's, or a flow of others was seen on it.
// Whoever can have another port gets one; SCTP and what has no ports stays
// unpinned.
func TestDecideClash(t *testing.T) {
	d := newMarked(t)
	eachNewFlow(t, func(t *testing.T, fl flow) {
		for name, take := range map[string]func(t *testing.T){
			"another mapping": func(t *testing.T) {
				other := fl
				other.local = netip.AddrPortFrom(fl.local.Addr().Next(), fl.local.Port())
				d.mapFlow(t, other)
			},
			"seen from the vip": func(t *testing.T) { put(t, d.Foreign, fl.key(fl.public), coarseNow(t)) },
		} {
			t.Run(name, func(t *testing.T) {
				d.resetMarked(t)
				take(t)
				in, _ := fl.packet(t, egress)
				if fl.proto == layers.IPProtocolSCTP || fl.proto == layers.IPProtocolGRE {
					d.expectMarked(t, in, in, masqueraded, counts{DataplanePinCounterPIN_NO_PORT: 1}, counts{})
					return
				}
				d.expectClash(t, fl, in)
			})
		}
		t.Run("seen long ago", func(t *testing.T) {
			d.resetMarked(t)
			put(t, d.Foreign, fl.key(fl.public), coarseNow(t)-61e9)
			in, want := fl.packet(t, egress)
			d.expectMarked(t, in, want, masqueraded, created, counts{})
		})
	})
}

// expectClash: the flow gets some other port, and keeps it.
func (d *dataplane) expectClash(t *testing.T, fl flow, in []byte) {
	t.Helper()
	d.forget(t)
	got := run(t, d.VippinEgress, in, masqueraded, checksumComplete)
	d.expectCounts(t, counts{
		DataplanePinCounterPIN_CREATED: 1, DataplanePinCounterPIN_PINNED: 1, DataplanePinCounterPIN_CLASH: 1,
	}, counts{})
	var public DataplanePublicEnd
	if err := d.ByLocal.Lookup(fl.key(fl.local), &public); err != nil {
		t.Fatal(err)
	}
	if public.Port == be16(fl.local.Port()) {
		t.Error("the port was kept, although it is taken")
	}
	fl.public = netip.AddrPortFrom(fl.public.Addr(), be16(public.Port))
	_, want := fl.packet(t, egress)
	sameBytes(t, "first packet", got.frame, want)
	d.expectMarked(t, in, want, under, rewritten(egress), counts{})
}

// Fragments of flows that are decided on by their first one.
func TestDecideFragments(t *testing.T) {
	d := newMarked(t)
	eachNewFlow(t, func(t *testing.T, fl flow) {
		in, want := fl.inPieces(t, egress, someIdent)
		t.Run("pinned", func(t *testing.T) {
			d.resetMarked(t)
			d.expectMarked(t, in[0].bytes(t), want[0].bytes(t), masqueraded, created, counts{})
			for i := 1; i < len(in); i++ {
				d.expectMarked(t, in[i].bytes(t), want[i].bytes(t), masqueraded, rewritten(egress), counts{})
			}
			// The answer may come in any order.
			answer, wantAnswer := fl.inPieces(t, ingress, someIdent)
			d.expect(t, ingress, answer[1].bytes(t), wantAnswer[1].bytes(t), skBuff{}, checksumComplete, early)
		})
		t.Run("unpinned", func(t *testing.T) {
			d.resetMarked(t)
			d.setRole(t, roleBackup)
			for i := range in {
				b := in[i].bytes(t)
				d.expectMarked(t, b, b, masqueraded, counts{DataplanePinCounterPIN_BACKUP: 1}, counts{})
				d.setRole(t, roleMaster)
			}
		})
		t.Run("without the first one", func(t *testing.T) {
			d.resetMarked(t)
			b := in[1].bytes(t)
			d.expectMarked(t, b, b, masqueraded, counts{DataplanePinCounterPIN_FRAGMENT: 1}, counts{})
			skb := skBuff{IngressIfindex: loopback, Mark: markValid}
			d.expectMarked(t, b, b, skb, counts{}, counts{DataplanePinCounterPIN_FRAGMENT: 1})
			d.expectEmpty(t)
		})
	})
}

// Protocols that are masqueraded but not translated here.
func TestDecideNotTranslated(t *testing.T) {
	d := newMarked(t)
	for _, ipv6 := range []bool{false, true} {
		fl := someFlow(ipv6, layers.IPProtocolTCP, false)
		packets := map[string]frame{
			"udp-lite": {proto: layers.IPProtocolUDPLite},
			"dccp":     {proto: dccp},
			"query":    {err: &quotation{kind: 13, rest: [4]byte{0, 1, 0, 1}, packet: make([]byte, 12)}},
		}
		if ipv6 {
			packets["query"] = frame{err: &quotation{kind: 139, packet: make([]byte, 12)}}
		}
		for name, f := range packets {
			t.Run(fl.local.Addr().String()+"/"+name, func(t *testing.T) {
				d.resetMarked(t)
				f.src, f.dst, f.payload = fl.local, fl.remote, make([]byte, 20)
				b := f.bytes(t)
				d.expectMarked(t, b, b, masqueraded, counts{DataplanePinCounterPIN_PROTOCOL: 1}, counts{})
				d.expectEmpty(t)
			})
		}
	}
}

// Masquerade itself chose the VIP: nothing to rewrite, but a mapping for the
// peer to learn. Nothing that stands against it makes a difference to the flow.
func TestDecideNative(t *testing.T) {
	d := newMarked(t)
	eachNewFlow(t, func(t *testing.T, fl flow) {
		fl.local, fl.flags = fl.public, DataplaneMappingFlagsMAPPING_NATIVE
		b, _ := fl.packet(t, egress)
		t.Run("mapped", func(t *testing.T) {
			d.resetMarked(t)
			before := coarseNow(t)
			d.expectMarked(t, b, b, masqueraded, created, counts{})
			d.expectMapping(t, fl, before)
			d.expectMarked(t, b, b, under, rewritten(egress), counts{})
		})
		t.Run("backup", func(t *testing.T) {
			d.resetMarked(t)
			d.setRole(t, roleBackup)
			d.expectMarked(t, b, b, masqueraded, counts{DataplanePinCounterPIN_VIP_WHILE_BACKUP: 1}, counts{})
			d.expectEmpty(t)
		})
		t.Run("no pin", func(t *testing.T) {
			d.resetMarked(t)
			d.expectMarked(t, b, b, skBuff{IngressIfindex: loopback, Mark: markValid | markFresh}, counts{}, counts{})
			d.expectEmpty(t)
		})
		t.Run("helper", func(t *testing.T) {
			d.resetMarked(t)
			skb := masqueraded
			skb.Mark |= markHelper
			d.expectMarked(t, b, b, skb, counts{}, counts{})
			d.expectEmpty(t)
		})
	})
}

// Where conntrack cannot be asked, what leaves from a VIP is remembered of every
// protocol.
func TestDecideForeign(t *testing.T) {
	d := newMarked(t)
	eachNewFlow(t, func(t *testing.T, fl flow) {
		d.resetMarked(t)
		own := fl
		own.local = fl.public
		b, _ := own.packet(t, egress)
		d.expectMarked(t, b, b, skBuff{}, counts{}, counts{})
		var when uint64
		if err := d.Foreign.Lookup(fl.key(fl.public), &when); err != nil {
			t.Fatal(err)
		}
		in, want := fl.packet(t, egress)
		if fl.proto == layers.IPProtocolSCTP || fl.proto == layers.IPProtocolGRE {
			want = in
		}
		d.forget(t)
		got := run(t, d.VippinEgress, in, masqueraded, checksumComplete)
		if n := d.pinCounts(t, pinNumber); n[DataplanePinCounterPIN_CLASH]+n[DataplanePinCounterPIN_NO_PORT] != 1 {
			t.Errorf("counted %v, want a clash", n)
		}
		if bytes.Equal(got.frame, want) != bytes.Equal(in, want) {
			t.Error("the public end that the router itself uses was given to a mapping")
		}
	})
}

// What the router makes on behalf of a mapped flow has the flow's conntrack
// entry: a reset, and errors.
func TestDecideOnBehalf(t *testing.T) {
	d := newMarked(t)
	own := skBuff{Mark: markValid}
	eachErrorFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction == ingress {
			return
		}
		d.resetMarked(t)
		d.mapFlow(t, fl)
		in, want := fl.packet(t, egress)
		d.expectMarked(t, in, want, own, rewritten(egress), counts{})
		e, wantError := fl.someError(t, egress)
		d.expectMarked(t, e.bytes(t), wantError.bytes(t), own, rewritten(egress), counts{})
	})
}
