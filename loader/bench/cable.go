// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vippin/bpf"
	"vippin/loader/ethtool"
	"vippin/policy"
)

// addSides lays the cables. The thread is in the router's namespace.
func (b *bed) addSides() error {
	for i, name := range []string{lanName, wanName} {
		s := &b.sides[i]
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(s.ns)})
		if err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		if s.near, s.nearMAC, err = setUp(name); err != nil {
			return err
		}
		s.name, s.index = name, s.near
		sink := []*ebpf.Program{b.programs.SinkInside, b.programs.SinkOutside}[i]
		err = in(s.ns, func() (err error) {
			if s.far, s.farMAC, err = setUp(name); err != nil {
				return err
			}
			return b.attachXDP(sink, s.far, name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func setUp(name string) (int, net.HardwareAddr, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, nil, fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return 0, nil, fmt.Errorf("set %s up: %w", name, err)
	}
	return l.Attrs().Index, l.Attrs().HardwareAddr, nil
}

// awaitCarrier waits until the kernel has noticed that both ends of a cable are
// up: until then it drops what is sent there.
func awaitCarrier(ifindex int) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return fmt.Errorf("look at interface %d: %w", ifindex, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %s to come up: it is %s", l.Attrs().Name, l.Attrs().OperState)
		}
	}
}

// tags are what frames carry between addresses and IP header, as on the wire.
type tags struct {
	count int
	word  [2]uint32
}

// tagsOf writes one tag as 802.1Q has it, and in front of another one as 802.1ad.
func tagsOf(v policy.VLAN) (t tags) {
	ids := []uint16{v.Outer}
	protocols := []uint16{unix.ETH_P_8021Q}
	switch {
	case v.Outer == 0:
		return t
	case v.Inner != 0:
		ids, protocols = []uint16{v.Outer, v.Inner}, []uint16{unix.ETH_P_8021AD, unix.ETH_P_8021Q}
	}
	for i, id := range ids {
		t.word[i] = bigEndian(uint32(protocols[i])<<16 | uint32(id))
	}
	t.count = len(ids)
	return t
}

// addVLAN makes the outside a VLAN on wan0, or one within another. The cable
// must carry the tags within the frames, where XDP programs look for them.
func (b *bed) addVLAN() error {
	t := tagsOf(b.vlan)
	if t.count == 0 {
		return nil
	}
	for _, feature := range []string{"tx-vlan-hw-insert", "tx-vlan-stag-hw-insert", "rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"} {
		if err := ethtool.Switch(wanName, feature, false); err != nil {
			return err
		}
	}
	s := &b.sides[outsideSide]
	for i := range t.count {
		attrs := netlink.NewLinkAttrs()
		attrs.ParentIndex = s.index
		add := &netlink.Vlan{LinkAttrs: attrs, VlanId: int(b.vlan.Outer), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
		if i == 0 && t.count == 2 {
			add.VlanProtocol = netlink.VLAN_PROTOCOL_8021AD
		}
		if i == 1 {
			add.VlanId = int(b.vlan.Inner)
		}
		add.Name = fmt.Sprintf("%s.%d", s.name, add.VlanId)
		err := netlink.LinkAdd(add)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("add VLAN interface %s: this kernel has none (module 8021q): leave --vlan out: %w", add.Name, err)
		}
		if err != nil {
			return fmt.Errorf("add VLAN interface %s: %w", add.Name, err)
		}
		s.name = add.Name
		if s.index, _, err = setUp(s.name); err != nil {
			return err
		}
	}
	vlan := bpf.GeneratorBenchVlan{Ifindex: uint32(s.index), Tags: int32(t.count), Tag: t.word}
	if err := b.programs.Vlan.Set(vlan); err != nil {
		return fmt.Errorf("tell the redirect by routes the VLAN: %w", err)
	}
	return nil
}
