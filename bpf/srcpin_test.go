// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// A mapping that conntrack itself knows by its public end: no octet changes,
// but the packets are counted and keep the mapping alive.
func TestNativeMapping(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		fl.local = fl.public
		fl.flags = DataplaneMappingFlagsMAPPING_NATIVE
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, _ := fl.frames(direction)
		b := in.bytes(t)
		before := coarseNow(t)
		d.expect(t, direction, b, b, forwarded, checksumComplete, rewritten(direction))
		d.expectTouched(t, fl, direction, before)
	})
}

// The mapping decides, not the switch and not the role.
func TestMappingOutlivesSwitchAndRole(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		fl.flags = DataplaneMappingFlagsMAPPING_ACKED
		d.reset(t)
		put(t, d.Pins, uint32(pinNumber), DataplanePin{Slot: slot, Flags: DataplanePinFlagsPIN_USED})
		d.setSwitch(t, false)
		d.setRole(t, roleBackup)
		d.mapFlow(t, fl)
		in, want := fl.frames(direction)
		counted := rewritten(direction)
		if direction == egress {
			counted[DataplanePinCounterPIN_VIP_WHILE_BACKUP] = 1
		}
		d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumComplete, counted)
	})
}

// A packet of the router's own on a mapped tuple, but without the mapped flow's
// conntrack entry: an answer to something that conntrack took for no flow. It
// must not leave with the VIP.
func TestOwnPacketOnMappedTuple(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		if direction != egress {
			return
		}
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, _ := fl.frames(direction)
		b := in.bytes(t)
		d.expect(t, direction, b, b, skBuff{}, checksumNone, counts{})
	})
}

// last_out_ns and last_in_ns tell when a packet last went which way.
func TestLastSeen(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.frames(direction)
		before := coarseNow(t)
		d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumNone, rewritten(direction))
		d.expectTouched(t, fl, direction, before)
	})
}

// expectTouched looks for a time of now on the direction's side of the mapping
// and none on the other.
func (d *dataplane) expectTouched(t *testing.T, fl flow, direction string, before uint64) {
	t.Helper()
	var public DataplanePublicEnd
	if err := d.ByLocal.Lookup(fl.key(fl.local), &public); err != nil {
		t.Fatal(err)
	}
	var local DataplaneLocalEnd
	if err := d.ByPublic.Lookup(fl.key(fl.public), &local); err != nil {
		t.Fatal(err)
	}
	seen, other := public.LastOutNs, local.LastInNs
	if direction == ingress {
		seen, other = other, seen
	}
	if now := coarseNow(t); seen < before || seen > now {
		t.Errorf("last seen at %d, want between %d and %d", seen, before, now)
	}
	if other != 0 {
		t.Errorf("the other direction was last seen at %d, want never", other)
	}
	if public.Flags != fl.flags || local.Flags != fl.flags || local.BornNs != 0 {
		t.Errorf("the mapping changed: %+v %+v", public, local)
	}
}

// Only forwarded packets that leave from a unique address ask for a conntrack
// entry, and test runs have none to give.
func TestWithoutConntrack(t *testing.T) {
	d := newDataplane(t)
	noEntry := counts{DataplanePinCounterPIN_NO_CONNTRACK: 1}
	elsewhere := func(a netip.Addr) netip.Addr { return a.Next().Next() }
	cases := []struct {
		name   string
		skb    skBuff
		mutate func(*frame)
		none   counts
	}{
		{"forwarded", forwarded, func(*frame) {}, noEntry},
		{"the router's own", skBuff{}, func(*frame) {}, counts{}},
		{"forwarded fragment", forwarded, func(f *frame) {
			f.fragment = 0x2000
			f.ext = []extension{firstFragment}
		}, noEntry},
		{"the router's own fragment", skBuff{}, func(f *frame) {
			f.fragment = 0x2000
			f.ext = []extension{firstFragment}
		}, counts{}},
		{"forwarded, another source", forwarded, func(f *frame) {
			f.src = netip.AddrPortFrom(elsewhere(f.src.Addr()), f.src.Port())
		}, counts{}},
		{"forwarded fragment, another source", forwarded, func(f *frame) {
			f.src = netip.AddrPortFrom(elsewhere(f.src.Addr()), f.src.Port())
			f.fragment = 0x2000
			f.ext = []extension{firstFragment}
		}, counts{}},
		{"forwarded, tagged", forwarded, func(f *frame) { f.tags = []tag{{0x8100, 7}} }, counts{}},
	}
	for _, ipv6 := range []bool{false, true} {
		for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, icmp} {
			for _, c := range cases {
				in, _ := someFlow(ipv6, proto, false).frames(egress)
				c.mutate(&in)
				t.Run(in.src.String()+"/"+c.name, func(t *testing.T) {
					d.forget(t)
					b := in.bytes(t)
					got := run(t, d.VippinEgress, b, c.skb, checksumNone)
					sameBytes(t, "frame", got.frame, b)
					d.expectCounts(t, counts{}, c.none)
					d.expectEmpty(t)
					// At ingress nobody asks.
					d.expect(t, ingress, b, b, c.skb, checksumNone, counts{})
				})
			}
		}
	}
}

// expectEmpty: no flow was entered anywhere.
func (d *dataplane) expectEmpty(t *testing.T) {
	t.Helper()
	var key DataplaneFlowKey
	if d.ByLocal.NextKey(nil, &key) == nil || d.ByPublic.NextKey(nil, &key) == nil ||
		d.Unpinned.NextKey(nil, &key) == nil || d.Foreign.NextKey(nil, &key) == nil {
		t.Errorf("a flow was entered: %+v", key)
	}
}

// A packet from a VIP that belongs to no mapping: who is it, and does it step
// on somebody's public end?
func TestFromVIP(t *testing.T) {
	d := newDataplane(t)
	for _, ipv6 := range []bool{false, true} {
		for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, icmp} {
			fl := someFlow(ipv6, proto, true)
			in := frame{src: fl.public, dst: fl.remote, proto: proto}
			b := in.bytes(t)
			name := in.src.String() + "/" + in.ipProto().String()
			t.Run(name+"/alone", func(t *testing.T) {
				d.reset(t)
				d.expect(t, egress, b, b, forwarded, checksumNone, counts{})
			})
			t.Run(name+"/while backup", func(t *testing.T) {
				d.reset(t)
				d.setRole(t, roleBackup)
				d.expect(t, egress, b, b, forwarded, checksumNone,
					counts{DataplanePinCounterPIN_VIP_WHILE_BACKUP: 1})
			})
			t.Run(name+"/on a mapping's public end", func(t *testing.T) {
				d.reset(t)
				d.mapFlow(t, fl)
				d.expect(t, egress, b, b, skBuff{}, checksumNone, counts{DataplanePinCounterPIN_FOREIGN: 1})
				d.setRole(t, roleBackup)
				d.expect(t, egress, b, b, skBuff{}, checksumNone, counts{
					DataplanePinCounterPIN_FOREIGN: 1, DataplanePinCounterPIN_VIP_WHILE_BACKUP: 1,
				})
			})
			t.Run(name+"/on the public end of a native mapping", func(t *testing.T) {
				d.reset(t)
				fl := fl
				fl.flags = DataplaneMappingFlagsMAPPING_NATIVE
				d.mapFlow(t, fl)
				d.expect(t, egress, b, b, skBuff{}, checksumNone, counts{})
			})
		}
	}
}

// An echo request from a VIP is remembered, since the programs cannot ask
// conntrack about ICMP; its identifier is not given to a mapping then.
func TestForeignEcho(t *testing.T) {
	d := newDataplane(t)
	for _, ipv6 := range []bool{false, true} {
		fl := someFlow(ipv6, icmp, true)
		request := frame{src: fl.public, dst: fl.remote, proto: icmp}
		answer := frame{src: fl.public, dst: fl.remote, proto: icmp, reply: true}
		answer.dst = netip.AddrPortFrom(fl.remote.Addr(), 77)
		tcp := frame{src: fl.public, dst: netip.AddrPortFrom(fl.remote.Addr(), 80), proto: layers.IPProtocolTCP}
		elsewhere := frame{src: netip.AddrPortFrom(fl.public.Addr().Prev(), 9), dst: fl.remote, proto: icmp}

		d.reset(t)
		for name, f := range map[string]frame{
			"an echo reply": answer, "tcp": tcp, "an address that is no VIP": elsewhere,
		} {
			t.Run(request.src.String()+"/not "+name, func(t *testing.T) {
				b := f.bytes(t)
				d.expect(t, egress, b, b, skBuff{}, checksumNone, counts{})
				d.expectEmpty(t)
			})
		}
		t.Run(request.src.String()+"/not one that arrives", func(t *testing.T) {
			b := request.bytes(t)
			d.expect(t, ingress, b, b, skBuff{}, checksumNone, counts{})
			d.expectEmpty(t)
		})
		t.Run(request.src.String(), func(t *testing.T) {
			b := request.bytes(t)
			before := coarseNow(t)
			d.expect(t, egress, b, b, skBuff{}, checksumNone, counts{})
			var when uint64
			if err := d.Foreign.Lookup(fl.key(fl.public), &when); err != nil {
				t.Fatal(err)
			}
			if now := coarseNow(t); when < before || when > now {
				t.Errorf("remembered at %d, want between %d and %d", when, before, now)
			}
		})
		t.Run(request.src.String()+"/not on a mapping", func(t *testing.T) {
			d.reset(t)
			d.mapFlow(t, fl)
			b := request.bytes(t)
			d.expect(t, egress, b, b, skBuff{}, checksumNone, counts{DataplanePinCounterPIN_FOREIGN: 1})
			var when uint64
			if err := d.Foreign.Lookup(fl.key(fl.public), &when); err == nil {
				t.Error("the public end of a mapping was remembered as foreign")
			}
		})
	}
}

// An interface without Ethernet headers. Test runs always take the ethertype
// from octets 12 and 13: here they are a part of the source address.
func TestNoEthernetHeader(t *testing.T) {
	d := newDataplane(t)
	put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot})
	for _, direction := range []string{egress, ingress} {
		for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, icmp} {
			fl := someFlow(true, proto, true)
			fl.local = netip.AddrPortFrom(netip.MustParseAddr("2001:db8:86dd::3"), fl.local.Port())
			fl.remote = netip.AddrPortFrom(netip.MustParseAddr("2001:db8:86dd::80"), fl.remote.Port())
			d.unmapFlows(t)
			d.mapFlow(t, fl)
			in, want := fl.frames(direction)
			in.payload = []byte("an odd number of octets")
			want.payload = in.payload
			t.Run(direction+"/"+in.ipProto().String(), func(t *testing.T) {
				d.expect(t, direction, in.bytes(t)[etherHeader:], want.bytes(t)[etherHeader:], forwarded,
					checksumNone, rewritten(direction))
			})
		}
	}
}
