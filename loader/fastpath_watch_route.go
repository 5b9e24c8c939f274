// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// routeView is what rtnetlink has told, as far as it tells a change from news that
// are none: counters, a neighbour's states, lifetimes that are renewed.
type routeView struct {
	links map[linkKey]linkFacts
	addrs map[addrKey]uint32 // flags and scope
	neigh map[neighKey]mac
	moved bool // links or addresses, since somebody asked who holds what
}

type mac [6]byte

type linkKey struct {
	family  uint8 // AF_BRIDGE: as a port of a bridge
	ifindex uint32
}

type linkFacts struct {
	flags, mtu, parent, master, group uint32
	operstate                         uint8
	name, address                     string
}

type addrKey struct {
	ifindex        uint32
	family, prefix uint8
	address, local [16]byte
}

type neighKey struct {
	ifindex uint32
	addr    [16]byte
	family  uint8
}

func newRouteView() *routeView {
	return &routeView{links: make(map[linkKey]linkFacts), addrs: make(map[addrKey]uint32), neigh: make(map[neighKey]mac)}
}

// seed reads links, addresses and neighbours as they are.
func (v *routeView) seed() error {
	clear(v.links)
	clear(v.addrs)
	clear(v.neigh)
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	defer func() { _ = conn.Close() }()
	for _, dump := range []struct {
		kind uint16
		size int // of its header
	}{{unix.RTM_GETLINK, unix.SizeofIfInfomsg}, {unix.RTM_GETADDR, unix.SizeofIfAddrmsg}, {unix.RTM_GETNEIGH, unix.SizeofNdMsg}} {
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(dump.kind), Flags: netlink.Request | netlink.Dump},
			Data:   make([]byte, dump.size),
		})
		if err != nil {
			return fmt.Errorf("read links, addresses and neighbours: %w", err)
		}
		for _, m := range messages {
			_, _ = v.take(m)
		}
	}
	return nil
}

// take tells whether flows have to be judged anew after a message, and which
// neighbour's address is not one any more.
func (v *routeView) take(m netlink.Message) (changed bool, gone *mac) {
	data := m.Data
	switch kind := m.Header.Type; kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		changed = len(data) < unix.SizeofIfInfomsg || v.link(data, kind == unix.RTM_DELLINK)
		v.moved = v.moved || changed
		return changed, nil
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		changed = len(data) < unix.SizeofIfAddrmsg || v.addr(data, kind == unix.RTM_DELADDR)
		v.moved = v.moved || changed
		return changed, nil
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(data) < unix.SizeofNdMsg {
			return true, nil
		}
		return false, v.neighbour(data, kind == unix.RTM_DELNEIGH)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(data) < unix.SizeofRtMsg || forwards(data), nil
	}
	return true, nil // rules, tc, next hops, sysctls, and whatever else comes in these groups
}

// forwards tells whether a route (struct rtmsg) is one that forwarded packets may
// take, or be stopped by. It is not the memory of a path's MTU.
func forwards(data []byte) bool {
	if binary.NativeEndian.Uint32(data[8:])&unix.RTM_F_CLONED != 0 {
		return false
	}
	switch data[7] {
	case unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return false
	}
	return true
}

// link takes struct ifinfomsg.
func (v *routeView) link(data []byte, gone bool) (changed bool) {
	key := linkKey{data[0], binary.NativeEndian.Uint32(data[4:])}
	was, known := v.links[key]
	if gone {
		delete(v.links, key)
		return true
	}
	is := linkFacts{flags: binary.NativeEndian.Uint32(data[8:])}
	for kind, value := range routeAttributes(data[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_MTU:
			is.mtu = number(value)
		case unix.IFLA_LINK:
			is.parent = number(value)
		case unix.IFLA_MASTER:
			is.master = number(value)
		case unix.IFLA_GROUP:
			is.group = number(value)
		case unix.IFLA_OPERSTATE:
			is.operstate = uint8(number(value))
		case unix.IFLA_IFNAME:
			is.name = string(value)
		case unix.IFLA_ADDRESS:
			is.address = string(value)
		}
	}
	v.links[key] = is
	return !known || was != is
}

// addr takes struct ifaddrmsg.
func (v *routeView) addr(data []byte, gone bool) (changed bool) {
	key := addrKey{family: data[0], prefix: data[1], ifindex: binary.NativeEndian.Uint32(data[4:])}
	is := uint32(data[2]) | uint32(data[3])<<24 // IFA_FLAGS has more, and leaves the upper octet free
	for kind, value := range routeAttributes(data[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_ADDRESS:
			copy(key.address[:], value)
		case unix.IFA_LOCAL:
			copy(key.local[:], value)
		case unix.IFA_FLAGS:
			is = number(value) | uint32(data[3])<<24
		}
	}
	was, known := v.addrs[key]
	if gone {
		delete(v.addrs, key)
		return true
	}
	v.addrs[key] = is
	return !known || was != is
}

// NUD states in which a neighbour's address is good, include/net/neighbour.h.
const nudValid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY

// neighbour takes struct ndmsg: family, padding, ifindex, state, flags, type.
func (v *routeView) neighbour(data []byte, gone bool) *mac {
	key := neighKey{family: data[0], ifindex: binary.NativeEndian.Uint32(data[4:])}
	state, flags := binary.NativeEndian.Uint16(data[8:]), data[10]
	if key.family != unix.AF_INET && key.family != unix.AF_INET6 || flags&unix.NTF_PROXY != 0 {
		return nil
	}
	var is mac
	good := !gone && state&nudValid != 0
	for kind, value := range routeAttributes(data[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			copy(key.addr[:], value)
		case unix.NDA_LLADDR:
			good = good && len(value) == len(is)
			copy(is[:], value)
		}
	}
	was, known := v.neigh[key]
	if good && is != (mac{}) {
		v.neigh[key] = is
	} else {
		delete(v.neigh, key)
	}
	if known && (!good || was != is) {
		return &was
	}
	return nil
}

// number reads a native number of 1 or 4 octets.
func number(value []byte) uint32 {
	switch len(value) {
	case 1:
		return uint32(value[0])
	case 4:
		return binary.NativeEndian.Uint32(value)
	}
	return 0
}

// routeAttributes hands the attributes of a message to yield, as far as they are
// whole.
func routeAttributes(data []byte) func(yield func(kind uint16, value []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(data) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(data))
			if size < unix.SizeofRtAttr || size > len(data) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(data[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), data[unix.SizeofRtAttr:size]) {
				return
			}
			data = data[min((size+3)&^3, len(data)):]
		}
	}
}

// routesLost reads all anew.
func (f *Fastpath) routesLost(view *routeView) error {
	defer f.tables.bump()
	err := view.seed()
	f.holdVirtual(view.held())
	return err
}

// routesChanged does what messages ask for.
func (f *Fastpath) routesChanged(view *routeView, messages []netlink.Message) {
	bump := false
	var gone []mac
	for _, m := range messages {
		changed, mac := view.take(m)
		bump = bump || changed
		if mac != nil {
			gone = append(gone, *mac)
		}
	}
	if view.moved { // before the generation: nothing is to be learnt for a MAC that went
		f.holdVirtual(view.held())
	}
	if bump {
		f.tables.bump()
	}
	if len(gone) > 0 {
		f.follow.hops.add(gone)
	}
}
