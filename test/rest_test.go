// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"vippin/bpf"
	"vippin/policy"
	"vippin/test/lab"
)

// awaitRest waits until the WAN interface rests: its pin is off, and no mapping
// is left.
func (s *scene) awaitRest(r *lab.Router) {
	s.t.Helper()
	ifindex := uint32(s.number("wan0"))
	s.must(lab.Await(s.ctx, "the interface to rest", func() (bool, error) {
		ifaces, err := ebpf.LoadPinnedMap(filepath.Join(r.BPFFS, bpf.DataplaneMapIfaces), nil)
		if err != nil {
			return false, err
		}
		defer ifaces.Close()
		var iface bpf.DataplaneIface
		err = ifaces.Lookup(ifindex, &iface)
		return iface.Resting != 0, err
	}))
}

// While its pin is off an interface rests, and no flow is noted. Those that live
// when the pin is switched on keep their source all the same, and a flow that
// begins after the answer leaves with the VIP.
func TestRestsAndWakes(t *testing.T) {
	t.Parallel()
	s := setScene(t, "rests", lab.Options{SingleRouter: true})
	s.start(s.RA, onWAN)
	s.awaitRole(s.RA, policy.RoleMaster)
	s.vippin(s.RA, "pin", "off", "2")
	s.awaitRest(s.RA)
	living := s.gather("living", 20, 10, 20000, lab.WAN.RA.V4)
	sources := func(v4, v6 netip.Addr) {
		for _, ends := range [][2]netip.Addr{{lab.ServerFar.V4, v4}, {lab.ServerFar.V6, v6}} {
			for _, proto := range []string{"tcp", "udp"} {
				if got := s.source(s.Hosts[1], proto, netip.AddrPort{}, ends[0]); got.Addr() != ends[1] {
					t.Errorf("%s arrives from %s, want %s", proto, got, ends[1])
				}
			}
		}
	}
	sources(lab.WAN.RA.V4, lab.WAN.RA.V6)
	s.unharmed(living)
	if off := s.pin(s.RA, 2).UnpinnedBy["off"]; off < 30 {
		t.Errorf("%d packets counted as off", off)
	}
	s.vippin(s.RA, "pin", "on", "2")
	sources(lab.WAN.VIP4, lab.WAN.VIP6)
	s.unharmed(living)
}
