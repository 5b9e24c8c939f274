// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"
)

const otherGroup = 2

func (d *dataplane) ownAdvert(t *testing.T, group uint32) (own DataplaneOwnAdvert) {
	t.Helper()
	if err := d.OwnAdverts.Lookup(group, &own); err != nil {
		t.Fatal(err)
	}
	return own
}

// expectLease: the advert left between before and now, and its interval is known.
func (d *dataplane) expectLease(t *testing.T, group uint32, before uint64, a advert) {
	t.Helper()
	own := d.ownAdvert(t, group)
	if now := coarseNow(t); own.LastNs < before || own.LastNs > now {
		t.Errorf("group %d advertised last at %d, want between %d and %d", group, own.LastNs, before, now)
	}
	unit := uint64(1e9)
	if a.version == 3 {
		unit = 1e7
	}
	if want := uint64(a.interval&0xfff) * unit; own.IntervalNs != want {
		t.Errorf("interval %d ns, want %d", own.IntervalNs, want)
	}
}

// expectNoLease: no group's lease has changed from what is given.
func (d *dataplane) expectNoLease(t *testing.T, want DataplaneOwnAdvert) {
	t.Helper()
	for group, want := range map[uint32]DataplaneOwnAdvert{0: {}, groupNumber: want, otherGroup: {}} {
		if own := d.ownAdvert(t, group); own != want {
			t.Errorf("lease of group %d is %+v, want %+v", group, own, want)
		}
	}
}

// Every kind of advert that leaves renews the lease of the group it announces
// the VIPs of, and a resignation ends it.
func TestLease(t *testing.T) {
	d := newDataplane(t)
	eachAdvert(t, func(t *testing.T, direction string, a advert) {
		d.reset(t)
		before := coarseNow(t)
		b := a.bytes(t)
		run(t, d.program(direction), b, skBuff{}, checksumNone)
		if direction == ingress {
			d.expectNoLease(t, DataplaneOwnAdvert{})
			return
		}
		d.expectLease(t, groupNumber, before, a)
		held := d.ownAdvert(t, groupNumber)

		// Heard: somebody else's, or our own coming back.
		run(t, d.VippinIngress, b, skBuff{}, checksumNone)
		resigned := a
		resigned.priority = 0
		run(t, d.VippinIngress, resigned.bytes(t), skBuff{}, checksumNone)
		d.expectNoLease(t, held)

		run(t, d.VippinEgress, resigned.bytes(t), skBuff{}, checksumNone)
		d.expectNoLease(t, DataplaneOwnAdvert{IntervalNs: held.IntervalNs})
	})
}

// first_ns tells since when adverts leave without a pause.
func TestLeaseBegins(t *testing.T) {
	d := newDataplane(t)
	a := advert3()
	a.interval = 0xfff // 40.95 s
	send := func() uint64 {
		run(t, d.VippinEgress, a.bytes(t), skBuff{}, checksumNone)
		return d.ownAdvert(t, groupNumber).FirstNs
	}
	first := send()
	if first == 0 {
		t.Fatal("the first advert began nothing")
	}
	if again := send(); again != first {
		t.Errorf("the second advert began anew: %d, want %d", again, first)
	}
	quiet := d.ownAdvert(t, groupNumber)
	quiet.LastNs -= 3 * quiet.IntervalNs
	put(t, d.OwnAdverts, uint32(groupNumber), quiet)
	if after := send(); after <= first {
		t.Errorf("after a pause: %d, want later than %d", after, first)
	}
	a.priority = 0
	if resigned := send(); resigned != 0 {
		t.Errorf("after a resignation: %d, want 0", resigned)
	}
}

// Seconds in version 2, hundredths of a second in twelve bits in version 3.
func TestLeaseInterval(t *testing.T) {
	d := newDataplane(t)
	for _, interval := range []uint16{1, 3, 255} {
		a := advert2()
		a.interval = interval
		before := coarseNow(t)
		run(t, d.VippinEgress, a.bytes(t), skBuff{}, checksumNone)
		d.expectLease(t, groupNumber, before, a)
	}
	for _, interval := range []uint16{1, 10, 255, 256, 0xfff, 0xf001, 0xf100} {
		a := advert3()
		a.interval = interval
		before := coarseNow(t)
		run(t, d.VippinEgress, a.bytes(t), skBuff{}, checksumNone)
		d.expectLease(t, groupNumber, before, a)
	}
}

// One change, and the advert speaks for no group.
func TestLeaseNotRenewed(t *testing.T) {
	d := newDataplane(t)
	cases := map[string]func(*advert){
		"checksum":       func(a *advert) { a.sum = sumWrong },
		"ttl":            func(a *advert) { a.ttl = 254 },
		"type":           func(a *advert) { a.kind = 2 },
		"version":        func(a *advert) { a.version = 1 },
		"authentication": func(a *advert) { a.version, a.interval, a.auth = 2, 1, 9 },
		"no address":     func(a *advert) { a.count = -1 },
		"fragment":       func(a *advert) { a.fragment, a.ext = 0x2000, []extension{firstFragment} },
		"802.1Q":         func(a *advert) { a.tags = []tag{{0x8100, 20}} },
		"802.1ad with 802.1Q": func(a *advert) {
			a.tags = []tag{{0x88a8, 100}, {0x8100, 20}}
		},
		"addresses of others": func(a *advert) { a.vips = addrs(3, a.src.Is6()) },
		"the VIP counted out": func(a *advert) {
			a.vips = append(addrs(2, a.src.Is6()), a.vips...)
			a.count = 2
		},
		"the VIP in seventeenth place": func(a *advert) {
			a.vips = append(addrs(16, a.src.Is6()), a.vips[len(a.vips)-1])
		},
	}
	held := DataplaneOwnAdvert{LastNs: 1234, IntervalNs: 5678}
	put(t, d.OwnAdverts, uint32(groupNumber), held)
	for name, mutate := range cases {
		for _, a := range []advert{advert3(), advert3v6()} {
			for _, priority := range []uint8{150, 0} {
				t.Run(name+"/"+a.src.String(), func(t *testing.T) {
					a := a
					a.priority = priority
					mutate(&a)
					run(t, d.VippinEgress, a.bytes(t), skBuff{}, checksumNone)
					d.expectNoLease(t, held)
				})
			}
		}
	}
	t.Run("no pin on this slot", func(t *testing.T) {
		put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot + 1, HasL2: 1})
		run(t, d.VippinEgress, advert3().bytes(t), skBuff{}, checksumNone)
		d.expectNoLease(t, held)
	})
}

// Whose advert it is: the configuration's VRID comes first, then the VIPs,
// wherever among the first sixteen they stand.
func TestLeaseGroup(t *testing.T) {
	d := newDataplane(t)
	vrid := func(ifindex, vrid uint32) {
		put(t, d.Vrids, DataplaneVridKey{Ifindex: ifindex, Vrid: vrid}, uint32(otherGroup))
	}
	cases := []struct {
		name   string
		setUp  func()
		mutate func(*advert)
		group  uint32
	}{
		{"by vip", func() {}, func(*advert) {}, groupNumber},
		{"by vrid", func() { vrid(loopback, 51) }, func(*advert) {}, otherGroup},
		{"by vrid, addresses of others", func() { vrid(loopback, 51) }, func(a *advert) {
			a.vips = addrs(1, a.src.Is6())
		}, otherGroup},
		{"another vrid", func() { vrid(loopback, 52) }, func(*advert) {}, groupNumber},
		{"another interface's vrid", func() { vrid(loopback+1, 51) }, func(*advert) {}, groupNumber},
		{"vip in sixteenth place", func() {}, func(a *advert) {
			a.vips = append(addrs(15, a.src.Is6()), a.vips[len(a.vips)-1])
		}, groupNumber},
		{"the first known vip", func() {
			for _, own := range []netip.Addr{addrs(1, false)[0], addrs(1, true)[0]} {
				put(t, d.Vips, slotAddr(own), DataplaneVip{Pin: pinNumber + 1})
			}
			put(t, d.Pins, uint32(pinNumber+1), DataplanePin{Slot: slot, Group: otherGroup})
		}, func(a *advert) {
			a.vips = append(addrs(1, a.src.Is6()), a.vips[len(a.vips)-1])
		}, otherGroup},
		{"priority tag", func() {}, func(a *advert) { a.tags = []tag{{0x8100, 0xe000}} }, groupNumber},
	}
	for _, c := range cases {
		for _, a := range []advert{advert2(), advert3(), advert3v6()} {
			t.Run(c.name+"/"+a.src.String(), func(t *testing.T) {
				d.reset(t)
				c.setUp()
				c.mutate(&a)
				before := coarseNow(t)
				run(t, d.VippinEgress, a.bytes(t), skBuff{}, checksumNone)
				d.expectLease(t, c.group, before, a)
				other := uint32(groupNumber + otherGroup - c.group)
				if own := d.ownAdvert(t, other); own != (DataplaneOwnAdvert{}) {
					t.Errorf("lease of group %d is %+v, want none", other, own)
				}
			})
		}
	}
}
