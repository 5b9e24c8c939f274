// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// held finds the virtual MACs that this router holds: those of links that are up and
// have an address of a MASTER.
func (v *routeView) held() map[uint32]heldMAC {
	v.moved = false
	held := make(map[uint32]heldMAC)
	for key, flags := range v.addrs {
		link, known := v.links[linkKey{ifindex: key.ifindex}]
		if !known || len(link.address) != len(mac{}) || link.flags&unix.IFF_UP == 0 {
			continue
		}
		if address := mac([]byte(link.address)); address.isVirtual() && v.isMasters(key, flags, link.parent, address) {
			held[key.ifindex] = heldMAC{link.parent, address}
		}
	}
	return held
}

// isMasters tells whether an address is one that a BACKUP's interface with a virtual MAC
// does not have. That may have link-local ones: the one that the kernel gives it, and the
// one of the interface below, which keepalived's adverts come from.
func (v *routeView) isMasters(key addrKey, flags uint32, below uint32, address mac) bool {
	ip := key.ip()
	if !ip.IsLinkLocalUnicast() {
		return true
	}
	if ip.Is4() || flags&unix.IFA_F_STABLE_PRIVACY != 0 || ip == linkLocalOf(address) {
		return false
	}
	key.ifindex, key.prefix = below, 64
	_, belows := v.addrs[key]
	return !belows
}

func (k *addrKey) ip() netip.Addr {
	if k.family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(k.local[:4]))
	}
	return netip.AddrFrom16(k.address)
}

// linkLocalOf is the address that the kernel makes of a MAC: RFC 4291 appendix A.
func linkLocalOf(m mac) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}
