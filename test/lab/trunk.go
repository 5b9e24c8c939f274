// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Trunk is how a router reaches the switches by one cable, its eth0, inside and
// outside (a router on a stick). The switch's end has the same VLANs, each of which
// is a port of its segment's bridge, so that the hosts and a router without a trunk
// see untagged frames.
type Trunk string

// The trunks. The tags are the segments', the outer one is TrunkOuter.
const (
	TrunkNone   Trunk = ""       // a cable for each segment
	TrunkTagged Trunk = "tagged" // 802.1Q
	TrunkNative Trunk = "native" // 802.1Q, and the WAN without a tag beside the others
	TrunkQinQ   Trunk = "qinq"   // 802.1Q behind one tag of 802.1ad
)

// TrunkOuter is the outer tag of TrunkQinQ.
const TrunkOuter = 100

// ErrNoVLANs is in the chain of New's error when the kernel has no 802.1Q.
var ErrNoVLANs = errors.New("this kernel has no VLANs (module 8021q)")

// trunk is the router's own, TrunkNone when it has a cable for each segment.
func (r *Router) trunk() Trunk {
	if r.lab.Options.TrunkAlone && r.Name != "ra" {
		return TrunkNone
	}
	return r.lab.Options.Trunk
}

// Ifname is the router's interface on a segment: named after it, or, with
// Options.TrunkNames, eth0.2 or eth0.100.2.
func (r *Router) Ifname(s Segment) string {
	if r.trunk() == TrunkNone || !r.lab.Options.TrunkNames {
		return s.Name
	}
	switch {
	case r.trunk() == TrunkQinQ:
		return fmt.Sprintf("eth0.%d.%d", TrunkOuter, s.Tag)
	case r.untagged(s):
		return "eth0"
	}
	return fmt.Sprintf("eth0.%d", s.Tag)
}

// VLAN is the tags of a segment on the router's trunk, as vippin writes them; 0
// stands for none.
func (r *Router) VLAN(s Segment) string {
	switch {
	case r.trunk() == TrunkNone || r.untagged(s):
		return "0"
	case r.trunk() == TrunkQinQ:
		return fmt.Sprintf("%d.%d", TrunkOuter, s.Tag)
	}
	return fmt.Sprint(s.Tag)
}

// untagged says whether a segment goes without a tag on the router's trunk.
func (r *Router) untagged(s Segment) bool { return r.trunk() == TrunkNative && s.Name == WAN.Name }

// Devices are the router's cables of segments: what XDP goes on.
func (r *Router) Devices() []string {
	if r.trunk() != TrunkNone {
		return []string{r.trunkDevice()}
	}
	var names []string
	for _, s := range r.lab.Segments() {
		names = append(names, s.Name)
	}
	return names
}

func (r *Router) trunkDevice() string {
	if r.trunk() == TrunkNative {
		return r.Ifname(WAN)
	}
	return "eth0"
}

// TrunkPort is the switch's end of the router's trunk, in the WAN switch: what is
// captured there has its tags. It is the WAN's port, too, where that has no tag.
func (r *Router) TrunkPort() string {
	if r.trunk() == TrunkNative {
		return r.Name
	}
	return r.Name + "-trunk"
}

// plugTrunk lays the trunk, and makes the VLANs at both ends.
func (r *Router) plugTrunk() error {
	l, bridge := r.lab, ""
	if r.trunk() == TrunkNative {
		_, bridge, _ = l.port(r, WAN)
	}
	mtu := l.mtu() // one tag is free, also for what XDP sends
	if r.trunk() == TrunkQinQ {
		mtu += tagOctets
	}
	if err := r.plugMTU(r.trunkDevice(), l.WANSwitch, bridge, r.TrunkPort(), mtu); err != nil {
		return err
	}
	near, far := r.trunkDevice(), r.TrunkPort()
	if r.trunk() == TrunkQinQ {
		near, far = fmt.Sprintf("%s.%d", near, TrunkOuter), fmt.Sprintf("%s.%d", far, TrunkOuter)
		for _, end := range []struct {
			at          *Node
			under, name string
		}{{r.Node, r.trunkDevice(), near}, {l.WANSwitch, r.TrunkPort(), far}} {
			if err := end.at.addVLAN(end.under, end.name, TrunkOuter, netlink.VLAN_PROTOCOL_8021AD, l.mtu()+tagOctets, end.at); err != nil {
				return err
			}
			if err := end.at.setUp(end.name); err != nil {
				return err
			}
		}
	}
	for _, s := range l.Segments() {
		if err := r.tag(s, near, far); err != nil {
			return err
		}
	}
	return nil
}

// tag makes a segment's VLAN on both ends of the trunk.
func (r *Router) tag(s Segment, near, far string) error {
	if r.untagged(s) {
		return nil
	}
	l := r.lab
	if err := r.addVLAN(near, r.Ifname(s), s.Tag, netlink.VLAN_PROTOCOL_8021Q, l.mtu(), r.Node); err != nil {
		return err
	}
	at, bridge, port := l.port(r, s)
	if err := l.WANSwitch.addVLAN(far, port, s.Tag, netlink.VLAN_PROTOCOL_8021Q, l.mtu(), at); err != nil {
		return err
	}
	return errors.Join(at.enslave(port, bridge), at.setUp(port), r.setUp(r.Ifname(s)))
}

// tagOctets is what a tag adds to a frame.
const tagOctets = 4

// mtu is that of the segments.
func (l *Lab) mtu() int { return cmp.Or(l.Options.MTU, 1500) }

// addVLAN makes an interface for a tag on another one, and moves it to a node that may
// be another than that one's. There it gets its name.
func (n *Node) addVLAN(under, name string, tag uint16, proto netlink.VlanProtocol, mtu int, in *Node) error {
	below, err := n.nl.LinkByName(under)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", under, n.NS, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.MTU = name, below.Attrs().Index, mtu
	if in != n {
		attrs.Name = fmt.Sprintf("v%d-%d", tag, below.Attrs().Index) // the kernel asks that it be free here
	}
	link := &netlink.Vlan{LinkAttrs: attrs, VlanId: int(tag), VlanProtocol: proto}
	if err = n.nl.LinkAdd(link); err == nil && in != n {
		if err = n.nl.LinkSetNsFd(link, int(in.handle)); err == nil {
			err = in.rename(attrs.Name, name)
		}
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("add VLAN %d to %s in %s: %w", tag, under, n.NS, ErrNoVLANs)
	case err != nil:
		return fmt.Errorf("add VLAN %d to %s in %s as %s in %s: %w", tag, under, n.NS, name, in.NS, err)
	}
	return nil
}

// rename renames an interface that is down.
func (n *Node) rename(old, name string) error {
	link, err := n.nl.LinkByName(old)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", old, n.NS, err)
	}
	return n.nl.LinkSetName(link, name)
}

// linksUp sets up what was down of the router's segments, a trunk before its VLANs.
func (r *Router) linksUp() error {
	names := r.Devices()
	for _, s := range r.lab.Segments() {
		names = append(names, r.Ifname(s))
	}
	for _, name := range names {
		if err := r.setUp(name); err != nil {
			return err
		}
	}
	return nil
}

// keepTags has the tags of a trunk stand in the frames, where XDP reads them, instead
// of beside them.
func (r *Router) keepTags(ctx context.Context) error {
	if r.trunk() == TrunkNone {
		return nil
	}
	_, far := r.lab.WANSwitch.Run(ctx, "ethtool", "-K", r.TrunkPort(), "tx-vlan-hw-insert", "off", "tx-vlan-stag-hw-insert", "off")
	_, near := r.Run(ctx, "ethtool", "-K", r.trunkDevice(), "rx-vlan-hw-parse", "off", "rx-vlan-stag-hw-parse", "off")
	return errors.Join(far, near)
}

// outside is the router's outside interfaces as nftables writes them.
func (r *Router) outside() string {
	if r.trunk() == TrunkNone || !r.lab.Options.TrunkNames {
		return `"wan*"` // whatever they are renamed to
	}
	var names []string
	for _, s := range r.lab.Segments() {
		if s.Name != LAN.Name {
			names = append(names, fmt.Sprintf("%q", r.Ifname(s)))
		}
	}
	return "{ " + strings.Join(names, ", ") + " }"
}
