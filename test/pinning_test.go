// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"testing"

	"vippin/policy"
	"vippin/test/lab"
)

// The server's sockets see the VIP, whatever masquerades and whatever the
// protocol; the IPv6 VIP is a deprecated /128.
func TestServerSeesTheVIP(t *testing.T) {
	for i, how := range []lab.Masquerade{lab.MasqueradeNFT, lab.MasqueradeRandom, lab.MasqueradeIPTables} {
		t.Run(string(how), func(t *testing.T) {
			s := setScene(t, fmt.Sprintf("vip%d", i), lab.Options{Hosts: 1, SingleRouter: true, Masquerade: how})
			s.start(s.RA, onWAN)
			s.awaitRole(s.RA, policy.RoleMaster)
			for _, to := range []lab.Ends{lab.ServerWAN, lab.ServerFar} {
				for _, ends := range [][2]netip.Addr{{to.V4, lab.WAN.VIP4}, {to.V6, lab.WAN.VIP6}} {
					for _, proto := range []string{"tcp", "udp"} {
						if got := s.source(s.Hosts[0], proto, netip.AddrPort{}, ends[0]); got.Addr() != ends[1] {
							t.Errorf("%s to %s arrived from %s, want %s", proto, ends[0], got, ends[1])
						}
					}
					if got := s.pingSource(s.Hosts[0], 77, ends[0]); got.Addr() != ends[1] {
						t.Errorf("ping to %s arrived from %s, want %s", ends[0], got, ends[1])
					}
				}
			}
			pin := s.pin(s.RA, 2)
			if pin.PacketsPinned == 0 || pin.PacketsUnpinned != 0 {
				t.Errorf("counted %d pinned and %d unpinned packets (%v)", pin.PacketsPinned, pin.PacketsUnpinned, pin.UnpinnedBy)
			}
		})
	}
}
