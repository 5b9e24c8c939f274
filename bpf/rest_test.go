// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
)

// rest puts loopback to rest, with the pin switched off.
func (d *dataplane) rest(t *testing.T) {
	t.Helper()
	put(t, d.Ifaces, uint32(loopback), DataplaneIface{Slot: slot, Pin: pinNumber, HasL2: 1, Known: 1, Resting: 1})
}

// An interface at rest touches nothing, not even what a mapping knows.
func TestRest(t *testing.T) {
	d := newDataplane(t)
	d.rest(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, _ := fl.frames(direction)
		b := in.bytes(t)
		d.expect(t, direction, b, b, forwarded, checksumNone, counts{})
	})
}

// Adverts are seen, tagged and told of on an interface at rest.
func TestRestSeesAdverts(t *testing.T) {
	d := newDataplane(t)
	d.rest(t)
	put(t, d.Settings, uint32(0), DataplaneSettings{TagMark: 0x70, TagMask: 0xf0, TagPriority: 7})
	a := advert3()
	got := run(t, d.VippinEgress, a.bytes(t), skBuff{}, checksumNone)
	if got.skb.Mark != 0x70 || got.skb.Priority != 7 {
		t.Errorf("mark %#x, priority %d: the advert was not seen", got.skb.Mark, got.skb.Priority)
	}
	if records := d.records(t); len(records) != 1 {
		t.Errorf("%d records", len(records))
	}
}

// The array of near interfaces is looked at first, and only where it has one.
func TestNearInterface(t *testing.T) {
	d := newDataplane(t)
	eachFlow(t, func(t *testing.T, direction string, fl flow) {
		d.unmapFlows(t)
		d.mapFlow(t, fl)
		in, want := fl.frames(direction)
		put(t, d.NearIfaces, uint32(loopback), DataplaneIface{Slot: slot + 1, HasL2: 1, Known: 1})
		d.expect(t, direction, in.bytes(t), in.bytes(t), forwarded, checksumNone, counts{})
		put(t, d.NearIfaces, uint32(loopback), DataplaneIface{})
		d.expect(t, direction, in.bytes(t), want.bytes(t), forwarded, checksumNone, rewritten(direction))
	})
}
