// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"vippin/loader/ethtool"
	"vippin/policy"
)

// cable makes a veth whose router's end takes redirected frames.
func cable(t *testing.T, name, peer string) int {
	t.Helper()
	ifindex := addVeth(t, name, peer)
	setFeature(t, peer, groFeature, true)
	return ifindex
}

// The features that tests switch.
const (
	groFeature = "rx-gro"
	checksums  = "tx-checksum-ip-generic"
)

// setFeature is "ethtool -K NAME FEATURE on", or off.
func setFeature(t *testing.T, name, feature string, on bool) {
	t.Helper()
	if err := ethtool.Switch(name, feature, on); err != nil {
		t.Fatal(err)
	}
}

func mustFastpath(t *testing.T, d *Dataplane, opts FastpathOptions) *Fastpath {
	t.Helper()
	if opts.Flows == 0 {
		opts.Flows = 1024
	}
	f, err := d.NewFastpath(opts)
	if err != nil {
		t.Fatalf("load the fast path: %+v", err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func mustAttach(t *testing.T, f *Fastpath, names ...string) []policy.FastpathDevice {
	t.Helper()
	devices, err := f.Attach(names)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return devices
}

// xdpLinkID is the pinned XDP link of an interface, 0 without one.
func xdpLinkID(t *testing.T, d *Dataplane, ifindex int) link.ID {
	t.Helper()
	on, err := readXDP(ifindex)
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.openXDP(ifindex, on)
	if err != nil {
		t.Fatal(err)
	}
	if l == nil {
		return 0
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

// devicesOf reads fast_devices, without those that are not there.
func devicesOf(t *testing.T, f *Fastpath) map[uint32]fastDeviceValue {
	t.Helper()
	all := make(map[uint32]fastDeviceValue)
	for _, m := range []*ebpf.Map{f.maps.Devices, f.maps.FarDevices} {
		content, err := readMap[uint32, fastDeviceValue](m)
		if err != nil {
			t.Fatal(err)
		}
		for ifindex, device := range content {
			if device != (fastDeviceValue{}) {
				all[ifindex] = device
			}
		}
	}
	return all
}

// TestFastpathAttach: native XDP on two devices, what the programs read of them,
// a MAC that changes, and all of it gone with the device, with the name and with
// Remove.
func TestFastpathAttach(t *testing.T) {
	enterNamespace(t)
	lan, wan := cable(t, "lan0", "lan1"), cable(t, "wan0", "wan1")
	d := mustLoad(t, Options{BPFFS: testBPFFS(t)})
	var log logBuffer
	f := mustFastpath(t, d, FastpathOptions{Log: log.logger()})
	devices := mustAttach(t, f, "lan0", "wan0", "lan0", "ppp9")
	if len(devices) != 3 || devices[0].Mode != "native" || devices[1].Mode != "native" || devices[2].Mode != "" {
		t.Fatalf("devices %+v", devices)
	}
	contains(t, devices[2].Refused, "there is no such interface now")
	contains(t, log.String(), "some drivers take the link down")
	numbers := devicesOf(t, f)
	wanLink, err := netlink.LinkByName("wan0")
	if err != nil {
		t.Fatal(err)
	}
	for _, ifindex := range []int{lan, wan} {
		device := numbers[uint32(ifindex)]
		var out uint32
		var place fastPlaceValue
		err := errors.Join(f.maps.Out.Lookup(uint32(device.Number), &out), f.maps.Places.Lookup(uint32(ifindex), &place))
		if device.Number == 0 || err != nil || out != uint32(ifindex) || place != (fastPlaceValue{Number: uint32(device.Number) << 24, Below: uint32(ifindex)}) {
			t.Errorf("device %+v leads to %d, place %+v, %v", device, out, place, err)
		}
	}
	if got := numbers[uint32(wan)].Mac; string(got[:]) != string(wanLink.Attrs().HardwareAddr) {
		t.Errorf("MAC %x, want %s", got, wanLink.Attrs().HardwareAddr)
	}
	before := xdpLinkID(t, d, wan)
	if err := netlink.LinkSetHardwareAddr(wanLink, []byte{2, 0, 0, 0, 0, 7}); err != nil {
		t.Fatal(err)
	}
	mustAttach(t, f, "wan0", "lan0")
	after := devicesOf(t, f)
	if got := after[uint32(wan)]; got.Number != numbers[uint32(wan)].Number || got.Mac != [6]byte{2, 0, 0, 0, 0, 7} {
		t.Errorf("after the MAC changed: %+v, before %+v", got, numbers[uint32(wan)])
	}
	if now := xdpLinkID(t, d, wan); now != before || now == 0 {
		t.Errorf("link %d became %d: it was attached anew", before, now)
	}
	mustAttach(t, f, "wan0")
	if got := devicesOf(t, f); len(got) != 1 || got[uint32(wan)] != after[uint32(wan)] {
		t.Errorf("devices %+v, want wan0 alone, unchanged", got)
	}
	if on, err := readXDP(lan); err != nil || on.program != 0 || xdpLinkID(t, d, lan) != 0 {
		t.Errorf("lan0, not named any more, has %+v, %v", on, err)
	}
	var out uint32
	if err := f.maps.Out.Lookup(uint32(numbers[uint32(lan)].Number), &out); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("lan0 is still a way out: %d, %v", out, err)
	}
	if err := f.Remove(); err != nil {
		t.Fatalf("remove: %v", err)
	}
	if on, err := readXDP(wan); err != nil || on.program != 0 {
		t.Errorf("after Remove wan0 has %+v, %v", on, err)
	}
	if _, err := d.OpenFastpath(); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("open after Remove: %v, want ErrNotLoaded", err)
	}
}
