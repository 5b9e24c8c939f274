// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
)

// setSwitch switches the pin of newDataplane.
func (d *dataplane) setSwitch(t *testing.T, on bool) {
	t.Helper()
	if on == d.on {
		return // to replace the switches is to wait for a grace period
	}
	d.on = on
	if on {
		d.switchOn(t, pinNumber)
	} else {
		d.switchOn(t)
	}
}

// switchOn puts switches in force of which those of some pins are on.
func (d *dataplane) switchOn(t *testing.T, pins ...uint32) {
	t.Helper()
	var all [4096]uint8 // MAX_PINS
	for _, pin := range pins {
		all[pin] = uint8(DataplanePinFlagsPIN_ENABLED)
	}
	next, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(all)), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	put(t, next, uint32(0), &all)
	put(t, d.Switches, uint32(0), next)
}

// A flow is pinned by its own pin's switch; before there are any, none is.
func TestSwitches(t *testing.T) {
	d := newMarked(t)
	for _, c := range []struct {
		name    string
		prepare func()
		on      bool
	}{
		{"its own", func() { d.switchOn(t, pinNumber) }, true},
		{"other pins'", func() { d.switchOn(t, pinNumber-1, pinNumber+1, 4095) }, false},
		{"all", func() { d.switchOn(t, pinNumber-1, pinNumber, pinNumber+1, 4095) }, true},
		{"none yet", func() {
			if err := d.Switches.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Fatal(err)
			}
		}, false},
	} {
		for _, lone := range []bool{false, true} { // masquerade itself chose the VIP
			d.resetMarked(t)
			c.prepare()
			fl := someFlow(false, layers.IPProtocolUDP, false)
			off := counts{DataplanePinCounterPIN_OFF: 1}
			if lone {
				fl.local, off = fl.public, counts{}
			}
			in, want := fl.packet(t, egress)
			if c.on {
				d.expectMarked(t, in, want, masqueraded, created, counts{})
			} else {
				d.expectMarked(t, in, in, masqueraded, off, counts{})
			}
		}
		d.on = false
		d.setSwitch(t, true)
	}
}
