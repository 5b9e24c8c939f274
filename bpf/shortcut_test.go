// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// knows tells whether a packet is rewritten although its mapping is gone: by a
// shortcut alone.
func (d *dataplane) knows(t *testing.T, direction string, in []byte, skb skBuff) bool {
	t.Helper()
	clearMap[DataplaneFlowKey](t, d.ByLocal)
	clearMap[DataplaneFlowKey](t, d.ByPublic)
	d.forget(t)
	run(t, d.program(direction), in, skb, checksumNone)
	counted := d.pinCounts(t, pinNumber)
	return counted[DataplanePinCounterPIN_PINNED]+counted[DataplanePinCounterPIN_RETURNED] == 1
}

// A flow gets a shortcut exactly when its pin's number says all about it.
func TestShortcut(t *testing.T) {
	d := newDataplane(t)
	other4, other6 := netip.MustParseAddr("198.51.100.77"), netip.MustParseAddr("2001:db8:1::77")
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		able := fl.proto != icmp && fl.public.Port() == fl.local.Port()
		another := func(a netip.AddrPort) netip.AddrPort {
			if a.Addr().Is6() {
				return netip.AddrPortFrom(other6, a.Port())
			}
			return netip.AddrPortFrom(other4, a.Port())
		}
		for _, c := range []struct {
			name   string
			skb    skBuff
			mutate func(*flow)
			flags  DataplaneMappingFlags
			want   bool
		}{
			{name: "plain", skb: forwarded, want: able},
			{name: "the router's own", want: able && direction == ingress},
			{name: "another VIP", skb: forwarded, want: able && direction == ingress,
				mutate: func(f *flow) { f.public = another(f.public) }},
			{name: "another unique address", skb: forwarded, want: able && direction == egress,
				mutate: func(f *flow) { f.local = another(f.local) }},
		} {
			t.Run(c.name, func(t *testing.T) {
				fl := fl
				if c.mutate != nil {
					c.mutate(&fl)
				}
				in, want := fl.frames(direction)
				learns := func() bool {
					d.unmapFlows(t)
					d.mapFlow(t, fl)
					if c.skb != (skBuff{}) || direction == ingress {
						d.expect(t, direction, in.bytes(t), want.bytes(t), c.skb, checksumNone, rewritten(direction))
					}
					return d.knows(t, direction, in.bytes(t), c.skb)
				}
				// The kernel's clock may have begun an epoch between the two packets: it
				// does so every 1024 ticks.
				if got := learns(); got != c.want && learns() != c.want {
					t.Errorf("shortcut %v, want %v", got, c.want)
				}
				d.newEpoch(t)
				if d.knows(t, direction, in.bytes(t), c.skb) {
					t.Error("the shortcut outlived its epoch")
				}
			})
		}
	})
}

// A shortcut is for one flow, one direction, one interface.
func TestShortcutOfAnother(t *testing.T) {
	d := newDataplane(t)
	for _, direction := range []string{egress, ingress} {
		for _, v6 := range []bool{false, true} {
			fl := someFlow(v6, layers.IPProtocolUDP, false)
			in, want := fl.frames(direction)
			for name, mutate := range map[string]func(f *frame){
				"source port":      func(f *frame) { f.src = netip.AddrPortFrom(f.src.Addr(), f.src.Port()^1) },
				"destination port": func(f *frame) { f.dst = netip.AddrPortFrom(f.dst.Addr(), f.dst.Port()^1) },
				"source":           func(f *frame) { f.src = netip.AddrPortFrom(f.src.Addr().Next(), f.src.Port()) },
				"destination":      func(f *frame) { f.dst = netip.AddrPortFrom(f.dst.Addr().Next(), f.dst.Port()) },
				"protocol":         func(f *frame) { f.proto = layers.IPProtocolTCP },
				"no checksum":      func(f *frame) { f.noSum = true },
				"a fragment":       func(f *frame) { f.fragment = 0x2000; f.ext = []extension{firstFragment} },
				"ends swapped":     func(f *frame) { f.src, f.dst = f.dst, f.src },
			} {
				t.Run(direction+"/"+in.src.String()+"/"+name, func(t *testing.T) {
					d.unmapFlows(t)
					d.mapFlow(t, fl)
					d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumNone, rewritten(direction))
					f := in
					mutate(&f)
					if d.knows(t, direction, f.bytes(t), forwarded) {
						t.Error("taken for the flow")
					}
				})
			}
			t.Run(direction+"/"+in.src.String()+"/another interface", func(t *testing.T) {
				d.unmapFlows(t)
				d.mapFlow(t, fl)
				d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumNone, rewritten(direction))
				put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot + 1, HasL2: 1})
				defer put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot, HasL2: 1})
				if d.knows(t, direction, in.bytes(t), forwarded) {
					t.Error("taken for the flow")
				}
			})
		}
	}
}

// Flows that differ in one field only find places all over the array: of the two in a
// line, which flows in a row may share more often than by chance (bpf/mix.h).
func TestShortcutsSpread(t *testing.T) {
	d := newDataplane(t)
	const flows = 512
	for _, direction := range []string{egress, ingress} {
		for _, v6 := range []bool{false, true} {
			for name, vary := range map[string]func(f *flow, i int){
				"our port":      func(f *flow, i int) { f.local, f.public = withPort(f.local, i), withPort(f.public, i) },
				"their port":    func(f *flow, i int) { f.remote = withPort(f.remote, i) },
				"their address": func(f *flow, i int) { f.remote = withHost(f.remote, i) },
			} {
				t.Run(direction+"/"+name, func(t *testing.T) {
					d.unmapFlows(t)
					for i := range d.Shortcuts.MaxEntries() {
						put(t, d.Shortcuts, i, DataplaneShortcut{})
					}
					for i := range flows {
						fl := someFlow(v6, layers.IPProtocolUDP, false)
						vary(&fl, i)
						d.mapFlow(t, fl)
						in, _ := fl.frames(direction)
						run(t, d.program(direction), in.bytes(t), forwarded, checksumNone)
						clearMap[DataplaneFlowKey](t, d.ByLocal) // they are small here
						clearMap[DataplaneFlowKey](t, d.ByPublic)
					}
					found := 0
					var index uint32
					var place DataplaneShortcut
					for all := d.Shortcuts.Iterate(); all.Next(&index, &place); {
						for _, way := range place.Way {
							if way != 0 {
								found++
							}
						}
					}
					if found < flows*95/100 { // the worst of 300,000 beginnings of the digest leaves two without
						t.Errorf("%d flows in %d places", flows, found)
					}
				})
			}
		}
	}
}

func withPort(a netip.AddrPort, i int) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), uint16(20000+i))
}

func withHost(a netip.AddrPort, i int) netip.AddrPort {
	octets := a.Addr().AsSlice()
	octets[len(octets)-1], octets[len(octets)-2] = byte(i), byte(i>>8)
	addr, _ := netip.AddrFromSlice(octets)
	return netip.AddrPortFrom(addr, a.Port())
}
