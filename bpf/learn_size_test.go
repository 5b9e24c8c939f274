// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A device takes one tag beyond its MTU from XDP, and drops what is larger. So packets
// as large as a VLAN allows leave by the fast path with one tag, and by the stack with
// two, unless the device's own MTU has room for the second one.
func TestLearnsFullSize(t *testing.T) {
	one := []tag{{unix.ETH_P_8021Q, 2}}
	two := []tag{{unix.ETH_P_8021AD, 100}, {unix.ETH_P_8021Q, 20}}
	for _, c := range []struct {
		lan, wan    []tag
		device, fit int // MTU, and how much of a packet's length the fast path takes
	}{
		{nil, nil, 1500, 1500},
		{nil, one, 1500, 1500},
		{[]tag{{unix.ETH_P_8021Q, 3}}, one, 1500, 1500},
		{nil, two, 1500, 1496},
		{nil, two, 1502, 1498},
		{nil, two, 1504, 1500},
	} {
		l := newTaggedLab(t, c.lan, c.wan)
		wan0, err := netlink.LinkByIndex(l.wan0)
		mustDo(t, err, netlink.LinkSetMTU(wan0, c.device), inside(l.wan, func() error {
			peer, err := netlink.LinkByName("peer")
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(peer, c.device)
		}))
		for _, ipv6 := range []bool{false, true} {
			k := l.set(t, scenes[0], ipv6)
			for range 3 { // the first ones show which VLANs there are
				k.out(t)
				k.back(t)
			}
			headers := 28
			if ipv6 {
				headers = 48
			}
			for _, length := range []int{c.fit, 1500} {
				forwarded, tooBig := uint64(1), uint64(0)
				if length > c.fit {
					forwarded, tooBig = 0, 1
				}
				l.exits(t)
				k.send(t, strings.Repeat("x", length-headers)) // and it arrives
				got := l.exits(t)
				if got[FastpathFastExitFAST_FORWARDED] != forwarded || got[FastpathFastExitFAST_TOO_BIG] != tooBig {
					t.Errorf("%v to %v, MTU %d, %d octets of %v: exits %v, want %d forwarded and %d too big",
						c.lan, c.wan, c.device, length, host(ipv6), got, forwarded, tooBig)
				}
			}
			_, _ = k.client.Close(), k.server.Close()
		}
	}
}
